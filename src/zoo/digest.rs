//! What is publicly known of a file's hash: seldom all of it.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// A published hash, whole or only its beginning.
///
/// Written `sha256:<64 hex>`, `sha256-prefix:<8 hex>` (the suffix torch hub and OpenMMLab put in file names) or
/// `md5-prefix:<6 hex>` (MAE's README).
///
/// ```
/// use tec_zoo::zoo::Digest;
///
/// let digest: Digest = "md5-prefix:8cad7c".parse()?;
/// assert_eq!(digest.to_string(), "md5-prefix:8cad7c");
/// assert!(digest.accepts_md5("8cad7c0123456789abcdef0123456789"));
/// # Ok::<(), tec_zoo::zoo::DigestError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Digest {
    /// The whole sha256, 64 lower-case hex digits.
    Sha256(String),
    /// The first 8 hex digits of the sha256.
    Sha256Prefix(String),
    /// The first 6 hex digits of the md5.
    Md5Prefix(String),
}

/// A hash that is not written as one of the known kinds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a hash: those are `sha256:<64 hex>`, `sha256-prefix:<8 hex>` and `md5-prefix:<6 hex>`, in lower case"
)]
pub struct DigestError(String);

impl Digest {
    /// Whether a file with this whole sha256 (lower-case hex) may be the one. An md5 says nothing about it: true.
    pub fn accepts_sha256(&self, computed: &str) -> bool {
        match self {
            Self::Sha256(hex) => hex == computed,
            Self::Sha256Prefix(hex) => computed.starts_with(hex.as_str()),
            Self::Md5Prefix(_) => true,
        }
    }

    /// Whether a file with this whole md5 (lower-case hex) may be the one. A sha256 says nothing about it: true.
    pub fn accepts_md5(&self, computed: &str) -> bool {
        match self {
            Self::Md5Prefix(hex) => computed.starts_with(hex.as_str()),
            Self::Sha256(_) | Self::Sha256Prefix(_) => true,
        }
    }

    /// Whether checking it needs the file's md5.
    pub fn is_md5(&self) -> bool {
        matches!(self, Self::Md5Prefix(_))
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let hex = |hex: &str, len: usize| {
            let good = hex.len() == len && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            good.then(|| hex.to_owned()).ok_or_else(|| DigestError(text.to_owned()))
        };
        match text.split_once(':') {
            Some(("sha256", rest)) => Ok(Self::Sha256(hex(rest, 64)?)),
            Some(("sha256-prefix", rest)) => Ok(Self::Sha256Prefix(hex(rest, 8)?)),
            Some(("md5-prefix", rest)) => Ok(Self::Md5Prefix(hex(rest, 6)?)),
            _ => Err(DigestError(text.to_owned())),
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sha256(hex) => write!(f, "sha256:{hex}"),
            Self::Sha256Prefix(hex) => write!(f, "sha256-prefix:{hex}"),
            Self::Md5Prefix(hex) => write!(f, "md5-prefix:{hex}"),
        }
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;

    fn try_from(text: String) -> Result<Self, DigestError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

/// Size and sha256 of a file, lower-case hex.
pub(crate) fn sha256_of(path: &Path) -> io::Result<(u64, String)> {
    let mut file = File::open(path)?;
    let (mut hash, mut bytes, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 18]);
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => {
                hash.update(&buffer[..count]);
                bytes += count as u64;
            }
        }
    }
    Ok((bytes, hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()))
}
