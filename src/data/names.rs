//! Many paths, one after another in one piece of memory.

use std::ffi::OsStr;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::lossless;

/// Paths in the order they were pushed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Names {
    #[serde(with = "lossless::bytes")]
    text: Vec<u8>,
    ends: Vec<usize>,
}

impl Names {
    pub(super) fn push(&mut self, path: &Path) {
        self.text.extend_from_slice(path.as_os_str().as_encoded_bytes());
        self.ends.push(self.text.len());
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn bytes(&self, index: usize) -> &[u8] {
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.text[start..self.ends[index]]
    }

    pub(super) fn get(&self, index: usize) -> &Path {
        // SAFETY: these bytes came from `as_encoded_bytes` and are cut where `push` put them together, or were read from a file
        // and then found by `is_consistent` to be what a path can be.
        Path::new(unsafe { OsStr::from_encoded_bytes_unchecked(self.bytes(index)) })
    }

    /// Whether these are names, after they were read from a file.
    pub(super) fn is_consistent(&self) -> bool {
        let rising = self.ends.is_sorted() && self.ends.last().copied().unwrap_or(0) == self.text.len();
        rising && (0..self.len()).all(|index| lossless::path(self.bytes(index)).is_some())
    }
}
