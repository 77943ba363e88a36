//! Which operators a graph may use: the target's and the operator set's choices, in one place.

use serde::Serialize;

use super::ExportError;
use super::dtype::Dtype;

/// Who will run the graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// Any runtime: LayerNormalization, GELU and attention are spelled out in elementary operators, because tract and
    /// candle-onnx do not have the fused ones in every form.
    #[default]
    Portable,
    /// ONNX Runtime: fused standard operators, no other domain's.
    Ort,
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Portable => "portable",
            Self::Ort => "ort",
        })
    }
}

/// A target at an operator set, in one type of numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Dialect {
    pub(super) target: Target,
    pub(super) opset: u32,
    dtype: Dtype,
}

/// Oldest operator set the graphs can be written in: Split and ReduceMean take their present form there.
const OLDEST: u32 = 13;

impl Dialect {
    /// Resolves the operator set asked for.
    pub(super) fn new(target: Target, opset: Option<u32>, dtype: Dtype) -> Result<Self, ExportError> {
        let (default, newest, beyond) = match target {
            // candle-onnx reads ReduceMean's axes as an attribute only, which 18 abolished.
            Target::Portable => (17, 17, "candle-onnx runs ReduceMean only as it was up to 17"),
            Target::Ort => (23, 23, "no operator of 24 or later is used, and older runtimes would refuse the file"),
        };
        match opset.unwrap_or(default) {
            opset if opset < OLDEST => {
                Err(ExportError::Opset { target, opset, oldest: OLDEST, newest, reason: "Split differs before 13" })
            }
            opset if opset > newest => {
                Err(ExportError::Opset { target, opset, oldest: OLDEST, newest, reason: beyond })
            }
            opset => Ok(Self { target, opset, dtype }),
        }
    }

    /// The format version that came with the operator set: the oldest that readers of it must accept.
    pub(super) fn ir_version(self) -> u64 {
        match self.opset {
            ..=14 => 7,
            15..=18 => 8,
            19..=20 => 9,
            21..=22 => 10,
            _ => 11,
        }
    }

    fn fused(self, since: u32) -> bool {
        self.target == Target::Ort && self.opset >= since
    }

    /// LayerNormalization in one node.
    pub(super) fn fused_layer_norm(self) -> bool {
        self.fused(17)
    }

    /// Gelu in one node.
    pub(super) fn fused_gelu(self) -> bool {
        self.fused(20)
    }

    /// Attention in one node.
    pub(super) fn fused_attention(self) -> bool {
        self.fused(23)
    }

    /// A Linear in one node; not in f16, because tract's Gemm is f32 whatever it is given.
    pub(super) fn fused_linear(self) -> bool {
        self.target == Target::Ort && self.dtype != Dtype::F16
    }

    /// A quantised weight's value in one node.
    pub(super) fn dequantizes(self) -> bool {
        self.target == Target::Ort
    }

    /// ReduceMean takes its axes as an input.
    pub(super) fn reduce_axes_are_an_input(self) -> bool {
        self.opset >= 18
    }

    /// Split must be told its number of outputs.
    pub(super) fn split_counts_outputs(self) -> bool {
        self.opset >= 18
    }
}
