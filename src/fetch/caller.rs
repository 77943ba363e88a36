//! Who asked for the work: is told what happens, and may say stop.
//!
//! The work runs beside the thread that called. That one only listens, so it is asked many times a second whether to go
//! on, whatever the work is waiting for; the work looks at the answer wherever it waits or has done a little more.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Event, FetchError};
use crate::convert::Progress;

/// How often the caller is asked when there is nothing to tell, and how long anything waits without looking at the answer.
pub(super) const TICK: Duration = Duration::from_millis(50);
/// How often the caller hears of bytes.
const SHOWN: Duration = Duration::from_millis(100);

/// The caller, as the threads that work for it see it.
#[derive(Debug)]
pub(super) struct Caller {
    stop: Arc<AtomicBool>,
    /// What happened, with something that is dropped once it was heard; `None` where nobody listens.
    news: Option<Sender<(Event, Sender<()>)>>,
    shown: Mutex<Option<Instant>>,
}

/// Runs `work` while the calling thread hands its news to `events` and asks, until the work has ended.
pub(super) fn attended<T: Send>(
    events: &mut dyn FnMut(Event) -> ControlFlow<()>,
    work: impl FnOnce(&Caller) -> Result<T, FetchError> + Send,
) -> Result<T, FetchError> {
    let stop = Arc::new(AtomicBool::new(false));
    let (news, heard) = mpsc::channel();
    let caller = Caller { stop: Arc::clone(&stop), news: Some(news), shown: Mutex::new(None) };
    std::thread::scope(|scope| {
        // With the caller moved into it, the end of the work is the end of its news.
        let work = scope.spawn(move || work(&caller));
        // Nor does the work go on for a caller that panicked.
        let deserted = Deserted(&stop);
        loop {
            let (event, _heard) = match heard.recv_timeout(TICK) {
                Ok((event, heard)) => (event, Some(heard)),
                Err(RecvTimeoutError::Timeout) => (Event::Idle, None),
                Err(RecvTimeoutError::Disconnected) => break,
            };
            if !stop.load(Ordering::Relaxed) && events(event).is_break() {
                stop.store(true, Ordering::Relaxed);
            }
        }
        std::mem::forget(deserted);
        work.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Stops the work when it is dropped.
struct Deserted<'a>(&'a AtomicBool);

impl Drop for Deserted<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Caller {
    /// Nobody: hears nothing and never says stop.
    pub(super) fn absent() -> Self {
        Self { stop: Arc::default(), news: None, shown: Mutex::new(None) }
    }

    /// Tells what happened, and waits until it was heard: a caller who says stop to this stops what comes next.
    pub(super) fn tell(&self, event: Event) {
        let (waiting, heard) = mpsc::channel();
        if self.news.as_ref().is_some_and(|news| news.send((event, waiting)).is_ok()) {
            // The sender is dropped, never used.
            let _ = heard.recv();
        }
    }

    /// Tells how many bytes there are of what goes on, now and then.
    pub(super) fn progress(&self, have: u64, total: Option<u64>) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if total == Some(have) || shown.is_none_or(|shown| shown.elapsed() > SHOWN) {
            *shown = Some(Instant::now());
            drop(shown);
            self.tell(Event::Progress { have, total });
        }
    }

    /// What a conversion tells and asks.
    pub(super) fn converting(&self, progress: Progress) -> ControlFlow<()> {
        self.progress(progress.done, Some(progress.total));
        self.flow()
    }

    /// Whether the caller said stop.
    pub(super) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Fails when the caller said stop.
    pub(super) fn check(&self) -> Result<(), FetchError> {
        if self.stopped() { Err(FetchError::Interrupted { resumes: false }) } else { Ok(()) }
    }

    /// The caller's answer, for who works by the same rule.
    pub(super) fn flow(&self) -> ControlFlow<()> {
        if self.stopped() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// Waits, unless the caller says stop.
    pub(super) fn sleep(&self, pause: Duration) -> Result<(), FetchError> {
        let until = Instant::now() + pause;
        loop {
            self.check()?;
            match until.checked_duration_since(Instant::now()) {
                Some(left) if !left.is_zero() => std::thread::sleep(left.min(TICK)),
                _ => return Ok(()),
            }
        }
    }
}
