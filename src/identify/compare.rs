//! A file's networks against the known models.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;

use serde::Serialize;

use super::groups::{Group, groups};
use super::{Fingerprint, IdentifyError, Unit};
use crate::model::Licence;

/// Share of a model's parameters that must be equal to be told: tables computed by rule, which unrelated models have in
/// common, are under 1 % of any ViT.
const TOLD: f64 = 0.05;
/// Likeness from which weights are relatives. Unrelated ones come to about 0.15, since the best counterpart of each
/// tensor is sought; a tensor and its copy to 1.
const RELATED: f64 = 0.5;
/// Share of a model's matrices that must have a counterpart of their shape before likeness means anything.
const COMPARABLE: f64 = 0.5;
/// Values below which a tensor's samples say too little.
const SMALLEST: u64 = 64;
/// Units of one shape that are compared pair by pair.
const MOST_OF_A_SHAPE: usize = 1024;

/// How a network is related to a known model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Relation {
    /// All of the model's values are there.
    Same,
    /// All the network's values are the model's, which has more.
    PartOf,
    /// Some tensors are the model's, others are not.
    Shares,
    /// No tensor need be equal, but the values are alike.
    Relative,
}

/// In which type equal values are equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sameness {
    /// Value for value.
    Exact,
    /// The file has them rounded to f16.
    Half,
    /// The file has them rounded to bf16.
    Brain,
}

/// One network of a file, and what it is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    /// What its names begin with; empty where the file is one network.
    pub place: String,
    /// Units with values that tell something.
    pub tensors: usize,
    /// Their values.
    pub parameters: u64,
    /// The best match; absent where nothing known resembles it.
    pub is: Option<Match>,
    /// Other models of which the same can be said.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<String>,
}

/// A known model a network resembles.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Match {
    /// Its name.
    pub model: String,
    /// How.
    pub relation: Relation,
    /// In which type equal tensors are equal; absent where none is.
    pub sameness: Option<Sameness>,
    /// Tensors that are equal.
    pub equal: usize,
    /// Tensors the model has.
    pub of: usize,
    /// Share of the model's parameters that are equal.
    pub share: f64,
    /// Mean correlation of the model's matrices with their nearest counterparts, weighted by size, estimated from the
    /// samples; absent where too few have one of their shape.
    pub likeness: Option<f64>,
    /// What that probably means, in words.
    pub reading: String,
    /// Branch of its checkpoint the model was taken from.
    pub branch: Option<String>,
    /// Licence of the model.
    pub licence: Licence,
    /// Models it was trained from.
    pub lineage: Vec<String>,
}

/// The best match of every network of a file, in file order; `ask` says whether to go on.
pub(super) fn findings(
    units: &[(String, Unit)],
    known: &[Fingerprint],
    ask: &mut dyn FnMut() -> ControlFlow<()>,
) -> Result<Vec<Finding>, IdentifyError> {
    let groups = groups(units.iter().map(|(name, _)| name.as_str()));
    let mut findings =
        groups.iter().map(|group| finding(group, units, known, ask)).collect::<Result<Vec<Finding>, _>>()?;
    if groups.len() > 1 && findings.iter().all(|finding| finding.is.as_ref().is_none_or(|is| is.share < 1.0)) {
        // Split in a way no rule foresees, a network would be found in none of the parts.
        let whole = Group { place: String::new(), members: (0..units.len()).collect() };
        let whole = finding(&whole, units, known, ask)?;
        if whole.is.as_ref().is_some_and(|is| is.relation == Relation::Same) {
            return Ok(vec![whole]);
        }
    }
    read_branches(&mut findings, known);
    Ok(findings)
}

fn finding(
    group: &Group,
    units: &[(String, Unit)],
    known: &[Fingerprint],
    ask: &mut dyn FnMut() -> ControlFlow<()>,
) -> Result<Finding, IdentifyError> {
    let members: Vec<&Unit> = group.members.iter().filter_map(|&index| Some(&units.get(index)?.1)).collect();
    let mut matches: Vec<Match> = Vec::new();
    for known in known {
        if ask().is_break() {
            return Err(IdentifyError::Interrupted);
        }
        matches.extend(compare(&members, known));
    }
    // The largest first among those that are there as a whole: a file with a decoder is more than its encoder.
    matches.sort_by(|a, b| {
        let size = |found: &Match| if found.relation == Relation::Same { found.of } else { 0 };
        let likeness = |found: &Match| found.likeness.unwrap_or(0.0);
        (a.relation.cmp(&b.relation))
            .then(size(b).cmp(&size(a)))
            .then(b.share.total_cmp(&a.share))
            .then(likeness(b).total_cmp(&likeness(a)))
            .then(a.model.cmp(&b.model))
    });
    let mut matches = matches.into_iter();
    let is = matches.next();
    let also =
        matches.filter(|other| is.as_ref().is_some_and(|is| is.relation == other.relation && other.share >= 1.0));
    Ok(Finding {
        place: group.place.clone(),
        tensors: members.len(),
        parameters: members.iter().map(|unit| unit.elements()).sum(),
        also: also.map(|other| other.model).collect(),
        is,
    })
}

fn compare(members: &[&Unit], known: &Fingerprint) -> Option<Match> {
    let mut here: HashMap<&str, usize> = HashMap::new();
    let mut rounded: HashMap<&str, (usize, Sameness)> = HashMap::new();
    for unit in members {
        *here.entry(&unit.exact).or_default() += 1;
        // Rounding must not make equal what is not: only values that are no finer count.
        if unit.is_half {
            rounded.entry(&unit.half).or_insert((0, Sameness::Half)).0 += 1;
        }
        if unit.is_brain {
            rounded.entry(&unit.brain).or_insert((0, Sameness::Brain)).0 += 1;
        }
    }
    let (mut equal, mut equal_values, mut all_values, mut sameness) = (0, 0_u64, 0_u64, None);
    for unit in &known.units {
        all_values = all_values.saturating_add(unit.elements());
        let found = match here.get_mut(unit.exact.as_str()).filter(|left| **left > 0) {
            Some(left) => {
                *left -= 1;
                Some(Sameness::Exact)
            }
            None => [&unit.half, &unit.brain].into_iter().find_map(|hash| {
                let (left, sameness) = rounded.get_mut(hash.as_str()).filter(|(left, _)| *left > 0)?;
                *left -= 1;
                Some(*sameness)
            }),
        };
        if found.is_some() {
            equal += 1;
            equal_values = equal_values.saturating_add(unit.elements());
            sameness = sameness.max(found);
        }
    }
    let of = known.units.len();
    let values: u64 = members.iter().map(|unit| unit.elements()).sum();
    let share = equal_values as f64 / all_values.max(1) as f64;
    let likeness = likeness(members, &known.units);
    let matrices = members.iter().filter(|unit| unit.is_matrix()).count();
    let relation = if of > 0 && equal == of {
        Relation::Same
    } else if equal_values == values && matrices >= 2 && share >= TOLD {
        Relation::PartOf
    } else if share >= TOLD {
        Relation::Shares
    } else if likeness.is_some_and(|likeness| likeness >= RELATED) {
        Relation::Relative
    } else {
        return None;
    };
    let reading = match relation {
        Relation::Same if values > equal_values => "all of it, among other tensors".to_owned(),
        Relation::Same => "all of it, and nothing else".to_owned(),
        Relation::PartOf => "a part of it, and nothing else".to_owned(),
        Relation::Shares => "partly: fine-tuned with the rest frozen, or put together from it".to_owned(),
        Relation::Relative => "fine-tuned or trained on from it, or another branch or stage of the same run".to_owned(),
    };
    Some(Match {
        model: known.model.clone(),
        relation,
        sameness,
        equal,
        of,
        share,
        likeness,
        reading,
        branch: known.branch.clone(),
        licence: known.licence.clone(),
        lineage: known.lineage.clone(),
    })
}

/// Mean correlation of the known matrices with distinct counterparts of their shape, by size.
fn likeness(members: &[&Unit], known: &[Unit]) -> Option<f64> {
    let telling = |unit: &&Unit| unit.is_matrix() && unit.elements() >= SMALLEST;
    let mut shapes: BTreeMap<&[usize], [Vec<Vec<f64>>; 2]> = BTreeMap::new();
    let mut all = 0.0;
    for unit in known.iter().filter(telling) {
        all += unit.elements() as f64;
        shapes.entry(&unit.shape).or_default()[0].extend(unit.direction());
    }
    for unit in members.iter().copied().filter(telling) {
        if let Some([_, ours]) = shapes.get_mut(unit.shape.as_slice())
            && ours.len() < MOST_OF_A_SHAPE
        {
            ours.extend(unit.direction());
        }
    }
    let (mut sum, mut compared) = (0.0, 0.0);
    for (shape, [theirs, ours]) in &shapes {
        let theirs = &theirs[..theirs.len().min(MOST_OF_A_SHAPE)];
        let mut pairs: Vec<(f64, usize, usize)> = Vec::new();
        for (i, a) in theirs.iter().enumerate() {
            pairs.extend(ours.iter().enumerate().map(|(j, b)| (a.iter().zip(b).map(|(a, b)| a * b).sum(), i, j)));
        }
        pairs.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
        let size = shape.iter().map(|&side| side as f64).product::<f64>();
        let (mut taken, mut given) = (vec![false; theirs.len()], vec![false; ours.len()]);
        for (correlation, i, j) in pairs {
            if !taken[i] && !given[j] {
                (taken[i], given[j]) = (true, true);
                sum += correlation * size;
                compared += size;
            }
        }
    }
    (all > 0.0 && compared / all >= COMPARABLE).then(|| sum / compared)
}

/// Says which branch a relative probably is, where the file or the known model tells.
fn read_branches(findings: &mut [Finding], known: &[Fingerprint]) {
    let whole: Vec<(String, String)> = findings
        .iter()
        .filter_map(|finding| Some((finding.place.clone(), finding.is.as_ref()?)))
        .filter(|(_, is)| is.relation == Relation::Same)
        .map(|(place, is)| (place, is.model.clone()))
        .collect();
    for finding in findings {
        let Some(is) = finding.is.as_mut().filter(|is| is.relation == Relation::Relative) else { continue };
        let words = |branch: &&String| finding.place.split('.').any(|word| word.starts_with(branch.as_str()));
        let known = known.iter().find(|known| known.model == is.model);
        let branch = known.and_then(|known| known.other_branches.iter().find(words));
        let beside = whole.iter().find(|(_, model)| *model == is.model);
        let own = is.branch.as_deref().unwrap_or("model");
        is.reading = match (branch, beside) {
            (Some(branch), Some((place, _))) => {
                format!("the {branch} of the run whose {own} it is, which lies beside it in `{place}`")
            }
            (Some(branch), None) => format!("probably the {branch} of the run whose {own} it is"),
            (None, Some((place, _))) => {
                format!("another branch or stage of the same run: the model itself lies beside it in `{place}`")
            }
            (None, None) => continue,
        };
    }
}
