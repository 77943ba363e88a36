//! The configuration of a model in the common format: everything that decides its numbers and no tensor says.

use serde::{Deserialize, Serialize};

use super::{Neck, RelativePosition, Window};

/// Architecture of a plain ViT encoder.
///
/// Field names in the JSON are timm's where timm has the thing; the rest lives only in the `tec_zoo` section.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VitConfig {
    /// Native image size `[H, W]` in pixels: the size the position table was made for.
    pub image_size: [usize; 2],
    /// Patch side in pixels.
    pub patch_size: usize,
    /// Token width C.
    pub width: usize,
    /// Number of blocks D.
    pub depth: usize,
    /// Attention heads; no tensor's shape reveals it (MoCo v3's ViT-S has 12 where others have 6).
    pub heads: usize,
    /// Hidden width of each block's MLP: what its second Linear reads, so of a [`Mlp::SwiGlu`] the width after the gate.
    pub mlp_width: usize,
    /// The form of each block's MLP.
    #[serde(default, skip_serializing_if = "Mlp::is_plain")]
    pub mlp: Mlp,
    /// Whether each residual branch is scaled per channel before it is added (LayerScale, `ls1.gamma`, `ls2.gamma`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub layer_scale: bool,
    /// Register tokens R between the class token and the patches (DINOv2: 4 or none).
    ///
    /// A model with registers has positions for its patches only: what its authors add to the class token is part of
    /// `cls_token` here, which changes no number and is how timm keeps it (`no_embed_class`).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub registers: usize,
    /// Epsilon of every LayerNorm of the encoder.
    pub norm_eps: f64,
    /// The activation of a plain MLP.
    pub activation: Activation,
    /// Whether the checkpoint holds the final norm (`norm.weight`, `norm.bias`); released TEC files do not.
    pub final_norm: bool,
    /// Position table.
    pub position: PositionConfig,
    /// Whether a class token goes before the patches. Without one the position table has no row for it.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub class_token: bool,
    /// Windows that blocks attend in, where not all of them see the whole image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
    /// Relative positions, when attention has learned some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relative_position: Option<RelativePosition>,
    /// A fine-tuned checkpoint's neck, when it is kept beside the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub neck: Option<Neck>,
    /// A fine-tuned checkpoint's head, when there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classifier: Option<ClassifierConfig>,
    /// TEC's adapters, when they are kept beside the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapters: Option<AdapterConfig>,
    /// The pretraining decoder, when it is kept beside the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decoder: Option<DecoderConfig>,
}

impl VitConfig {
    /// Patches `[rows, columns]` of an image of the native size.
    pub fn grid(&self) -> [usize; 2] {
        [self.image_size[0] / self.patch_size, self.image_size[1] / self.patch_size]
    }

    /// Patches of a native image.
    pub fn patches(&self) -> usize {
        let [rows, columns] = self.grid();
        rows * columns
    }

    /// Those of [`Self::patches`] that random masking leaves, as upstream: `int(L * (1 - mask_ratio))`.
    pub fn visible_patches(&self, mask_ratio: f64) -> usize {
        (self.patches() as f64 * (1.0 - mask_ratio)) as usize
    }

    /// Tokens before the patches: the class token, where there is one, and the registers.
    pub fn prefix_tokens(&self) -> usize {
        usize::from(self.class_token) + self.registers
    }

    /// Tokens of an image of `patches` patches.
    pub fn tokens(&self, patches: usize) -> usize {
        self.prefix_tokens() + patches
    }

    /// Whether the position table begins with a row for the class token.
    pub fn has_class_position(&self) -> bool {
        self.class_token && self.registers == 0
    }

    /// Rows of the position table.
    pub fn position_rows(&self) -> usize {
        self.patches() + usize::from(self.has_class_position())
    }

    /// Width of one attention head.
    pub fn head_width(&self) -> usize {
        self.width / self.heads
    }
}

/// The form of a block's MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mlp {
    /// `fc2(activation(fc1(x)))`.
    #[default]
    Plain,
    /// `fc2(silu(a)·b)`, where `fc1` makes `[a | b]`: DINOv2's ViT-g (`SwiGLUFFNFused`, its `w12` and `w3`).
    SwiGlu,
}

impl Mlp {
    fn is_plain(&self) -> bool {
        *self == Self::Plain
    }

    /// Rows of `fc1`, for a hidden width.
    pub fn fc1_rows(self, width: usize) -> usize {
        match self {
            Self::Plain => width,
            Self::SwiGlu => 2 * width,
        }
    }
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

fn yes() -> bool {
    true
}

fn is_true(value: &bool) -> bool {
    *value
}

/// A plain MLP's nonlinearity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activation {
    /// `x·Φ(x)` with the error function: PyTorch's default `nn.GELU()`, used by every family here.
    GeluErf,
    /// The tanh approximation (`approximate="tanh"`).
    GeluTanh,
}

/// The position table and how it is stretched to another grid.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PositionConfig {
    /// Where the values come from.
    pub kind: PositionKind,
    /// The resampling rule of the model's family.
    pub resample: Resample,
}

/// Where a position table's values come from. The table itself is always copied, never regenerated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum PositionKind {
    /// Fixed two-dimensional sine-cosine table with an all-zero class row.
    SinCos {
        /// Which axis fills the first half of the channels.
        axis_order: AxisOrder,
    },
    /// Trained with the model.
    Learned,
}

/// Which image axis the first half of a sine-cosine table's channels encodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AxisOrder {
    /// `[sin(col) | cos(col) | sin(row) | cos(row)]`: MAE, TEC, I-JEPA.
    ColumnFirst,
    /// `[sin(row) | cos(row) | sin(col) | cos(col)]`: MoCo v3, MMPretrain.
    RowFirst,
}

/// How a position table is resampled; all bicubic with `align_corners=False`, the class row untouched.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "rule", rename_all = "kebab-case")]
pub enum Resample {
    /// `interpolate(size=…)`: MAE, TEC, MoCo v3 fine-tuning, mmseg. Scale = source / target size.
    Size,
    /// `interpolate(scale_factor=(n + offset) / source)`: DINO, iBOT, and DINOv2 without registers, with 0.1; the *scale* enters the kernel,
    /// so values differ from `Size` even where the sizes agree.
    ScaleOffset {
        /// Added to the target size before dividing (0.1 upstream).
        offset: f64,
    },
    /// `interpolate(size=…, antialias=True)`: timm, and DINOv2 with registers.
    SizeAntialias,
}

/// A classification head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassifierConfig {
    /// Outputs of `head`.
    pub classes: usize,
    /// Mean of the patch tokens through `fc_norm` before the head (MAE fine-tuning); otherwise the class token.
    pub fc_norm: bool,
}

/// TEC's conditional adapters (paper section 3.2; `models_tec_vit.py` upstream), kept in `adapters.safetensors`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterConfig {
    /// Number of groups of consecutive blocks.
    pub groups: usize,
    /// Blocks per group (3 upstream).
    pub blocks_per_group: usize,
    /// Hidden width of each group's MLP.
    pub mlp_width: usize,
    /// Epsilon of the two LayerNorms around the groups: `nn.LayerNorm`'s default 1e-5, not the encoder's.
    pub norm_eps: f64,
    /// Hidden width of the input adapter's MLP over the class token, when the checkpoint kept it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_mlp_width: Option<usize>,
}

/// A pretraining decoder kept in `decoder.safetensors` with its upstream names; not part of any forward pass here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecoderConfig {
    /// Token width.
    pub width: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Attention heads (16 in MAE and TEC), when known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heads: Option<usize>,
}

/// Which output downstream users take as *the* feature of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Feature {
    /// Class token after the final norm.
    Cls,
    /// Mean of the patch tokens (after the final norm where there is one).
    Mean,
}

/// Resize filter of the evaluation transform.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Interpolation {
    /// PIL bicubic.
    Bicubic,
    /// PIL bilinear.
    Bilinear,
}

/// Evaluation preprocessing: resize the short side to `crop / crop_pct`, centre crop, `(x/255 - mean) / std`, RGB.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preprocessing {
    /// Per channel, on 0–1 RGB.
    pub mean: [f64; 3],
    /// Per channel, on 0–1 RGB.
    pub std: [f64; 3],
    /// Filter.
    pub interpolation: Interpolation,
    /// Crop side / resized short side (224/256 = 0.875).
    pub crop_pct: f64,
}

impl Preprocessing {
    /// The normalisation of a pixel 0–255 as `[scale, shift]`: x · scale + shift = (x / 255 − mean) / std.
    pub fn affine(&self) -> [[f64; 3]; 2] {
        let scale = self.std.map(|std| 1.0 / (255.0 * std));
        [scale, [0, 1, 2].map(|channel| -self.mean[channel] / self.std[channel])]
    }
}

/// Where the weights come from; enough to find them again and to know what was done to them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// File name (never a path) of the checkpoint.
    pub source_file: String,
    /// Its sha256, lower-case hex.
    pub source_sha256: String,
    /// Its size.
    pub source_bytes: u64,
    /// Container it was in (`torch-zip`, `torch-legacy`, `safetensors`, …).
    pub container: String,
    /// Converter (a file name in `converters/`, without extension).
    pub converter: String,
    /// Branch taken, when the file held several (`teacher`, `student`, `base`, `momentum`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
    /// Branches the same file also held.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub other_branches: Vec<String>,
    /// Tool and version that wrote this.
    pub tool: String,
    /// Base models this one was trained from, nearest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lineage: Vec<String>,
    /// sha256 of the `model.safetensors` of each of them, where it is known; see [`Provenance::base_sha256`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lineage_sha256: Vec<Option<String>>,
    /// Pretrainings this one went on from, nearest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub branched_from: Vec<BranchPoint>,
}

impl Provenance {
    /// sha256 of the weights of the base at `at` in [`Self::lineage`]; `None` where nobody wrote it down.
    pub fn base_sha256(&self, at: usize) -> Option<&str> {
        self.lineage_sha256.get(at)?.as_deref()
    }
}

/// Where a pretraining left another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BranchPoint {
    /// The other one's name.
    pub run: String,
    /// Updates it had made.
    pub step: u64,
    /// Of its checkpoint's numbers, lower-case hex.
    pub sha256: String,
}

/// Licence of the weights, with where that is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Licence {
    /// SPDX identifier, or `unknown`.
    pub spdx: String,
    /// Where it is stated.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub evidence: String,
}

/// The `tec_zoo` section of `config.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Version of this section; readers refuse a newer one.
    pub format: u32,
    /// Family (`mae`, `ibot`, `moco-v3`, `tec`, …).
    pub family: String,
    /// Architecture.
    pub vit: VitConfig,
    /// The output downstream users take.
    pub feature: Feature,
    /// Evaluation preprocessing.
    pub preprocessing: Preprocessing,
    /// Origin.
    pub provenance: Provenance,
    /// Licence.
    pub licence: Licence,
}

impl ModelConfig {
    /// The version this build writes.
    pub const FORMAT: u32 = 1;
}

/// Bounds on what a configuration may ask for: far above any released ViT, far below what could exhaust a machine by
/// arithmetic alone.
pub(super) const MAX_WIDTH: usize = 1 << 16;
const MAX_DEPTH: usize = 1 << 10;
pub(super) const MAX_SIDE: usize = 1 << 14;
const MAX_REGISTERS: usize = 1 << 10;

impl VitConfig {
    /// Checks that the numbers fit together; a hand-edited `config.json` is input like any other.
    ///
    /// # Errors
    /// Says which field is wrong and why.
    pub fn validate(&self) -> Result<(), String> {
        let within = |what: &str, value: usize, most: usize| match value {
            0 => Err(format!("`{what}` is 0")),
            value if value > most => Err(format!("`{what}` is {value}; at most {most} is accepted")),
            _ => Ok(()),
        };
        within("width", self.width, MAX_WIDTH)?;
        within("mlp_width", self.mlp_width, MAX_WIDTH * 8)?;
        within("depth", self.depth, MAX_DEPTH)?;
        within("heads", self.heads, MAX_WIDTH)?;
        within("patch_size", self.patch_size, MAX_SIDE)?;
        if self.registers > MAX_REGISTERS {
            return Err(format!("`registers` is {}; at most {MAX_REGISTERS} are accepted", self.registers));
        }
        for side in self.image_size {
            within("image_size", side, MAX_SIDE)?;
            if side % self.patch_size != 0 {
                return Err(format!("`image_size` {side} is not a multiple of `patch_size` {}", self.patch_size));
            }
        }
        if !self.width.is_multiple_of(self.heads) {
            return Err(format!("`heads` {} does not divide `width` {}", self.heads, self.width));
        }
        if !(self.norm_eps > 0.0 && self.norm_eps < 1.0) {
            return Err(format!("`norm_eps` {} is not a small positive number", self.norm_eps));
        }
        self.validate_attention()?;
        if let Some(neck) = &self.neck {
            neck.validate()?;
        }
        if let Some(classifier) = &self.classifier {
            within("classifier.classes", classifier.classes, 1 << 20)?;
            if !classifier.fc_norm && !self.class_token {
                return Err("`classifier` without `fc_norm` reads a class token, and `class_token` is false".into());
            }
        }
        if let Some(adapters) = &self.adapters {
            within("adapters.groups", adapters.groups, MAX_DEPTH)?;
            within("adapters.blocks_per_group", adapters.blocks_per_group, MAX_DEPTH)?;
            within("adapters.mlp_width", adapters.mlp_width, MAX_WIDTH * 8)?;
            if let Some(hidden) = adapters.input_mlp_width {
                within("adapters.input_mlp_width", hidden, MAX_WIDTH * 8)?;
            }
            if adapters.groups * adapters.blocks_per_group != self.depth {
                return Err(format!(
                    "`adapters` cover {} × {} blocks; the model has {}",
                    adapters.groups, adapters.blocks_per_group, self.depth
                ));
            }
            if !(adapters.norm_eps > 0.0 && adapters.norm_eps < 1.0) {
                return Err(format!("`adapters.norm_eps` {} is not a small positive number", adapters.norm_eps));
            }
        }
        Ok(())
    }
}
