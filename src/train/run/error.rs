//! Why a run stopped, or did not start.

use std::path::{Path, PathBuf};

use crate::data::DataError;
use crate::hint::{Command, Hint};
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
    #[error("cannot {action} `{path}`")]
    Io {
        /// `read` or `write`.
        action: &'static str,
        /// The file or folder.
        path: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The destination is taken.
    #[error("`{path}` {why}")]
    Exists {
        /// The folder.
        path: String,
        /// By what.
        why: &'static str,
        /// What to do.
        hint: Hint,
    },
    /// Another process is at it.
    #[error("another process is training in `{path}`")]
    Busy {
        /// The run's folder.
        path: String,
    },
    /// There is nothing to continue.
    #[error("`{path}` holds no run to resume")]
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
    #[error("the recipe's target is the base's, and there is no base")]
    NoBase,
    /// The base's k and τ are not known.
    #[error("nobody published k and τ for this base")]
    NoTecSettings,
    /// The data are less than one update needs.
    #[error("`{data}` has {}; one update needs {batch}", counted(*.images))]
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
        "`optimizer.batch` {batch} is not the same number of micro-batches of {micro_batch} in each of {processes} processes"
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
    #[error("`{path}` was started with another recipe:\n{}", lines(.differences))]
    OtherRecipe {
        /// The run's folder.
        path: String,
        /// What changed.
        differences: Vec<Difference>,
    },
    /// The images are not the ones the run was started with.
    #[error(
        "`{path}` was started with other data: {difference} differ in `{data}`; it was {was} and is {is}\nhint: name the data it was started with; `--allow-other-data` goes on with this"
    )]
    OtherData {
        /// The run's folder.
        path: String,
        /// The images.
        data: String,
        /// What differs: their number, names, sizes or contents.
        difference: &'static str,
        /// Then.
        was: String,
        /// Now.
        is: String,
    },
    /// The base, or the data of another process, are not the ones the run was started with.
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
    #[error("no checkpoint in `{path}` is whole")]
    NoCheckpoint {
        /// The folder.
        path: String,
    },
    /// A loss is not a number. Weights were not changed.
    #[error("{term} is {value} in update {step}, of the images {images}")]
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

/// Whether the disk has no room.
fn is_full(source: &std::io::Error) -> bool {
    use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(source.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

fn counted(images: u64) -> String {
    if images == 1 { "1 image".to_owned() } else { format!("{images} images") }
}

fn lines(differences: &[Difference]) -> String {
    differences.iter().map(|difference| format!("  {difference}")).collect::<Vec<_>>().join("\n")
}

impl RunError {
    /// What to do next.
    pub fn hint(&self) -> Option<Hint> {
        Some(match self {
            Self::Recipe(error) => return error.hint(),
            Self::Model(error) => return error.hint(),
            Self::Step(error) => return error.hint(),
            Self::Distributed(error) => return error.hint(),
            Self::Io { source, .. } if is_full(source) => {
                Hint::new().words("make room, then go on with ").option("resume").words(": the checkpoints are whole")
            }
            Self::Exists { hint, .. } => hint.clone(),
            Self::Busy { .. } => Hint::new().words("wait for it, or give another ").option("out"),
            Self::NoRun { .. } => {
                let pretrain = Command::new("pretrain").set("out", "DIR");
                Hint::new().words("a run is the folder that ").command(pretrain).words(" made")
            }
            Self::NoBase => Hint::new().set("base", "MODEL").words(", or ").set("method.target", "pixels"),
            Self::NoTecSettings => {
                let both = Hint::new().words("choose, and say so: ").set("method.top_k", "15").words(" and ");
                both.set("method.tau", "1.8").words(" are MAE ViT-B's")
            }
            Self::TooFew { images, .. } => Hint::new().set("optimizer.batch", images.to_string()).words(", or less"),
            Self::Shares { .. } => {
                Hint::new().set("optimizer.micro_batch", "N").words(", or another number of processes")
            }
            Self::OtherRecipe { .. } => "continue without these changes, or start a new run".into(),
            Self::OtherData { .. } => {
                let own = Hint::new().words("name the data it was started with; ");
                own.option("allow_other_data").words(" goes on with this")
            }
            Self::NoCheckpoint { .. } => "start a new run".into(),
            Self::NonFinite { dump, .. } => {
                let replay = Command::new("pretrain").set("replay", dump.display().to_string());
                Hint::new().words("no weight was changed; ").command(replay).words(" repeats it")
            }
            _ => return None,
        })
    }

    /// An [`RunError::Io`] for `path`.
    pub(super) fn io<'a>(action: &'static str, path: &'a Path) -> impl Fn(std::io::Error) -> Self + 'a {
        move |source| Self::Io { action, path: path.display().to_string(), source }
    }
}
