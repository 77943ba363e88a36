//! A plan carried out: tensors stream from the checkpoint's map into files of a staged directory, which then gets its name.

use std::fs::File;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use super::assemble::{Piece, Values};
use super::digest::digest;
use super::merge::merged_class_token;
use super::numbers::to_f64;
use super::write::{Counted, Slot, Stop, header, order};
use super::{ConvertError, Plan, hub};
use crate::checkpoint::{Checkpoint, TensorEntry};
use crate::destination::Destination;
use crate::model::{ModelConfig, ModelFile, Provenance};

/// How often `progress` is asked while the checkpoint's hash is waited for.
const TICK: Duration = Duration::from_millis(50);

/// Bytes of tensors written so far, and in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Written.
    pub done: u64,
    /// To write.
    pub total: u64,
}

/// What a conversion made.
#[derive(Debug, Clone)]
pub struct Conversion {
    /// The model directory.
    pub dir: PathBuf,
    /// Its configuration.
    pub config: ModelConfig,
    /// The files in it with the number of their tensors; `config.json` has none.
    pub files: Vec<(ModelFile, usize)>,
    /// Bytes of tensors written.
    pub bytes: u64,
    /// What was decided.
    pub plan: Plan,
}

impl Plan {
    /// Carries the plan out: `out` appears whole, or not at all. `name` is the checkpoint's file name, for provenance.
    ///
    /// `progress` is called after each few megabytes, and while the hash of the checkpoint is waited for;
    /// [`ControlFlow::Break`] stops, and leaves nothing behind. An existing `out` is refused, unless it is an empty folder,
    /// or may be replaced and is a model directory with nothing else in it.
    ///
    /// # Errors
    /// When the destination is taken, or reading or writing fails.
    pub fn apply(
        &self,
        checkpoint: &Checkpoint,
        name: &str,
        out: impl Into<Destination>,
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Conversion, ConvertError> {
        let out = out.into();
        let own = ModelFile::ALL.map(ModelFile::name);
        let staged = out.directory_output(&own)?;
        let total = self.bytes();
        let stop = AtomicBool::new(false);
        let mut done = 0;
        let mut step = |bytes: u64| {
            done += bytes;
            progress(Progress { done, total }).is_continue()
        };
        // Hashing takes about as long as copying, and needs none of what copying needs.
        let (written, digest) = std::thread::scope(|scope| {
            let (ended, end) = mpsc::channel::<()>();
            let stop = &stop;
            let digest = scope.spawn(move || {
                // Dropped at the end, which wakes whoever waits.
                let _ended = ended;
                digest(checkpoint, stop)
            });
            let mut written = self.files.iter().try_for_each(|(file, pieces)| {
                write_file(checkpoint, pieces, &staged.path().join(file.name()), &mut step)
            });
            while written.is_ok() && end.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
                if !step(0) {
                    written = Err(ConvertError::Interrupted);
                }
            }
            if written.is_err() {
                stop.store(true, Ordering::Relaxed);
            }
            (written, digest.join())
        });
        written?;
        let digest = digest.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let (source_bytes, source_sha256) = digest?;

        let config = self.config(Provenance {
            source_file: name.to_owned(),
            source_sha256,
            source_bytes,
            container: checkpoint.container().name().to_owned(),
            converter: self.family.clone(),
            branch: self.branch.clone(),
            other_branches: self.other_branches.clone(),
            tool: concat!("tec-zoo ", env!("CARGO_PKG_VERSION")).to_owned(),
            lineage: Vec::new(),
            lineage_sha256: Vec::new(),
            branched_from: Vec::new(),
        });
        let path = staged.path().join(ModelFile::Config.name());
        std::fs::write(&path, hub::config_text(&config, true)).map_err(io("write", out.path()))?;
        staged.commit()?;
        let mut files: Vec<(ModelFile, usize)> =
            self.files.iter().map(|(file, pieces)| (*file, pieces.len())).collect();
        files.push((ModelFile::Config, 0));
        Ok(Conversion { dir: out.path().to_path_buf(), config, files, bytes: total, plan: self.clone() })
    }

    fn config(&self, provenance: Provenance) -> ModelConfig {
        ModelConfig {
            format: ModelConfig::FORMAT,
            family: self.family.clone(),
            vit: self.vit.clone(),
            feature: self.feature,
            preprocessing: self.preprocessing,
            provenance,
            licence: self.licence.clone(),
        }
    }
}

impl Piece {
    /// Whether the values are computed rather than copied.
    pub(crate) fn is_computed(&self) -> bool {
        matches!(self.values, Values::Merge(_) | Values::Fold { .. })
    }
}

/// An [`ConvertError::Io`] for `path`.
pub(crate) fn io<'a>(action: &'static str, path: &'a Path) -> impl Fn(std::io::Error) -> ConvertError + 'a {
    move |source| ConvertError::Io { action, path: path.display().to_string(), source }
}

/// Streams `pieces` into a new file.
fn write_file(
    checkpoint: &Checkpoint,
    pieces: &[Piece],
    path: &Path,
    step: &mut impl FnMut(u64) -> bool,
) -> Result<(), ConvertError> {
    let slots: Vec<Slot<'_>> =
        pieces.iter().map(|piece| Slot { name: &piece.name, dtype: piece.dtype, shape: &piece.shape }).collect();
    let order = order(&slots);
    let mut file = File::create_new(path).map_err(io("write", path))?;
    std::io::Write::write_all(&mut file, &header(&slots, &order)).map_err(io("write", path))?;
    let mut out = Counted { out: file, written: 0, progress: step };
    let numbers = |at: usize| -> Result<Vec<f64>, ConvertError> {
        let entry = entry(checkpoint, at)?;
        let mut bytes = Vec::new();
        checkpoint.stream(entry, &mut |piece| {
            bytes.extend_from_slice(piece);
            Ok::<(), ConvertError>(())
        })?;
        Ok(to_f64(&bytes, entry.dtype))
    };
    for at in order {
        let piece = &pieces[at];
        let before = out.written;
        let mut put = |bytes: &[u8]| {
            out.write(bytes).map_err(|stop| match stop {
                Stop::Io(source) => io("write", path)(source),
                Stop::Interrupted => ConvertError::Interrupted,
            })
        };
        match &piece.values {
            Values::Copy(at) => checkpoint.stream(entry(checkpoint, *at)?, &mut put)?,
            Values::Concat(parts) => {
                parts.iter().try_for_each(|at| checkpoint.stream(entry(checkpoint, *at)?, &mut put))?;
            }
            Values::Fold { token, table } => {
                let sum = numbers(*token)?.into_iter().zip(numbers(*table)?).map(|(token, row)| (token + row) as f32);
                let raw: Vec<u8> = sum.flat_map(f32::to_le_bytes).collect();
                put(&raw)?;
            }
            Values::Tail { of, skip } => {
                let entry = entry(checkpoint, *of)?;
                let mut skip = skip * entry.dtype.bitsize() / 8;
                checkpoint.stream(entry, &mut |bytes| {
                    let (before, after) = bytes.split_at(skip.min(bytes.len()));
                    skip -= before.len();
                    put(after)
                })?;
            }
            Values::Merge(inputs) => {
                let token = numbers(inputs.token)?;
                let [w1, b1, w2, b2] = [inputs.fc1[0], inputs.fc1[1], inputs.fc2[0], inputs.fc2[1]].map(numbers);
                let merged = merged_class_token(&token, [&w1?, &b1?], [&w2?, &b2?]).unwrap_or_default();
                let raw: Vec<u8> = merged.into_iter().flat_map(f32::to_le_bytes).collect();
                put(&raw)?;
            }
        }
        if out.written - before != piece.bytes() {
            let message = format!(
                "`{}` has {} bytes, not {}: was the plan made for another checkpoint?",
                piece.name,
                out.written - before,
                piece.bytes()
            );
            return Err(ConvertError::contradiction(message));
        }
    }
    Ok(())
}

fn entry(checkpoint: &Checkpoint, at: usize) -> Result<&TensorEntry, ConvertError> {
    let foreign = || ConvertError::contradiction("the plan was made for another checkpoint");
    checkpoint.tensors().get(at).ok_or_else(foreign)
}
