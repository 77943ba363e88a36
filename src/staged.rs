//! Output that appears whole or not at all: written to a temporary sibling, then renamed into place. What may be
//! replaced is decided elsewhere: by [`crate::destination`] for what a user asked for; the tool's own files always may.
//!
//! Nothing is flushed to the platter before the rename: after a power cut a file can be missing, and every reader here
//! notices a short one; a converted model can be made again from its source.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use tempfile::{NamedTempFile, TempDir};

/// What an output is called until it has its name.
const PREFIX: &str = ".tec-zoo-";

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
        // Opened here, since tempfile's own error would speak of its temporary name.
        let open = |temporary: &Path| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create_new(true);
            options.open(temporary)
        };
        let file = tempfile::Builder::new().prefix(PREFIX).make_in(folder_of(path), open)?;
        Ok(Self { file, path: path.to_path_buf() })
    }

    /// The open file.
    pub(crate) fn file(&mut self) -> &mut File {
        self.file.as_file_mut()
    }

    /// Moves it into place, over whatever was there.
    pub(crate) fn commit(self) -> io::Result<()> {
        self.file.persist(&self.path).map(drop).map_err(|error| error.error)
    }

    /// Moves it into place, or fails with [`io::ErrorKind::AlreadyExists`] where something is there.
    pub(crate) fn commit_new(self) -> io::Result<()> {
        match self.file.persist_noclobber(&self.path) {
            Ok(_) => Ok(()),
            // A file system that has neither a rename that spares what is there nor hard links.
            Err(error) if cannot(&error.error) && std::fs::symlink_metadata(&self.path).is_err() => {
                error.file.persist(&self.path).map(drop).map_err(|error| error.error)
            }
            Err(error) => Err(error.error),
        }
    }
}

fn cannot(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported)
}

/// A directory that will appear at its path when it is committed; dropped before, it leaves nothing.
#[derive(Debug)]
pub(crate) struct StagedDir {
    dir: TempDir,
    path: PathBuf,
}

impl StagedDir {
    /// Starts a directory for `path`, beside it.
    pub(crate) fn new(path: &Path) -> io::Result<Self> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(PREFIX);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            // The umask narrows this, as for any directory a program creates.
            builder.permissions(std::fs::Permissions::from_mode(0o777));
        }
        // tempfile's own error would speak of its temporary name.
        let dir = builder.tempdir_in(folder_of(path)).map_err(|error| io::Error::from(error.kind()))?;
        Ok(Self { dir, path: path.to_path_buf() })
    }

    /// Where to write now.
    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Moves it into place, over whatever was there.
    #[cfg(feature = "train")]
    pub(crate) fn commit(self) -> io::Result<()> {
        self.commit_over(|error| error, |_| Ok(()))
    }

    /// Moves it into place, or fails where something is there that is no empty directory.
    pub(crate) fn commit_new(self) -> io::Result<()> {
        std::fs::rename(self.dir.path(), &self.path)?;
        // The path no longer exists under the temporary name; nothing is left to remove.
        let _moved = self.dir.keep();
        Ok(())
    }

    /// Moves it into place. A directory already there is first moved aside, where `look` may still refuse to lose it, and
    /// removed only after the new one has its name, so that at every moment one of the two is whole on disk.
    pub(crate) fn commit_over<E>(
        self,
        failed: impl Fn(io::Error) -> E,
        look: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<(), E> {
        if !self.path.exists() {
            return self.commit_new().map_err(failed);
        }
        let aside = Self::new(&self.path).map_err(&failed)?;
        let old = aside.path().join("old");
        std::fs::rename(&self.path, &old).map_err(&failed)?;
        let replaced = look(&old).and_then(|()| std::fs::rename(self.dir.path(), &self.path).map_err(&failed));
        if replaced.is_err() {
            if let Err(error) = std::fs::rename(&old, &self.path) {
                let kept = aside.dir.keep().join("old");
                let text = format!("what was there is now `{}`: {error}", kept.display());
                return Err(failed(io::Error::other(text)));
            }
            return replaced;
        }
        let _moved = self.dir.keep();
        Ok(())
    }
}
