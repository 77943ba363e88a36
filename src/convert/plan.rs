//! The plan: every key decided, and every fact with who said it, before a byte is copied.

use std::fmt;

use serde::Serialize;

use super::assemble::{Assembly, Piece, Values, assemble, settled};
use super::claims::{Claims, Fate, shown};
use super::detect::{branches, detect};
use super::facts::{Fact, native_grid, resolve};
use super::mapping::{Layout, Mapping};
use super::position::check_position;
use super::problems::shape_text;
use super::{ConvertError, Request};
use crate::checkpoint::Checkpoint;
use crate::model::{Feature, Licence, ModelFile, Preprocessing, VitConfig};

/// A family a checkpoint may be of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Candidate {
    /// The mapping.
    pub family: String,
    /// Branches of the family that are in the file.
    pub branches: Vec<String>,
    /// Whether the family explains the whole file.
    pub fits: bool,
    /// Why, or why not.
    pub reasons: Vec<String>,
}

/// What is done with a tensor of the checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Action {
    /// Copied bit for bit.
    Copy,
    /// Copied bit for bit into a part of a parameter.
    Join,
    /// The first row is added to the class token, the others are copied bit for bit.
    Fold,
    /// The first row, which the model never reads, is left out, the others are copied bit for bit.
    Shorten,
    /// Listed by the mapping as not part of a model.
    Ignore,
    /// Part of a branch that was not chosen.
    OtherBranch,
    /// Beside the weights: optimizer state and the like.
    Beside,
}

/// What is done with one key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// Path in the checkpoint, joined by `/`.
    pub source: String,
    /// What is done.
    pub action: Action,
    /// The parameter it becomes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// The file that parameter is in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<&'static str>,
    /// Element type.
    pub dtype: String,
    /// Shape in the checkpoint.
    pub shape: Vec<usize>,
}

/// A conversion in which every key is decided.
#[derive(Debug, Clone)]
pub struct Plan {
    pub(crate) family: String,
    pub(crate) branch: Option<String>,
    pub(crate) other_branches: Vec<String>,
    pub(crate) vit: VitConfig,
    pub(crate) feature: Feature,
    pub(crate) preprocessing: Preprocessing,
    pub(crate) licence: Licence,
    pub(crate) files: Vec<(ModelFile, Vec<Piece>)>,
    decisions: Vec<Decision>,
    computed: Vec<String>,
    facts: Vec<Fact>,
}

impl Plan {
    /// Decides everything about converting `checkpoint`; reads its headers and its position table.
    ///
    /// # Errors
    /// Everything that stands in the way, of each kind all at once.
    pub fn new(checkpoint: &Checkpoint, request: &Request) -> Result<Self, ConvertError> {
        let mut facts = Vec::new();
        match mapping(checkpoint, request, &mut facts) {
            Ok(mapping) => Self::with(&mapping, checkpoint, request, facts),
            Err(ConvertError::NoFamily { candidates }) => Err(Self::only_complaint(checkpoint, request, candidates)),
            Err(error) => Err(error),
        }
    }

    /// Why no family fits; where only one has an encoder in the file at all, everything that is in its way.
    fn only_complaint(checkpoint: &Checkpoint, request: &Request, candidates: Vec<Candidate>) -> ConvertError {
        if let [only] = candidates.as_slice()
            && let Some(mapping) = Mapping::builtin(&only.family)
            && let Err(error) = Self::with(&mapping, checkpoint, request, Vec::new())
        {
            return error;
        }
        ConvertError::NoFamily { candidates }
    }

    /// Like [`Plan::new`], by a mapping that need not be built in.
    ///
    /// # Errors
    /// As for [`Plan::new`].
    pub fn with_mapping(mapping: &Mapping, checkpoint: &Checkpoint, request: &Request) -> Result<Self, ConvertError> {
        Self::with(mapping, checkpoint, request, vec![Fact::new("family", &mapping.name, "flag")])
    }

    fn with(
        mapping: &Mapping,
        checkpoint: &Checkpoint,
        request: &Request,
        mut facts: Vec<Fact>,
    ) -> Result<Self, ConvertError> {
        let layouts = mapping.fitting_layouts(checkpoint);
        let layout = choose(mapping, checkpoint, &layouts, request, &mut facts)?;
        let claims = mapping.claims(layout, checkpoint);
        let sidecar = request.sidecar_for(mapping);
        let assembly = assemble(mapping, checkpoint, &claims, request.no_final_norm())?;

        let mut unknowns = Vec::new();
        let resolved = resolve(mapping, &assembly, request, &mut facts, &mut unknowns)?;
        let grid = match native_grid(&assembly, request) {
            Err(ConvertError::Unknown { unknowns: more }) => {
                unknowns.extend(more);
                None
            }
            other => Some(other?),
        };
        if !unknowns.is_empty() {
            return Err(ConvertError::Unknown { unknowns });
        }
        let (named, kind) = check_position(mapping, checkpoint, &assembly, grid)??;
        facts.push(Fact::new("position", named, "values"));

        let decisions = decisions(checkpoint, &claims, &assembly.model);
        let Assembly { model, adapters, neck, decoder, mut vit, .. } = assembly;
        if let Some(grid) = grid {
            vit.image_size = grid.map(|side| side * vit.patch_size);
            let [height, width] = vit.image_size;
            facts.push(Fact::new("image_size", format!("{height}x{width}"), "shapes"));
        }
        vit.heads = resolved.heads;
        vit.norm_eps = resolved.norm_eps;
        vit.activation = resolved.activation;
        vit.position.kind = kind;
        vit.validate().map_err(ConvertError::contradiction)?;
        settled(mapping, &model, &vit)?;

        let pooled = !vit.class_token || vit.classifier.is_some_and(|classifier| classifier.fc_norm);
        let licence = match sidecar.and_then(|sidecar| sidecar.licence.clone()) {
            Some(spdx) => Licence { spdx, evidence: "config.json beside the weights".to_owned() },
            None => mapping.licence.clone(),
        };
        let computed = model.iter().filter(|piece| piece.is_computed()).map(|piece| piece.name.clone()).collect();
        let files = [
            (ModelFile::Model, model),
            (ModelFile::Adapters, adapters),
            (ModelFile::Neck, neck),
            (ModelFile::Decoder, decoder),
        ];
        Ok(Self {
            family: mapping.name.clone(),
            branch: layout.branch.clone(),
            other_branches: branches(&layouts)
                .into_iter()
                .filter(|name| Some(name) != layout.branch.as_ref())
                .collect(),
            vit,
            feature: if pooled { Feature::Mean } else { mapping.feature },
            preprocessing: sidecar.and_then(|sidecar| sidecar.preprocessing).unwrap_or(mapping.preprocessing),
            licence,
            files: files.into_iter().filter(|(_, pieces)| !pieces.is_empty()).collect(),
            decisions,
            computed,
            facts,
        })
    }

    /// The family: the mapping's name.
    pub fn family(&self) -> &str {
        &self.family
    }

    /// The branch taken, where the file holds several.
    pub fn branch(&self) -> Option<&str> {
        self.branch.as_deref()
    }

    /// The architecture the tensors and the facts say.
    pub fn vit(&self) -> &VitConfig {
        &self.vit
    }

    /// What is done with each tensor, in the checkpoint's order.
    pub fn decisions(&self) -> &[Decision] {
        &self.decisions
    }

    /// Parameters that are computed rather than copied.
    pub fn computed(&self) -> &[String] {
        &self.computed
    }

    /// What the tensors do not say, and who said it.
    pub fn facts(&self) -> &[Fact] {
        &self.facts
    }

    /// Bytes of tensors the conversion writes.
    pub fn bytes(&self) -> u64 {
        self.files.iter().flat_map(|(_, pieces)| pieces).map(Piece::bytes).sum()
    }

    /// The plan as JSON: `family`, `branch`, `vit`, `facts`, `computed`, `tensors`.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "family": self.family,
            "branch": self.branch,
            "vit": self.vit,
            "facts": self.facts,
            "computed": self.computed,
            "tensors": self.decisions,
        })
    }
}

impl Piece {
    /// Size in bytes; the shape was checked against the architecture's bounds.
    pub(crate) fn bytes(&self) -> u64 {
        self.shape.iter().map(|side| *side as u64).product::<u64>() * (self.dtype.bitsize() as u64) / 8
    }
}

/// The mapping asked for, or the only one that fits.
fn mapping(checkpoint: &Checkpoint, request: &Request, facts: &mut Vec<Fact>) -> Result<Mapping, ConvertError> {
    if let Some(name) = &request.family {
        facts.push(Fact::new("family", name, "flag"));
        return Mapping::builtin(name).ok_or_else(|| unknown_family(name));
    }
    let mut candidates = detect(checkpoint, request.sidecar.as_ref())?;
    let fitting = candidates.iter().filter(|candidate| candidate.fits).count();
    match fitting {
        0 => Err(ConvertError::NoFamily { candidates }),
        1 => {
            let name = candidates.swap_remove(0).family;
            facts.push(Fact::new("family", &name, "structure"));
            Mapping::builtin(&name).ok_or_else(|| unknown_family(&name))
        }
        _ => {
            candidates.truncate(fitting);
            Err(ConvertError::AmbiguousFamily { candidates })
        }
    }
}

fn unknown_family(name: &str) -> ConvertError {
    let known: Vec<String> = Mapping::builtin_names().map(str::to_owned).collect();
    let distance = |candidate: &&String| strsim::osa_distance(name, candidate);
    let near = known.iter().min_by_key(distance).filter(|best| distance(best) <= 2).cloned();
    ConvertError::UnknownFamily { name: name.to_owned(), known, near }
}

/// The layout to convert: the only one, or the branch asked for.
fn choose<'m>(
    mapping: &Mapping,
    checkpoint: &Checkpoint,
    layouts: &[&'m Layout],
    request: &Request,
    facts: &mut Vec<Fact>,
) -> Result<&'m Layout, ConvertError> {
    let family = mapping.name.clone();
    let branches = branches(layouts);
    let matching: Vec<&&Layout> = match &request.branch {
        Some(branch) => layouts.iter().filter(|layout| layout.branch.as_ref() == Some(branch)).collect(),
        None => layouts.iter().collect(),
    };
    match (matching.as_slice(), &request.branch) {
        ([layout], branch) => {
            if let Some(name) = &layout.branch {
                facts.push(Fact::new("branch", name, if branch.is_some() { "flag" } else { "structure" }));
            }
            Ok(layout)
        }
        ([], _) if layouts.is_empty() => {
            let layouts = mapping.layouts.iter().map(Layout::describe).collect();
            Err(ConvertError::NoLayout { family, layouts, top: top(checkpoint) })
        }
        ([], Some(branch)) => Err(ConvertError::NoBranch { family, branch: branch.clone(), branches }),
        _ => Err(ConvertError::NeedsBranch { family, branches }),
    }
}

/// The first names of the top level, for errors.
fn top(checkpoint: &Checkpoint) -> String {
    let mut names: Vec<&str> = Vec::new();
    for entry in checkpoint.tensors() {
        match entry.path.first() {
            Some(name) if !names.contains(&name.as_str()) && names.len() < 6 => names.push(name),
            _ => {}
        }
    }
    if names.is_empty() { "no tensors".to_owned() } else { format!("`{}`", names.join("`, `")) }
}

fn decisions(checkpoint: &Checkpoint, claims: &Claims, model: &[Piece]) -> Vec<Decision> {
    let of = |target: &String| model.iter().find(|piece| piece.name == *target).map(|piece| &piece.values);
    // A row of the table goes into the class token, or nowhere where the model has none.
    let folds = model.iter().any(|piece| matches!(piece.values, Values::Fold { .. }));
    let shortened = |target: &String| matches!(of(target), Some(Values::Tail { .. }));
    let decide = |fate: &Fate| match fate {
        Fate::Model(target) if shortened(target) && !folds => {
            (Action::Shorten, Some(target.clone()), Some(ModelFile::Model))
        }
        Fate::Model(target) if shortened(target) => (Action::Fold, Some(target.clone()), Some(ModelFile::Model)),
        Fate::Model(target) => (Action::Copy, Some(target.clone()), Some(ModelFile::Model)),
        Fate::Adapter(target) => (Action::Copy, Some(target.clone()), Some(ModelFile::Adapters)),
        Fate::Neck(target) => (Action::Copy, Some(target.clone()), Some(ModelFile::Neck)),
        Fate::Concat { to, .. } => (Action::Join, Some(to.clone()), Some(ModelFile::Model)),
        Fate::Decoder(name) => (Action::Copy, Some(name.clone()), Some(ModelFile::Decoder)),
        Fate::OtherBranch => (Action::OtherBranch, None, None),
        Fate::Beside => (Action::Beside, None, None),
        // The last two never reach a plan: they are problems.
        Fate::Ignored | Fate::Unclaimed | Fate::Ambiguous { .. } => (Action::Ignore, None, None),
    };
    checkpoint
        .tensors()
        .iter()
        .zip(&claims.fates)
        .map(|(entry, (_, fate))| {
            let (action, target, file) = decide(fate);
            let (dtype, shape) = (entry.dtype.to_string(), entry.shape.clone());
            Decision { source: shown(entry), action, target, file: file.map(ModelFile::name), dtype, shape }
        })
        .collect()
}

impl fmt::Display for Plan {
    /// The plan as a table: facts, one line for each key that becomes something, and counts of the others.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for fact in &self.facts {
            writeln!(f, "{:<10}  {}  ({})", fact.name, fact.value, fact.origin)?;
        }
        let wide = self.decisions.iter().filter(|d| d.target.is_some()).map(|d| d.source.len()).max().unwrap_or(0);
        for decision in &self.decisions {
            if let (Some(target), Some(file)) = (&decision.target, decision.file) {
                let shape = shape_text(&decision.shape);
                writeln!(f, "{:<wide$}  ->  {file}  {target}  {} {shape}", decision.source, decision.dtype)?;
            }
        }
        for name in &self.computed {
            writeln!(f, "{:<wide$}  ->  {}  {name}", "(computed)", ModelFile::Model.name())?;
        }
        for (action, what) in [
            (Action::Ignore, "ignored by the mapping's list"),
            (Action::OtherBranch, "of another branch"),
            (Action::Beside, "beside the weights (optimizer and the like)"),
        ] {
            match self.decisions.iter().filter(|decision| decision.action == action).count() {
                0 => {}
                count => writeln!(f, "{count} tensors {what}")?,
            }
        }
        Ok(())
    }
}
