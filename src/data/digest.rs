//! What data is, in a few numbers: the same digest for the same images, wherever their folder stands.
//!
//! Runs are started with data and go on with the same ([`crate::train`]), and a result is a result on data: both write down
//! this digest, and nothing else decides whether data is the same. It covers
//!
//! * **names**: the path of every image relative to the root, in the order of the data set, which is sorted for a folder and the
//!   list's own for a list; for shards, the path of every archive and the names, places and sizes of its images;
//! * **sizes**: the bytes of every image as it is encoded;
//! * **contents**: the first mebibyte of each of 256 images, the first of a random order that depends on the number of images
//!   alone; all images, where there are no more.
//!
//! So a folder may move, and its files' times may change; a renamed, added, removed or replaced image, or one that was edited to
//! another size, changes the digest; an image that was edited and kept its size changes it if it is among the 256 or, of large
//! data, by chance. Reading is bounded by 256 MiB.

use std::path::MAIN_SEPARATOR;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::dataset::Source;
use super::scan::{Hear, Listener, ScanEvent};
use super::{DataError, Dataset, EpochOrder};

/// Images whose contents count.
const SAMPLE: u64 = 256;

/// Bytes of each that count.
const BYTES: u64 = 1 << 20;

/// Decides which images those are.
const SEED: u64 = 0x7465_632d_7a6f_6f21;

/// The definition above; another one gets another number.
const VERSION: u32 = 1;

/// What data is; see the fields. Two are of the same data when they are equal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataDigest {
    /// Of the definition.
    pub version: u32,
    /// Images.
    pub images: u64,
    /// Bytes of all of them as they are encoded.
    pub bytes: u64,
    /// sha256 of the names, lower-case hex.
    pub names: String,
    /// sha256 of the sizes.
    pub sizes: String,
    /// sha256 of the sample's contents.
    pub contents: String,
}

impl DataDigest {
    /// One sha256 over all fields, lower-case hex.
    pub fn id(&self) -> String {
        let Self { version, images, bytes, names, sizes, contents } = self;
        hex(Sha256::new().chain_update(format!("{version} {images} {bytes} {names} {sizes} {contents}")))
    }

    /// In what this data differs from `other`, as a few words; none when it is the same.
    pub fn difference(&self, other: &Self) -> Option<&'static str> {
        if self.version != other.version {
            Some("the definition of its digest")
        } else if self.images != other.images {
            Some("the number of images")
        } else if self.names != other.names {
            Some("the names of images")
        } else if self.sizes != other.sizes || self.bytes != other.bytes {
            Some("the sizes of images")
        } else if self.contents != other.contents {
            Some("the contents of images")
        } else {
            None
        }
    }
}

impl Dataset {
    /// The digest of this data.
    ///
    /// # Errors
    /// [`DataError::Interrupted`]. An image that cannot be read counts as one that cannot be read.
    pub fn digest(&self, hear: Hear<'_>) -> Result<DataDigest, DataError> {
        let images = self.len();
        let (mut sizes, mut bytes) = (Sha256::new(), 0_u64);
        for at in 0..images as usize {
            let size = self.size(at);
            sizes.update(size.to_le_bytes());
            bytes = bytes.saturating_add(if size == u64::MAX { 0 } else { size });
        }
        let order = EpochOrder::new(images, SEED, 0);
        let event = |done, of| ScanEvent::Digesting { done, of };
        let sample = Listener::new(hear).in_parallel(images.min(SAMPLE) as usize, event, |at, stop| {
            let at = order.sample(at as u64) as usize;
            let mut contents = Vec::new();
            let read = !stop.load(Ordering::Relaxed) && self.read_most(at, BYTES, &mut contents).1.is_ok();
            let hash: [u8; 32] = Sha256::digest(&contents).into();
            read.then_some(hash)
        })?;
        let mut contents = Sha256::new();
        for hash in sample {
            contents.update([u8::from(hash.is_some())]);
            contents.update(hash.unwrap_or_default());
        }
        Ok(DataDigest {
            version: VERSION,
            images,
            bytes,
            names: hex(self.hashed_names()),
            sizes: hex(sizes),
            contents: hex(contents),
        })
    }

    fn hashed_names(&self) -> Sha256 {
        let mut hash = Sha256::new();
        let mut add = |name: &[u8]| {
            hash.update((name.len() as u64).to_le_bytes());
            match MAIN_SEPARATOR {
                '/' => hash.update(name),
                separator => hash.update(String::from_utf8_lossy(name).replace(separator, "/")),
            }
        };
        match self.source() {
            Source::Files { names, .. } => (0..names.len()).for_each(|at| add(names.bytes(at))),
            Source::Shards(shards) => {
                for shard in &shards.shards {
                    let path = shard.path.strip_prefix(self.root()).unwrap_or(&shard.path);
                    add(path.as_os_str().as_encoded_bytes());
                    add(hex_of(&shard.listing).as_bytes());
                }
            }
        }
        hash
    }
}

fn hex(hash: Sha256) -> String {
    hex_of(&hash.finalize())
}

fn hex_of(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
