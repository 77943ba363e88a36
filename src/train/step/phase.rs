//! What an update is at: what a listener hears between two blocks, and a report of a stalled run names.

use std::fmt;
use std::ops::ControlFlow;

use super::StepError;

/// What an update is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// Images are being waited for.
    Loading,
    /// The base makes its targets.
    Base {
        /// Block, from 0.
        block: usize,
        /// Blocks in all.
        of: usize,
    },
    /// The student's encoder.
    Student {
        /// Block, from 0.
        block: usize,
        /// Blocks in all.
        of: usize,
    },
    /// The student's decoder, once for each target.
    Decoder {
        /// Block, from 0.
        block: usize,
        /// Blocks in all.
        of: usize,
    },
    /// Losses are computed.
    Losses,
    /// Gradients are computed.
    Backward {
        /// Operations still to be undone.
        left: usize,
    },
    /// Gradients and losses of all processes are added up.
    Reduction,
    /// Weights are moved.
    Optimizer,
    /// The update is written down.
    Recording,
    /// A checkpoint is written.
    Saving,
    /// The trained model is written.
    Finishing,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loading => write!(f, "waiting for images"),
            Self::Base { block, of } => write!(f, "the base's block {} of {of}", block + 1),
            Self::Student { block, of } => write!(f, "the student's block {} of {of}", block + 1),
            Self::Decoder { block, of } => write!(f, "the decoder's block {} of {of}", block + 1),
            Self::Losses => write!(f, "the losses"),
            Self::Backward { left } => write!(f, "the backward pass, {left} operations before its end"),
            Self::Reduction => write!(f, "adding up the gradients of all processes"),
            Self::Optimizer => write!(f, "moving the weights"),
            Self::Recording => write!(f, "writing the update down"),
            Self::Saving => write!(f, "writing a checkpoint"),
            Self::Finishing => write!(f, "writing the trained model"),
        }
    }
}

/// Who hears of every [`Phase`], and may end the update there. It is called on the thread that computes.
pub(super) type Listener<'l> = dyn FnMut(Phase) -> ControlFlow<()> + Send + 'l;

/// Goes on to `phase`, unless the listener ends the update.
pub(super) fn enter(phase: Phase, hear: &mut Listener<'_>) -> Result<(), StepError> {
    match hear(phase) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(StepError::Interrupted),
    }
}
