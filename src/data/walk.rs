//! Files under a folder: every one that is wanted, sorted by path.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::DataError;

/// Whether the name ends in an extension of a format that can be decoded.
pub(super) fn is_image(path: &Path) -> bool {
    has_extension(path, &["jpg", "jpeg", "png", "webp"])
}

/// Whether the name's extension is one of these, in whatever case.
pub(super) fn has_extension(path: &Path, wanted: &[&str]) -> bool {
    let extension = path.extension().and_then(|found| found.to_str());
    extension.is_some_and(|found| wanted.iter().any(|wanted| found.eq_ignore_ascii_case(wanted)))
}

/// The files below `folder`, however deep, that are `wanted` by their path.
///
/// Links to folders are followed, as torchvision's `ImageFolder` does, but a folder is visited once however many links lead
/// to it: links upwards end nothing, and a few links cannot multiply the files. `._name` is what macOS writes beside
/// `name` on foreign disks, never the file itself.
pub(super) fn files(folder: &Path, wanted: impl Fn(&Path) -> bool) -> Result<Vec<PathBuf>, DataError> {
    let (mut found, mut waiting, mut seen) = (Vec::new(), vec![folder.to_path_buf()], HashSet::new());
    while let Some(folder) = waiting.pop() {
        let io = |source| DataError::Io { path: folder.display().to_string(), source };
        if !seen.insert(fs::canonicalize(&folder).map_err(io)?) {
            continue;
        }
        let mut folders = Vec::new();
        for entry in fs::read_dir(&folder).map_err(io)? {
            let entry = entry.map_err(io)?;
            let path = entry.path();
            let kind = entry.file_type().map_err(io)?;
            // A link that leads nowhere stays a file, and is named when somebody reads it.
            if kind.is_dir() || (kind.is_symlink() && fs::metadata(&path).is_ok_and(|target| target.is_dir())) {
                folders.push(path);
            } else if wanted(&path) && !entry.file_name().as_encoded_bytes().starts_with(b"._") {
                found.push(path);
            }
        }
        // Which of several links to one folder counts must not depend on the order of the directory.
        folders.sort_unstable_by(|a, b| b.cmp(a));
        waiting.extend(folders);
    }
    found.sort_unstable();
    Ok(found)
}
