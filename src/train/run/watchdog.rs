//! Notices when a run stands still, and says where.
//!
//! A run that waits for what never comes (a network file system, a process that is stuck) would use up its allocation in
//! silence. So a thread of its own looks at the run's pulse, and tells when no micro-batch ends for a time that is absurd by
//! the run's own measure. It ends nothing: what to do about it is for whoever started the run.

use std::collections::VecDeque;
use std::fmt;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::data::{Activity, LoaderActivity};
use crate::train::Phase;

/// Time between two looks.
const TICK: Duration = Duration::from_millis(200);

/// A micro-batch that takes this many times as long as the median one is stalled, not slow.
const PATIENCE: u32 = 50;

/// Micro-batches the median is taken of.
const REMEMBERED: usize = 101;

/// A run that stands still.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Stall {
    /// How long; time in which the whole process was stopped or suspended is not in it.
    pub still: Duration,
    /// What a micro-batch of this run takes otherwise; `None` before the first.
    pub median: Option<Duration>,
    /// The update it is at, from 1.
    pub update: u64,
    /// Which of the update's micro-batches, from 1, of how many.
    pub micro_batch: (usize, usize),
    /// What the run's own thread is at.
    pub phase: Phase,
    /// Whether it told its listener so and got no answer yet.
    pub telling: bool,
    /// What each of the loader's threads is at.
    pub loader: Vec<LoaderActivity>,
}

impl fmt::Display for Stall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no micro-batch has ended for {} s", self.still.as_secs())?;
        if let Some(median) = self.median {
            write!(f, "; one takes {:.3} s", median.as_secs_f64())?;
        }
        let (at, of) = self.micro_batch;
        write!(f, "\n  update {}, micro-batch {at} of {of}: {}", self.update, self.phase)?;
        if self.telling {
            write!(f, "; whoever listens has not answered")?;
        }
        for (thread, activity) in self.loader.iter().enumerate() {
            write!(f, "\n  loader {thread}: {activity}")?;
        }
        Ok(())
    }
}

/// What a run is at, for whoever looks from outside.
#[derive(Debug)]
pub(super) struct Pulse(Mutex<Beat>);

#[derive(Debug)]
struct Beat {
    phase: Phase,
    telling: bool,
    update: u64,
    micro_batch: (usize, usize),
    /// Grows with everything that counts as progress.
    marks: u64,
    began: Instant,
    times: VecDeque<Duration>,
}

impl Pulse {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Beat {
            phase: Phase::Loading,
            telling: false,
            update: 0,
            micro_batch: (0, 0),
            marks: 0,
            began: Instant::now(),
            times: VecDeque::new(),
        }))
    }

    /// Nothing below panics while it holds the lock.
    fn beat(&self) -> MutexGuard<'_, Beat> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The run goes on to `phase`.
    pub(super) fn enter(&self, phase: Phase) {
        let mut beat = self.beat();
        beat.phase = phase;
        // Nobody knows yet how long a micro-batch takes: a block will do.
        beat.marks += u64::from(beat.times.is_empty());
    }

    /// The listener is being told something, or has answered.
    pub(super) fn telling(&self, now: bool) {
        self.beat().telling = now;
    }

    /// Micro-batch `at` of `of`, from 0, of `update` begins.
    pub(super) fn begin(&self, update: u64, at: usize, of: usize) {
        let mut beat = self.beat();
        (beat.update, beat.micro_batch, beat.began) = (update, (at + 1, of), Instant::now());
    }

    /// It has ended; says how long micro-batches take.
    pub(super) fn end(&self) -> Duration {
        let mut beat = self.beat();
        beat.marks += 1;
        if beat.times.len() == REMEMBERED {
            beat.times.pop_front();
        }
        let time = beat.began.elapsed();
        beat.times.push_back(time);
        median(&beat.times).unwrap_or(time)
    }

    /// Something else that may take long has ended.
    pub(super) fn mark(&self) {
        self.beat().marks += 1;
    }
}

fn median(times: &VecDeque<Duration>) -> Option<Duration> {
    let mut times: Vec<Duration> = times.iter().copied().collect();
    times.sort_unstable();
    times.get(times.len() / 2).copied()
}

/// Looks at `pulse` until `ended` hangs up; `tell` hears of a stall that has lasted for `least`, or for what the run's own
/// micro-batches make absurd, and again after as long.
pub(super) fn watch(
    pulse: &Pulse,
    least: Duration,
    loader: &Activity,
    ended: &Receiver<()>,
    tell: &(dyn Fn(&Stall) + Sync),
) {
    let (mut marks, mut still, mut looked) = (0, Duration::ZERO, Instant::now());
    while ended.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
        // A look that comes late says that this process did not run, and then the run could not either.
        let passed = looked.elapsed().min(2 * TICK);
        looked = Instant::now();
        let (seen, stall) = {
            let beat = pulse.beat();
            let median = median(&beat.times);
            let &Beat { phase, telling, update, micro_batch, marks, .. } = &*beat;
            (marks, Stall { still, median, update, micro_batch, phase, telling, loader: Vec::new() })
        };
        if seen != marks {
            (marks, still) = (seen, Duration::ZERO);
            continue;
        }
        still += passed;
        if still >= least.max(stall.median.unwrap_or_default() * PATIENCE) {
            tell(&Stall { still, loader: loader.now(), ..stall });
            still = Duration::ZERO;
        }
    }
}
