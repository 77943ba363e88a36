//! Names in JSON without loss: a string where they are text, and otherwise their bytes beside what can be shown of them.

use std::path::{Path, PathBuf};

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A name as it is written down.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Name {
    Text(String),
    Bytes { lossy: String, hex: String },
}

/// For `#[serde(with = …)]` on bytes that are mostly text.
pub(crate) mod bytes {
    use super::{Deserialize, Deserializer, Error, Name, Serialize, Serializer};

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(bytes) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => {
                let hex = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                Name::Bytes { lossy: String::from_utf8_lossy(bytes).into_owned(), hex }.serialize(serializer)
            }
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        match Name::deserialize(deserializer)? {
            Name::Text(text) => Ok(text.into_bytes()),
            Name::Bytes { hex, .. } => {
                let digits = hex.as_bytes().as_chunks::<2>();
                let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
                let bytes: Option<Vec<u8>> = digits.0.iter().map(byte).collect();
                bytes.filter(|_| digits.1.is_empty()).ok_or_else(|| D::Error::custom("`hex` is no hexadecimal bytes"))
            }
        }
    }
}

/// The path that is these bytes; none where the system's paths must be text and this is not.
pub(crate) fn path(bytes: &[u8]) -> Option<&Path> {
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt;
        Some(Path::new(std::ffi::OsStr::from_bytes(bytes)))
    }
    #[cfg(not(unix))]
    std::str::from_utf8(bytes).ok().map(Path::new)
}

pub(crate) fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    bytes::serialize(path.as_os_str().as_encoded_bytes(), serializer)
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    let bytes = bytes::deserialize(deserializer)?;
    path(&bytes).map(Path::to_path_buf).ok_or_else(|| D::Error::custom("a path that is no text"))
}
