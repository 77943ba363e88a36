//! Everything wrong between a checkpoint and a mapping, collected before anything is reported.

use std::fmt;

use safetensors::Dtype;

use crate::hint::Hint;

/// Lines shown of one kind of problem; the rest is counted.
const SHOWN: usize = 20;
/// Near misses in the advice.
const HINTED: usize = 3;
/// Bounds on the search for near misses, which compares every missing name with every unclaimed one.
const COMPARED: usize = 128;
const LONGEST: usize = 256;
/// Jaro-Winkler similarity from which a name is worth suggesting; below it, unrelated block keys look alike.
const NEAR: f64 = 0.9;

/// A parameter nothing in the file provides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// The parameter.
    pub name: String,
    /// Its shape, where the rest of the file decides it.
    pub shape: Option<Vec<usize>>,
    /// The keys that would provide it.
    pub sources: Vec<String>,
}

/// A key no rule claims.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unclaimed {
    /// The key.
    pub key: String,
    /// Its tensor's shape.
    pub shape: Vec<usize>,
}

/// A tensor of another shape than the architecture has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misshaped {
    /// The parameter.
    pub name: String,
    /// Shape in the file.
    pub found: Vec<usize>,
    /// Shape it must have.
    pub expected: Vec<usize>,
}

/// A key that two rules claim with equal right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ambiguous {
    /// The key.
    pub key: String,
    /// The rules.
    pub rules: [String; 2],
}

/// What is wrong between a checkpoint and a mapping.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Problems {
    /// The mapping.
    pub converter: String,
    /// Parameters without a source.
    pub missing: Vec<Missing>,
    /// Keys without a rule.
    pub unclaimed: Vec<Unclaimed>,
    /// Tensors of a wrong shape.
    pub misshaped: Vec<Misshaped>,
    /// Keys with two rules.
    pub ambiguous: Vec<Ambiguous>,
    /// Parameters with two sources, and the second source.
    pub duplicated: Vec<(String, String)>,
    /// Parameters whose values are no floats.
    pub not_float: Vec<(String, Dtype)>,
    /// Keys whose target the architecture does not have.
    pub unexpected: Vec<Unclaimed>,
    /// Sizes no model has.
    pub absurd: Vec<String>,
}

impl Problems {
    /// Whether there is nothing to report.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty()
            && self.unclaimed.is_empty()
            && self.misshaped.is_empty()
            && self.ambiguous.is_empty()
            && self.duplicated.is_empty()
            && self.not_float.is_empty()
            && self.unexpected.is_empty()
            && self.absurd.is_empty()
    }

    /// Unclaimed keys that look like the source of a missing parameter: `(key, source)`.
    pub fn near_misses(&self) -> Vec<(&str, &str)> {
        let mut found = Vec::new();
        for missing in self.missing.iter().take(COMPARED) {
            for source in &missing.sources {
                let best = self
                    .unclaimed
                    .iter()
                    .take(COMPARED)
                    .filter(|unclaimed| unclaimed.key.len() <= LONGEST)
                    .map(|unclaimed| (similarity(&unclaimed.key, source), unclaimed.key.as_str()))
                    .max_by(|a, b| a.0.total_cmp(&b.0));
                if let Some((score, key)) = best
                    && score >= NEAR
                {
                    found.push((key, source.as_str()));
                }
            }
        }
        found
    }

    /// Which unclaimed keys are probably what is missing.
    pub fn hint(&self) -> Option<Hint> {
        match self.near_misses().as_slice() {
            [] => None,
            [(key, source)] => Some(format!("unclaimed `{key}` is close to `{source}`, which is missing").into()),
            near => {
                let line = |(key, source): &(&str, &str)| format!("\n  `{key}` to `{source}`");
                let lines: String = near.iter().take(HINTED).map(line).collect();
                Some(format!("unclaimed keys are close to what is missing:{lines}").into())
            }
        }
    }

    /// The problems in one line.
    pub fn summary(&self) -> String {
        let mut parts = Vec::new();
        let mut count = |n: usize, one: &str, many: &str| match n {
            0 => {}
            1 => parts.push(format!("1 {one}")),
            n => parts.push(format!("{n} {many}")),
        };
        count(self.missing.len(), "parameter has no source", "parameters have no source");
        count(self.unclaimed.len(), "key is unclaimed", "keys are unclaimed");
        count(self.unexpected.len(), "key has no place in the model", "keys have no place in the model");
        count(self.misshaped.len(), "tensor has another shape", "tensors have another shape");
        count(self.ambiguous.len(), "key has two rules", "keys have two rules");
        count(self.duplicated.len(), "parameter has two sources", "parameters have two sources");
        count(self.not_float.len(), "parameter is no float", "parameters are no floats");
        count(self.absurd.len(), "size is impossible", "sizes are impossible");
        parts.join(", ")
    }
}

/// How alike a key is to the one that was looked for. A file's path and prefixes do not count: the key's endings compete.
fn similarity(key: &str, source: &str) -> f64 {
    if key.ends_with(source) {
        return 1.0;
    }
    let starts = key.match_indices(['.', '/']).map(|(at, _)| at + 1).chain([0]);
    starts
        .map(|at| &key[at..])
        .filter(|ending| ending.len() * 2 >= source.len())
        .map(|ending| strsim::jaro_winkler(ending, source))
        .fold(0.0, f64::max)
}

/// `(48×16)`; a scalar is `()`.
pub(crate) fn shape_text(shape: &[usize]) -> String {
    let sides: Vec<String> = shape.iter().map(usize::to_string).collect();
    format!("({})", sides.join("×"))
}

fn list(f: &mut fmt::Formatter<'_>, what: &str, lines: &[String]) -> fmt::Result {
    for line in lines.iter().take(SHOWN) {
        write!(f, "\n  {what:<9}  {line}")?;
    }
    if lines.len() > SHOWN {
        write!(f, "\n  {what:<9}  … and {} more", lines.len() - SHOWN)?;
    }
    Ok(())
}

impl std::error::Error for Problems {}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot convert as `{}`: {}", self.converter, self.summary())?;
        let lines: Vec<String> = self
            .missing
            .iter()
            .map(|missing| match &missing.shape {
                Some(shape) => format!("{}  {}", missing.name, shape_text(shape)),
                None => missing.name.clone(),
            })
            .collect();
        list(f, "missing", &lines)?;
        let with_shape = |list: &[Unclaimed]| -> Vec<String> {
            list.iter().map(|unclaimed| format!("{}  {}", unclaimed.key, shape_text(&unclaimed.shape))).collect()
        };
        list(f, "unclaimed", &with_shape(&self.unclaimed))?;
        list(f, "no place", &with_shape(&self.unexpected))?;
        let lines: Vec<String> = self
            .misshaped
            .iter()
            .map(|bad| format!("{}  {}, must be {}", bad.name, shape_text(&bad.found), shape_text(&bad.expected)))
            .collect();
        list(f, "shape", &lines)?;
        let lines: Vec<String> = self
            .ambiguous
            .iter()
            .map(|bad| format!("{}  claimed by `{}` and `{}`", bad.key, bad.rules[0], bad.rules[1]))
            .collect();
        list(f, "two rules", &lines)?;
        let lines: Vec<String> =
            self.duplicated.iter().map(|(name, key)| format!("{name}  again from `{key}`")).collect();
        list(f, "twice", &lines)?;
        let lines: Vec<String> = self.not_float.iter().map(|(name, dtype)| format!("{name}  {dtype}")).collect();
        list(f, "no float", &lines)?;
        list(f, "size", &self.absurd)?;
        Ok(())
    }
}
