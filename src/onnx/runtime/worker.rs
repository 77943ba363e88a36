//! A thread that drives one runtime. Whoever waits for it is asked many times a second whether to go on, which no runtime
//! does by itself: a graph's loading or one run of it can take minutes.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{Engine, Feed, Output, Runtime, RuntimeError};
use crate::memory;
use crate::onnx::event::{Event, Interrupted, Listener, tell};

/// Time between two questions.
const BEAT: Duration = Duration::from_millis(50);

/// How long a runtime that was told to stop is waited for, before it is left to end by itself.
const GRACE: Duration = Duration::from_millis(500);

/// A thread's stack: that of a main thread, which runtimes are used to.
const STACK: usize = 8 << 20;

/// Says to a runtime's thread that nobody wants its answer any more.
#[derive(Clone, Default)]
pub(super) struct Stop(Arc<Stopping>);

#[derive(Default)]
struct Stopping {
    asked: AtomicBool,
    /// What reaches into the runtime, where it can be reached.
    reach: Mutex<Option<Box<dyn Fn() + Send>>>,
}

impl Stop {
    /// Whether to stop.
    #[cfg(any(feature = "ort", feature = "tract", feature = "candle-onnx"))]
    pub(super) fn asked(&self) -> bool {
        self.0.asked.load(Ordering::SeqCst)
    }

    /// Calls `reach` when asked to stop, until the next one takes its place.
    #[cfg(feature = "ort")]
    pub(super) fn by(&self, reach: impl Fn() + Send + 'static) {
        let mut place = self.0.reach.lock().unwrap_or_else(PoisonError::into_inner);
        if self.asked() {
            reach();
        }
        *place = Some(Box::new(reach));
    }

    fn ask(&self) {
        // Inside the lock, so that a reach that is being set sees the question.
        let place = self.0.reach.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.asked.store(true, Ordering::SeqCst);
        if let Some(reach) = place.as_ref() {
            reach();
        }
    }
}

type Answer = Result<Vec<Output>, String>;

/// The thread, with a graph loaded.
pub(super) struct Worker {
    /// Taken when the thread shall end.
    feeds: Option<Sender<Feed>>,
    answers: Receiver<Answer>,
    stop: Stop,
    /// `None` once it was left to itself.
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts a thread and loads the graph in it by `open`.
    pub(super) fn start(
        runtime: Runtime,
        open: impl FnOnce(&Stop) -> Result<Box<dyn Engine>, RuntimeError> + Send + 'static,
        hear: Listener<'_>,
    ) -> Result<Self, RuntimeError> {
        let failed = move |reason| RuntimeError::Failed { runtime, reason };
        tell(hear, Event::Opening { runtime })?;
        let stop = Stop::default();
        let (feeds, incoming) = channel::<Feed>();
        let (outgoing, answers) = channel::<Answer>();
        let (opening, opened) = channel();
        let inner = stop.clone();
        let body = move || {
            let mut engine = match guarded(|| open(&inner)) {
                Ok(Ok(engine)) => Some(engine),
                Ok(Err(error)) => return drop(opening.send(Err(error))),
                Err(reason) => return drop(opening.send(Err(failed(reason)))),
            };
            if opening.send(Ok(())).is_err() {
                return;
            }
            while let Ok(feed) = incoming.recv() {
                let answer = match engine.as_mut().map(|engine| guarded(|| engine.run(&feed, &inner))) {
                    Some(Ok(answer)) => answer,
                    Some(Err(reason)) => {
                        // Dropping what a panic left half-done may panic again.
                        std::mem::forget(engine.take());
                        Err(reason)
                    }
                    None => Err("it panicked before".to_owned()),
                };
                if outgoing.send(answer).is_err() {
                    return;
                }
            }
        };
        let builder = std::thread::Builder::new().name(runtime.name().to_owned()).stack_size(STACK);
        let thread = builder.spawn(body).map_err(|error| failed(format!("it got no thread: {error}")))?;
        let mut worker = Self { feeds: Some(feeds), answers, stop, thread: Some(thread) };
        match attend(&opened, &worker.stop, hear) {
            Ok(Some(result)) => result.map(|()| worker),
            Ok(None) => Err(failed("its thread ended".to_owned())),
            Err(left) => Err(worker.leave(left)),
        }
    }

    /// What the graph makes of `feed`; `Err` with the runtime's reason inside where it fails.
    pub(super) fn run(&mut self, feed: Feed, hear: Listener<'_>) -> Result<Answer, RuntimeError> {
        let sent = self.feeds.as_ref().is_some_and(|feeds| feeds.send(feed).is_ok());
        let answer = match sent {
            true => attend(&self.answers, &self.stop, hear),
            false => Ok(None),
        };
        match answer {
            Ok(answer) => Ok(answer.unwrap_or_else(|| Err("its thread ended".to_owned()))),
            Err(left) => Err(self.leave(left)),
        }
    }

    /// After an interruption: a thread that has not stopped meanwhile is not waited for.
    fn leave(&mut self, Left { stopped }: Left) -> RuntimeError {
        if !stopped {
            self.thread = None;
        }
        RuntimeError::Interrupted(Interrupted)
    }
}

impl Drop for Worker {
    /// Waits until the runtime's memory is free.
    fn drop(&mut self) {
        self.feeds = None;
        if let Some(thread) = self.thread.take() {
            // Panics are caught inside.
            let _ = thread.join();
            memory::trim();
        }
    }
}

/// An interruption, and whether the thread stopped in time.
struct Left {
    stopped: bool,
}

/// Waits for an answer, asking `hear` meanwhile; `None` where the thread is gone.
fn attend<T>(answers: &Receiver<T>, stop: &Stop, hear: Listener<'_>) -> Result<Option<T>, Left> {
    loop {
        match answers.recv_timeout(BEAT) {
            Ok(answer) => return Ok(Some(answer)),
            Err(RecvTimeoutError::Disconnected) => return Ok(None),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if tell(hear, Event::Working).is_err() {
            stop.ask();
            let stopped = !matches!(answers.recv_timeout(GRACE), Err(RecvTimeoutError::Timeout));
            return Err(Left { stopped });
        }
    }
}

/// Runs `work`, with a panic as an error.
fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        format!("it panicked: {}", text.unwrap_or("no message"))
    })
}
