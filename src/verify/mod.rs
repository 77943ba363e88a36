//! Replays stored activations through a model, and says what is wrong where they part.
//!
//! A [`Golden`] holds images and what an encoder made of them, stage by stage. [`verify`] runs the model on the images,
//! compares every stage, and on divergence re-runs *only the first stage that diverges* from the golden input of that
//! stage, once for each known way to load a model wrong: the one that makes the numbers come out is the cause.
//! [`make_golden`] records our own pass of a model, so that a directory carries something to replay.
//!
//! ```no_run
//! use std::ops::ControlFlow;
//!
//! use tec_zoo::model::Canonical;
//! use tec_zoo::verify::{Golden, Options, verify};
//!
//! let model = Canonical::open("mocov3-vits".as_ref())?;
//! let golden = Golden::open("mocov3_expected.safetensors".as_ref())?;
//! let report = verify(&model, &golden, &Options::default(), &mut |_| ControlFlow::Continue(()))?;
//! if let Some(diagnosis) = &report.diagnosis {
//!     println!("{}\nhint: {}", diagnosis.sentence, diagnosis.action);
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod cause;
mod compare;
mod diagnose;
mod golden;
mod hypothesis;
mod record;
mod replay;
mod report;
mod weights;

pub use cause::{Cause, Diagnosis, PositionAxes, Precision};
pub use compare::Difference;
pub use golden::{Golden, Origin, Point};
pub use record::make_golden;
pub use report::{Outcome, Report, StageReport};

use std::cell::RefCell;
use std::ops::ControlFlow;

use crate::destination::DestinationError;
use crate::hint::Hint;
use crate::kernels::{KernelError, Pulse};
use crate::model::{Canonical, CanonicalError, VitConfig};

/// Relative difference that f32 arithmetic explains by itself in a small model.
///
/// `max |Δ| / max |reference|`. Against PyTorch, models of 4 blocks stay under 2e-6, ViT-B and ViT-L with random weights
/// under 2.3e-6.
pub const TOLERANCE: f64 = 1e-5;

/// Why nothing could be replayed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// The file cannot be opened.
    #[error(transparent)]
    File(#[from] CanonicalError),
    /// The file is not a record of activations.
    #[error("`{path}` is no record of activations: {reason}")]
    NotGolden {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The record is of a model of another shape.
    #[error("the record's `{tensor}` is {found:?}; this model makes {expected:?}")]
    Misfit {
        /// Tensor of the record.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape it would have for this model.
        expected: Vec<usize>,
    },
    /// The forward pass failed.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The record cannot go where it was meant to.
    #[error(transparent)]
    Destination(#[from] DestinationError),
    /// The record could not be written.
    #[error("cannot write `{path}`")]
    Write {
        /// The file.
        path: String,
        /// The system's reason.
        source: std::io::Error,
    },
}

/// What is being replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A pass comes to this layer.
    Layer {
        /// As its parameters are called.
        name: &'a str,
    },
}

/// Told each event; its `Break` ends the work with [`KernelError::Interrupted`] and nothing half-written.
pub type Listener<'a> = &'a mut dyn FnMut(Event<'_>) -> ControlFlow<()>;

/// A listener that several executors tell.
struct Shared<'h>(RefCell<Listener<'h>>);

impl Pulse for &Shared<'_> {
    fn layer(&mut self, name: &str) -> ControlFlow<()> {
        (self.0.borrow_mut())(Event::Layer { name })
    }
}

impl VerifyError {
    /// What to do next.
    pub fn hint(&self) -> Option<Hint> {
        match self {
            Self::File(error) => error.hint(),
            Self::Kernel(error) => error.hint(),
            Self::Destination(error) => error.hint(),
            Self::Misfit { .. } => Some("the record belongs to a model of another size".into()),
            Self::NotGolden { .. } | Self::Write { .. } => None,
        }
    }
}

/// How to verify.
#[derive(Debug, Default)]
pub struct Options {
    /// Greatest relative difference accepted; [`tolerance_for`] the model where not given.
    pub tolerance: Option<f64>,
    /// Other models the weights might have been meant to be, such as the other branch of the same file: replayed when
    /// no other cause explains a divergence.
    pub alternatives: Vec<(String, Canonical)>,
}

/// The default tolerance for a model.
///
/// Rounding errors of independent blocks add like a random walk at worst, so [`TOLERANCE`] is widened by √(depth / 12)
/// beyond 12 blocks: slack for trained weights, whose outliers random ones lack. Every wrong setting but a minute eps is
/// orders of magnitude above.
pub fn tolerance_for(vit: &VitConfig) -> f64 {
    TOLERANCE * (vit.depth as f64 / 12.0).sqrt().max(1.0)
}

/// Replays `golden` through `model`.
///
/// The report holds when every stage is within the tolerance and no known mistake explains the numbers better than the
/// configuration does; where the model makes no stage of the record, it neither holds nor fails.
///
/// # Errors
/// The record is of a model of another shape, the pass failed, or `hear` ended it. A divergence is a report, not an error.
pub fn verify(
    model: &Canonical,
    golden: &Golden,
    options: &Options,
    hear: Listener<'_>,
) -> Result<Report, VerifyError> {
    let hear = Shared(RefCell::new(hear));
    let tolerance = options.tolerance.unwrap_or_else(|| tolerance_for(&model.config().vit));
    golden.fits(&model.config().vit)?;
    let mut replay = replay::Replay::new(model, golden, &hear);
    let stages = replay.compare(tolerance)?;
    let first = stages.iter().find(|stage| stage.outcome != Outcome::Holds && stage.outcome != Outcome::Skipped);
    let first_diverging = first.map(|stage| stage.stage);
    let diagnosis = diagnose::diagnose(&mut replay, first_diverging, tolerance, &options.alternatives)?;
    Ok(Report {
        holds: match stages.iter().all(|stage| stage.outcome == Outcome::Skipped) {
            true => None,
            false => Some(first_diverging.is_none() && diagnosis.is_none()),
        },
        tolerance,
        origin: golden.origin(),
        first_diverging,
        stages,
        diagnosis,
    })
}
