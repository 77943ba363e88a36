//! What models there are: one manifest per released model (`zoo/*.toml`, embedded in the program), overlaid by the
//! user's own folder.
//!
//! A manifest is data: where the files are and how they are recognised, the architecture, the licence with its
//! evidence. What nobody published (a size, a hash) stays absent. This module touches no network; fetching is
//! `fetch`'s, computing is [`crate::model`]'s.

mod catalogue;
mod digest;
mod embedded;
mod manifest;
mod register;

pub use catalogue::{Lineage, Zoo, ZooError};
#[cfg(feature = "train")]
pub(crate) use digest::sha256_of;
pub use digest::{Digest, DigestError};
#[cfg(feature = "fetch")]
pub(crate) use manifest::is_name;
pub use manifest::{Base, LicenceFacts, Manifest, Metric, Source, SourceKind, Status, Summary, TecDefaults, Terms};
pub use register::{check_name, register, unregister};
