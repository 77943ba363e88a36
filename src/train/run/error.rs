//! Why a run stopped, or did not start.

use std::path::{Path, PathBuf};

use crate::data::DataError;
use crate::model::CanonicalError;
use crate::train::distributed::DistributedError;
use crate::train::{Difference, RecipeError, StepError};

/// Why a run stopped, or did not start. The newest checkpoint is whole in every case.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The recipe.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// The base or the result is not a model.
    #[error(transparent)]
    Model(#[from] CanonicalError),
    /// The images.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The update.
    #[error(transparent)]
    Step(#[from] StepError),
    /// Reading or writing the run's own files.
    #[error("cannot {action} `{path}`: {source}{}", after(source))]
    Io {
        /// `read` or `write`.
        action: &'static str,
        /// The file or folder.
        path: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The destination is taken.
    #[error("`{path}` {why}\nhint: {hint}")]
    Exists {
        /// The folder.
        path: String,
        /// By what.
        why: &'static str,
        /// What to do.
        hint: &'static str,
    },
    /// Another process is at it.
    #[error("another process is training in `{path}`\nhint: wait for it, or give another --out")]
    Busy {
        /// The run's folder.
        path: String,
    },
    /// There is nothing to continue.
    #[error("`{path}` holds no run to resume\nhint: a run is the folder `tec-zoo pretrain --out` made")]
    NoRun {
        /// The folder.
        path: String,
    },
    /// A file of the run is not what this tool writes.
    #[error("cannot use `{path}`: {reason}")]
    Invalid {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The method needs a base model.
    #[error(
        "the recipe's target is the base's, and there is no base\nhint: `--base MODEL`, or `--set method.target=pixels`"
    )]
    NoBase,
    /// The base's k and τ are not known.
    #[error(
        "nobody published k and τ for this base\nhint: choose, and say so: `--set method.top_k=15 --set method.tau=1.8` are MAE ViT-B's"
    )]
    NoTecSettings,
    /// The data are less than one update needs.
    #[error("`{data}` has {images} images; one update needs {batch}\nhint: `--set optimizer.batch={images}`, or less")]
    TooFew {
        /// The data.
        data: String,
        /// Images in it.
        images: u64,
        /// The recipe's batch.
        batch: usize,
    },
    /// The batch cannot be shared out evenly.
    #[error(
        "`optimizer.batch` {batch} is not the same number of micro-batches of {micro_batch} in each of {processes} processes\nhint: `--set optimizer.micro_batch=…`, or another number of processes"
    )]
    Shares {
        /// The recipe's batch.
        batch: usize,
        /// Images computed at a time.
        micro_batch: usize,
        /// Processes.
        processes: usize,
    },
    /// The other processes.
    #[error(transparent)]
    Distributed(#[from] DistributedError),
    /// The loader has no images for an update, which its settings exclude.
    #[error("the images ended before update {step}")]
    Ended {
        /// Update, from 1.
        step: u64,
    },
    /// The recipe is not the one the run was started with.
    #[error("`{path}` was started with another recipe:\n{}\nhint: continue without these changes, or start a new run", lines(.differences))]
    OtherRecipe {
        /// The run's folder.
        path: String,
        /// What changed.
        differences: Vec<Difference>,
    },
    /// The base or the data are not the ones the run was started with.
    #[error("`{path}` was started with another {what}: it was {was} and is {is}")]
    Other {
        /// The run's folder.
        path: String,
        /// `base` or `data`.
        what: &'static str,
        /// Then.
        was: String,
        /// Now.
        is: String,
    },
    /// No checkpoint can be read.
    #[error("no checkpoint in `{path}` is whole\nhint: start a new run")]
    NoCheckpoint {
        /// The folder.
        path: String,
    },
    /// A loss is not a number. Weights were not changed.
    #[error(
        "{term} is {value} in update {step}, of the images {images}\nhint: no weight was changed; `tec-zoo pretrain --replay {}` repeats it", .dump.display()
    )]
    NonFinite {
        /// Which term.
        term: String,
        /// What it is.
        value: f64,
        /// Update, from 1.
        step: u64,
        /// The batch's images, the first few by name.
        images: String,
        /// Batch, weights and moments.
        dump: PathBuf,
    },
}

/// What to do about a disk without room.
fn after(source: &std::io::Error) -> &'static str {
    use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    match source.kind() {
        StorageFull | QuotaExceeded | FileTooLarge => {
            "\nhint: make room, then go on with --resume: the checkpoints are whole"
        }
        _ => "",
    }
}

fn lines(differences: &[Difference]) -> String {
    differences.iter().map(|difference| format!("  {difference}")).collect::<Vec<_>>().join("\n")
}

impl RunError {
    /// An [`RunError::Io`] for `path`.
    pub(super) fn io<'a>(action: &'static str, path: &'a Path) -> impl Fn(std::io::Error) -> Self + 'a {
        move |source| Self::Io { action, path: path.display().to_string(), source }
    }
}
