//! The forward passes computed on candle's tensors: [`Eager`] runs them, [`Tape`] also runs them back.
//!
//! The operations are few and coarse, so each is one pass over memory, forward and backward written side by side in one
//! file. Gradients are [`Tape`]'s, not candle's: a tensor that candle tracks is *refused* by every kernel, since its gradient
//! would be dropped without a word.
//!
//! Results do not depend on the number of threads: sums are taken over fixed pieces, in a fixed order.
//!
//! Shape letters: B batch, T tokens, C width, N heads, d = C / N.

mod adamw;
mod attention;
mod columns;
#[cfg(feature = "cuda")]
mod cuda;
mod device;
mod eager;
mod gelu;
pub mod gemm;
mod layer_norm;
mod layer_scale;
mod linear;
mod losses;
mod maps;
mod normal;
mod parameters;
mod product;
mod relative;
mod row_logits;
mod rows;
mod simd;
mod slices;
mod swiglu;
mod tape;
#[cfg(test)]
mod tests;
mod tokens;

pub use adamw::AdamW;
pub(crate) use adamw::norm;
pub use device::{DeviceError, open_device};
pub(crate) use eager::tensor_of;
pub use eager::{Eager, Pulse, Unattended};
pub(crate) use losses::{Axis, normalise, soft_cross_entropy, squared_error};
pub use parameters::{Parameters, Slot};
pub(crate) use row_logits::RowLogits;
pub(crate) use slices::{sum, to_host};
pub use tape::{Tape, Var};
pub(crate) use tokens::{Restore, hidden_patches, patches};

use crate::hint::Hint;
use crate::model::position::PositionError;

/// Why a forward pass could not be computed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// The model has no such parameter.
    #[error("the model has no parameter `{name}`")]
    MissingParameter {
        /// Its name.
        name: String,
    },
    /// A parameter's bytes cannot be used.
    #[error("cannot use parameter `{name}`: {reason}")]
    Parameter {
        /// Its name.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The images do not fit the model.
    #[error("images of shape {shape:?} do not fit a model with {patch}-pixel patches")]
    Images {
        /// Their shape.
        shape: Vec<usize>,
        /// The model's patch side.
        patch: usize,
    },
    /// The position table does not fit.
    #[error("cannot place the patches")]
    Position(#[from] PositionError),
    /// An operation is computed forwards only.
    #[error("`{operation}` has no gradient here: segmenters and detectors are not trained, only exported")]
    NoGradient {
        /// The operation, or its parameter.
        operation: String,
    },
    /// An operation was handed shapes it cannot work on.
    #[error("`{operation}` cannot be computed")]
    Operation {
        /// The operation, with its parameter where it has one.
        operation: String,
        /// candle's reason.
        source: candle_core::Error,
    },
    /// Whoever attends the pass ended it.
    #[error("interrupted")]
    Interrupted,
}

impl KernelError {
    /// What to do next.
    pub fn hint(&self) -> Option<Hint> {
        match self {
            Self::Images { patch, .. } => {
                Some(format!("the shape must be (B, 3, H, W) with H and W multiples of {patch}").into())
            }
            _ => None,
        }
    }
}
