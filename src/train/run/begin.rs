//! Where an update counts from: a checkpoint of this run, one of another, or nothing.

use std::path::PathBuf;

use super::branch::{Branch, BranchFile};
use super::checkpoint::Checkpoint;
use super::error::RunError;
use super::folder::started_run;
use super::{Pretraining, result};
use crate::model::ModelConfig;
use crate::train::{Recipe, Schedule, Step};

/// What is known of a run before its first update here.
pub(super) struct Beginning {
    /// Updates counted as made.
    pub(super) done: u64,
    /// Broken images before.
    pub(super) skipped: u64,
    /// The checkpoint of this run that it goes on from.
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
    ) -> Result<Self, RunError> {
        let model = result::config(recipe, step.vit(), settings.base.as_ref());
        let new = Self { done: 0, skipped: broken, saved: None, branch: None, branched: None, model };
        let recorded = match &from {
            Some(checkpoint) => checkpoint.belongs.run.as_ref().and_then(|run| run.branch.clone()),
            None => started_run(&settings.out)?.and_then(|started| started.run.branch),
        };
        if let Some(checkpoint) = from {
            let shown = checkpoint.path.display().to_string();
            step.restore(checkpoint.state().map_err(|reason| RunError::Invalid { path: shown, reason })?)?;
            let Checkpoint { path, belongs, .. } = checkpoint;
            same_parent(settings, schedule, recorded.as_ref())?;
            // A parent may be gone by now; what it passed on is written down.
            let model = belongs.model.filter(|_| recorded.is_some()).map_or(new.model, |model| *model);
            let saved = Some((belongs.step, path));
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
