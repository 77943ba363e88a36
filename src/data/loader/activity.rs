//! What the threads of a loader are at, seen from outside: what a report of a stalled run names.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::work::Shared;

/// What one thread of a loader is at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoaderActivity {
    /// Nothing: enough is prepared.
    Waiting,
    /// It reads a file.
    Reading {
        /// The image, or the shard it is in.
        path: String,
    },
    /// It decodes and transforms an image.
    Decoding {
        /// The image, or the shard it is in.
        path: String,
    },
}

impl fmt::Display for LoaderActivity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Waiting => write!(f, "nothing to do"),
            Self::Reading { path } => write!(f, "reading `{path}`"),
            Self::Decoding { path } => write!(f, "decoding `{path}`"),
        }
    }
}

/// A look at a [`Loader`](super::Loader)'s threads that does not disturb them.
#[derive(Debug, Clone)]
pub struct Activity(pub(super) Arc<Shared>);

impl Activity {
    /// What each thread is at.
    pub fn now(&self) -> Vec<LoaderActivity> {
        self.0.activities()
    }
}

/// A thread's activity in one word: 0 for none, otherwise 2·(sample + 1), and 1 more when it decodes.
#[derive(Debug, Default)]
pub(super) struct Code(AtomicU64);

impl Code {
    pub(super) fn idles(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    pub(super) fn reads(&self, sample: u64) {
        self.0.store(2 * (sample + 1), Ordering::Relaxed);
    }

    pub(super) fn decodes(&self, sample: u64) {
        self.0.store(2 * (sample + 1) + 1, Ordering::Relaxed);
    }

    pub(super) fn read(&self, path: impl Fn(u64) -> String) -> LoaderActivity {
        let code = self.0.load(Ordering::Relaxed);
        match (code / 2).checked_sub(1) {
            None => LoaderActivity::Waiting,
            Some(sample) if code.is_multiple_of(2) => LoaderActivity::Reading { path: path(sample) },
            Some(sample) => LoaderActivity::Decoding { path: path(sample) },
        }
    }
}
