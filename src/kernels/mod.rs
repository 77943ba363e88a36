//! [`Eager`]: the forward passes computed on candle, on the CPU, in f32.
//!
//! The operations are few and coarse, so each is one pass over memory; matrix products are the `gemm` crate's.
//! Whatever has no backward here *refuses* one: a custom operation enters candle's graph with `apply_op`, whose default
//! backward is an error, never with `apply_op…_no_bwd`, which drops the gradient without a word.
//!
//! Shape letters: B batch, T tokens, C width, N heads, d = C / N.

mod attention;
mod eager;
mod gelu;
pub mod gemm;
mod layer_norm;
mod normal;
mod simd;
mod swiglu;

pub use eager::Eager;
pub(crate) use eager::tensor_of;

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
    #[error(
        "images of shape {shape:?} do not fit a model with {patch}-pixel patches\n\
         hint: the shape must be (B, 3, H, W) with H and W multiples of {patch}"
    )]
    Images {
        /// Their shape.
        shape: Vec<usize>,
        /// The model's patch side.
        patch: usize,
    },
    /// The position table does not fit.
    #[error("cannot place the patches: {0}")]
    Position(#[from] PositionError),
    /// An operation was handed shapes it cannot work on.
    #[error("`{operation}` cannot be computed: {source}")]
    Operation {
        /// The operation, with its parameter where it has one.
        operation: String,
        /// candle's reason.
        source: candle_core::Error,
    },
}
