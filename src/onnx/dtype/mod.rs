//! Numbers narrower than f32 in a graph: a recorded graph is rewritten for them, so that no operation of the model has to
//! know.

mod calibration;
mod half;
mod int8;

pub use calibration::{Calibration, CalibrationError, Calibrator};

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::ExportError;
use super::event::Listener;
use super::graph::{Graph, Node};
use super::target::Dialect;

/// What a graph's products are computed in, or its weights stored in. Inputs and outputs are f32 (or u8 pixels) in each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// Single precision throughout.
    #[default]
    F32,
    /// Products (Linear, convolution, attention) of f16 by f16. Layer norms, softmax, activations, the residual sum and all
    /// that depends on lengths alone stay f32: there, values as large as trained ViTs have them leave f16 no digits.
    F16,
    /// A Linear's weights in eight bits with one scale for each output channel; what it takes too, where a [`Calibration`] says
    /// the range. The rest is f32.
    Int8,
}

impl Dtype {
    /// As the command line and the metadata have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Int8 => "int8",
        }
    }

    /// Rewrites `graph`, which is f32.
    pub(super) fn apply(
        self,
        graph: &mut Graph<'_>,
        dialect: Dialect,
        calibration: Option<&Calibration>,
        hear: Listener<'_>,
    ) -> Result<(), ExportError> {
        match self {
            Self::F32 => Ok(()),
            Self::F16 => half::apply(graph, hear),
            Self::Int8 => int8::apply(graph, dialect, calibration, hear),
        }
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// The values that depend on the images' contents; those that depend on nothing but their size are not among them.
#[derive(Debug, Default)]
struct Live(HashSet<String>);

impl Live {
    fn of_inputs(graph: &Graph<'_>) -> Self {
        Self(graph.inputs.iter().map(|input| input.name.clone()).collect())
    }

    /// Follows `node`; nodes come in execution order. Whether its outputs are among them.
    fn follow(&mut self, node: &Node) -> bool {
        let live = node.operator != "Shape" && node.inputs.iter().any(|input| self.0.contains(input));
        if live {
            self.0.extend(node.outputs.iter().cloned());
        }
        live
    }

    fn contains(&self, value: &str) -> bool {
        self.0.contains(value)
    }
}

/// Whether a node is a product of matrices.
fn is_product(node: &Node) -> bool {
    matches!(node.operator, "MatMul" | "Gemm" | "Conv" | "Attention")
}
