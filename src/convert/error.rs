//! Why a conversion is refused.

use super::plan::Candidate;
use super::{MappingError, Problems};
use crate::checkpoint::CheckpointError;
use crate::model::CanonicalError;

/// A fact that no tensor says, with the flag that supplies it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unknown {
    /// The flag, such as `--heads`.
    pub flag: &'static str,
    /// What it means and why it is not known.
    pub why: String,
}

/// Why a conversion is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// The checkpoint could not be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A built-in mapping does not parse.
    #[error(transparent)]
    Mapping(#[from] MappingError),
    /// The model directory could not be read.
    #[error(transparent)]
    Model(#[from] CanonicalError),
    /// No mapping has this name.
    #[error("no converter is called `{name}`; there are {}{}", known.join(", "), near.as_ref().map(|near| format!("\nhint: did you mean `--family {near}`?")).unwrap_or_default())]
    UnknownFamily {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: Vec<String>,
        /// The nearest of them.
        near: Option<String>,
    },
    /// No family explains the file.
    #[error(
        "no known family explains this checkpoint{}\nhint: `tec-zoo inspect FILE` lists its tensors; `--family NAME` reports what is in the way in full",
        reasons(candidates)
    )]
    NoFamily {
        /// What was tried, and why not.
        candidates: Vec<Candidate>,
    },
    /// Several families explain the file.
    #[error(
        "this checkpoint could be of more than one family, and nothing in it says which{}\nhint: name it: {}",
        reasons(candidates),
        families(candidates)
    )]
    AmbiguousFamily {
        /// The families that fit.
        candidates: Vec<Candidate>,
    },
    /// The file has nothing where the family keeps its tensors.
    #[error("cannot convert as `{family}`: no encoder in {}; the top level has {top}\nhint: leave out `--family` to see which families fit", layouts.join(", "))]
    NoLayout {
        /// The family.
        family: String,
        /// Where it was looked for.
        layouts: Vec<String>,
        /// What the file has at its top level.
        top: String,
    },
    /// The file holds several networks.
    #[error("this `{family}` checkpoint holds {}\nhint: choose one: {}", .branches.join(" and "), flags("--branch", branches))]
    NeedsBranch {
        /// The family.
        family: String,
        /// The branches in the file.
        branches: Vec<String>,
    },
    /// The branch asked for is not in the file.
    #[error("this `{family}` checkpoint has no branch `{branch}`; {}", if branches.is_empty() { "it holds one network, without branches".to_owned() } else { format!("it has {}", branches.join(", ")) })]
    NoBranch {
        /// The family.
        family: String,
        /// The branch asked for.
        branch: String,
        /// The branches in the file.
        branches: Vec<String>,
    },
    /// Keys and parameters do not match.
    #[error(transparent)]
    Problems(#[from] Box<Problems>),
    /// Facts that must be given.
    #[error("the tensors do not say everything{}\nhint: add {}", unknowns.iter().map(|unknown| format!("\n  {:<13} {}", unknown.flag, unknown.why)).collect::<String>(), unknowns.iter().map(|unknown| unknown.flag).collect::<Vec<_>>().join(" and "))]
    Unknown {
        /// What is asked for.
        unknowns: Vec<Unknown>,
    },
    /// A flag contradicts the tensors or the configuration beside them.
    #[error("{0}")]
    Contradiction(String),
    /// The position table is not of the family's kind.
    #[error("the position table is not `{family}`'s: expected {expected}, found {found}\nhint: {hint}")]
    Position {
        /// The family.
        family: String,
        /// The family's kind.
        expected: &'static str,
        /// The table's kind.
        found: &'static str,
        /// What that usually means.
        hint: &'static str,
    },
    /// The destination is taken.
    #[error("`{path}` exists and {why}\nhint: {hint}")]
    Exists {
        /// The destination.
        path: String,
        /// What it is.
        why: String,
        /// What to do.
        hint: &'static str,
    },
    /// A layout has no way to say what this model is.
    #[error("`{layout}` cannot express this model: {reason}\nhint: {hint}")]
    Inexpressible {
        /// The layout.
        layout: &'static str,
        /// What it lacks.
        reason: String,
        /// What to do.
        hint: &'static str,
    },
    /// Reading or writing failed.
    #[error("cannot {action} `{path}`: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The progress callback asked to stop; nothing was left behind.
    #[error("interrupted; nothing was written")]
    Interrupted,
}

fn reasons(candidates: &[Candidate]) -> String {
    let line = |candidate: &Candidate| format!("\n  {:<9}  {}", candidate.family, candidate.reasons.join("; "));
    candidates.iter().map(line).collect()
}

fn families(candidates: &[Candidate]) -> String {
    let names: Vec<String> = candidates.iter().map(|candidate| candidate.family.clone()).collect();
    flags("--family", &names)
}

fn flags(flag: &str, values: &[String]) -> String {
    values.iter().map(|value| format!("`{flag} {value}`")).collect::<Vec<_>>().join(" or ")
}
