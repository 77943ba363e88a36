//! The outputs a user can ask for by name.

use std::fmt;
use std::str::FromStr;

use super::{Features, Ops, Vit, VitConfig};

/// One output of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(into = "String")]
pub enum FeatureOutput {
    /// `cls`: the class token of the last output, (B, C).
    Cls,
    /// `mean`: the mean of its patch tokens, (B, C).
    Mean,
    /// `norm`: all tokens after the final norm, (B, 1 + L, C).
    Norm,
    /// `adapted`: TEC's adapted feature Z_e, (B, 1 + L, C).
    Adapted,
    /// `block{i}`: raw output of block i, (B, 1 + L, C).
    Block(usize),
}

impl fmt::Display for FeatureOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cls => f.write_str("cls"),
            Self::Mean => f.write_str("mean"),
            Self::Norm => f.write_str("norm"),
            Self::Adapted => f.write_str("adapted"),
            Self::Block(i) => write!(f, "block{i}"),
        }
    }
}

impl From<FeatureOutput> for String {
    fn from(output: FeatureOutput) -> Self {
        output.to_string()
    }
}

impl FromStr for FeatureOutput {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "cls" => Ok(Self::Cls),
            "mean" => Ok(Self::Mean),
            "norm" => Ok(Self::Norm),
            "adapted" => Ok(Self::Adapted),
            _ => match text.strip_prefix("block").and_then(|index| index.parse().ok()) {
                Some(index) => Ok(Self::Block(index)),
                None => Err(format!("`{text}` is no output; there are cls, mean, norm, adapted and block0, block1, …")),
            },
        }
    }
}

impl FeatureOutput {
    /// Whether a model of this configuration has the output.
    ///
    /// # Errors
    /// Says why it has not.
    pub fn validate(self, config: &VitConfig) -> Result<(), String> {
        match self {
            Self::Cls if !config.class_token => {
                Err("`cls` is not there: the model has no class token; `mean` is the mean of its patches".into())
            }
            Self::Norm if !config.final_norm => Err(
                "`norm` is not there: the checkpoint came without its final norm; the last block is the last output"
                    .into(),
            ),
            Self::Adapted if config.adapters.is_none() => {
                Err("`adapted` is not there: only TEC training checkpoints carry adapters".into())
            }
            Self::Block(i) if i >= config.depth => {
                Err(format!("`block{i}` is not there: the last block is block{}", config.depth - 1))
            }
            _ => Ok(()),
        }
    }

    /// This output of an encoder's features; `None` where it is not there.
    ///
    /// # Errors
    /// Whatever `ops` fails with.
    pub fn of<O: Ops>(
        self,
        vit: &Vit<'_>,
        ops: &mut O,
        features: &Features<O::Value>,
    ) -> Result<Option<O::Value>, O::Error> {
        match self {
            Self::Cls => vit.class_token(ops, features).map(Some),
            Self::Mean => vit.mean(ops, features).map(Some),
            Self::Norm => Ok(features.norm.clone()),
            Self::Adapted => Ok(vit.adapt(ops, features)?.map(|adapted| adapted.adapted)),
            Self::Block(i) => Ok(features.blocks.get(i).cloned()),
        }
    }
}
