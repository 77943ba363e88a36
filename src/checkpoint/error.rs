//! Why a checkpoint could not be read.

use crate::hint::{Command, Hint};

/// Why a checkpoint could not be read. [`Checkpoint::open`](super::Checkpoint::open) wraps each in
/// [`CheckpointError::In`], which names the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// Any other error, with the file it is about.
    #[error("cannot read checkpoint `{path}`")]
    In {
        /// The file.
        path: String,
        /// What is wrong with it.
        source: Box<CheckpointError>,
    },
    /// The system refused.
    #[error("cannot open `{path}`")]
    Io {
        /// The file.
        path: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file could be opened and then not read through.
    #[error("it could not be read to its end")]
    Reread {
        /// The system's reason.
        source: std::io::Error,
    },
    /// Nothing in it.
    #[error("`{path}` is empty")]
    Empty {
        /// The file.
        path: String,
    },
    /// A folder without a checkpoint.
    #[error("`{path}` is a folder without a checkpoint")]
    Folder {
        /// The folder.
        path: String,
    },
    /// No container this tool knows.
    #[error("it is neither a torch checkpoint (zip, legacy, tar) nor safetensors{}; it starts with `{start}`", said(.looks))]
    Unrecognised {
        /// What it looks like instead, where that is plain.
        looks: Option<&'static str>,
        /// First bytes, printable.
        start: String,
    },
    /// A pipe, a device, a socket.
    #[error("`{path}` is not a regular file")]
    Special {
        /// The path.
        path: String,
    },
    /// A zip that torch did not write.
    #[error("zip: {reason}")]
    Zip {
        /// What is wrong.
        reason: String,
    },
    /// A zip whose entries are compressed, which torch's never are.
    #[error("zip: entry `{entry}` is compressed (method {method}); torch stores entries as they are")]
    Compressed {
        /// The entry.
        entry: String,
        /// The zip format's number of the method.
        method: usize,
    },
    /// A TorchScript archive: code, not a checkpoint.
    #[error("it is a TorchScript archive: a program with weights inside, not a checkpoint")]
    TorchScript,
    /// A tar that torch did not write.
    #[error("tar: {reason}")]
    Tar {
        /// What is wrong.
        reason: String,
    },
    /// Written on a big-endian machine.
    #[error("its numbers are big-endian, which is not supported")]
    BigEndian,
    /// A pickle that is malformed or hostile.
    #[error("pickle: {reason}")]
    Pickle {
        /// What is wrong.
        reason: String,
    },
    /// A pickle that names something a checkpoint does not need.
    #[error(
        "its pickle names {}, which {} not on the list of inert names; nothing was run",
        quoted(.names), if .names.len() == 1 { "is" } else { "are" }
    )]
    UnknownGlobals {
        /// `module.name` of each.
        names: Vec<String>,
    },
    /// A tensor that cannot be what it says.
    #[error("tensor `{name}`: {reason}")]
    Tensor {
        /// Where it stands.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// A tensor whose bytes are not those that were written.
    #[error("tensor `{name}`: its bytes are damaged: they do not have the checksum the archive says")]
    Damaged {
        /// Where it stands.
        name: String,
    },
    /// The file ends too early.
    #[error("it ends inside {what}: the file is truncated")]
    Truncated {
        /// What is cut.
        what: String,
    },
    /// A safetensors header that does not hold.
    #[error("safetensors: {reason}")]
    Header {
        /// What is wrong.
        reason: String,
    },
    /// A sharded checkpoint's index that does not hold.
    #[error("index: {reason}")]
    Index {
        /// What is wrong.
        reason: String,
    },
}

/// Text from a file, fit for an error or a terminal: no control characters, and not endless.
pub(super) fn shown(text: &str) -> String {
    let mut out = String::new();
    for char in text.chars().take(120) {
        if char.is_control() { out.extend(char.escape_default()) } else { out.push(char) }
    }
    if text.chars().nth(120).is_some() {
        out.push('…');
    }
    out
}

fn quoted(names: &[String]) -> String {
    let listed: Vec<String> = names.iter().take(5).map(|name| format!("`{}`", shown(name))).collect();
    let more = names.len().saturating_sub(5);
    if more > 0 { format!("{} and {more} more", listed.join(", ")) } else { listed.join(", ") }
}

fn said(looks: &Option<&str>) -> String {
    looks.map(|looks| format!("; it looks like {looks}")).unwrap_or_default()
}

// Only its words: its text holds its own causes' already.
impl From<safetensors::SafeTensorError> for CheckpointError {
    fn from(error: safetensors::SafeTensorError) -> Self {
        Self::Header { reason: error.to_string() }
    }
}

impl CheckpointError {
    /// What to do next.
    pub fn hint(&self) -> Option<Hint> {
        match self {
            Self::In { source, .. } => source.hint(),
            Self::Reread { .. } => Some("was it changed meanwhile?".into()),
            Self::Empty { .. } => Some("the download or copy failed; fetch it again".into()),
            Self::Folder { .. } => {
                let files = "model.safetensors, pytorch_model.bin or their .index.json";
                Some(format!("name a file, or a folder with {files}").into())
            }
            Self::Compressed { .. } => {
                Some("unpack it and pack it again with `zip -0`, or torch.load and torch.save it".into())
            }
            Self::TorchScript => {
                Some("torch.save(torch.jit.load(FILE).state_dict(), …) makes a checkpoint of it".into())
            }
            Self::UnknownGlobals { .. } => {
                let inspect = Hint::new().command(Command::new("inspect").word("FILE"));
                Some(inspect.words(" lists its names; do not load it with Python before you know where it comes from"))
            }
            Self::Damaged { .. } => Some("fetch or copy the file again".into()),
            _ => None,
        }
    }

    pub(super) fn pickle(reason: impl Into<String>) -> Self {
        Self::Pickle { reason: reason.into() }
    }

    pub(super) fn tensor(path: &[String], reason: impl Into<String>) -> Self {
        Self::Tensor { name: shown(&path.join(".")), reason: reason.into() }
    }

    pub(super) fn in_file(self, path: &std::path::Path) -> Self {
        match self {
            // These name their file already.
            Self::Io { .. } | Self::Empty { .. } | Self::Folder { .. } | Self::Special { .. } | Self::In { .. } => self,
            source => Self::In { path: path.display().to_string(), source: Box::new(source) },
        }
    }
}
