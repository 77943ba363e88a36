//! When to try again, and how long to wait before.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use super::caller::Caller;
use super::{Event, FetchError, Options};

/// How one request, or one source, failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// May pass: try again, after `wait` if the server named a time.
    Transient {
        /// What went wrong.
        reason: String,
        /// The server's wish.
        wait: Option<Duration>,
    },
    /// This source will not give the file.
    Refused(String),
    /// The file behind the address is not the one that was begun.
    Changed(String),
    /// The trouble is here, whatever the source.
    Local(FetchError),
}

impl Failure {
    pub(super) fn transient(reason: impl Into<String>) -> Self {
        Self::Transient { reason: reason.into(), wait: None }
    }
}

/// Counts attempts that brought nothing.
#[derive(Debug)]
pub(super) struct Patience<'a> {
    options: &'a Options,
    fruitless: u32,
}

impl<'a> Patience<'a> {
    pub(super) fn new(options: &'a Options) -> Self {
        Self { options, fruitless: 0 }
    }

    /// An attempt brought something.
    pub(super) fn progressed(&mut self) {
        self.fruitless = 0;
    }

    /// Repeats what may pass: tells the caller why and when, and waits.
    pub(super) fn repeating<T>(
        &mut self,
        caller: &Caller,
        mut attempt: impl FnMut(&mut Self) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        loop {
            match attempt(self) {
                Err(Failure::Transient { reason, wait }) => {
                    let pause = self.failed(&reason, wait)?;
                    caller.tell(Event::Retry { reason, pause });
                    caller.sleep(pause).map_err(Failure::Local)?;
                }
                other => return other,
            }
        }
    }

    /// An attempt failed: how long to wait before the next, or why there is none.
    pub(super) fn failed(&mut self, reason: &str, wait: Option<Duration>) -> Result<Duration, Failure> {
        self.fruitless += 1;
        if self.fruitless > self.options.retries {
            return Err(Failure::Refused(format!("gave up after {} attempts in a row: {reason}", self.fruitless)));
        }
        if let Some(wait) = wait {
            if wait > self.options.longest_wait {
                let seconds = wait.as_secs();
                return Err(Failure::Refused(format!("{reason}; the server asks to come back in {seconds} s")));
            }
            return Ok(wait);
        }
        let doubled = self.options.backoff.saturating_mul(1 << (self.fruitless - 1).min(16));
        // Between half and all of it, so that many clients do not come back at once.
        let jitter = RandomState::new().hash_one(()) % 1024;
        Ok(doubled.min(self.options.longest_wait).mul_f64(0.5 + jitter as f64 / 2048.0))
    }
}
