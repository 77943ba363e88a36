//! Why an update could not be made.

use super::super::distributed::DistributedError;
use crate::hint::Hint;
use crate::kernels::KernelError;
use crate::model::position::PositionError;

/// Why a step could not be set up or made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StepError {
    /// The method, the base and the student do not fit together.
    #[error("cannot train this student so: {reason}")]
    Setup {
        /// What does not fit, and what would.
        reason: String,
    },
    /// The base is no plain encoder.
    #[error("the base was made for detection or segmentation: it has windows, relative positions or no class token")]
    Base,
    /// The images of a batch do not fit the student.
    #[error("a batch of {images} values and {noise} noise values does not hold {count} images of {height}×{width}")]
    Batch {
        /// Values of the images.
        images: usize,
        /// Values of the noise.
        noise: usize,
        /// Images promised.
        count: usize,
        /// Height the student sees.
        height: usize,
        /// Width the student sees.
        width: usize,
    },
    /// A loss or a gradient is not a number any more; no weight was changed.
    #[error("{term} is {value} in update {step}; no weight was changed")]
    NonFinite {
        /// `the feature loss`, `the gradient of blocks.3.…`, ….
        term: String,
        /// What it is.
        value: f64,
        /// The update, counted from 1.
        step: u64,
    },
    /// The listener ended the update; no weight was changed.
    #[error("the update was interrupted; no weight was changed")]
    Interrupted,
    /// A parameter takes no part in the loss.
    #[error("`{name}` has a gradient of zero in the first update: it would never be trained")]
    NoGradient {
        /// The parameter.
        name: String,
    },
    /// A saved state is not this student's.
    #[error("cannot continue from this state: {reason}")]
    State {
        /// What differs.
        reason: String,
    },
    /// The other processes of the run are gone.
    #[error(transparent)]
    Distributed(#[from] DistributedError),
    /// A pass could not be computed.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The base's patches could not be placed on the student's grid.
    #[error(transparent)]
    Position(#[from] PositionError),
}

impl StepError {
    /// What to do next.
    pub fn hint(&self) -> Option<Hint> {
        match self {
            Self::Base => Some("the checkpoint that its training began with can be a base".into()),
            Self::NonFinite { .. } => Some("a lower learning rate or f32 may help".into()),
            Self::Distributed(error) => error.hint(),
            Self::Kernel(error) => error.hint(),
            _ => None,
        }
    }
}
