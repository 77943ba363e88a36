//! When a folder or a file was last changed: whether what was read of it is still true.

use std::fs::{self, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::lossless;

/// Two changes within this time can leave the same stamp: FAT counts in steps of two seconds, and a clock of another machine
/// may be a little behind.
const COARSEST: Duration = Duration::from_secs(3);

/// A file or folder, and when it was changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stamp {
    #[serde(with = "lossless")]
    path: PathBuf,
    times: Times,
}

/// Nanoseconds since 1970 of the last change, and where the system has it, of the last change of the entry itself, which nobody
/// can set back; and the size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Times {
    modified: u64,
    changed: u64,
    bytes: u64,
}

impl Times {
    fn of(metadata: &Metadata) -> Self {
        let modified = metadata.modified().map_or(0, nanoseconds);
        #[cfg(unix)]
        let changed = {
            use std::os::unix::fs::MetadataExt;
            let seconds = u64::try_from(metadata.ctime()).unwrap_or(0);
            seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(metadata.ctime_nsec()).unwrap_or(0))
        };
        #[cfg(not(unix))]
        let changed = modified;
        // The size of a folder means nothing, and some file systems change it at will.
        let bytes = if metadata.is_dir() { 0 } else { metadata.len() };
        Self { modified, changed, bytes }
    }
}

/// Nanoseconds since 1970; 0 before.
pub(super) fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

impl Stamp {
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        Ok(Self { times: Times::of(&fs::metadata(path)?), path: std::path::absolute(path)? })
    }

    /// Whether the file or folder was not changed since, given that it was looked at `then` (nanoseconds since 1970). What was
    /// changed shortly before that may have been changed once more without leaving a trace.
    pub(super) fn holds(&self, then: u64) -> bool {
        let settled = then.saturating_sub(u64::try_from(COARSEST.as_nanos()).unwrap_or(u64::MAX));
        self.times.modified.max(self.times.changed) < settled
            && fs::metadata(&self.path).is_ok_and(|now| Times::of(&now) == self.times)
    }
}
