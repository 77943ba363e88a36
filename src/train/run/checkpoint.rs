//! Checkpoints: folders `step-00000120` that appear whole, say what they belong to, and notice when they were torn.
//!
//! ```text
//! checkpoint.json     step, data position, recipe, base, layout of the tensors, seal of the file beside it
//! state.safetensors   `state` (3, N): parameters, first moments, second moments; f32, in the order of the layout
//! ```
//!
//! Random numbers have no state: each is a function of the seed, the epoch and the sample, so the step is the whole data
//! position.

use std::borrow::Cow;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde::{Deserialize, Serialize};

use super::error::RunError;
use super::folder::RunFile;
use super::state::{self, Seal};
use crate::header;
use crate::kernels::Slot;
use crate::model::{ParameterSpec, Weights};
use crate::staged::StagedDir;
use crate::train::{Step, StepState};

const RECORD: &str = "checkpoint.json";
/// The file with the numbers.
pub(super) const STATE: &str = "state.safetensors";
const FORMAT: u32 = 1;
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
}

impl Entry {
    fn of(slot: &Slot) -> Self {
        let ParameterSpec { name, shape } = slot.spec.clone();
        Self { name, shape, start: slot.range.start, padded: slot.padded, decays: slot.decays }
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
    let slot = header::Slot { name: "state", dtype: Dtype::F32, shape: &[3, count / 3] };
    let seal = state::write_pieces(&path.join(STATE), &[slot], pieces)?;
    let layout = step.slots().iter().map(Entry::of).collect();
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

/// Reads the checkpoint `path`; the reason when it cannot be used.
pub(super) fn read(path: &Path) -> Result<(Belongs, StepState), String> {
    let said = |error: io::Error| error.to_string();
    let record = path.join(RECORD);
    let length = fs::metadata(&record).map_err(|error| format!("`{RECORD}`: {error}"))?.len();
    if length > MAX_RECORD {
        return Err(format!("`{RECORD}` has {length} bytes"));
    }
    let record: Record = serde_json::from_slice(&fs::read(&record).map_err(said)?)
        .map_err(|error| format!("`{RECORD}` is torn: {error}"))?;
    if record.format != FORMAT {
        return Err(format!("its format is {}; this version reads {FORMAT}", record.format));
    }
    let file = path.join(STATE);
    let seal = Seal::of(&file).map_err(|error| format!("`{STATE}`: {error}"))?;
    if seal != record.state {
        return Err(format!("`{STATE}` is torn: its checksum does not hold"));
    }
    let file = Weights::open(&file).map_err(|error| error.to_string())?;
    let slots: Option<Vec<Slot>> = record.layout.into_iter().map(Entry::slot).collect();
    let slots = slots.ok_or("its layout is absurd")?;
    let state = StepState { step: record.belongs.step, slots, values: state::read(&file, "state")? };
    Ok((record.belongs, state))
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

/// The newest whole checkpoint of `folder`, if it has any; `damaged` hears of newer ones that are not, and they are removed
/// once an older one is known to be whole.
pub(super) fn newest(
    folder: &Path,
    damaged: &mut dyn FnMut(&Path, &str),
) -> Result<Option<(PathBuf, Belongs, StepState)>, RunError> {
    let mut useless: Vec<PathBuf> = Vec::new();
    for (_, path) in list(folder).map_err(RunError::io("read", folder))? {
        match read(&path) {
            Ok((belongs, state)) => {
                for path in useless {
                    fs::remove_dir_all(&path).map_err(RunError::io("write", &path))?;
                }
                return Ok(Some((path, belongs, state)));
            }
            Err(reason) => {
                damaged(&path, &reason);
                useless.push(path);
            }
        }
    }
    if useless.is_empty() { Ok(None) } else { Err(RunError::NoCheckpoint { path: folder.display().to_string() }) }
}

/// Removes all but the newest `last` checkpoints and those at multiples of `every` (0: none).
pub(super) fn prune(folder: &Path, last: usize, every: u64) -> io::Result<()> {
    for (step, path) in list(folder)?.into_iter().skip(last) {
        if every == 0 || step % every != 0 {
            fs::remove_dir_all(path)?;
        }
    }
    Ok(())
}
