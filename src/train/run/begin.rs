//! Where an update counts from: a checkpoint of this run, one of another, or nothing.

use std::path::{Path, PathBuf};

use super::branch::{Branch, BranchFile};
use super::checkpoint::Checkpoint;
use super::error::RunError;
use super::folder::{RunFile, started_run};
use super::{Pretraining, result};
use crate::model::ModelConfig;
use crate::train::distributed::World;
use crate::train::{Recipe, Schedule, Step};

/// What is known of a run before its first update here.
pub(super) struct Beginning {
    /// Updates counted as made.
    pub(super) done: u64,
    /// Broken images before.
    pub(super) skipped: u64,
    /// The checkpoint of this run that it goes on from, where that says all a checkpoint says.
    pub(super) saved: Option<(u64, PathBuf)>,
    /// The run that this one began from, now or before.
    pub(super) branch: Option<BranchFile>,
    /// Of a branch that begins now: the parent's epoch, and the parameters that begin afresh.
    pub(super) branched: Option<(f64, Vec<String>)>,
    /// What the run's model is.
    pub(super) model: ModelConfig,
}

impl Beginning {
    /// Gives `step` the state it begins with: that of `from`, or of the run it is branched from. `broken` images are known of
    /// a run that begins.
    pub(super) fn of(
        settings: &Pretraining,
        recipe: &Recipe,
        schedule: &Schedule,
        from: Option<Checkpoint>,
        step: &mut Step<'_>,
        broken: u64,
        base_sha256: Option<&str>,
    ) -> Result<Self, RunError> {
        let model = result::config(recipe, step.vit(), settings.base.as_ref(), base_sha256);
        let new = Self { done: 0, skipped: broken, saved: None, branch: None, branched: None, model };
        let recorded = match &from {
            Some(checkpoint) => checkpoint.belongs.run.as_ref().and_then(|run| run.branch.clone()),
            None => started_run(&settings.out)?.and_then(|started| started.run.branch),
        };
        if let Some(checkpoint) = from {
            let shown = checkpoint.path.display().to_string();
            step.restore(checkpoint.state().map_err(|reason| RunError::Invalid { path: shown, reason })?)?;
            let Checkpoint { path, belongs, .. } = checkpoint;
            let knows = belongs.model.is_some();
            same_parent(settings, schedule, recorded.as_ref())?;
            // A parent may be gone by now; what it passed on is written down.
            let model = belongs.model.filter(|_| recorded.is_some()).map_or(new.model, |model| *model);
            // A checkpoint of an older version does not say what its model is: it is written again.
            let saved = knows.then_some((belongs.step, path));
            return Ok(Self { done: belongs.step, skipped: belongs.skipped, saved, branch: recorded, model, ..new });
        }
        let again = match (&settings.branch, &recorded) {
            (None, Some(file)) => Some(Branch::again(file)?),
            _ => None,
        };
        let Some(branch) = settings.branch.as_ref().or(again.as_ref()) else { return Ok(new) };
        let file = match recorded {
            Some(file) => {
                same_parent(settings, schedule, Some(&file))?;
                file
            }
            None => branch.file(schedule)?,
        };
        let afresh = branch.begin(step, file.start)?;
        let mut model = new.model;
        branch.descend(&mut model, &file);
        Ok(Self { done: file.start, branched: Some((branch.epoch(), afresh)), branch: Some(file), model, ..new })
    }
}

/// Refuses processes that found different weights: a run that still trains may have saved between their looks.
pub(super) fn agree(world: &World, out: &Path, about: &RunFile) -> Result<(), RunError> {
    let (base, branch) = (about.base.as_ref(), about.branch.as_ref());
    let found = [("base", base.map(|base| &base.sha256)), ("parent", branch.map(|branch| &branch.sha256))];
    for (what, sha256) in found {
        let is = sha256.map_or(String::new(), String::clone);
        let mut first = format!("{is:64}").into_bytes();
        world.broadcast(&mut first)?;
        let was = String::from_utf8_lossy(&first).trim_end().to_owned();
        if was != is {
            let is = format!("{is} in rank {}", world.rank());
            return Err(RunError::Other { path: out.display().to_string(), what, was, is });
        }
    }
    Ok(())
}

/// Refuses to go on with another parent than the run began from.
fn same_parent(settings: &Pretraining, schedule: &Schedule, was: Option<&BranchFile>) -> Result<(), RunError> {
    let Some(branch) = &settings.branch else { return Ok(()) };
    let is = branch.file(schedule)?;
    if was.is_some_and(|was| (was.step, &was.sha256, was.start) == (is.step, &is.sha256, is.start)) {
        return Ok(());
    }
    let shown = |file: &BranchFile| format!("`{}` at update {} (sha256 {})", file.run, file.step, file.sha256);
    let was = was.map_or("none".to_owned(), shown);
    let path = settings.out.display().to_string();
    Err(RunError::Other { path, what: "parent", was, is: shown(&is) })
}
