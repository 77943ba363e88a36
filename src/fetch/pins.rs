//! Files nobody published a hash for, pinned when they were first fetched: one lock file for each model.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::FetchError;
use super::store::write_atomically;

/// The pins of a model.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Pins {
    #[serde(default, rename = "pin")]
    pins: Vec<Pin>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pin {
    address: String,
    sha256: String,
    bytes: u64,
}

const HEAD: &str =
    "# Hashes of files nobody published a hash for, as they were when first fetched from each address.\n\n";

impl Pins {
    /// Reads the lock file at `path`, which need not exist.
    pub(super) fn load(path: &Path) -> Result<Self, FetchError> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(FetchError::io("read", path)(error)),
        };
        toml::from_str(&text).map_err(|error| FetchError::io("read", path)(std::io::Error::other(error)))
    }

    /// The sha256 first seen at `address`.
    pub(super) fn get(&self, address: &str) -> Option<&str> {
        self.pins.iter().find(|pin| pin.address == address).map(|pin| pin.sha256.as_str())
    }

    /// The addresses a file with this sha256 came from.
    pub(super) fn addresses(&self, sha256: &str) -> impl Iterator<Item = &str> {
        self.pins.iter().filter(move |pin| pin.sha256 == sha256).map(|pin| pin.address.as_str())
    }

    /// Adds a pin and writes the lock file, atomically; an address that is pinned stays as it was.
    pub(super) fn add(&mut self, path: &Path, address: &str, sha256: &str, bytes: u64) -> Result<(), FetchError> {
        if self.get(address).is_some() {
            return Ok(());
        }
        self.pins.push(Pin { address: address.to_owned(), sha256: sha256.to_owned(), bytes });
        let text =
            toml::to_string(self).map_err(|error| FetchError::io("write", path)(std::io::Error::other(error)))?;
        write_atomically(path, &format!("{HEAD}{text}"))
    }
}
