//! What long work on graphs tells whoever waits for it, and how they end it.

use std::ops::ControlFlow;

use super::runtime::Runtime;

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Weights are written: bytes so far, of so many.
    Writing {
        /// Written.
        bytes: u64,
        /// Of these.
        total: u64,
    },
    /// The eager pass computes what outputs are compared with.
    Reference {
        /// Height and width of the images.
        size: [usize; 2],
    },
    /// That pass comes to this layer.
    Layer {
        /// As its parameters are called.
        name: &'a str,
    },
    /// A runtime loads the graph.
    Opening {
        /// Which.
        runtime: Runtime,
    },
    /// A runtime runs the graph.
    Running {
        /// Which.
        runtime: Runtime,
        /// Height and width of the images.
        size: [usize; 2],
    },
    /// What was begun goes on: the question alone, many times a second, whether it shall.
    Working,
}

/// Told each event; its `Break` ends the work with [`Interrupted`] and nothing half-written.
pub type Listener<'a> = &'a mut dyn FnMut(Event<'_>) -> ControlFlow<()>;

/// The listener ended the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// Tells `hear`; an error where it wants no more.
pub(super) fn tell(hear: Listener<'_>, event: Event<'_>) -> Result<(), Interrupted> {
    match hear(event) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Interrupted),
    }
}
