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
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

pub use compare::{Finding, Match, Relation, Sameness};
pub use fingerprint::{Fingerprint, forget, known, of_model, remember};
pub use unit::{SAMPLES, Unit};

use crate::checkpoint::{Checkpoint, CheckpointError, TensorEntry};
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
    /// The caller said stop; nothing was written.
    #[error("interrupted; nothing was written")]
    Interrupted,
}

/// How often the caller is asked whether to go on.
const TICK: Duration = Duration::from_millis(50);

/// Bytes of tensors looked at so far, and in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Looked at.
    pub done: u64,
    /// To look at.
    pub total: u64,
}

impl IdentifyError {
    /// What to do next.
    pub fn hint(&self) -> Option<Hint> {
        match self {
            Self::Checkpoint(error) => error.hint(),
            Self::Model(error) => error.hint(),
            Self::Fingerprint { .. } => Some("remove it; it is made again from its model".into()),
            Self::Io { .. } | Self::NoTensors { .. } | Self::Interrupted => None,
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
/// [`IdentifyError`] when the file cannot be read or holds no float tensors, or `watch`, which is asked many times a
/// second, answers with [`ControlFlow::Break`]. That nothing known resembles it is an answer, not an error.
pub fn identify(
    path: &Path,
    known: &[Fingerprint],
    watch: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Identified, IdentifyError> {
    let model = path.join(ModelFile::Model.name());
    // Names in the pickle do not matter: nothing is run, and only tensors are looked at.
    let checkpoint = Checkpoint::survey(if model.is_file() { &model } else { path })?.checkpoint;
    let units = units(&checkpoint, watch)?;
    if units.is_empty() {
        return Err(IdentifyError::NoTensors { path: path.display().to_string() });
    }
    let all = checkpoint.tensors().iter().map(size).sum();
    let findings = compare::findings(&units, known, &mut || watch(Progress { done: all, total: all }))?;
    Ok(Identified { container: checkpoint.container().name().to_owned(), findings })
}

/// The units of every float tensor, in file order, with the tensor's dotted name.
fn units(
    checkpoint: &Checkpoint,
    watch: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Vec<(String, Unit)>, IdentifyError> {
    let entries = checkpoint.tensors();
    let tall: HashSet<usize> = entries.iter().filter_map(|entry| unit::fused(&entry.shape)).collect();
    let sizes: Vec<u64> = entries.iter().map(size).collect();
    let found = in_parallel(&sizes, watch, |index, stop| {
        let entry = &entries[index];
        if !unit::is_float(entry.dtype) {
            return Ok(Vec::new());
        }
        let bytes = checkpoint.bytes(entry)?;
        let name = entry.path.join(".");
        let units = Unit::all(&bytes, entry.dtype, &entry.shape, &tall, stop);
        Ok(units.into_iter().map(|unit| (name.clone(), unit)).collect())
    })?;
    Ok(found.into_iter().collect::<Result<Vec<Vec<_>>, IdentifyError>>()?.into_iter().flatten().collect())
}

/// Bytes of a tensor.
fn size(entry: &TensorEntry) -> u64 {
    entry.shape.iter().fold(entry.dtype.bitsize() as u64 / 8, |bytes, &side| bytes.saturating_mul(side as u64))
}

/// `each` of as many things as there are `sizes`, on all cores, in order, while the calling thread tells `watch` how much
/// is done and asks whether to go on; `each` hears the answer as a flag.
fn in_parallel<T: Send>(
    sizes: &[u64],
    watch: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    each: impl Fn(usize, &AtomicBool) -> T + Sync,
) -> Result<Vec<T>, IdentifyError> {
    let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(sizes.len());
    let total = sizes.iter().fold(0, |total: u64, &size| total.saturating_add(size));
    let (next, done, stop) = (AtomicUsize::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let (found, ready) = mpsc::channel();
    let mut values = Vec::with_capacity(sizes.len());
    std::thread::scope(|scope| {
        for _ in 0..workers {
            let (found, next, done, stop, each) = (found.clone(), &next, &done, &stop, &each);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(size) = sizes.get(index) else { return };
                    let value = each(index, stop);
                    done.fetch_add(*size, Ordering::Relaxed);
                    // Whoever waits for it waits until all senders are gone.
                    let _ = found.send((index, value));
                }
            });
        }
        drop(found);
        let mut asked = Instant::now();
        loop {
            match ready.recv_timeout(TICK) {
                Ok(value) => values.push(value),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if asked.elapsed() >= TICK {
                asked = Instant::now();
                if watch(Progress { done: done.load(Ordering::Relaxed), total }).is_break() {
                    stop.store(true, Ordering::Relaxed);
                }
            }
        }
    });
    if stop.into_inner() {
        return Err(IdentifyError::Interrupted);
    }
    values.sort_unstable_by_key(|(index, _)| *index);
    Ok(values.into_iter().map(|(_, value)| value).collect())
}
