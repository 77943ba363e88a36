//! What an exported graph, or a model, promises to whoever reads its outputs; and whether that is what they expect.
//!
//! A backbone with the right weights and the wrong promise loads without a word and costs points: normed levels for raw
//! ones, another mean, prefix tokens that are taken for patches.

mod difference;
mod expectation;
mod reasons;

use std::path::Path;

use indexmap::IndexMap;
use serde::Serialize;
use serde_json::{Value, json};

pub use difference::Difference;
pub use expectation::{CONSUMERS, Expectation};

use super::metadata;
use super::read::{InterfaceInfo, ModelInfo, ReadError};
use crate::hint::{Command, Hint};
use crate::model::Canonical;

/// Why there is no contract.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ContractError {
    /// The file is no ONNX model.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The file says nothing of itself.
    #[error("`{path}` carries no contract: its metadata does not say what its outputs are")]
    Absent {
        /// The file.
        path: String,
    },
    /// What is expected could not be read.
    #[error("`{path}` is no list of expectations: {reason}")]
    Expectation {
        /// The file, or the consumer.
        path: String,
        /// What is wrong.
        reason: String,
    },
}

impl ContractError {
    /// What to do next.
    pub fn hint(&self) -> Option<Hint> {
        match self {
            Self::Read(_) => None,
            Self::Absent { .. } => Some(Hint::new().command(Command::new("export")).words(" writes it")),
            Self::Expectation { .. } => Some("`key = value` lines such as `levels = [3, 5, 7, 11]`".into()),
        }
    }
}

/// What was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    /// An exported graph.
    Graph,
    /// A model in the common format, whose outputs an export has yet to choose.
    Model,
}

/// What something promises, field by field: the metadata of exported files (`docs/onnx.md`), and their interface.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Contract {
    /// The file or directory.
    pub of: String,
    /// Which of the two it is.
    pub subject: Subject,
    /// Name and value.
    pub facts: IndexMap<String, Value>,
}

/// Fields that are texts even where they look like numbers, as a hash of digits does.
const TEXTS: [&str; 9] =
    ["model", "family", "tool", "source_file", "source_sha256", "branch", "converter", "licence", "licence_evidence"];

impl Contract {
    /// What the graph `path` promises.
    ///
    /// # Errors
    /// [`ContractError::Read`], [`ContractError::Absent`].
    pub fn of_graph(path: &Path) -> Result<Self, ContractError> {
        let info = ModelInfo::open(path)?;
        let of = path.display().to_string();
        if !info.metadata.contains_key("for") || !info.metadata.contains_key("tool") {
            return Err(ContractError::Absent { path: of });
        }
        let mut facts = IndexMap::new();
        facts.insert("inputs".to_owned(), info.inputs.iter().map(interface).collect());
        facts.insert("outputs".to_owned(), info.outputs.iter().map(interface).collect());
        // In the order they were written, which the reader does not keep.
        let mut metadata = info.metadata;
        for key in metadata::KEYS {
            facts.extend(metadata.remove(*key).map(|text| ((*key).to_owned(), value(key, text))));
        }
        facts.extend(metadata.into_iter().map(|(key, text)| (key.clone(), value(&key, text))));
        Ok(Self { of, subject: Subject::Graph, facts })
    }

    /// What every export of `model` promises.
    pub fn of_model(model: &Canonical) -> Self {
        let facts = metadata::of_model(model).into_iter().map(|(key, text)| (key.clone(), value(&key, text)));
        Self { of: model.dir().display().to_string(), subject: Subject::Model, facts: facts.collect() }
    }
}

fn interface(value: &InterfaceInfo) -> Value {
    let element = match value.element {
        1 => "f32".to_owned(),
        2 => "u8".to_owned(),
        10 => "f16".to_owned(),
        other => format!("type {other}"),
    };
    json!({ "name": value.name, "type": element, "shape": value.dims })
}

/// A field's text as the value it is.
fn value(key: &str, text: String) -> Value {
    if TEXTS.contains(&key) {
        return Value::String(text);
    }
    serde_json::from_str(&text).unwrap_or(Value::String(text))
}
