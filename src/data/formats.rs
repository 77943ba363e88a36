//! Which files are images by their name, and which look like images but cannot be read.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Extensions of what can be decoded.
pub(super) const READ: [&str; 14] =
    ["bmp", "gif", "jfif", "jpe", "jpeg", "jpg", "pbm", "pgm", "png", "pnm", "ppm", "tif", "tiff", "webp"];

/// The formats behind [`READ`], for messages.
pub(super) const READ_NAMES: &str = "jpeg, png, webp, bmp, tiff, gif, pnm";

/// Extensions of pictures that are not read: codecs of cameras and phones, raw data, drawings.
const NOT_READ: [&str; 46] = [
    "ai", "apng", "arw", "avif", "avifs", "cr2", "cr3", "cur", "dcm", "dds", "dib", "dng", "eps", "exr", "fits", "hdr",
    "heic", "heif", "hif", "icns", "ico", "j2c", "j2k", "jif", "jp2", "jpf", "jpm", "jpx", "jxl", "jxr", "mpo", "nef",
    "nrw", "orf", "pam", "pcx", "psd", "qoi", "raf", "raw", "rw2", "sgi", "svg", "tga", "xbm", "xpm",
];

/// Whether the name's extension is one of these, in whatever case.
pub(super) fn has_extension(path: &Path, wanted: &[&str]) -> bool {
    let extension = path.extension().and_then(|found| found.to_str());
    extension.is_some_and(|found| wanted.iter().any(|wanted| found.eq_ignore_ascii_case(wanted)))
}

/// Whether the name ends in an extension of a format that can be decoded.
pub(super) fn is_image(path: &Path) -> bool {
    has_extension(path, &READ)
}

/// Files that look like images by their names and are not read, counted by extension.
///
/// ```
/// # use tec_zoo::data::Unread;
/// # let unread: Unread = [("heic", 21), ("avif", 20)].into_iter().collect();
/// assert_eq!(unread.to_string(), "41 files are not read: 21 heic, 20 avif");
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unread(BTreeMap<String, u64>);

impl Unread {
    /// Counts a file, if its extension is that of an image that is not read.
    pub(super) fn see(&mut self, extension: &str) {
        let extension = extension.to_ascii_lowercase();
        if NOT_READ.contains(&extension.as_str()) {
            *self.0.entry(extension).or_default() += 1;
        }
    }

    /// Counts those of another folder or archive too.
    pub(super) fn add(&mut self, other: Self) {
        for (extension, count) in other.0 {
            *self.0.entry(extension).or_default() += count;
        }
    }

    /// Files in all.
    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// Extensions, in lower case, and how many files have them; the most frequent first.
    pub fn counts(&self) -> Vec<(&str, u64)> {
        let mut counts: Vec<(&str, u64)> = self.0.iter().map(|(name, &count)| (name.as_str(), count)).collect();
        counts.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
        counts
    }
}

impl<'a> FromIterator<(&'a str, u64)> for Unread {
    fn from_iter<I: IntoIterator<Item = (&'a str, u64)>>(counts: I) -> Self {
        Self(counts.into_iter().map(|(extension, count)| (extension.to_owned(), count)).collect())
    }
}

impl fmt::Display for Unread {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts: Vec<String> = self.counts().iter().map(|(name, count)| format!("{count} {name}")).collect();
        let files = if self.total() == 1 { "1 file is" } else { &format!("{} files are", self.total()) };
        write!(out, "{files} not read: {}", counts.join(", "))
    }
}
