//! Batches to train on, prepared by threads ahead of time.
//!
//! A fixed number of batches is in the making; worker threads fill their slots sample by sample, and the batches are handed
//! out in order. Which sample stands in which slot, and what it looks like there, depends on the settings and the position
//! alone ([`crate::data`]). An image that cannot be used is replaced by the one that comes next in the epoch's order.

mod activity;
mod work;

use std::collections::HashSet;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use self::work::Shared;
use super::{Augment, DataError, Dataset, Share};
pub use activity::{Activity, LoaderActivity};

/// How long a dropped loader waits for its threads.
const FAREWELL: Duration = Duration::from_secs(2);

/// What a [`Loader`] does with a [`Dataset`].
#[derive(Debug, Clone, PartialEq)]
pub struct LoaderSettings {
    /// Decides orders, crops, mirrorings and masks.
    pub seed: u64,
    /// The transform.
    pub augment: Augment,
    /// B: samples of a batch, on this rank.
    pub batch: usize,
    /// L: random numbers of a sample, one for each patch; their order decides which patches are hidden.
    pub noise: usize,
    /// This process among those that share the epoch.
    pub share: Share,
    /// Epochs in all: the batch after the last of them is none.
    pub epochs: u64,
    /// Batches of an epoch, at most; `None` for all that are whole.
    pub batches: Option<u64>,
    /// Threads.
    pub workers: usize,
    /// Batches in the making or waiting, at most.
    pub prefetch: usize,
    /// Different broken images that are tolerated; a damaged shard counts as one.
    pub broken_limit: usize,
}

/// A batch's place in a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// Epoch, from 0.
    pub epoch: u64,
    /// Batch of that epoch, from 0.
    pub batch: u64,
}

impl Position {
    /// The position after this one, in epochs of that many batches.
    #[must_use]
    pub fn next(self, batches_per_epoch: u64) -> Self {
        match self.batch + 1 < batches_per_epoch {
            true => Self { batch: self.batch + 1, ..self },
            false => Self { epoch: self.epoch + 1, batch: 0 },
        }
    }
}

/// One batch.
#[derive(Debug, Default)]
pub struct TrainBatch {
    /// Which.
    pub position: Position,
    /// (B, 3, H, W), normalised.
    pub images: Vec<f32>,
    /// (B, L), uniform in [0, 1).
    pub noise: Vec<f32>,
    /// The number in the data set of each sample.
    pub samples: Vec<u64>,
    /// What to call each in messages.
    pub names: Vec<String>,
    /// How long its taker had to wait for it.
    pub waited: Duration,
}

/// An image that could not be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// Its number in the data set.
    pub sample: u64,
    /// Its path, or `shard.tar: member`.
    pub path: String,
    /// What is wrong with it.
    pub reason: String,
}

/// Iterates over the batches of a run, from any position.
///
/// After an error it ends. Dropped, it stops its threads and waits for them, which takes as long as one image does; one that
/// hangs in a read of a file system that does not answer is left behind.
#[derive(Debug)]
pub struct Loader {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    broken: Vec<Broken>,
    broken_samples: HashSet<u64>,
    ended: bool,
}

impl Loader {
    /// Starts loading at `start`.
    ///
    /// # Errors
    /// [`DataError::Settings`] for what cannot be, [`DataError::TooFew`] for data too small for one batch,
    /// [`DataError::Beyond`] for a start outside an epoch; [`DataError::TooManyBroken`] for
    /// more damaged shards than may be broken; [`DataError::Thread`].
    pub fn new(dataset: Arc<Dataset>, settings: LoaderSettings, start: Position) -> Result<Self, DataError> {
        let whole = settings.share.batches(dataset.len(), settings.batch as u64);
        let batches = settings.batches.map_or(whole, |most| most.min(whole));
        if let Some(what) = refusal(&settings) {
            return Err(DataError::Settings { what });
        }
        if batches == 0 {
            let (batch, processes) = (settings.batch, settings.share.world);
            return Err(DataError::TooFew { batch, processes, images: dataset.len() });
        }
        if start.batch > batches {
            return Err(DataError::Beyond { batch: start.batch, batches });
        }
        if let Some(last) = dataset.damaged().last().filter(|_| dataset.damaged().len() > settings.broken_limit) {
            let (count, limit) = (dataset.damaged().len(), settings.broken_limit);
            let (path, reason) = (last.path.display().to_string(), last.reason.clone());
            return Err(DataError::TooManyBroken { count, limit, path, reason });
        }
        let start = if start.batch == batches { Position { epoch: start.epoch + 1, batch: 0 } } else { start };
        let workers = settings.workers;
        let shared = Arc::new(Shared::new(dataset, settings, batches, start));
        let mut loader =
            Self { shared, threads: Vec::new(), broken: Vec::new(), broken_samples: HashSet::new(), ended: false };
        for worker in 0..workers {
            let shared = loader.shared.clone();
            let thread =
                std::thread::Builder::new().name(format!("loader {worker}")).spawn(move || shared.work(worker));
            loader.threads.push(thread.map_err(|error| DataError::Thread { reason: error.to_string() })?);
        }
        Ok(loader)
    }

    /// Batches of an epoch.
    pub fn batches_per_epoch(&self) -> u64 {
        self.shared.batches
    }

    /// Samples of an epoch on this rank.
    pub fn images_per_epoch(&self) -> u64 {
        self.shared.batches * self.shared.settings.batch as u64
    }

    /// Different images that could not be used, in the order they were met since this loader was made.
    pub fn broken(&self) -> &[Broken] {
        &self.broken
    }

    /// Gives the memory of a batch back for a later one. Without, every batch is allocated anew.
    pub fn recycle(&self, images: Vec<f32>, noise: Vec<f32>) {
        self.shared.recycle(images, noise);
    }

    /// What the threads are at, for whoever looks while this loader is waited for.
    pub fn activity(&self) -> Activity {
        Activity(self.shared.clone())
    }

    /// Waits for the next batch, or for the end, but for no longer than `most`; says whether [`Iterator::next`] returns at once.
    pub fn wait(&self, most: Duration) -> bool {
        self.ended || self.threads.iter().any(JoinHandle::is_finished) || self.shared.wait(most)
    }

    fn take(&mut self) -> Result<Option<TrainBatch>, DataError> {
        let start = Instant::now();
        let died = || self.threads.iter().any(JoinHandle::is_finished);
        let Some(finished) = self.shared.take(died)? else { return Ok(None) };
        let mut batch = finished.batch;
        batch.waited = start.elapsed();
        // With every image broken, there is nothing to replace one with.
        let limit = self.shared.broken_limit();
        for broken in finished.broken {
            if self.broken_samples.insert(broken.sample) {
                self.broken.push(broken);
            }
            if let Some(last) = self.broken.last()
                && self.broken.len() > limit
            {
                let (path, reason) = (last.path.clone(), last.reason.clone());
                let damaged = self.shared.damaged();
                let (count, limit) = (self.broken.len() + damaged, limit + damaged);
                return Err(DataError::TooManyBroken { count, limit, path, reason });
            }
        }
        match finished.failed {
            Some(error) => Err(error),
            None => Ok(Some(batch)),
        }
    }
}

impl Iterator for Loader {
    type Item = Result<TrainBatch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let taken = self.take().transpose();
        if !matches!(taken, Some(Ok(_))) {
            self.ended = true;
            self.shared.stop();
        }
        taken
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.shared.stop();
        let until = Instant::now() + FAREWELL;
        while self.threads.iter().any(|thread| !thread.is_finished()) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        // A worker catches its panics: there is nothing to learn from how it ended.
        self.threads.drain(..).filter(JoinHandle::is_finished).for_each(|thread| drop(thread.join()));
    }
}

/// What is wrong with the settings.
fn refusal(settings: &LoaderSettings) -> Option<String> {
    let LoaderSettings { batch, workers, prefetch, share, .. } = *settings;
    if let Some(refusal) = settings.augment.refusal() {
        return Some(refusal);
    }
    if batch == 0 || workers == 0 || prefetch == 0 {
        return Some(format!("batches of {batch} with {workers} threads, {prefetch} ahead: none may be 0"));
    }
    if share.rank >= share.world {
        return Some(format!("as rank {} of {}", share.rank, share.world));
    }
    if settings.augment.values().max(settings.noise).checked_mul(batch).is_none_or(|values| values > 1 << 40) {
        return Some(format!("batches of {batch}: they do not fit in any memory"));
    }
    None
}
