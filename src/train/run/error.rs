//! Why a run stopped, or did not start.

use std::path::{Path, PathBuf};

use crate::data::{DataError, counted};
use crate::destination::DestinationError;
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
    /// The directory for a model is taken.
    #[error(transparent)]
    Destination(#[from] DestinationError),
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
    #[error("`{data}` has {}; one update needs {batch}", counted(*.images, "image"))]
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
    /// More than one of the above; each is to be mended before a run can start.
    #[error("the run cannot start, for {} reasons:\n{}", .problems.len(), listed(.problems))]
    Several {
        /// Why not.
        problems: Vec<RunError>,
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
    #[error("`{path}` was started with other data: {difference} differ in `{data}`; it was {was} and is {is}")]
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
    /// A run that was asked for its model has no checkpoint yet.
    #[error("the run `{path}` has no checkpoint yet")]
    Young {
        /// The run's folder.
        path: String,
    },
    /// A run has no checkpoint of the update asked for.
    #[error("the run `{path}` has no checkpoint of update {step}")]
    NoStep {
        /// The run's folder.
        path: String,
        /// The update.
        step: u64,
        /// Those it has checkpoints of.
        there: Vec<u64>,
    },
    /// A branch would begin at the end of its schedule, or behind it.
    #[error("nothing is left to train: `{parent}` is at epoch {epoch} of {epochs}")]
    NothingLeft {
        /// The run it was to begin from.
        parent: String,
        /// Where it would begin.
        epoch: f64,
        /// Epochs of its schedule.
        epochs: u64,
    },
    /// A branch's student has nothing in common with its parent's.
    #[error("no parameter of `{path}` has the name and the shape of one of this student's")]
    Stranger {
        /// The parent's checkpoint.
        path: String,
    },
    /// The disk has no room for the checkpoints that a run will write.
    #[error(
        "`{path}` has room for {}, and the run needs {}: {checkpoints} checkpoints of {} at a time, and the result",
        size(*.free), size(*.needed), size(*.checkpoint)
    )]
    NoRoom {
        /// The run's folder.
        path: String,
        /// Bytes of a checkpoint.
        checkpoint: u64,
        /// How many more there will be at a time.
        checkpoints: u64,
        /// Bytes needed.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// Writing a model was stopped by the caller.
    #[error("interrupted")]
    Interrupted,
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

fn lines(differences: &[Difference]) -> String {
    differences.iter().map(|difference| format!("  {difference}")).collect::<Vec<_>>().join("\n")
}

/// Bytes as people say them.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["bytes", "kB", "MB", "GB", "TB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        (value, unit) = (value / 1000.0, unit + 1);
    }
    if unit == 0 { format!("{bytes} bytes") } else { format!("{value:.1} {}", UNITS[unit]) }
}

fn listed(problems: &[RunError]) -> String {
    problems.iter().map(|problem| format!("  {problem}")).collect::<Vec<_>>().join("\n")
}

impl RunError {
    /// What to do next.
    pub fn hint(&self) -> Option<Hint> {
        let branch = |from: String| Command::new("pretrain").set("branch_from", from).set("out", "NEW");
        Some(match self {
            Self::Recipe(error) => return error.hint(),
            Self::Model(error) => return error.hint(),
            Self::Data(error) => return error.hint(),
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
            Self::Several { problems } => {
                let hints = problems.iter().filter_map(Self::hint);
                return hints.reduce(|all, next| all.words("; ").and(next));
            }
            Self::Shares { .. } => {
                Hint::new().set("optimizer.micro_batch", "N").words(", or another number of processes")
            }
            Self::OtherData { .. } => {
                let own = Hint::new().words("name the data it was started with; ");
                own.option("allow_other_data").words(" goes on with this")
            }
            Self::NoCheckpoint { .. } => "start a new run".into(),
            Self::Destination(error) => return error.hint(),
            Self::OtherRecipe { path, .. } => Hint::new()
                .words("go on without these changes; ")
                .command(branch(path.clone()))
                .words(" begins a new run from its weights, with them"),
            Self::NonFinite { dump, .. } => {
                let dump = dump.display().to_string();
                Hint::new()
                    .words("no weight was changed; ")
                    .command(Command::new("pretrain").set("replay", dump.clone()))
                    .words(" repeats it; ")
                    .command(branch(dump).set("optimizer.base_lr", "X"))
                    .words(" goes on from there with a lower learning rate, or another setting")
            }
            Self::Other { what: "parent", .. } => Hint::new()
                .words("name the update, as RUN@120; or leave ")
                .option("branch_from")
                .words(" out: a run that goes on knows where it began"),
            Self::Young { .. } => Hint::new()
                .words("it saves after ")
                .option("run.save_steps")
                .words(" updates or ")
                .option("run.save_minutes")
                .words(" minutes, and when it is stopped"),
            Self::NoStep { there, .. } if there.is_empty() => "it has none yet".into(),
            Self::NoStep { there, .. } => {
                let there: Vec<String> = there.iter().map(u64::to_string).collect();
                format!("it has those of updates {}", there.join(", ")).into()
            }
            Self::NothingLeft { epochs, .. } => Hint::new()
                .words("go on to more epochs in all with ")
                .set("optimizer.epochs", (2 * epochs).to_string())
                .words(", or begin the schedule again with ")
                .set("start_epoch", "0"),
            Self::NoRoom { .. } => Hint::new()
                .words("make room or take another disk; or keep fewer: a smaller ")
                .option("run.keep_last")
                .words(", a larger ")
                .option("run.keep_steps")
                .words(" (0 keeps none for good)"),
            _ => return None,
        })
    }

    /// An [`RunError::Io`] for `path`.
    pub(super) fn io<'a>(action: &'static str, path: &'a Path) -> impl Fn(std::io::Error) -> Self + 'a {
        move |source| Self::Io { action, path: path.display().to_string(), source }
    }
}
