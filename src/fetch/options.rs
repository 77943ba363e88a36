//! What a caller can choose, and what it is told while it waits.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::model::PositionKind;

/// Settings of a fetch. The defaults suit a home connection and a cluster alike.
#[derive(Debug, Clone)]
pub struct Options {
    /// Parts downloaded at once from one source.
    pub jobs: usize,
    /// Time to reach a server.
    pub connect_timeout: Duration,
    /// Time without news, or with less than `slowest`, after which a connection is given up.
    pub stall: Duration,
    /// Bytes per second below which a connection counts as stalled.
    pub slowest: u64,
    /// Attempts in a row that may bring nothing before a source is given up.
    pub retries: u32,
    /// First pause between attempts; doubled each time, with jitter.
    pub backoff: Duration,
    /// Longest pause, and the longest a server's `Retry-After` is obeyed.
    pub longest_wait: Duration,
    /// Largest file accepted where its size is not published.
    pub max_bytes: u64,
    /// Space to leave free on the disk.
    pub keep_free: u64,
    /// Touch no network at all.
    pub offline: bool,
    /// A server laid out as `<mirror>/<host>/<path>`, asked before the sources themselves.
    pub mirror: Option<String>,
    /// Endpoint for sources on the hub, in place of its own.
    pub hub: Option<String>,
    /// Sent to the hub endpoint's host, and to no other.
    pub token: Option<Secret>,
    /// Accept plain http from hosts other than this one.
    pub allow_http: bool,
    /// PyTorch hub's folder of checkpoints (`…/torch/hub/checkpoints`): a file there that has a source's published hash is
    /// used instead of being downloaded again.
    pub torch_hub: Option<PathBuf>,
    /// Hugging Face's cache (`…/huggingface/hub`), used alike.
    pub hugging_face: Option<PathBuf>,
    /// Whether a source's file may be read in part.
    pub parts: Parts,
    /// Keep the downloaded file beside the model, so that damage can be repaired range by range.
    pub keep_source: bool,
    /// Time without a heartbeat after which another process's lock is broken.
    pub stale_lock: Duration,
    /// Bytes per chunk hash, for files downloaded from now on.
    pub chunk: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            jobs: 4,
            connect_timeout: Duration::from_secs(15),
            stall: Duration::from_secs(20),
            slowest: 1 << 10,
            retries: 6,
            backoff: Duration::from_millis(300),
            longest_wait: Duration::from_secs(60),
            max_bytes: 64 << 30,
            keep_free: 64 << 20,
            offline: false,
            mirror: None,
            hub: None,
            token: None,
            allow_http: false,
            torch_hub: None,
            hugging_face: None,
            parts: Parts::Auto,
            keep_source: false,
            stale_lock: Duration::from_secs(60),
            chunk: 4 << 20,
        }
    }
}

/// Whether only those tensors of a torch zip are fetched that become part of the model.
///
/// A file that was never here as a whole has no sha256: its entries are compared with the archive's own checksums, and
/// the model's tensors are pinned in the lock file instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Parts {
    /// Where the file holds several networks, no hash of it was published or pinned, and it saves a quarter or more.
    #[default]
    Auto,
    /// Never: always the whole file, with its sha256.
    Never,
    /// Wherever the server and the container allow, published hashes or not.
    Always,
}

/// How a model was checked before it got its name.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "check", rename_all = "kebab-case")]
pub enum Checked {
    /// A record of activations was replayed and holds.
    Golden {
        /// Stages compared.
        stages: usize,
        /// Greatest relative difference of a stage.
        worst: f64,
        /// Whether another program made the record.
        upstream: bool,
    },
    /// No record is known; the tensors are exactly those of the architecture.
    Structure {
        /// Tensors of the backbone.
        tensors: usize,
        /// Their values.
        parameters: u64,
        /// Their bytes.
        bytes: u64,
        /// What the position table is.
        position: PositionKind,
    },
}

impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Golden { stages, worst, upstream } => {
                let whose = if *upstream { "another program's record" } else { "this tool's own record" };
                write!(f, "{stages} stages of {whose} replayed, relative difference {worst:.1e} at most")
            }
            Self::Structure { tensors, parameters, bytes, position } => {
                let position = match position {
                    PositionKind::SinCos { .. } => "sine-cosine",
                    PositionKind::Learned => "learned",
                };
                write!(f, "{tensors} tensors, {parameters} parameters, {bytes} bytes, {position} position table")
            }
        }
    }
}

/// A token that no message prints.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// Wraps it.
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// News, given on the thread that called. Whoever hears them answers whether to go on: after
/// [`Break`](std::ops::ControlFlow::Break) the work ends within a moment with
/// [`FetchError::Interrupted`](super::FetchError::Interrupted), whatever it was waiting for, and leaves nothing
/// half-written.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// Another process is at it; its result will be used.
    Waiting {
        /// Who holds the lock.
        holder: String,
    },
    /// A source is being asked.
    Source {
        /// Its address, without any secret.
        address: String,
    },
    /// Nothing new; asked many times a second, so that the caller can stop what waits.
    Idle,
    /// Bytes of what goes on: of the file that is fetched or read, of the tensors that are written.
    Progress {
        /// Bytes that are there, those of earlier runs included.
        have: u64,
        /// Bytes in all, when that is known.
        total: Option<u64>,
    },
    /// Something on this machine is being read, to be compared with its hashes.
    Reading {
        /// What.
        path: String,
    },
    /// Part of the file was there already.
    Resumed {
        /// Bytes that need no fetching.
        have: u64,
        /// Bytes of the whole file.
        total: u64,
    },
    /// An attempt failed and will be repeated.
    Retry {
        /// What went wrong.
        reason: String,
        /// Time until then.
        pause: Duration,
    },
    /// The source holds another file than before, or was given up; what was fetched of it is dropped.
    Restart {
        /// Why.
        reason: String,
    },
    /// A source failed for good; the next one is tried.
    Failed {
        /// Its address, without any secret.
        address: String,
        /// Why.
        reason: String,
    },
    /// The file is whole and verified.
    Verified {
        /// Its sha256.
        sha256: String,
        /// Its size.
        bytes: u64,
    },
    /// The model is being written in the common format.
    Converting,
    /// Only what is needed of the file is being fetched.
    InPart {
        /// Bytes that will have been fetched.
        needed: u64,
        /// Bytes of the whole file.
        total: u64,
    },
    /// The file cannot be read in part; all of it is fetched.
    NotInPart {
        /// Why.
        reason: String,
    },
    /// The model is what it should be.
    Checked {
        /// How that was found out.
        how: Checked,
    },
    /// The model's fingerprint for `identify` could not be kept; the model is none the worse.
    Unremembered {
        /// Why.
        reason: String,
    },
}
