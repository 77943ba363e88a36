//! The learning rate: a linear warm-up, then half a cosine, at fractional epochs.
//!
//! MAE's `util/lr_sched.py`, which TEC uses as it is. An epoch has as many updates as whole batches fit into the data, and
//! update s of epoch e is at e + s / (updates of an epoch), which is theirs with one micro-batch; with several, theirs also
//! counts the micro-batches left over at an epoch's end, a shift of less than one update.

use super::recipe::Recipe;
use crate::data::Position;

/// Learning rate of every update of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    peak_lr: f64,
    min_lr: f64,
    warmup_epochs: f64,
    epochs: usize,
    steps_per_epoch: u64,
}

impl Schedule {
    /// The schedule of `recipe` over `images` images; `None` when they do not fill one batch.
    pub fn new(recipe: &Recipe, images: u64) -> Option<Self> {
        let steps_per_epoch = images / recipe.optimizer.batch as u64;
        (steps_per_epoch > 0).then(|| Self {
            peak_lr: recipe.peak_lr(),
            min_lr: recipe.optimizer.min_lr,
            warmup_epochs: recipe.optimizer.warmup_epochs,
            epochs: recipe.optimizer.epochs,
            steps_per_epoch,
        })
    }

    /// Updates of one epoch.
    pub fn steps_per_epoch(&self) -> u64 {
        self.steps_per_epoch
    }

    /// Updates of the run.
    pub fn steps(&self) -> u64 {
        self.steps_per_epoch * self.epochs as u64
    }

    /// Whether the run is in its last epoch after `done` updates.
    pub fn is_last_epoch(&self, done: u64) -> bool {
        done > self.steps() - self.steps_per_epoch
    }

    /// Fractional epoch at which update `step` (from 0) happens.
    pub fn epoch(&self, step: u64) -> f64 {
        let (epoch, within) = (step / self.steps_per_epoch, step % self.steps_per_epoch);
        epoch as f64 + within as f64 / self.steps_per_epoch as f64
    }

    /// Where in the data update `step` (from 0) of so many micro-batches begins.
    pub fn position(&self, step: u64, micro_batches: u64) -> Position {
        Position { epoch: step / self.steps_per_epoch, batch: step % self.steps_per_epoch * micro_batches }
    }

    /// Learning rate of update `step` (from 0).
    pub fn lr(&self, step: u64) -> f64 {
        let epoch = self.epoch(step);
        if epoch < self.warmup_epochs {
            return self.peak_lr * epoch / self.warmup_epochs;
        }
        let share = (epoch - self.warmup_epochs) / (self.epochs as f64 - self.warmup_epochs);
        // libm's own cosine: the same digits on every platform, for runs that move.
        self.min_lr + (self.peak_lr - self.min_lr) * 0.5 * (1.0 + libm::cos(std::f64::consts::PI * share))
    }
}
