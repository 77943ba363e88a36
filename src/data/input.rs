//! What an `INPUT` argument names.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::formats::{READ_NAMES, has_extension, is_image};
use super::scan::Listener;
use super::walk::Walk;
use crate::destination::DestinationError;
use crate::hint::Hint;

/// Why images could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The input itself could not be read.
    #[error("cannot read `{path}`")]
    Io {
        /// The file or folder.
        path: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The features cannot go where they were meant to.
    #[error(transparent)]
    Destination(#[from] DestinationError),
    /// The features could not be written.
    #[error("cannot write `{path}`")]
    Write {
        /// The file.
        path: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Nothing to do.
    #[error("`{path}` names no images")]
    Empty {
        /// The input.
        path: String,
    },
    /// One image cannot be used.
    #[error("cannot use image `{path}`: {reason}")]
    Image {
        /// The image.
        path: String,
        /// Why not.
        reason: String,
    },
    /// This is nothing to train on.
    #[error("cannot train on `{path}`: {reason}")]
    Source {
        /// The folder, list, pattern or shard.
        path: String,
        /// Why not.
        reason: String,
    },
    /// A folder of both kinds of training data.
    #[error("cannot train on `{path}`: it holds {} and {}", counted(*.images, "image"), counted(*.shards, ".tar shard"))]
    Mixed {
        /// The folder.
        path: String,
        /// Images in it.
        images: u64,
        /// Shards in it.
        shards: u64,
    },
    /// Whoever follows a scan asked it to stop.
    #[error("interrupted; nothing was left half-written")]
    Interrupted,
    /// The training data disappeared while it was in use.
    #[error("the training data in `{path}` is gone")]
    Vanished {
        /// Where it was.
        path: String,
    },
    /// More images and shards are broken than was allowed.
    #[error("{count} images or shards cannot be used, more than the {limit} allowed; the last is `{path}`: {reason}")]
    TooManyBroken {
        /// Different images and shards that could not be used.
        count: usize,
        /// How many were allowed.
        limit: usize,
        /// The one that was too many.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The loader cannot work with these settings.
    #[error("cannot load {what}")]
    Settings {
        /// What was asked for.
        what: String,
    },
    /// The images do not fill one batch.
    #[error("cannot load a batch of {batch} on each of {processes} processes: there are only {}", counted(*.images, "image"))]
    TooFew {
        /// Images of a batch.
        batch: usize,
        /// Processes that share the data.
        processes: u64,
        /// Images there are.
        images: u64,
    },
    /// The position is not within an epoch of these data.
    #[error("cannot load from batch {batch} of an epoch: it has {batches}")]
    Beyond {
        /// The batch to begin with.
        batch: u64,
        /// Batches of an epoch.
        batches: u64,
    },
    /// A worker thread could not be started, or ended early.
    #[error("a loader thread failed: {reason}")]
    Thread {
        /// The system's reason.
        reason: String,
    },
    /// A `.safetensors` input does not hold what it must.
    #[error("cannot take images from `{path}`: {reason}")]
    Tensors {
        /// The file.
        path: String,
        /// Why not.
        reason: String,
    },
}

/// `1 image`, `2 images`.
pub(crate) fn counted(count: u64, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

impl DataError {
    /// What to do next.
    pub fn hint(&self) -> Option<Hint> {
        match self {
            Self::Destination(error) => error.hint(),
            Self::Empty { .. } => {
                let files = "a text file with one path a line, or a .safetensors file";
                Some(format!("an image ({READ_NAMES}), a folder of them, {files}").into())
            }
            Self::Mixed { .. } => Some("name the folder of one or the other".into()),
            Self::Vanished { .. } => Some("is the disk still mounted? A run resumes from its last checkpoint".into()),
            Self::TooFew { .. } => Some("a smaller batch".into()),
            Self::Beyond { .. } => Some("is this still the same data?".into()),
            _ => None,
        }
    }
}

/// An input, resolved to what it holds.
#[derive(Debug)]
pub enum Input {
    /// Image files, in a stable order.
    Images(Vec<PathBuf>),
    /// A safetensors file whose tensor `images` (B, 3, H, W) is already normalised.
    Tensors(PathBuf),
}

impl Input {
    /// Resolves `path`: an image, a folder (searched recursively, sorted by path), a list file, or a safetensors file.
    ///
    /// # Errors
    /// [`DataError::Io`], or [`DataError::Empty`] when nothing is found.
    pub fn resolve(path: &Path) -> Result<Self, DataError> {
        let io = |source| DataError::Io { path: path.display().to_string(), source };
        let metadata = std::fs::metadata(path).map_err(io)?;
        if metadata.is_file() && has_extension(path, &["safetensors"]) {
            return Ok(Self::Tensors(path.to_path_buf()));
        }
        let images = if metadata.is_dir() {
            Walk::below(path, is_image, &mut Listener::new(&mut |_| ControlFlow::Continue(())))?.files
        } else if is_image(path) {
            vec![path.to_path_buf()]
        } else {
            listed(path)?
        };
        if images.is_empty() {
            return Err(DataError::Empty { path: path.display().to_string() });
        }
        Ok(Self::Images(images))
    }
}

/// Paths of a list file, one a line, relative to the list's folder; blank lines and `#` lines do not count.
pub(super) fn listed(path: &Path) -> Result<Vec<PathBuf>, DataError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
            return Err(DataError::Empty { path: path.display().to_string() });
        }
        Err(source) => return Err(DataError::Io { path: path.display().to_string(), source }),
    };
    let folder = path.parent().unwrap_or(Path::new(""));
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    Ok(lines.map(|line| folder.join(line)).collect())
}
