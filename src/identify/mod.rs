//! Whose weights a file holds: known ones, renamed or in another container, or their nearest relative.
//!
//! Names are not evidence, values are. A [`Fingerprint`] is made of a model when it is fetched or registered: for each
//! tensor a hash of its values ([`Unit`] says of what exactly) and a sample of them. [`identify`] takes the same of any
//! checkpoint's float tensors, no mapping needed, and compares: equal hashes say *same*, whatever the tensors are
//! called; where they differ, the samples say how alike the values are.
//!
//! Nobody has published such fingerprints, so none ship: what is known is what was fetched or registered here, and what
//! somebody put into the folder of fingerprints. Nothing is loaded, run or sent anywhere.

mod compare;
mod fingerprint;
mod groups;
mod unit;

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

pub use compare::{Finding, Match, Relation, Sameness};
pub use fingerprint::{Fingerprint, known, of_model, remember};
pub use unit::{SAMPLES, Unit};

use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::hint::Hint;
use crate::model::{CanonicalError, ModelFile};

/// Why a file cannot be compared with what is known.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentifyError {
    /// The file is no checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A known model is not in the common format.
    #[error(transparent)]
    Model(#[from] CanonicalError),
    /// A fingerprint could not be read or written.
    #[error("cannot {action} `{path}`")]
    Io {
        /// What was being done.
        action: &'static str,
        /// The file or folder.
        path: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A fingerprint that is not one.
    #[error("`{path}` is no fingerprint: {reason}")]
    Fingerprint {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// There is nothing to compare.
    #[error("`{path}` holds no float tensors")]
    NoTensors {
        /// The file.
        path: String,
    },
}

impl IdentifyError {
    /// What to do next.
    pub fn hint(&self) -> Option<Hint> {
        match self {
            Self::Checkpoint(error) => error.hint(),
            Self::Model(error) => error.hint(),
            Self::Fingerprint { .. } => Some("remove it; it is made again from its model".into()),
            Self::Io { .. } | Self::NoTensors { .. } => None,
        }
    }
}

/// What a file holds, as far as anybody here knows.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Identified {
    /// Container of the file.
    pub container: String,
    /// Its networks in file order, each with the best match, if there is any.
    pub findings: Vec<Finding>,
}

/// Compares the checkpoint (or model directory) `path` with what is known.
///
/// # Errors
/// [`IdentifyError`] when the file cannot be read or holds no float tensors. That nothing known resembles it is an
/// answer, not an error.
pub fn identify(path: &Path, known: &[Fingerprint]) -> Result<Identified, IdentifyError> {
    let model = path.join(ModelFile::Model.name());
    // Names in the pickle do not matter: nothing is run, and only tensors are looked at.
    let checkpoint = Checkpoint::survey(if model.is_file() { &model } else { path })?.checkpoint;
    let units = units(&checkpoint)?;
    if units.is_empty() {
        return Err(IdentifyError::NoTensors { path: path.display().to_string() });
    }
    let findings = compare::findings(&units, known);
    Ok(Identified { container: checkpoint.container().name().to_owned(), findings })
}

/// The units of every float tensor, in file order, with the tensor's dotted name.
fn units(checkpoint: &Checkpoint) -> Result<Vec<(String, Unit)>, IdentifyError> {
    let entries = checkpoint.tensors();
    let tall: HashSet<usize> = entries.iter().filter_map(|entry| unit::fused(&entry.shape)).collect();
    let found = in_parallel(entries.len(), |index| {
        let entry = &entries[index];
        if !unit::is_float(entry.dtype) {
            return Ok(Vec::new());
        }
        let bytes = checkpoint.bytes(entry)?;
        let name = entry.path.join(".");
        Ok(Unit::all(&bytes, entry.dtype, &entry.shape, &tall).into_iter().map(|unit| (name.clone(), unit)).collect())
    });
    Ok(found.into_iter().collect::<Result<Vec<Vec<_>>, IdentifyError>>()?.into_iter().flatten().collect())
}

/// `each` of `0..count`, on all cores, in order.
fn in_parallel<T: Send>(count: usize, each: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(count);
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(count)));
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        return;
                    }
                    let value = each(index);
                    done.lock().unwrap_or_else(PoisonError::into_inner).push((index, value));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_unstable_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, value)| value).collect()
}
