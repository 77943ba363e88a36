//! What the student predicts and through what: TEC's method as settings, each ablation of the paper's Table 6 among them.

use serde::{Deserialize, Serialize};

/// The method's settings, a section of every recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Method {
    /// What is predicted (Table 6a).
    pub target: Target,
    /// How the feature target is normalised (Table 6c).
    pub normalise: Normalise,
    /// The feature target is the mean of the raw outputs of the base's last so many blocks (2 upstream).
    pub last_blocks: usize,
    /// Which rows of the base's attention are predicted (Table 6f).
    pub attention_rows: AttentionRows,
    /// k: patches whose rows are predicted with `selected`; the base's manifest says when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_k: Option<usize>,
    /// τ: temperature of the attention target; the base's manifest says when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tau: Option<f64>,
    /// Pixel targets are normalised patch by patch (MAE's `norm_pix_loss`).
    pub norm_pix: bool,
    /// Which adapters condition the student (Table 6b).
    pub adapters: ConditionalAdapters,
    /// Consecutive blocks fused by one group of the encoder adapter (3 upstream).
    pub blocks_per_group: usize,
    /// Where the student's encoder starts from (Table 6d).
    pub initialise: Initialise,
    /// Share of the patches hidden from the student.
    pub mask_ratio: f64,
    /// The decoder all targets share.
    pub decoder: DecoderShape,
}

/// What the student predicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// The base's features.
    Feature,
    /// The base's attention.
    Attention,
    /// Both, with weights 1 and 1.
    FeatureAndAttention,
    /// The image itself, as MAE does: needs no base.
    Pixels,
}

/// Axis over which the feature target is brought to zero mean and unit variance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Normalise {
    /// The feature as it is.
    None,
    /// Each token over its channels.
    Channel,
    /// Each channel over the patches (section 2.3).
    Patch,
}

/// Query rows of the attention target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttentionRows {
    /// The class token's alone.
    Class,
    /// The class token's and those of the k patches it attends to most.
    Selected,
    /// The class token's and every patch's.
    All,
}

/// TEC's conditional adapters (section 2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConditionalAdapters {
    /// None: the decoder sees the normed output of the encoder.
    None,
    /// An MLP over the class token.
    Input,
    /// MLPs over groups of blocks.
    Encoder,
    /// Both.
    InputAndEncoder,
}

/// How the student's encoder is initialised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Initialise {
    /// At random (upstream's choice).
    Random,
    /// With the base's weights, which must be of the student's shape.
    Base,
}

/// Shape of the decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecoderShape {
    /// Token width (512 for ViT-B, 768 for ViT-L).
    pub width: usize,
    /// Blocks, run once for each target (2).
    pub depth: usize,
    /// Attention heads (16).
    pub heads: usize,
}

impl Method {
    /// Whether the class token passes through the input adapter.
    pub fn input_adapter(&self) -> bool {
        matches!(self.adapters, ConditionalAdapters::Input | ConditionalAdapters::InputAndEncoder)
    }

    /// Whether the decoder sees the encoder adapter's output.
    pub fn encoder_adapter(&self) -> bool {
        matches!(self.adapters, ConditionalAdapters::Encoder | ConditionalAdapters::InputAndEncoder)
    }
}
