//! What an exit code means.

use std::process::ExitCode;

use super::hint::Advised;
use crate::fetch::{FetchError, Kind};
use crate::onnx::ExportError;

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exit {
    /// 0: done.
    Done,
    /// 0: whoever read our output had enough (`tec-zoo list | head`).
    PipeClosed,
    /// 1: the thing was refused or failed with a named reason.
    Failed,
    /// 2: the command line does not make sense; the same code clap uses.
    Usage,
    /// 3: everything ran, and a verification did not hold.
    NotHeld,
    /// 4: no source gave what was to be fetched.
    Network,
    /// 130: interrupted by the user; nothing half-written is left.
    Interrupted,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        exit.code().into()
    }
}

impl Exit {
    /// The number.
    pub(super) fn code(self) -> u8 {
        match self {
            Self::Done | Self::PipeClosed => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotHeld => 3,
            Self::Network => 4,
            Self::Interrupted => 130,
        }
    }

    /// The code an error ends the program with.
    pub(super) fn of(error: &anyhow::Error) -> Self {
        if super::interrupt::requested() {
            return Self::Interrupted;
        }
        for cause in error.chain() {
            if cause.is::<Usage>() {
                return Self::Usage;
            }
            if let Some(advised) = cause.downcast_ref::<Advised>() {
                return advised.exit();
            }
            if cause.downcast_ref::<ExportError>().is_some_and(ExportError::is_usage) {
                return Self::Usage;
            }
            if let Some(fetch) = cause.downcast_ref::<FetchError>() {
                match fetch.kind() {
                    Kind::Network => return Self::Network,
                    Kind::Verification => return Self::NotHeld,
                    Kind::Interrupted => return Self::Interrupted,
                    Kind::Refused => {}
                }
            }
            if cause.downcast_ref::<std::io::Error>().is_some_and(|io| io.kind() == std::io::ErrorKind::BrokenPipe) {
                return Self::PipeClosed;
            }
        }
        Self::Failed
    }
}

/// A command line that parses but cannot be meant.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Usage(pub(super) String);
