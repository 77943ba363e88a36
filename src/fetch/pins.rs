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
    /// Of the file, once it was here as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
    /// Of the model's tensors, where the file was read in part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tensors: Option<String>,
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
        self.at(address)?.sha256.as_deref()
    }

    /// The tensors' sha256 when the file at `address` was first read in part.
    pub(super) fn tensors(&self, address: &str) -> Option<&str> {
        self.at(address)?.tensors.as_deref()
    }

    fn at(&self, address: &str) -> Option<&Pin> {
        self.pins.iter().find(|pin| pin.address == address)
    }

    /// The addresses a file with this sha256 came from.
    pub(super) fn addresses(&self, sha256: &str) -> impl Iterator<Item = &str> {
        self.pins.iter().filter(move |pin| pin.sha256.as_deref() == Some(sha256)).map(|pin| pin.address.as_str())
    }

    /// Adds what is not pinned yet of an address and writes the lock file, atomically; what is pinned stays as it was.
    pub(super) fn add(
        &mut self,
        path: &Path,
        address: &str,
        sha256: Option<&str>,
        tensors: Option<&str>,
        bytes: u64,
    ) -> Result<(), FetchError> {
        let index = self.pins.iter().position(|pin| pin.address == address).unwrap_or_else(|| {
            self.pins.push(Pin { address: address.to_owned(), sha256: None, tensors: None, bytes });
            self.pins.len() - 1
        });
        let pin = &mut self.pins[index];
        let known = (pin.sha256.is_some(), pin.tensors.is_some());
        pin.sha256 = pin.sha256.take().or(sha256.map(str::to_owned));
        pin.tensors = pin.tensors.take().or(tensors.map(str::to_owned));
        if known == (pin.sha256.is_some(), pin.tensors.is_some()) {
            return Ok(());
        }
        let text =
            toml::to_string(self).map_err(|error| FetchError::io("write", path)(std::io::Error::other(error)))?;
        write_atomically(path, &format!("{HEAD}{text}"))
    }
}
