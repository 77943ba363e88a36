//! Checkpoints: folders `step-00000120` that appear whole, say what they belong to, and notice when they were torn.
//!
//! ```text
//! checkpoint.json     step, data position, recipe, base, layout of the tensors, the model's configuration, seal of the
//!                     file beside it
//! state.safetensors   `state` (3, N): parameters, first moments, second moments; f32, in the order of the layout;
//!                     `pos_embed` and `decoder_pos_embed`, which are not trained
//! ```
//!
//! A checkpoint is all that is needed to go on, but for base and images, and all that is needed of the model it holds
//! ([`super::model`]).
//!
//! Random numbers have no state: each is a function of the seed, the epoch and the sample, so the step is the whole data
//! position.

use std::borrow::Cow;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::error::RunError;
use super::folder::RunFile;
use super::result;
use super::state::{self, Seal};
use crate::header;
use crate::kernels::Slot;
use crate::model::{ModelConfig, ParameterSpec, Part, Weights};
use crate::staged::StagedDir;
use crate::train::{Step, StepState};

const RECORD: &str = "checkpoint.json";
/// The file with the numbers.
pub(super) const STATE: &str = "state.safetensors";
/// The tensor with what an update changes.
pub(super) const TENSOR: &str = "state";
/// 1 had neither tables nor the model's configuration.
const FORMAT: u32 = 2;
/// A record is a few kilobytes for each hundred tensors.
const MAX_RECORD: u64 = 16 << 20;
/// Values of the state fetched at a time: 4 MiB.
const PIECE: usize = 1 << 20;

/// What a checkpoint belongs to, and where in the run it was taken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Belongs {
    /// Updates done.
    pub(super) step: u64,
    /// Images of the data.
    pub(super) images: u64,
    /// Broken images skipped so far.
    pub(super) skipped: u64,
    /// sha256 of the base's weights.
    pub(super) base: Option<String>,
    /// Text of the resolved recipe.
    pub(super) recipe: String,
    /// What the run was started with; checkpoints of older versions do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) run: Option<RunFile>,
    /// What the model is that the parameters make; its provenance lacks the checkpoint itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) model: Option<Box<ModelConfig>>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    format: u32,
    belongs: Belongs,
    layout: Vec<Entry>,
    state: Seal,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    shape: Vec<usize>,
    start: usize,
    padded: usize,
    decays: bool,
    /// Updates its moments have seen: the run's, unless it was branched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    updates: Option<u64>,
}

impl Entry {
    fn of(slot: &Slot, updates: u64) -> Self {
        let ParameterSpec { name, shape } = slot.spec.clone();
        let (start, updates) = (slot.range.start, Some(updates));
        Self { name, shape, start, padded: slot.padded, decays: slot.decays, updates }
    }

    /// `None` for numbers no layout has.
    fn slot(self) -> Option<Slot> {
        let elements = self.shape.iter().try_fold(1_usize, |product, side| product.checked_mul(*side))?;
        let range = self.start..self.start.checked_add(elements)?;
        let spec = ParameterSpec { name: self.name, shape: self.shape };
        Some(Slot { spec, range, padded: self.padded, decays: self.decays })
    }
}

/// Where the checkpoint after `step` updates is in `folder`.
pub(super) fn path(folder: &Path, step: u64) -> PathBuf {
    folder.join(format!("step-{step:08}"))
}

/// Writes the checkpoint of `belongs.step` into `folder`, and returns its path.
pub(super) fn save(folder: &Path, belongs: Belongs, step: &Step<'_>) -> Result<PathBuf, RunError> {
    let path = path(folder, belongs.step);
    write(&path, belongs, step).map_err(RunError::io("write", &path))?;
    Ok(path)
}

/// Writes a checkpoint as the folder `path`.
pub(super) fn write(path: &Path, belongs: Belongs, step: &Step<'_>) -> io::Result<()> {
    let staged = StagedDir::new(path)?;
    write_into(staged.path(), belongs, step)?;
    staged.commit()?;
    sync_folder(path.parent().unwrap_or(path))
}

/// Writes the files of a checkpoint into the existing folder `path`.
pub(super) fn write_into(path: &Path, belongs: Belongs, step: &Step<'_>) -> io::Result<()> {
    let count = step.state_len();
    let pieces = (0..count).step_by(PIECE).map(|start| {
        let values = step.state_values(start..count.min(start + PIECE));
        values.map(Cow::Owned).map_err(io::Error::other)
    });
    let tables = step.tables().map_err(io::Error::other)?;
    let state_shape = [3, count / 3];
    let mut slots = vec![header::Slot { name: TENSOR, dtype: Dtype::F32, shape: &state_shape }];
    slots.extend(tables.iter().map(|(spec, _)| header::Slot {
        name: &spec.name,
        dtype: Dtype::F32,
        shape: &spec.shape,
    }));
    let pieces = pieces.chain(tables.iter().map(|(_, values)| Ok(Cow::Borrowed(&values[..]))));
    let seal = state::write_pieces(&path.join(STATE), &slots, pieces)?;
    let layout = step.slots().iter().zip(step.updates()).map(|(slot, updates)| Entry::of(slot, *updates)).collect();
    let record = Record { format: FORMAT, belongs, layout, state: seal };
    let mut file = File::create_new(path.join(RECORD))?;
    file.write_all(&serde_json::to_vec_pretty(&record)?)?;
    file.sync_all()?;
    sync_folder(path)
}

/// Waits until the names in `folder` are on the platter.
fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

/// A whole checkpoint, its numbers mapped: it can be removed while they are read.
#[derive(Debug)]
pub(super) struct Checkpoint {
    pub(super) path: PathBuf,
    pub(super) belongs: Belongs,
    /// Places in each third of [`TENSOR`], and the updates their moments have seen.
    pub(super) layout: Vec<(Slot, u64)>,
    pub(super) file: Weights,
}

impl Checkpoint {
    /// Opens the checkpoint `path` and proves that it is whole; the reason when it cannot be used.
    pub(super) fn open(path: &Path) -> Result<Self, String> {
        let said = |error: io::Error| error.to_string();
        let record = path.join(RECORD);
        let length = fs::metadata(&record).map_err(|error| format!("`{RECORD}`: {error}"))?.len();
        if length > MAX_RECORD {
            return Err(format!("`{RECORD}` has {length} bytes"));
        }
        let record: Record = serde_json::from_slice(&fs::read(&record).map_err(said)?)
            .map_err(|error| format!("`{RECORD}` is torn: {error}"))?;
        if !(1..=FORMAT).contains(&record.format) {
            return Err(format!("its format is {}; this version reads up to {FORMAT}", record.format));
        }
        let file = path.join(STATE);
        let seal = Seal::of(&file).map_err(|error| format!("`{STATE}`: {error}"))?;
        if seal != record.state {
            return Err(format!("`{STATE}` is torn: its checksum does not hold"));
        }
        let file = Weights::open(&file).map_err(|error| error.to_string())?;
        let step = record.belongs.step;
        let layout: Option<Vec<(Slot, u64)>> = record
            .layout
            .into_iter()
            .map(|entry| {
                let updates = entry.updates.unwrap_or(step);
                Some((entry.slot()?, updates))
            })
            .collect();
        let layout = layout.ok_or("its layout is absurd")?;
        let this = Self { path: path.to_path_buf(), belongs: record.belongs, layout, file };
        let (count, end) = (this.count()?, this.layout.iter().map(|(slot, _)| slot.range.end).max());
        if end.is_some_and(|end| end > count) {
            return Err("its layout has more values than its state".into());
        }
        Ok(this)
    }

    /// sha256 of the file with the numbers.
    pub(super) fn sha256(&self) -> String {
        result::hex(Sha256::new_with_prefix(self.file.file_bytes()))
    }

    /// Values of each third.
    pub(super) fn count(&self) -> Result<usize, String> {
        match self.file.get(TENSOR) {
            Some(state) if state.dtype == Dtype::F32 => Ok(state.bytes.len() / 12),
            _ => Err(format!("it has no f32 tensor `{TENSOR}`")),
        }
    }

    /// The values of a parameter in a third of the state: 0 its own, 1 and 2 its moments'.
    pub(super) fn values(&self, slot: &Slot, third: usize) -> Result<Vec<f32>, String> {
        let start = self.count()?.saturating_mul(third).saturating_add(slot.range.start);
        let part = self.file.parts([(slot.spec.clone(), Part::Of { tensor: TENSOR, start })]);
        state::read(&part.ok_or_else(|| format!("it lacks `{}`", slot.spec.name))?, &slot.spec.name)
    }

    /// The state in it.
    pub(super) fn state(&self) -> Result<StepState, String> {
        let (slots, updates) = self.layout.iter().cloned().unzip();
        let values = state::read(&self.file, TENSOR)?;
        Ok(StepState { step: self.belongs.step, slots, updates, values })
    }
}

/// Whether `path` is a checkpoint, whole or not.
pub(super) fn is_checkpoint(path: &Path) -> bool {
    path.join(RECORD).is_file() || path.join(STATE).is_file()
}

/// Checkpoints of `folder`, newest first, by name alone.
pub(super) fn list(folder: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if let Some(step) = name.strip_prefix("step-").and_then(|step| step.parse().ok()) {
            found.push((step, path));
        }
    }
    found.sort_unstable_by(|a, b| b.cmp(a));
    Ok(found)
}

/// What the newest checkpoint of `folder` belongs to whose record can be read, whatever its numbers are like.
pub(super) fn newest_record(folder: &Path) -> Option<Belongs> {
    let read = |(_, path): (u64, PathBuf)| -> Option<Belongs> {
        let path = path.join(RECORD);
        let small = fs::metadata(&path).is_ok_and(|metadata| metadata.len() <= MAX_RECORD);
        let record: Record = serde_json::from_slice(&fs::read(path).ok().filter(|_| small)?).ok()?;
        Some(record.belongs)
    };
    list(folder).ok()?.into_iter().find_map(read)
}

/// The newest whole checkpoint of `folder`, if it has any, and the newer ones that are not, of which `damaged` hears. A
/// run may be writing and removing others meanwhile.
pub(super) fn newest(
    folder: &Path,
    damaged: &mut dyn FnMut(&Path, &str),
) -> Result<(Option<Checkpoint>, Vec<PathBuf>), RunError> {
    let mut useless: Vec<PathBuf> = Vec::new();
    loop {
        let mut gone = false;
        for (_, path) in list(folder).map_err(RunError::io("read", folder))? {
            if useless.contains(&path) {
                continue;
            }
            match Checkpoint::open(&path) {
                Ok(checkpoint) => return Ok((Some(checkpoint), useless)),
                // Removed since it was listed: because newer ones have come.
                Err(_) if !path.exists() => {
                    gone = true;
                    break;
                }
                Err(reason) => {
                    damaged(&path, &reason);
                    useless.push(path);
                }
            }
        }
        match (gone, useless.is_empty()) {
            (true, _) => {}
            (false, true) => return Ok((None, useless)),
            (false, false) => return Err(RunError::NoCheckpoint { path: folder.display().to_string() }),
        }
    }
}

/// Removes all but the newest `last` checkpoints and those at multiples of `every` (0: none). Each goes at once, so that
/// nobody who reads one finds half of it.
pub(super) fn prune(folder: &Path, last: usize, every: u64) -> io::Result<()> {
    for (step, path) in list(folder)?.into_iter().skip(last) {
        if every == 0 || step % every != 0 {
            let aside = StagedDir::new(&path)?;
            fs::rename(path, aside.path().join("old"))?;
        }
    }
    Ok(())
}
