//! What `<MODEL>` names: a directory in the common format, or a model of the zoo.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::model::{Canonical, ModelFile};
use crate::zoo::Zoo;

/// The tool's own folder: `TEC_ZOO_HOME`, else `tec-zoo` in the platform's cache folder.
pub(super) fn home() -> Result<PathBuf> {
    if let Some(home) = std::env::var_os("TEC_ZOO_HOME").filter(|home| !home.is_empty()) {
        return Ok(PathBuf::from(home));
    }
    let cache = dirs::cache_dir().context("this system has no cache folder\nhint: set TEC_ZOO_HOME to a folder")?;
    Ok(cache.join("tec-zoo"))
}

/// The user's own manifests.
pub(super) fn overlay() -> Result<PathBuf> {
    Ok(home()?.join("zoo"))
}

/// The embedded catalogue under the user's overlay.
pub(super) fn zoo() -> Result<Zoo> {
    Ok(Zoo::with_overlay(&overlay()?)?)
}

/// Whether `model` is meant as a directory rather than a name.
pub(super) fn is_directory(model: &str) -> bool {
    model.contains(['/', '\\'])
        || model == "."
        || model == ".."
        || Path::new(model).join(ModelFile::Config.name()).exists()
}

/// The directory `model` names.
pub(super) fn directory(model: &str) -> Result<PathBuf> {
    if is_directory(model) {
        return Ok(PathBuf::from(model));
    }
    let zoo = zoo()?;
    let manifest = zoo.get(model)?;
    let Some(directory) = &manifest.directory else {
        bail!(
            "`{model}` is a known model, but its weights are not here\nhint: download {} and run `tec-zoo convert FILE --out DIR`, \
             then `tec-zoo register DIR --name NAME`",
            manifest.sources.first().map_or("its file".to_owned(), |source| source.address(None))
        );
    };
    Ok(directory.clone())
}

/// Opens `model`.
pub(super) fn open(model: &str) -> Result<Canonical> {
    Ok(Canonical::open(&directory(model)?)?)
}
