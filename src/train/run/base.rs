//! The base of a run as the run's files name it, and one that would not last, kept beside them.

use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::error::RunError;
use super::folder::{BaseFile, Folder};
use super::{Base, model, result, state};

impl BaseFile {
    /// What to write about the base of the run in `out`.
    pub(super) fn of(base: &Base, out: &Path) -> Result<Self, RunError> {
        let absolute = |path: &Path| std::path::absolute(path).map_err(RunError::io("read", path));
        let kept = PathBuf::from(Folder::BASE);
        let (directory, sha256) = match base.model.has_files() {
            true => {
                let directory = absolute(base.model.dir())?;
                // So that a run that keeps its base can be moved.
                let directory = if directory == absolute(out)?.join(&kept) { kept } else { directory };
                (directory, result::sha256(base.model.model().path())?.1)
            }
            false => (kept, sha256_to_be(base)?),
        };
        Ok(Self { name: base.name.clone(), directory, sha256 })
    }

    /// The base's directory, of a run in `out`.
    pub(super) fn directory(&self, out: &Path) -> PathBuf {
        out.join(&self.directory)
    }
}

/// Of the `model.safetensors` that [`keep`] writes.
fn sha256_to_be(base: &Base) -> Result<String, RunError> {
    let mut hash = Sha256::new();
    let hashed = state::stream(base.model.model(), &mut |bytes| {
        hash.update(bytes);
        Ok::<(), io::Error>(())
    });
    hashed.map_err(RunError::io("read", base.model.dir()))?;
    Ok(result::hex(hash))
}

/// Writes a base that is another run's checkpoint into `folder`: that run may remove it, and this one needs it to go on.
pub(super) fn keep(base: Option<&Base>, folder: &Folder) -> Result<(), RunError> {
    let Some(base) = base.filter(|base| !base.model.has_files()) else { return Ok(()) };
    let out = folder.file(Folder::BASE);
    if !out.exists() {
        model::write(&out, &base.model, None)?;
    }
    Ok(())
}

/// Bytes that [`keep`] will write.
pub(super) fn kept_base(base: Option<&Base>) -> u64 {
    let Some(base) = base.filter(|base| !base.model.has_files()) else { return 0 };
    let files = [Some(base.model.model()), base.model.adapters()];
    let views = files.into_iter().flatten().flat_map(|file| file.names().filter_map(|name| file.get(name)));
    views.map(|view| view.bytes.len() as u64).sum()
}
