//! The known ways to load a model wrong, each with the sentence a user reads.

use serde::Serialize;

use crate::hint::Hint;
use crate::model::{Activation, Resample};

/// How a position table's axes are wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PositionAxes {
    /// Rows and columns of the grid are exchanged.
    GridTransposed,
    /// The halves of the channels are exchanged.
    HalvesSwapped,
}

/// A precision that weights have been through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// bfloat16: 8 bits of significand.
    Bf16,
    /// IEEE half: 11 bits.
    F16,
}

impl Precision {
    fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        }
    }
}

/// Why a model's numbers are not the record's.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Cause {
    /// Another head count fits.
    Heads {
        /// In config.json.
        configured: usize,
        /// What fits.
        fits: usize,
    },
    /// Another LayerNorm epsilon fits.
    NormEps {
        /// In config.json.
        configured: f64,
        /// What fits.
        fits: f64,
        /// It is the encoder adapter's, not the encoder's.
        adapters: bool,
    },
    /// Another activation fits.
    Activation {
        /// In config.json.
        configured: Activation,
        /// What fits.
        fits: Activation,
    },
    /// The thirds of the fused qkv are in another order.
    QkvOrder {
        /// What the thirds hold, such as `k,q,v`; it should be `q,k,v`.
        holds: String,
    },
    /// The halves of a SwiGLU's first Linear are exchanged.
    GateOrder,
    /// The model's LayerScale holds initial values.
    LayerScaleLost,
    /// The position table is laid out for the other axis order.
    PositionAxes {
        /// In what way.
        how: PositionAxes,
    },
    /// Another resampling rule fits.
    PositionResample {
        /// In config.json.
        configured: Resample,
        /// What fits.
        fits: Resample,
    },
    /// The class token is the one from before TEC's input adapter.
    ClassTokenNotMerged,
    /// The encoder has a final norm that the model lacks.
    FinalNormMissing,
    /// The model's final norm holds initial values, all ones and zeros.
    FinalNormLost,
    /// Weights were rounded.
    Precision {
        /// To what.
        stored: Precision,
    },
    /// The weights are another branch's.
    Branch {
        /// The branch that was converted, where the model knows.
        taken: Option<String>,
        /// The branches, or other models, that would fit: one where it was replayed.
        fits: Vec<String>,
    },
    /// Each stage alone is within the tolerance; together their rounding errors are not.
    Rounding,
    /// Nothing known explains it: these are other weights.
    DifferentWeights,
}

impl Cause {
    /// What is wrong, as a clause without full stop.
    pub fn sentence(&self) -> String {
        match self {
            Self::Heads { configured, fits } => {
                format!("the model is read with {configured} attention heads; the record was made with {fits}")
            }
            Self::NormEps { configured, fits, adapters } => {
                let whose = if *adapters { "the encoder adapter's" } else { "the encoder's" };
                format!("{whose} LayerNorms run with eps {configured:e}; the record was made with {fits:e}")
            }
            Self::Activation { configured, fits } => {
                let (configured, fits) = (activation(*configured), activation(*fits));
                format!("the MLPs run {configured}; the record was made with {fits}")
            }
            Self::QkvOrder { holds } => {
                format!("the thirds of `attn.qkv` hold {holds}; the common order is q,k,v")
            }
            Self::GateOrder => {
                "the halves of `mlp.fc1` hold value and gate; the common order is gate, then value".into()
            }
            Self::LayerScaleLost => {
                "this block's LayerScale (`ls1.gamma`, `ls2.gamma`) is one number throughout: its trained values were lost"
                    .into()
            }
            Self::PositionAxes { how: PositionAxes::GridTransposed } => {
                "the position table is transposed: its rows are the grid's columns".into()
            }
            Self::PositionAxes { how: PositionAxes::HalvesSwapped } => {
                "the halves of the position table's channels are swapped: it encodes columns where the encoder has rows"
                    .into()
            }
            Self::PositionResample { configured, fits } => {
                let (configured, fits) = (resample(*configured), resample(*fits));
                format!("the position table is resampled by `{configured}`; the record was made with `{fits}`")
            }
            Self::ClassTokenNotMerged => {
                "the class token is the one from before TEC's input adapter; the encoder expects it merged".into()
            }
            Self::FinalNormMissing => {
                "the model has no final norm (`norm.weight`, `norm.bias`); the record was made with one".into()
            }
            Self::FinalNormLost => {
                "the model's final norm holds only ones and zeros: its trained values were lost".into()
            }
            Self::Precision { stored } => {
                let name = stored.name();
                format!("every weight is a {name} number: the weights went through {name} and lost precision")
            }
            Self::Branch { taken, fits } => {
                let fits = fits.join("` or `");
                match taken {
                    Some(taken) => {
                        format!("the weights are the branch `{taken}`; the record looks like `{fits}` of the same file")
                    }
                    None => format!("these are other weights; the record is of `{fits}`"),
                }
            }
            Self::Rounding => {
                "from the record's own input this stage is within the tolerance: rounding errors add up over the pass"
                    .into()
            }
            Self::DifferentWeights => "no known mistake explains it: these are other weights than the record's".into(),
        }
    }

    /// What to do about it.
    pub fn action(&self) -> Hint {
        match self {
            Self::Heads { fits, .. } => Hint::new().words("convert again with ").set("heads", fits.to_string()),
            Self::NormEps { fits, adapters: false, .. } => {
                Hint::new().words("convert again with ").set("norm_eps", format!("{fits:e}"))
            }
            Self::NormEps { fits, adapters: true, .. } => {
                format!("set `adapters.norm_eps` in config.json to {fits:e}").into()
            }
            Self::Activation { fits, .. } => {
                let value = match fits {
                    Activation::GeluErf => "gelu-erf",
                    Activation::GeluTanh => "gelu-tanh",
                };
                format!("set `activation` in config.json to `{value}`").into()
            }
            Self::QkvOrder { .. } => {
                "convert again from the original checkpoint with a mapping that concatenates q, k and v in this order"
                    .into()
            }
            Self::GateOrder => {
                "convert again from the original checkpoint with a mapping that puts the gate (the half under silu) first"
                    .into()
            }
            Self::LayerScaleLost => {
                "convert again from a checkpoint that holds `ls1.gamma` and `ls2.gamma`; loading with strict=False leaves \
                 them at their initial value"
                    .into()
            }
            Self::PositionAxes { .. } => {
                "convert again from the original checkpoint: a position table is copied, never regenerated".into()
            }
            Self::PositionResample { fits, .. } => {
                format!("set `position.resample` in config.json to the rule `{}`", resample(*fits)).into()
            }
            Self::ClassTokenNotMerged => {
                let again = Hint::new().words("convert the pretraining checkpoint again with ");
                again.set("family", "tec").words(", which merges it")
            }
            Self::FinalNormMissing => {
                "convert from the pretraining checkpoint, which holds the norm; released TEC files lost it, and their \
                 features are the raw last block's"
                    .into()
            }
            Self::FinalNormLost => {
                "convert again from a checkpoint that holds `norm.*`; loading with strict=False leaves it at its \
                 initial values"
                    .into()
            }
            Self::Precision { .. } => "convert again from the original f32 checkpoint".into(),
            Self::Branch { fits, taken: Some(_) } => match fits.as_slice() {
                [one] => Hint::new().words("convert again with ").set("branch", one.clone()),
                _ => {
                    let another = Hint::new().words("convert again with another ").option("branch");
                    another.words(format!(": {}", fits.join(", ")))
                }
            },
            Self::Branch { taken: None, .. } => "use that model, or a record of this one".into(),
            Self::Rounding => {
                "accept a greater tolerance for this record, such as one made in another precision".into()
            }
            Self::DifferentWeights => {
                "compare the sha256 in config.json's provenance with that of the checkpoint the record was made from"
                    .into()
            }
        }
    }
}

fn activation(activation: Activation) -> &'static str {
    match activation {
        Activation::GeluErf => "the exact (erf) GELU",
        Activation::GeluTanh => "the tanh approximation of GELU",
    }
}

fn resample(rule: Resample) -> String {
    match rule {
        Resample::Size => "size".into(),
        Resample::ScaleOffset { offset } => format!("scale-offset {offset}"),
        Resample::SizeAntialias => "size-antialias".into(),
    }
}

/// A cause, with its evidence.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Diagnosis {
    /// The cause.
    pub cause: Cause,
    /// What is wrong, as a clause.
    pub sentence: String,
    /// What to do about it.
    pub action: Hint,
    /// A replay under this cause gave the record's numbers; otherwise it is what the evidence points to.
    pub proven: bool,
    /// Relative difference of the stage in question as configured, where one was replayed.
    pub as_configured: Option<f64>,
    /// The same under the cause.
    pub as_explained: Option<f64>,
}

impl Diagnosis {
    /// A cause that evidence points to.
    pub(super) fn likely(cause: Cause, as_configured: Option<f64>) -> Self {
        let (sentence, action) = (cause.sentence(), cause.action());
        Self { cause, sentence, action, proven: false, as_configured, as_explained: None }
    }

    /// A cause that a replay confirmed.
    pub(super) fn replayed(cause: Cause, as_configured: f64, as_explained: f64, proven: bool) -> Self {
        Self { proven, as_explained: Some(as_explained), ..Self::likely(cause, Some(as_configured)) }
    }
}
