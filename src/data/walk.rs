//! Files under a folder: every one that is wanted, sorted by path.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::DataError;
use super::formats::Unread;
use super::scan::{Listener, ScanEvent};
use super::stamp::Stamp;

/// What a folder holds.
#[derive(Debug, Default)]
pub(super) struct Walk {
    /// The files that were wanted, by path.
    pub(super) files: Vec<PathBuf>,
    /// Every folder that was read, as it was before.
    pub(super) folders: Vec<Stamp>,
    pub(super) unread: Unread,
}

impl Walk {
    /// The files below `folder`, however deep, that are `wanted` by their path.
    ///
    /// Links to folders are followed, as torchvision's `ImageFolder` does, but a folder is visited once however many links lead
    /// to it: links upwards end nothing, and a few links cannot multiply the files. `._name` is what macOS writes beside
    /// `name` on foreign disks, never the file itself.
    pub(super) fn below(
        folder: &Path,
        wanted: impl Fn(&Path) -> bool,
        listener: &mut Listener<'_>,
    ) -> Result<Self, DataError> {
        let (mut walk, mut waiting, mut seen) = (Self::default(), vec![folder.to_path_buf()], HashSet::new());
        listener.tell(ScanEvent::Walking { folders: 0, images: 0 })?;
        while let Some(folder) = waiting.pop() {
            let io = |source| DataError::Io { path: folder.display().to_string(), source };
            if !seen.insert(fs::canonicalize(&folder).map_err(io)?) {
                continue;
            }
            walk.folders.push(Stamp::of(&folder).map_err(io)?);
            let mut folders = Vec::new();
            for entry in fs::read_dir(&folder).map_err(io)? {
                let entry = entry.map_err(io)?;
                let path = entry.path();
                let kind = entry.file_type().map_err(io)?;
                // A link that leads nowhere stays a file, and is named when somebody reads it.
                if kind.is_dir() || (kind.is_symlink() && fs::metadata(&path).is_ok_and(|target| target.is_dir())) {
                    folders.push(path);
                } else if !entry.file_name().as_encoded_bytes().starts_with(b"._") {
                    if wanted(&path) {
                        walk.files.push(path);
                    } else if let Some(extension) = path.extension().and_then(|extension| extension.to_str()) {
                        walk.unread.see(extension);
                    }
                }
                let (folders, images) = (walk.folders.len() as u64, walk.files.len() as u64);
                listener.tell_in_time(|| ScanEvent::Walking { folders, images })?;
            }
            // Which of several links to one folder counts must not depend on the order of the directory.
            folders.sort_unstable_by(|a, b| b.cmp(a));
            waiting.extend(folders);
        }
        walk.files.sort_unstable();
        Ok(walk)
    }
}
