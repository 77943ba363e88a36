//! A whole pretraining: from a recipe, a base and images to a model, with everything in one folder.
//!
//! ```text
//! claim the folder → newest whole checkpoint, or the start → loader → Step → metrics, events → checkpoint → … → model
//! ```
//!
//! Everything in it is a function of the recipe, the base and the data: killed at any moment and continued, a run writes the
//! same losses and the same weights, bit for bit, as one that was left alone (on the same machine, with as many processes).

mod base;
mod begin;
mod branch;
mod checkpoint;
mod desk;
mod disk;
mod dump;
mod error;
mod folder;
mod images;
mod model;
mod result;
mod start;
mod state;
mod summary;
mod trainer;
mod watchdog;

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use candle_core::Device;

use super::{Phase, Recipe, StepRecord};
use crate::data::{Broken, ScanEvent};
use crate::model::Canonical;
use crate::zoo::TecDefaults;

pub use branch::{Branch, BranchFile, Parent, checkpoint_name};
pub use disk::Room;
pub use dump::{Replay, replay};
pub use error::RunError;
pub use folder::{BaseFile, EarlierData, RunFile, Started, started_recipe, started_run};
pub use model::{CheckpointModel, RunModel, is_run};
pub use summary::Summary;
pub use trainer::pretrain;
pub use watchdog::Stall;

/// A pretraining to run.
#[derive(Debug)]
pub struct Pretraining {
    /// Its settings; k and τ may be left to the base.
    pub recipe: Recipe,
    /// What the student learns from.
    pub base: Option<Base>,
    /// Images: see [`crate::data::Dataset::open`].
    pub data: PathBuf,
    /// Go on with other images than the run was started with; that it did is written down.
    pub allow_other_data: bool,
    /// The run's folder.
    pub out: PathBuf,
    /// The run this one begins from.
    pub branch: Option<Branch>,
    /// Continue the run in `out`, or start it when there is none yet.
    pub resume: bool,
    /// Who computes.
    pub device: Device,
}

/// The base of a pretraining.
#[derive(Debug)]
pub struct Base {
    /// What it is called: its name in the zoo, or its run's or folder's, which must be no name of the zoo.
    pub name: String,
    /// The model.
    pub model: Canonical,
    /// k and τ for it, where somebody published them.
    pub tec: Option<TecDefaults>,
}

impl Base {
    /// The base, with the sha256 of its weights, and its own bases, nearest first, each with that where it is known.
    fn lineage(&self, sha256: Option<&str>) -> (Vec<String>, Vec<Option<String>>) {
        let provenance = &self.model.config().provenance;
        let own = (0..provenance.lineage.len()).map(|at| provenance.base_sha256(at).map(str::to_owned));
        let names = std::iter::once(&self.name).chain(&provenance.lineage).cloned().collect();
        (names, std::iter::once(sha256.map(str::to_owned)).chain(own).collect())
    }
}

/// What a run tells while it goes. The answer decides whether it goes on; see [`pretrain`].
#[derive(Debug, Clone, Copy)]
pub enum News<'a> {
    /// The images are being looked for.
    Scan(ScanEvent<'a>),
    /// The run to go on with does not say which images it was started with, only how many; these are taken to be the same.
    UnknownData {
        /// How many.
        images: u64,
    },
    /// The file that says what the run was started with cannot be used; a checkpoint says it.
    DamagedRecord {
        /// The file.
        path: &'a Path,
        /// What is wrong with it.
        reason: &'a str,
    },
    /// It is about to make its first update.
    Started {
        /// Updates already done.
        done: u64,
        /// Updates in all.
        steps: u64,
        /// Images of the data.
        images: u64,
        /// The checkpoint it continues from.
        from: Option<&'a Path>,
    },
    /// It begins from another run.
    Branched {
        /// From which, and where.
        from: &'a BranchFile,
        /// The other one's epoch there.
        their_epoch: f64,
        /// Its own.
        epoch: f64,
        /// Learning rate of its first update.
        lr: f64,
        /// Parameters that the other one does not have, or not in this shape.
        afresh: &'a [String],
    },
    /// What checkpoints and result will take of the disk.
    Disk(Room),
    /// The metrics lack updates that the checkpoint has. What they told is lost; the weights are not touched by it.
    Missing {
        /// Which ones, from 1.
        updates: &'a [RangeInclusive<u64>],
    },
    /// A checkpoint cannot be used; an older one is tried.
    Damaged {
        /// The checkpoint.
        path: &'a Path,
        /// Why.
        reason: &'a str,
    },
    /// An image cannot be used; another one took its place.
    Broken(&'a Broken),
    /// The run goes on to its next piece of work: the next block of a pass, at the latest. Said often, so that whoever listens
    /// can end the run soon.
    Working(Phase),
    /// The gradients of a micro-batch are there.
    MicroBatch {
        /// The update they belong to, from 1.
        step: u64,
        /// Micro-batches of this update done.
        done: usize,
        /// Micro-batches of an update.
        of: usize,
        /// How long the rest of the run will take.
        left: Duration,
    },
    /// An update was made.
    Step {
        /// What happened in it.
        record: &'a StepRecord,
        /// How long the others will take.
        left: Duration,
    },
    /// A checkpoint is there.
    Saved {
        /// The checkpoint.
        path: &'a Path,
    },
}

/// How a run ended.
#[derive(Debug)]
pub enum End {
    /// All updates are made and the model is written, by rank 0, which alone has the summary.
    Finished(Option<Box<Summary>>),
    /// It was asked to stop, and saved first. What was done of an update was dropped.
    Stopped {
        /// Updates done.
        step: u64,
        /// Updates in all.
        steps: u64,
    },
}
