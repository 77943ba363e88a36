//! The learned layers that detectors and segmenters put between a ViT's one scale and the strides 4 to 32 they want,
//! kept in `neck.safetensors`.

use serde::{Deserialize, Serialize};

use super::ParameterSpec;

/// A neck that came with a fine-tuned checkpoint. Its output at stride `4·2^i` of patches of 16 pixels is `p{2 + i}`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Neck {
    /// mmsegmentation's `Feature2Pyramid` and iBOT's `fpn1` to `fpn4`, on four levels: ×4 by two transposed convolutions
    /// with BatchNorm and GELU between, ×2 by one, the level as it is, and its 2×2 maximum. As wide as the encoder.
    FeaturePyramid {
        /// The BatchNorm's epsilon.
        norm_eps: f64,
    },
    /// ViTDet's `SimpleFeaturePyramid`, on the last map alone: scaled as above (LayerNorm for BatchNorm, C / 2 channels
    /// at ×2 and C / 4 at ×4), then a 1×1 and a 3×3 convolution, each with LayerNorm over the channels; `p6` is every
    /// second place of `p5`.
    SimplePyramid {
        /// Channels of every output.
        width: usize,
        /// The LayerNorms' epsilon.
        norm_eps: f64,
    },
}

/// Outputs of a neck that hold learned layers.
pub(super) const SCALES: [usize; 4] = [2, 3, 4, 5];

impl Neck {
    pub(super) fn validate(&self) -> Result<(), String> {
        let (Self::FeaturePyramid { norm_eps } | Self::SimplePyramid { norm_eps, .. }) = *self;
        if !(norm_eps > 0.0 && norm_eps < 1.0) {
            return Err(format!("`neck.norm_eps` {norm_eps} is not a small positive number"));
        }
        match self {
            Self::SimplePyramid { width, .. } if *width == 0 || *width > super::config::MAX_WIDTH => {
                Err(format!("`neck.width` is {width}"))
            }
            _ => Ok(()),
        }
    }
}

/// The parameters of `neck.safetensors`, in file order, for an encoder of width `c`. A transposed convolution's weight is
/// (in, out, 2, 2), as PyTorch has it.
pub fn neck_parameters(neck: &Neck, c: usize) -> Vec<ParameterSpec> {
    let mut out = Vec::new();
    let mut add = |name: String, shape: &[usize]| out.push(ParameterSpec { name, shape: shape.to_vec() });
    let mut up = |name: &str, from: usize, to: usize| {
        add(format!("neck.{name}.weight"), &[from, to, 2, 2]);
        add(format!("neck.{name}.bias"), &[to]);
    };
    match *neck {
        Neck::FeaturePyramid { .. } => {
            up("p2.up1", c, c);
            up("p2.up2", c, c);
            up("p3.up1", c, c);
            for leaf in ["weight", "bias", "running_mean", "running_var"] {
                add(format!("neck.p2.norm.{leaf}"), &[c]);
            }
        }
        Neck::SimplePyramid { width, .. } => {
            up("p2.up1", c, c / 2);
            up("p2.up2", c / 2, c / 4);
            up("p3.up1", c, c / 2);
            for leaf in ["weight", "bias"] {
                add(format!("neck.p2.norm.{leaf}"), &[c / 2]);
            }
            for scale in SCALES {
                let wide = match scale {
                    2 => c / 4,
                    3 => c / 2,
                    _ => c,
                };
                add(format!("neck.p{scale}.lateral.weight"), &[width, wide, 1, 1]);
                add(format!("neck.p{scale}.output.weight"), &[width, width, 3, 3]);
                for norm in ["lateral_norm", "output_norm"] {
                    add(format!("neck.p{scale}.{norm}.weight"), &[width]);
                    add(format!("neck.p{scale}.{norm}.bias"), &[width]);
                }
            }
        }
    }
    out
}
