//! Output that appears whole or not at all: written to a temporary sibling, then renamed into place.
//!
//! Nothing is flushed to the platter before the rename: after a power cut a file can be missing, and every reader here
//! notices a short one; a converted model can be made again from its source.

use std::io;
use std::path::{Path, PathBuf};

use tempfile::{NamedTempFile, TempDir};

/// The folder a path's siblings live in.
pub(crate) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// A file that will appear at its path on [`StagedFile::commit`]; dropped before, it leaves nothing.
#[derive(Debug)]
pub(crate) struct StagedFile {
    file: NamedTempFile,
    path: PathBuf,
}

impl StagedFile {
    /// Starts a file for `path`, in the same folder, with the permissions an ordinary new file gets.
    pub(crate) fn new(path: &Path) -> io::Result<Self> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(".tec-zoo-");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            // The umask narrows this, as for any file a program creates.
            builder.permissions(std::fs::Permissions::from_mode(0o666));
        }
        Ok(Self { file: builder.tempfile_in(folder_of(path))?, path: path.to_path_buf() })
    }

    /// The open file.
    pub(crate) fn file(&mut self) -> &mut std::fs::File {
        self.file.as_file_mut()
    }

    /// Moves it into place, over whatever was there.
    pub(crate) fn commit(self) -> io::Result<()> {
        self.file.persist(&self.path).map_err(|error| error.error)?;
        Ok(())
    }
}

/// A directory that will appear at its path on [`StagedDir::commit`]; dropped before, it leaves nothing.
#[derive(Debug)]
pub(crate) struct StagedDir {
    dir: TempDir,
    path: PathBuf,
}

impl StagedDir {
    /// Starts a directory for `path`, beside it.
    pub(crate) fn new(path: &Path) -> io::Result<Self> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(".tec-zoo-");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(std::fs::Permissions::from_mode(0o777));
        }
        Ok(Self { dir: builder.tempdir_in(folder_of(path))?, path: path.to_path_buf() })
    }

    /// Where to write now.
    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Moves it into place. A directory already there is first moved aside and removed only after the new one has its
    /// name, so that at every moment one of the two is whole on disk.
    pub(crate) fn commit(self) -> io::Result<()> {
        if !self.path.exists() {
            std::fs::rename(self.dir.path(), &self.path)?;
            // The path no longer exists under the temporary name; nothing is left to remove.
            let _moved = self.dir.keep();
            return Ok(());
        }
        let aside = StagedDir::new(&self.path)?;
        let old = aside.path().join("old");
        std::fs::rename(&self.path, &old)?;
        if let Err(error) = std::fs::rename(self.dir.path(), &self.path) {
            std::fs::rename(&old, &self.path)?;
            return Err(error);
        }
        let _moved = self.dir.keep();
        Ok(())
    }
}
