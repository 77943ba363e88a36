//! The files of a run while it goes. Of several processes, rank 0 alone has a desk.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::checkpoint::{self, Belongs};
use super::error::RunError;
use super::folder::{Folder, RunFile};
use crate::train::{Events, Metrics, Recipe, RunSettings, Step, StepRecord};

pub(super) struct Desk {
    pub(super) folder: Folder,
    metrics: Metrics,
    events: Events,
    /// Updates of the newest checkpoint, and where it is.
    saved: Option<(u64, PathBuf)>,
    saved_at: Instant,
}

impl Desk {
    /// Writes down what the run is, opens its metrics behind `done` updates, and returns those. `saved` is the checkpoint of
    /// so many, where there is one that says all a checkpoint says.
    pub(super) fn open(
        folder: Folder,
        recipe: &Recipe,
        about: &RunFile,
        done: u64,
        saved: Option<(u64, PathBuf)>,
        now: f64,
    ) -> Result<(Self, Vec<StepRecord>), RunError> {
        folder.write(Folder::RECIPE, &recipe.to_text()?)?;
        folder.write_json(Folder::RUN, about)?;
        let path = folder.file(Metrics::NAME);
        let (metrics, kept) = Metrics::open(&path, done).map_err(RunError::io("write", &path))?;
        let path = folder.file(Events::NAME);
        let events = Events::start(&path, now, &kept).map_err(RunError::io("write", &path))?;
        Ok((Self { folder, metrics, events, saved, saved_at: Instant::now() }, kept))
    }

    /// Writes an update down.
    pub(super) fn record(&mut self, record: &StepRecord) -> Result<(), RunError> {
        self.metrics.append(record).map_err(RunError::io("write", &self.folder.file(Metrics::NAME)))?;
        self.events.append(record).map_err(RunError::io("write", &self.folder.file(Events::NAME)))
    }

    /// Whether the newest checkpoint has become old, by the clock or by the number `done` of updates.
    pub(super) fn is_due(&self, run: &RunSettings, done: u64) -> bool {
        let late = self.saved_at.elapsed() >= Duration::from_secs(run.save_minutes.saturating_mul(60));
        late || done.is_multiple_of(run.save_steps)
    }

    /// Writes a checkpoint, unless this update has one; says where.
    pub(super) fn save(
        &mut self,
        run: &RunSettings,
        belongs: Belongs,
        trained: &Step<'_>,
    ) -> Result<Option<&Path>, RunError> {
        let step = belongs.step;
        if self.saved.as_ref().is_some_and(|(saved, _)| *saved == step) {
            return Ok(None);
        }
        // A checkpoint must never know of an update the metrics have forgotten.
        self.metrics.sync().map_err(RunError::io("write", &self.folder.file(Metrics::NAME)))?;
        let folder = self.folder.checkpoints();
        let path = checkpoint::save(&folder, belongs, trained)?;
        checkpoint::prune(&folder, run.keep_last, run.keep_steps).map_err(RunError::io("write", &folder))?;
        self.saved_at = Instant::now();
        Ok(Some(&self.saved.insert((step, path)).1))
    }

    /// The newest checkpoint.
    pub(super) fn newest(&self) -> Option<&Path> {
        self.saved.as_ref().map(|(_, path)| &**path)
    }
}
