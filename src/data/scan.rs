//! Looking through data takes minutes where it is far away: what is told meanwhile, how it is stopped, and how several look-ups
//! are under way at once.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::DataError;
use super::formats::Unread;
use super::shards::DamagedShard;

/// What is heard of a scan while it goes, and what it found out.
#[derive(Debug, Clone, Copy)]
pub enum ScanEvent<'a> {
    /// Folders are being read.
    Walking {
        /// Folders read so far.
        folders: u64,
        /// Images found in them so far.
        images: u64,
    },
    /// Headers of shards, or sizes of listed files, are being read.
    Reading {
        /// How many so far.
        done: u64,
        /// How many there are.
        of: u64,
    },
    /// Contents are being read for the digest.
    Digesting {
        /// Images so far.
        done: u64,
        /// Images of the sample.
        of: u64,
    },
    /// Files that look like images and are not read. Told once, at the end, if there are any.
    Unread(&'a Unread),
    /// An archive is truncated or has a broken header. Told at the end, once for each.
    Damaged(&'a DamagedShard),
}

/// Who follows a scan; [`ControlFlow::Break`] ends it with [`DataError::Interrupted`].
pub(super) type Hear<'a> = &'a mut dyn FnMut(ScanEvent<'_>) -> ControlFlow<()>;

/// How often somebody is told, and asked whether to go on.
const EVERY: Duration = Duration::from_millis(100);

/// Look-ups under way at once: the wait for a disk, not the work, is what takes long.
const THREADS: usize = 8;

/// Who follows a scan, told a few times a second.
pub(super) struct Listener<'a> {
    hear: Hear<'a>,
    told: Option<Instant>,
}

impl<'a> Listener<'a> {
    pub(super) fn new(hear: Hear<'a>) -> Self {
        Self { hear, told: None }
    }

    /// Tells it now.
    pub(super) fn tell(&mut self, event: ScanEvent<'_>) -> Result<(), DataError> {
        self.told = Some(Instant::now());
        match (self.hear)(event) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(DataError::Interrupted),
        }
    }

    /// Tells it if it is time to, as it is at first.
    pub(super) fn tell_in_time(&mut self, event: impl FnOnce() -> ScanEvent<'static>) -> Result<(), DataError> {
        match self.told.is_none_or(|told| told.elapsed() >= EVERY) {
            true => self.tell(event()),
            false => Ok(()),
        }
    }

    /// Does `work` for 0 to `count` on several threads. It is also handed a flag that says when to give up.
    pub(super) fn in_parallel<T: Send>(
        &mut self,
        count: usize,
        event: fn(u64, u64) -> ScanEvent<'static>,
        work: impl Fn(usize, &AtomicBool) -> T + Sync,
    ) -> Result<Vec<T>, DataError> {
        let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        let mut found: Vec<Option<T>> = (0..count).map(|_| None).collect();
        let told = std::thread::scope(|scope| {
            let (done, results) = channel();
            for _ in 0..THREADS.min(count) {
                let (done, next, stop, work) = (done.clone(), &next, &stop, &work);
                scope.spawn(move || {
                    loop {
                        let at = next.fetch_add(1, Ordering::Relaxed);
                        if at >= count || stop.load(Ordering::Relaxed) || done.send((at, work(at, stop))).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(done);
            let mut so_far = 0;
            loop {
                match results.recv_timeout(EVERY) {
                    Ok((at, result)) => {
                        found[at] = Some(result);
                        so_far += 1;
                    }
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return Ok(()),
                }
                let told = self.tell_in_time(|| event(so_far, count as u64));
                if told.is_err() {
                    stop.store(true, Ordering::Relaxed);
                    return told;
                }
            }
        });
        told?;
        Ok(found.into_iter().flatten().collect())
    }
}
