//! A run that begins where another one was: with its weights, its optimizer's moments and its place in the schedule, and with
//! settings of its own. The way on after a loss that is no number, and to more epochs, another learning rate, another mask.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::checkpoint::{self, Checkpoint};
use super::error::RunError;
use super::folder::{Folder, RunFile, started_run};
use super::result;
use crate::data::lossless;
use crate::model::{BranchPoint, Canonical, Licence, ModelConfig};
use crate::train::{Recipe, Schedule, Step};

/// Where a run begins that goes on from another one.
#[derive(Debug)]
pub struct Branch {
    /// The checkpoint of the other one.
    pub parent: Parent,
    /// The epoch of its own schedule it begins at; the parent's, when not said.
    pub start_epoch: Option<u64>,
}

/// A run, at one of its checkpoints, for another to begin from.
#[derive(Debug)]
pub struct Parent {
    checkpoint: Checkpoint,
    recipe: Recipe,
    about: Option<RunFile>,
    name: String,
}

/// `branch` in `run.json`: where a run began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BranchFile {
    /// The other run's name: its folder's.
    pub run: String,
    /// Updates it had made.
    pub step: u64,
    /// Of its checkpoint's numbers, lower-case hex.
    pub sha256: String,
    /// Where the checkpoint was.
    #[serde(with = "lossless")]
    pub checkpoint: PathBuf,
    /// Updates of this run's schedule counted as made.
    pub start: u64,
}

impl Parent {
    /// The run `of`, at its newest whole checkpoint or after update `step`; or the checkpoint `of`, such as the dump that a
    /// loss that was no number left. `damaged` hears of newer checkpoints that cannot be used.
    ///
    /// # Errors
    /// [`RunError::NoStep`], [`RunError::Young`], [`RunError::NoCheckpoint`] and [`RunError::Invalid`] when there is no such
    /// checkpoint.
    pub fn open(of: &Path, step: Option<u64>, damaged: &mut dyn FnMut(&Path, &str)) -> Result<Self, RunError> {
        let exact = |path: &Path| {
            let invalid = |reason| RunError::Invalid { path: path.display().to_string(), reason };
            Checkpoint::open(path).map_err(invalid)
        };
        let folder = of.join(Folder::CHECKPOINTS);
        let checkpoint = match step {
            _ if checkpoint::is_checkpoint(of) => exact(of)?,
            Some(step) => {
                let mut there = checkpoint::list(&folder).map_err(RunError::io("read", &folder))?;
                there.reverse();
                let Some((_, path)) = there.iter().find(|(of, _)| *of == step) else {
                    let there = there.into_iter().map(|(step, _)| step).collect();
                    return Err(RunError::NoStep { path: of.display().to_string(), step, there });
                };
                exact(path)?
            }
            None => {
                let (newest, _) = checkpoint::newest(&folder, damaged)?;
                newest.ok_or_else(|| RunError::Young { path: of.display().to_string() })?
            }
        };
        let path = std::path::absolute(&checkpoint.path).map_err(RunError::io("read", &checkpoint.path))?;
        let run = run_of(&path);
        // Names base and data, for whoever names no others.
        let started = started_run(run).ok().flatten().map(|started| started.run);
        let about = started.or_else(|| checkpoint.belongs.run.clone());
        let name = run.file_name().unwrap_or(run.as_os_str()).to_string_lossy().into_owned();
        let recipe = Recipe::parse("of the checkpoint", &checkpoint.belongs.recipe, &[])?;
        Ok(Self { checkpoint: Checkpoint { path, ..checkpoint }, recipe, about, name })
    }

    /// The recipe it was trained by.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// What it was started with, where its folder says.
    pub fn about(&self) -> Option<&RunFile> {
        self.about.as_ref()
    }

    /// Its base, where it was, and what it is called.
    ///
    /// # Errors
    /// [`RunError::Model`] when it is there no more, [`RunError::Other`] when it is another one now.
    pub fn base(&self) -> Result<Option<(String, Canonical)>, RunError> {
        let Some(file) = self.about.as_ref().and_then(|about| about.base.as_ref()) else { return Ok(None) };
        let model = Canonical::open(&file.directory)?;
        let (_, is) = result::sha256(model.model().path())?;
        if is != file.sha256 {
            let (path, was) = (file.directory.display().to_string(), file.sha256.clone());
            return Err(RunError::Other { path, what: "base", was, is });
        }
        Ok(Some((file.name.clone(), model)))
    }

    /// Updates it had made.
    pub fn step(&self) -> u64 {
        self.checkpoint.belongs.step
    }

    /// Its epoch, of how many.
    fn epoch(&self) -> f64 {
        Schedule::new(&self.recipe, self.checkpoint.belongs.images).map_or(0.0, |schedule| schedule.epoch(self.step()))
    }
}

/// The folder of the run that the checkpoint `path` is of: a dump lies in it, others in a folder of it.
fn run_of(path: &Path) -> &Path {
    let beside = path.parent().unwrap_or(path);
    match beside.file_name().is_some_and(|name| name == Folder::CHECKPOINTS) {
        true => beside.parent().unwrap_or(beside),
        false => beside,
    }
}

/// What the model of the checkpoint `path` is called: `run@120`.
///
/// # Errors
/// [`RunError::Io`] when there is no current folder.
pub fn checkpoint_name(path: &Path) -> Result<String, RunError> {
    let path = std::path::absolute(path).map_err(RunError::io("read", path))?;
    let run = run_of(&path).file_name().unwrap_or_default().to_string_lossy();
    let folder = path.file_name().unwrap_or_default().to_string_lossy();
    let step = folder.rsplit_once("step-").and_then(|(_, step)| step.parse::<u64>().ok());
    Ok(step.map_or_else(|| format!("{run}@{folder}"), |step| format!("{run}@{step}")))
}

impl Branch {
    /// The branch `file` describes, for a run that was killed before it had a checkpoint of its own.
    pub(super) fn again(file: &BranchFile) -> Result<Self, RunError> {
        let parent = Parent::open(&file.checkpoint, None, &mut |_, _| {})?;
        let this = Self { parent, start_epoch: None };
        let (was, is) = (file.sha256.clone(), this.parent.checkpoint.sha256());
        match was == is {
            true => Ok(this),
            false => Err(RunError::Other { path: file.checkpoint.display().to_string(), what: "parent", was, is }),
        }
    }

    /// What `run.json` is to say, of a run with this schedule.
    ///
    /// The learning rate goes on where the parent's epoch is on the new schedule, so that `epochs` are those of both together;
    /// updates are counted on likewise, and with the same settings the branch is what the parent would have been.
    pub(super) fn file(&self, schedule: &Schedule) -> Result<BranchFile, RunError> {
        let parent = &self.parent;
        let each = schedule.steps_per_epoch();
        let theirs = Schedule::new(&parent.recipe, parent.checkpoint.belongs.images);
        let start = match (self.start_epoch, theirs) {
            (Some(epoch), _) => epoch.saturating_mul(each),
            (None, Some(theirs)) if theirs.steps_per_epoch() != each => {
                (theirs.epoch(parent.step()) * each as f64).round() as u64
            }
            (None, _) => parent.step(),
        };
        if start >= schedule.steps() {
            let epochs = schedule.steps() / each;
            return Err(RunError::NothingLeft {
                parent: parent.name.clone(),
                epoch: start as f64 / each as f64,
                epochs,
            });
        }
        Ok(BranchFile {
            run: parent.name.clone(),
            step: parent.step(),
            sha256: parent.checkpoint.sha256(),
            checkpoint: parent.checkpoint.path.clone(),
            start,
        })
    }

    /// Gives `step` what it has a place for: values and both moments of each parameter of the same name and shape. Returns
    /// the others, which begin afresh.
    pub(super) fn begin(&self, step: &mut Step<'_>, start: u64) -> Result<Vec<String>, RunError> {
        let parent = &self.parent.checkpoint;
        let invalid = |reason| RunError::Invalid { path: parent.path.display().to_string(), reason };
        let mut state = step.state()?;
        let count = state.values.len() / 3;
        let mut afresh = Vec::new();
        for (slot, updates) in state.slots.iter().zip(&mut state.updates) {
            let Some((theirs, seen)) = parent.layout.iter().find(|(theirs, _)| theirs.spec == slot.spec) else {
                afresh.push(slot.spec.name.clone());
                continue;
            };
            for third in 0..3 {
                let values = parent.values(theirs, third).map_err(invalid)?;
                let at = third * count + slot.range.start;
                state.values[at..at + values.len()].copy_from_slice(&values);
            }
            *updates = *seen;
        }
        if afresh.len() == state.slots.len() {
            return Err(RunError::Stranger { path: parent.path.display().to_string() });
        }
        state.step = start;
        step.restore(state)?;
        step.inspect_again();
        Ok(afresh)
    }

    /// Writes the parent into the descent and the licence of `config`.
    pub(super) fn descend(&self, config: &mut ModelConfig, file: &BranchFile) {
        let point = BranchPoint { run: file.run.clone(), step: file.step, sha256: file.sha256.clone() };
        config.provenance.branched_from = vec![point];
        let Some(theirs) = &self.parent.checkpoint.belongs.model else { return };
        config.provenance.branched_from.extend(theirs.provenance.branched_from.iter().cloned());
        let lineage = &mut config.provenance.lineage;
        for base in &theirs.provenance.lineage {
            if !lineage.contains(base) {
                lineage.push(base.clone());
            }
        }
        if config.licence.spdx != theirs.licence.spdx {
            // Both bases' licences hold for what was learnt from both.
            let (own, other) = (&config.licence, &theirs.licence);
            let evidence = format!("{}; branched from `{}`: {}", own.evidence, file.run, other.evidence);
            config.licence = Licence { spdx: format!("{} AND {}", own.spdx, other.spdx), evidence };
        }
    }

    /// The parent's epoch.
    pub(super) fn epoch(&self) -> f64 {
        self.parent.epoch()
    }
}
