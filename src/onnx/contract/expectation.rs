//! What a consumer expects: one the program knows, a file of `key = value` lines, or another contract.

use std::path::Path;

use indexmap::IndexMap;
use serde::Deserialize;
use serde_json::Value;

use super::{Contract, ContractError, metadata};

macro_rules! consumers {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../../zoo/consumers/", $name, ".toml")))),*]
    };
}

/// Name and expectations (`zoo/consumers/`) of the consumers the program knows, sorted by name.
pub const CONSUMERS: &[(&str, &str)] =
    consumers!["detectron2-vitdet", "ibot-cascade-mask-rcnn", "ibot-upernet", "mmdet-vitdet", "mmseg-mae-upernet"];

/// Fields that say where a file comes from or how it was made, which no reader of its outputs depends on.
const DESCRIPTIVE: [&str; 10] = [
    "model",
    "family",
    "tool",
    "target",
    "source_file",
    "branch",
    "converter",
    "licence_evidence",
    "native_image_size",
    "crop_pct",
];

/// What is wanted of one field.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub(super) enum Expected {
    /// Any of these.
    Any(AnyOf),
    /// By the model's depth; nothing for other depths.
    ByDepth(ByDepth),
    /// This.
    One(Value),
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AnyOf {
    any: Vec<Value>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ByDepth {
    by_depth: IndexMap<String, Value>,
}

impl Expected {
    /// Every value that would do for a model of `depth` blocks.
    pub(super) fn choices(&self, depth: Option<u64>) -> Vec<&Value> {
        match self {
            Self::One(value) => vec![value],
            Self::Any(AnyOf { any }) => any.iter().collect(),
            Self::ByDepth(ByDepth { by_depth }) => {
                depth.and_then(|depth| by_depth.get(&depth.to_string())).into_iter().collect()
            }
        }
    }
}

/// Fields and what they have to be.
#[derive(Debug, Clone, PartialEq)]
pub struct Expectation {
    /// Whose.
    pub of: String,
    facts: IndexMap<String, Expected>,
}

/// A file of `zoo/consumers/`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Consumer {
    #[expect(dead_code, reason = "for readers of the file")]
    about: String,
    #[expect(dead_code, reason = "for readers of the file")]
    source: String,
    expects: IndexMap<String, Expected>,
}

impl Expectation {
    /// What the consumer `name` expects; `None` where the program does not know it.
    ///
    /// # Errors
    /// [`ContractError::Expectation`] when its file is wrong.
    pub fn of_consumer(name: &str) -> Option<Result<Self, ContractError>> {
        let (_, text) = CONSUMERS.iter().find(|(known, _)| *known == name)?;
        let consumer: Result<Consumer, _> = toml::from_str(text);
        Some(match consumer {
            Ok(consumer) => Self::new(name, consumer.expects),
            Err(error) => Err(invalid(name, error.to_string())),
        })
    }

    /// What the file `path` lists, as TOML, or as JSON where its name ends so.
    ///
    /// # Errors
    /// [`ContractError::Expectation`].
    pub fn of_file(path: &Path) -> Result<Self, ContractError> {
        /// Longer lists are none.
        const MOST: u64 = 1 << 20;
        let shown = path.display().to_string();
        let read = || -> std::io::Result<String> {
            if std::fs::metadata(path)?.len() > MOST {
                return Err(std::io::Error::other("it is larger than 1 MiB"));
            }
            std::fs::read_to_string(path)
        };
        let text = read().map_err(|error| invalid(&shown, error.to_string()))?;
        let facts = match path.extension().is_some_and(|extension| extension == "json") {
            true => serde_json::from_str(&text).map_err(|error| error.to_string()),
            false => toml::from_str(&text).map_err(|error| error.to_string()),
        };
        Self::new(&shown, facts.map_err(|reason| invalid(&shown, reason))?)
    }

    /// That everything is as in `other`, but for what only says where it comes from.
    pub fn of_contract(other: &Contract) -> Self {
        let compared = other.facts.iter().filter(|(field, _)| !DESCRIPTIVE.contains(&field.as_str()));
        let facts = compared.map(|(field, value)| (field.clone(), Expected::One(value.clone())));
        Self { of: other.of.clone(), facts: facts.collect() }
    }

    fn new(of: &str, mut facts: IndexMap<String, Expected>) -> Result<Self, ContractError> {
        let known = |field: &str| ["inputs", "outputs"].contains(&field) || metadata::KEYS.contains(&field);
        if let Some(field) = facts.keys().find(|field| !known(field)) {
            let nearest = metadata::KEYS
                .iter()
                .max_by(|a, b| strsim::jaro_winkler(a, field).total_cmp(&strsim::jaro_winkler(b, field)));
            let nearest = nearest.map_or_else(String::new, |nearest| format!("; did you mean `{nearest}`?"));
            return Err(invalid(of, format!("no contract has a field `{field}`{nearest}")));
        }
        if facts.is_empty() {
            return Err(invalid(of, "it expects nothing".to_owned()));
        }
        // In a contract's order, since that of a TOML table is not kept.
        facts.sort_by_cached_key(|field, _| metadata::KEYS.iter().position(|key| key == field));
        Ok(Self { of: of.to_owned(), facts })
    }

    pub(super) fn facts(&self) -> impl Iterator<Item = (&str, &Expected)> {
        self.facts.iter().map(|(field, expected)| (field.as_str(), expected))
    }
}

fn invalid(path: &str, reason: String) -> ContractError {
    ContractError::Expectation { path: path.to_owned(), reason }
}
