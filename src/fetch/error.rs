//! Why a fetch ended without its model.

use std::path::Path;

use crate::causes::in_full;
use crate::destination::DestinationError;
use crate::hint::{Command, Hint};
use crate::zoo::Digest;

/// What sort of failure it is, for the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Refused, or failed here: disk, arguments, a file that is no checkpoint.
    Refused,
    /// A file is not what it should be.
    Verification,
    /// No source gave the file.
    Network,
    /// The caller said stop.
    Interrupted,
}

/// Why a fetch ended without its model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// The store could not be read or written.
    #[error("cannot {action} `{path}`")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file.
        path: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A bundle or model cannot go where it was meant to.
    #[error(transparent)]
    Destination(#[from] DestinationError),
    /// The disk is too full.
    #[error("`{path}` has {free} bytes free; {needed} are needed")]
    NoSpace {
        /// The folder.
        path: String,
        /// Bytes needed, with what is to be left free.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
    /// The network is needed and not allowed.
    #[error("`{model}` is not in the store and this is offline")]
    Offline {
        /// The model.
        model: String,
    },
    /// The catalogue knows the model, this version cannot run it.
    #[error("`{model}` is only listed: {reason}")]
    Listed {
        /// The model.
        model: String,
        /// Why.
        reason: String,
    },
    /// A source failed.
    #[error("{address}: {reason}")]
    Source {
        /// Its address, without any secret.
        address: String,
        /// What went wrong, after which attempts.
        reason: String,
    },
    /// All sources failed.
    #[error("no source of `{model}` gave its file:\n{}", list(.failures))]
    Sources {
        /// The model.
        model: String,
        /// One for each source, in the order they were tried.
        failures: Vec<FetchError>,
    },
    /// A file has the wrong hash. It is not used and not kept.
    #[error(
        "{origin} is not the file that was published\n  expected {}\n  computed sha256:{sha256}{}{}",
        digests(.expected), .md5.as_ref().map(|md5| format!("\n           md5:{md5}")).unwrap_or_default(), format_args!("\n  size     {bytes} bytes")
    )]
    Hash {
        /// Where it came from.
        origin: String,
        /// Any of these would have done.
        expected: Vec<Digest>,
        /// The file's sha256.
        sha256: String,
        /// The file's md5, when one was expected.
        md5: Option<String>,
        /// The file's size.
        bytes: u64,
    },
    /// A file differs from the one first fetched from the same place. It is not used and not kept.
    #[error("{origin} is not the file it was on first use\n  pinned   sha256:{pinned}\n  computed sha256:{sha256}")]
    Pin {
        /// Where it came from.
        origin: String,
        /// The sha256 of first use.
        pinned: String,
        /// The file's sha256.
        sha256: String,
        /// The file that holds the pin.
        pins: String,
    },
    /// The tensors differ from those first read from the same place. They are not used.
    #[error("{origin} does not hold the tensors it held on first use\n  pinned   {pinned}\n  computed {tensors}")]
    TensorPin {
        /// Where they came from.
        origin: String,
        /// The tensors' sha256 of first use.
        pinned: String,
        /// Their sha256 now.
        tensors: String,
        /// The file that holds the pin.
        pins: String,
    },
    /// The converted model does not do what its golden record says. It is not used.
    #[error("`{model}` does not pass its golden check: {reason}")]
    Golden {
        /// The model.
        model: String,
        /// What differs, or why it cannot be replayed.
        reason: String,
    },
    /// A bundle cannot be used, or not all of it.
    #[error("cannot use the bundle `{path}`: {reason}")]
    Bundle {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A model to pack is damaged.
    #[error("`{model}` cannot be packed: {reason}")]
    Unpackable {
        /// The model.
        model: String,
        /// Why.
        reason: String,
        /// What to do, where there is something.
        hint: Option<Hint>,
    },
    /// A bundle does not hold what is asked of it.
    #[error("the bundle holds no `{model}`")]
    NotInBundle {
        /// What was asked for.
        model: String,
        /// What there is.
        has: String,
    },
    /// The catalogue could not be used.
    #[error(transparent)]
    Zoo(#[from] crate::zoo::ZooError),
    /// The converted model is not the one the manifest describes.
    #[error("{origin} does not hold `{model}`: {reason}")]
    Structure {
        /// Where the file came from.
        origin: String,
        /// The model.
        model: String,
        /// What differs.
        reason: String,
    },
    /// A given file matches none of the model's sources.
    #[error("`{path}` is none of the files of `{model}`\n  computed sha256:{sha256}\n{expected}")]
    Foreign {
        /// The file.
        path: String,
        /// The model.
        model: String,
        /// The file's sha256.
        sha256: String,
        /// The hashes that were expected, a line for each source.
        expected: String,
    },
    /// A damaged file has no source to be repaired from.
    #[error("`{sha256}` is damaged and no source is known for it")]
    Unrepairable {
        /// The file.
        sha256: String,
    },
    /// The caller said stop. Nothing was left half-written.
    #[error("interrupted; {}", if *.resumes { "the next fetch goes on from here" } else { "nothing was left half-written" })]
    Interrupted {
        /// Whether what was fetched is kept, and the next fetch goes on from there.
        resumes: bool,
    },
    /// The checkpoint could not be converted.
    #[error(transparent)]
    Convert(crate::convert::ConvertError),
    /// A model in the store is not in the common format.
    #[error(transparent)]
    Model(#[from] crate::model::CanonicalError),
}

impl From<crate::convert::ConvertError> for FetchError {
    fn from(error: crate::convert::ConvertError) -> Self {
        match error {
            crate::convert::ConvertError::Interrupted => Self::Interrupted { resumes: false },
            error => Self::Convert(error),
        }
    }
}

impl FetchError {
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { action, path: path.display().to_string(), source }
    }

    /// A failed write of a file of which `missing` bytes are still to come.
    pub(super) fn write(path: &Path, missing: u64) -> impl FnOnce(std::io::Error) -> Self {
        move |source| match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded | std::io::ErrorKind::FileTooLarge => {
                Self::NoSpace { path: path.display().to_string(), needed: missing, free: 0 }
            }
            _ => Self::io("write", path)(source),
        }
    }

    /// What sort of failure it is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Source { .. } | Self::Offline { .. } => Kind::Network,
            // A wrong file anywhere outweighs an unreachable server.
            Self::Sources { failures, .. } => {
                let wrong = failures.iter().any(|failure| failure.kind() == Kind::Verification);
                if wrong { Kind::Verification } else { Kind::Network }
            }
            Self::Hash { .. }
            | Self::Pin { .. }
            | Self::TensorPin { .. }
            | Self::Golden { .. }
            | Self::Bundle { .. }
            | Self::Structure { .. }
            | Self::Foreign { .. } => Kind::Verification,
            Self::Interrupted { .. } => Kind::Interrupted,
            _ => Kind::Refused,
        }
    }

    /// What to do next.
    pub fn hint(&self) -> Option<Hint> {
        let unpinned = |pins: &str| {
            let delete = format!("If the change is expected, delete its entry in `{pins}` and fetch again");
            Hint::from(format!("nobody published a hash for it. {delete}"))
        };
        Some(match self {
            Self::NoSpace { .. } => "free some space and run the same command again: what was fetched is kept".into(),
            Self::Offline { .. } => {
                Hint::new().words("fetch it once online, or give the file with ").set("from", "FILE")
            }
            Self::Sources { failures, .. } => advice(failures),
            Self::Hash { .. } => {
                let discarded = "the file was discarded; the source may hold another version or be damaged: ";
                let hint = Hint::new().words(discarded).words("try another source with ").set("from", "URL");
                hint.words(", or ask its owner")
            }
            Self::Pin { pins, .. } | Self::TensorPin { pins, .. } => unpinned(pins),
            Self::Golden { model, .. } => {
                let record = format!("the record is `zoo/{model}.golden.safetensors` in the tool's folder; ");
                Hint::new().words(record).command(Command::new("verify")).words(" replays one on any model")
            }
            Self::Bundle { .. } => {
                let again = "copy the bundle again, and compare its sha256 with the one printed when it was packed";
                Hint::from(format!("nothing of this model was kept; {again}"))
            }
            Self::NotInBundle { has, .. } => format!("it has {has}").into(),
            Self::Foreign { .. } => {
                Hint::new().words("convert it with ").command(Command::new("convert")).words(" if you trust it")
            }
            Self::Unrepairable { .. } => {
                Hint::new().command(Command::new("cache prune")).words(" removes it; fetch its model again")
            }
            Self::Unpackable { hint, .. } => return hint.clone(),
            Self::Zoo(error) => return error.hint(),
            Self::Convert(error) => return error.hint(),
            Self::Destination(error) => return error.hint(),
            Self::Model(error) => return error.hint(),
            Self::Io { .. }
            | Self::Listed { .. }
            | Self::Source { .. }
            | Self::Structure { .. }
            | Self::Interrupted { .. } => return None,
        })
    }

    /// Whether trying another source is pointless.
    pub(super) fn is_local(&self) -> bool {
        use crate::convert::ConvertError;
        matches!(
            self,
            Self::Io { .. }
                | Self::NoSpace { .. }
                | Self::Interrupted { .. }
                | Self::Convert(ConvertError::Io { .. } | ConvertError::Destination(_))
        )
    }

    /// The same, where what was fetched is kept and found again.
    pub(super) fn resuming(self) -> Self {
        match self {
            Self::Interrupted { .. } => Self::Interrupted { resumes: true },
            error => error,
        }
    }
}

fn list(failures: &[FetchError]) -> String {
    let lines: Vec<String> =
        failures.iter().map(|failure| format!("  {}", in_full(failure).replace('\n', "\n  "))).collect();
    lines.join("\n")
}

fn advice(failures: &[FetchError]) -> Hint {
    if let Some(wrong) = failures.iter().find(|failure| failure.kind() == Kind::Verification) {
        return wrong.hint().unwrap_or_else(|| "nothing was kept of the wrong files".into());
    }
    let again = Hint::new().words("run the same command again to go on where it stopped, or give another place with ");
    again.set("from", "URL").words(" or ").option("mirror")
}

fn digests(digests: &[Digest]) -> String {
    let all: Vec<String> = digests.iter().map(Digest::to_string).collect();
    all.join(" and ")
}
