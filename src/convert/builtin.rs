//! The mappings in `converters/`, compiled in. One list: a new dialect is one file and one line here.

use super::{Mapping, MappingError};

/// Name and text of every mapping.
const FILES: &[(&str, &str)] = &[
    ("dino", include_str!("../../converters/dino.toml")),
    ("dinov2", include_str!("../../converters/dinov2.toml")),
    ("hf-dinov2", include_str!("../../converters/hf-dinov2.toml")),
    ("hf-vit", include_str!("../../converters/hf-vit.toml")),
    ("ibot", include_str!("../../converters/ibot.toml")),
    ("mae", include_str!("../../converters/mae.toml")),
    ("mmpretrain", include_str!("../../converters/mmpretrain.toml")),
    ("mmseg", include_str!("../../converters/mmseg.toml")),
    ("moco-v3", include_str!("../../converters/moco-v3.toml")),
    ("tec", include_str!("../../converters/tec.toml")),
    ("timm", include_str!("../../converters/timm.toml")),
    ("vitdet", include_str!("../../converters/vitdet.toml")),
];

impl Mapping {
    /// Names of the built-in mappings.
    pub fn builtin_names() -> impl Iterator<Item = &'static str> {
        FILES.iter().map(|(name, _)| *name)
    }

    /// A built-in mapping, by name; `None` when there is none of that name.
    pub fn builtin(name: &str) -> Option<Self> {
        Self::all().ok()?.into_iter().find(|mapping| mapping.name == name)
    }

    /// Every built-in mapping.
    ///
    /// # Errors
    /// When a file of `converters/` does not parse, which the tests exclude.
    pub fn all() -> Result<Vec<Self>, MappingError> {
        FILES.iter().map(|(name, text)| Self::parse(name, text)).collect()
    }
}
