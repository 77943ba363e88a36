//! Why a conversion is refused.

use super::plan::Candidate;
use super::{MappingError, Problems};
use crate::checkpoint::CheckpointError;
use crate::destination::DestinationError;
use crate::hint::{Command, Hint};
use crate::model::CanonicalError;

/// A fact that no tensor says, with the field of the [request](super::Request) that supplies it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unknown {
    /// The field, such as `heads`.
    pub option: &'static str,
    /// What stands for its value, such as `N`.
    pub value: &'static str,
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
    #[error("no converter is called `{name}`; there are {}", known.join(", "))]
    UnknownFamily {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: Vec<String>,
        /// The nearest of them.
        near: Option<String>,
    },
    /// No family explains the file.
    #[error("no known family explains this checkpoint{}", reasons(candidates))]
    NoFamily {
        /// What was tried, and why not.
        candidates: Vec<Candidate>,
    },
    /// Several families explain the file.
    #[error("this checkpoint could be of more than one family, and nothing in it says which{}", reasons(candidates))]
    AmbiguousFamily {
        /// The families that fit.
        candidates: Vec<Candidate>,
    },
    /// The file has nothing where the family keeps its tensors.
    #[error("cannot convert as `{family}`: no encoder in {}; the top level has {top}", layouts.join(", "))]
    NoLayout {
        /// The family.
        family: String,
        /// Where it was looked for.
        layouts: Vec<String>,
        /// What the file has at its top level.
        top: String,
    },
    /// The file holds several networks.
    #[error("this `{family}` checkpoint holds {}", .branches.join(" and "))]
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
    #[error("the tensors do not say everything{}", unsaid(unknowns))]
    Unknown {
        /// What is asked for.
        unknowns: Vec<Unknown>,
    },
    /// What was asked for contradicts the tensors or the configuration beside them.
    #[error("{reason}")]
    Contradiction {
        /// What contradicts what.
        reason: String,
        /// What to do, where there is something.
        hint: Option<Hint>,
    },
    /// The position table is not of the family's kind.
    #[error("the position table is not `{family}`'s: expected {expected}, found {found}")]
    Position {
        /// The family.
        family: String,
        /// The family's kind.
        expected: &'static str,
        /// The table's kind.
        found: &'static str,
        /// What that usually means.
        hint: Hint,
    },
    /// The model cannot go where it was meant to.
    #[error(transparent)]
    Destination(#[from] DestinationError),
    /// A layout has no way to say what this model is.
    #[error("`{layout}` cannot express this model: {reason}")]
    Inexpressible {
        /// The layout.
        layout: &'static str,
        /// What it lacks.
        reason: String,
        /// What to do.
        hint: Hint,
    },
    /// Reading or writing failed.
    #[error("cannot {action} `{path}`")]
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

fn unsaid(unknowns: &[Unknown]) -> String {
    unknowns.iter().map(|unknown| format!("\n  {:<10}  {}", unknown.option, unknown.why)).collect()
}

impl ConvertError {
    pub(crate) fn contradiction(reason: impl Into<String>) -> Self {
        Self::Contradiction { reason: reason.into(), hint: None }
    }

    /// What to do next.
    pub fn hint(&self) -> Option<Hint> {
        match self {
            Self::Checkpoint(error) => error.hint(),
            Self::Model(error) => error.hint(),
            Self::Problems(problems) => problems.hint(),
            Self::UnknownFamily { near, .. } => {
                near.as_ref().map(|near| Hint::new().words("did you mean ").set("family", near.clone()).words("?"))
            }
            Self::NoFamily { .. } => {
                let inspect = Hint::new().command(Command::new("inspect").word("FILE")).words(" lists its tensors; ");
                Some(inspect.set("family", "NAME").words(" reports what is in the way in full"))
            }
            Self::AmbiguousFamily { candidates } => {
                let families = candidates.iter().map(|candidate| candidate.family.as_str());
                Some(Hint::new().words("name it: ").one_of("family", families))
            }
            Self::NoLayout { .. } => {
                Some(Hint::new().words("leave out ").option("family").words(" to see which families fit"))
            }
            Self::NeedsBranch { branches, .. } => {
                Some(Hint::new().words("choose one: ").one_of("branch", branches.iter().map(String::as_str)))
            }
            Self::Unknown { unknowns } => {
                let add = |hint: Hint, (index, unknown): (usize, &Unknown)| {
                    hint.words(if index == 0 { "add " } else { " and " }).set(unknown.option, unknown.value)
                };
                Some(unknowns.iter().enumerate().fold(Hint::new(), add))
            }
            Self::Contradiction { hint, .. } => hint.clone(),
            Self::Position { hint, .. } | Self::Inexpressible { hint, .. } => Some(hint.clone()),
            Self::Destination(error) => error.hint(),
            Self::Mapping(_) | Self::NoBranch { .. } | Self::Io { .. } | Self::Interrupted => None,
        }
    }
}
