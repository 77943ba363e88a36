//! What the threads of a loader share, and what each of them does.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::activity::{Code, LoaderActivity};
use super::{Broken, LoaderSettings, Position, TrainBatch};
use crate::data::{DataError, Dataset, Draws, EpochOrder, Purpose, TrainTransform, Uniform};

/// How often somebody who waits for a batch looks whether anybody still works on it.
const PATIENCE: Duration = Duration::from_secs(1);

/// Nothing below panics while it holds a lock, but for want of memory.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
pub(super) struct Shared {
    dataset: Arc<Dataset>,
    pub(super) settings: LoaderSettings,
    pub(super) batches: u64,
    state: Mutex<State>,
    /// There is a slot to fill, or nothing more to do.
    work: Condvar,
    /// A batch is complete.
    ready: Condvar,
    /// What each thread is at.
    activities: Vec<Code>,
}

#[derive(Debug)]
struct State {
    stop: bool,
    /// In order; all but the last have no open slot left.
    queue: VecDeque<Arc<Pending>>,
    /// First open slot of the last batch in the queue.
    slot: usize,
    /// Position of the next batch to begin.
    next: Position,
    spare: Vec<(Vec<f32>, Vec<f32>)>,
}

/// A batch in the making.
#[derive(Debug)]
struct Pending {
    position: Position,
    /// Slots that are not filled yet.
    left: AtomicUsize,
    filled: Mutex<Filled>,
}

#[derive(Debug, Default)]
struct Filled {
    batch: TrainBatch,
    broken: Vec<(usize, Broken)>,
    failed: Option<(usize, DataError)>,
}

/// A complete batch, with what went wrong in the order of its slots.
pub(super) struct Finished {
    pub(super) batch: TrainBatch,
    pub(super) broken: Vec<Broken>,
    pub(super) failed: Option<DataError>,
}

/// A worker's own memory.
struct Desk {
    transform: TrainTransform,
    encoded: Vec<u8>,
    values: Vec<f32>,
}

impl Shared {
    pub(super) fn new(dataset: Arc<Dataset>, settings: LoaderSettings, batches: u64, start: Position) -> Self {
        let slot = settings.batch;
        let state = State { stop: false, queue: VecDeque::new(), slot, next: start, spare: Vec::new() };
        let activities = (0..settings.workers).map(|_| Code::default()).collect();
        let (state, work, ready) = (Mutex::new(state), Condvar::new(), Condvar::new());
        Self { dataset, settings, batches, state, work, ready, activities }
    }

    /// What each thread is at.
    pub(super) fn activities(&self) -> Vec<LoaderActivity> {
        self.activities.iter().map(|code| code.read(|sample| self.dataset.place(sample))).collect()
    }

    /// Archives of the data that are damaged, each of which counts as a broken image.
    pub(super) fn damaged(&self) -> usize {
        self.dataset.damaged().len()
    }

    /// As many broken images are tolerated; one of all there are has to be whole.
    pub(super) fn broken_limit(&self) -> usize {
        let whole = usize::try_from(self.dataset.len()).unwrap_or(usize::MAX).saturating_sub(1);
        self.settings.broken_limit.saturating_sub(self.damaged()).min(whole)
    }

    pub(super) fn stop(&self) {
        lock(&self.state).stop = true;
        self.work.notify_all();
    }

    pub(super) fn recycle(&self, images: Vec<f32>, noise: Vec<f32>) {
        let mut state = lock(&self.state);
        // The one in its taker's hands is not in the queue.
        if state.spare.len() <= self.settings.prefetch {
            state.spare.push((images, noise));
        }
    }

    /// Waits, for no longer than `most`, until [`Self::take`] has something to take; says whether it has.
    pub(super) fn wait(&self, most: Duration) -> bool {
        let state = lock(&self.state);
        let open = |state: &mut State| match state.queue.front() {
            Some(first) => first.left.load(Ordering::Acquire) > 0,
            None => state.next.epoch < self.settings.epochs,
        };
        !self.ready.wait_timeout_while(state, most, open).unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// Waits for the first batch of the queue; none after the last epoch.
    pub(super) fn take(&self, died: impl Fn() -> bool) -> Result<Option<Finished>, DataError> {
        let mut state = lock(&self.state);
        let pending = loop {
            if let Some(first) = state.queue.front() {
                if first.left.load(Ordering::Acquire) == 0 {
                    break state.queue.pop_front();
                }
            } else if state.next.epoch >= self.settings.epochs {
                return Ok(None);
            }
            if died() {
                return Err(DataError::Thread { reason: "it ended early".into() });
            }
            state = self.ready.wait_timeout(state, PATIENCE).unwrap_or_else(PoisonError::into_inner).0;
        };
        drop(state);
        self.work.notify_all();
        let Some(pending) = pending else { return Ok(None) };
        let mut filled = std::mem::take(&mut *lock(&pending.filled));
        filled.broken.sort_by_key(|(slot, _)| *slot);
        Ok(Some(Finished {
            batch: filled.batch,
            broken: filled.broken.into_iter().map(|(_, broken)| broken).collect(),
            failed: filled.failed.map(|(_, error)| error),
        }))
    }

    /// What one thread does until it is stopped.
    pub(super) fn work(&self, thread: usize) {
        let desk = || Desk {
            transform: TrainTransform::new(self.settings.augment),
            encoded: Vec::new(),
            values: vec![0.0; self.settings.augment.values()],
        };
        let mut own = desk();
        let activity = &self.activities[thread];
        while let Some((pending, slot)) = self.claim() {
            let mut broken = Vec::new();
            let found = self.fill(&mut own, &desk, pending.position, slot, &mut broken, activity);
            self.put(&pending, slot, found, broken, &own.values);
            activity.idles();
        }
    }

    /// The next open slot; none when it is time to go.
    fn claim(&self) -> Option<(Arc<Pending>, usize)> {
        let LoaderSettings { batch, prefetch, epochs, noise, .. } = self.settings;
        let mut state = lock(&self.state);
        loop {
            if state.stop {
                return None;
            }
            if state.slot < batch
                && let Some(last) = state.queue.back().cloned()
            {
                state.slot += 1;
                return Some((last, state.slot - 1));
            }
            if state.queue.len() < prefetch && state.next.epoch < epochs {
                let position = state.next;
                let (mut images, mut numbers) = state.spare.pop().unwrap_or_default();
                images.resize(batch * self.settings.augment.values(), 0.0);
                numbers.resize(batch * noise, 0.0);
                let (samples, names) = (vec![0; batch], vec![String::new(); batch]);
                let waited = Duration::ZERO;
                let batch_of = TrainBatch { position, images, noise: numbers, samples, names, waited };
                let filled = Mutex::new(Filled { batch: batch_of, ..Filled::default() });
                state.queue.push_back(Arc::new(Pending { position, left: AtomicUsize::new(batch), filled }));
                state.slot = 0;
                state.next = position.next(self.batches);
                // Everybody else may help.
                self.work.notify_all();
            } else {
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// Prepares the sample of a slot in `own.values`, or the next one that is whole.
    fn fill(
        &self,
        own: &mut Desk,
        fresh: &dyn Fn() -> Desk,
        Position { epoch, batch }: Position,
        slot: usize,
        broken: &mut Vec<Broken>,
        activity: &Code,
    ) -> Result<Option<(u64, String)>, DataError> {
        let seed = self.settings.seed;
        let order = EpochOrder::new(self.dataset.len(), seed, epoch);
        let first = self.settings.share.place(batch * self.settings.batch as u64 + slot as u64);
        for attempt in 0..=self.broken_limit() as u64 {
            let sample = order.sample(first + attempt);
            let tried = catch_unwind(AssertUnwindSafe(|| {
                activity.reads(sample);
                let name = self.dataset.read(sample, &mut own.encoded)?;
                activity.decodes(sample);
                let applied = own.transform.apply(&own.encoded, [seed, epoch, sample], &mut own.values);
                applied.map_err(|reason| DataError::Image { path: name.clone(), reason }).map(|_| name)
            }));
            let (path, reason) = match tried {
                Ok(Ok(name)) => return Ok(Some((sample, name))),
                Ok(Err(DataError::Image { path, reason })) => (path, reason),
                Ok(Err(error)) => return Err(error),
                Err(_) => {
                    *own = fresh();
                    (format!("#{sample}"), "decoding it panicked".to_owned())
                }
            };
            broken.push(Broken { sample, path, reason });
            if lock(&self.state).stop {
                break;
            }
        }
        Ok(None)
    }

    /// Copies what was prepared into its slot.
    fn put(
        &self,
        pending: &Pending,
        slot: usize,
        found: Result<Option<(u64, String)>, DataError>,
        broken: Vec<Broken>,
        values: &[f32],
    ) {
        let noise = self.settings.noise;
        let mut filled = lock(&pending.filled);
        filled.broken.extend(broken.into_iter().map(|broken| (slot, broken)));
        match found {
            Ok(Some((sample, name))) => {
                filled.batch.images[slot * values.len()..(slot + 1) * values.len()].copy_from_slice(values);
                let mut draws = Draws::new(self.settings.seed, pending.position.epoch, sample, Purpose::Mask);
                filled.batch.noise[slot * noise..(slot + 1) * noise].fill_with(|| draws.unit());
                filled.batch.samples[slot] = sample;
                filled.batch.names[slot] = name;
            }
            // More are broken than may be: whoever takes the batch counts them.
            Ok(None) => {}
            Err(error) => {
                if filled.failed.as_ref().is_none_or(|(earlier, _)| slot < *earlier) {
                    filled.failed = Some((slot, error));
                }
            }
        }
        drop(filled);
        if pending.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            // Whoever waits holds this lock between looking and waiting.
            drop(lock(&self.state));
            self.ready.notify_all();
        }
    }
}
