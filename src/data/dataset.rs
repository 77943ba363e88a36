//! Images to train on, found by number: a folder tree, a list, or WebDataset shards.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::DataError;
use super::braces;
use super::input::listed;
use super::shards::Shards;
use super::walk;

/// Largest encoded image that is read.
const MAX_ENCODED: u64 = 1 << 28;

/// Paths, one after another in one piece of memory.
#[derive(Debug, Default)]
struct Names {
    text: Vec<u8>,
    ends: Vec<usize>,
}

impl Names {
    fn push(&mut self, path: &Path) {
        self.text.extend_from_slice(path.as_os_str().as_encoded_bytes());
        self.ends.push(self.text.len());
    }

    fn get(&self, index: usize) -> &Path {
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        // SAFETY: these bytes came from `as_encoded_bytes` and are cut where `push` put them together.
        Path::new(unsafe { OsStr::from_encoded_bytes_unchecked(&self.text[start..self.ends[index]]) })
    }
}

#[derive(Debug)]
enum Source {
    Files { folder: PathBuf, names: Names },
    Shards(Shards),
}

/// Encoded images, numbered from 0 in an order that only depends on their names; labels do not matter.
#[derive(Debug)]
pub struct Dataset {
    /// What must be there as long as the data is.
    root: PathBuf,
    source: Source,
}

impl Dataset {
    /// Finds the images of `path`, which is one of
    ///
    /// * a folder: all its images (jpg, jpeg, png, webp), however deep, sorted by path; or all its `.tar` shards,
    /// * a `.tar`, or a pattern of them such as `train-{000000..000146}.tar`,
    /// * an image, or a text file with the path of one a line (relative to the list; blank lines and `#` do not count).
    ///
    /// Files are only opened when they are read; of shards, the headers are read now. A name in memory takes as many bytes as
    /// it has letters, a member of a shard 16.
    ///
    /// # Errors
    /// [`DataError::Io`] for what cannot be read, [`DataError::Source`] for what holds no images, a bad pattern and a broken
    /// or truncated shard.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let refused = |reason: String| DataError::Source { path: path.display().to_string(), reason };
        let is_shard = |path: &Path| walk::has_extension(path, &["tar"]);
        let parent = path.parent().map_or(PathBuf::new(), Path::to_path_buf);
        let pattern = path.to_str().filter(|text| braces::is_pattern(text) && !path.exists());
        if let Some(pattern) = pattern {
            let shards: Vec<PathBuf> =
                braces::expand(pattern).map_err(refused)?.into_iter().map(PathBuf::from).collect();
            let root = shards.first().and_then(|first| first.parent()).map_or(PathBuf::new(), Path::to_path_buf);
            return Self::shards(path, root, shards);
        }
        let metadata =
            fs::metadata(path).map_err(|source| DataError::Io { path: path.display().to_string(), source })?;
        if metadata.is_dir() {
            let found = walk::files(path, |path| walk::is_image(path) || is_shard(path))?;
            let (shards, images): (Vec<_>, Vec<_>) = found.into_iter().partition(|path| is_shard(path));
            return match (images.is_empty(), shards.is_empty()) {
                (false, true) => Ok(Self::files(path.to_path_buf(), &images)),
                (true, false) => Self::shards(path, path.to_path_buf(), shards),
                (true, true) => Err(refused("it holds neither images (jpg, jpeg, png, webp) nor .tar shards".into())),
                (false, false) => Err(refused(format!(
                    "it holds {} images and {} .tar shards\nhint: name the folder of one or the other",
                    images.len(),
                    shards.len()
                ))),
            };
        }
        if is_shard(path) {
            return Self::shards(path, parent, vec![path.to_path_buf()]);
        }
        if walk::is_image(path) {
            return Ok(Self::files(parent, &[path.to_path_buf()]));
        }
        match listed(path)? {
            images if images.is_empty() => {
                Err(refused("it lists no images, and is neither a folder nor a shard".into()))
            }
            images => Ok(Self::files(parent, &images)),
        }
    }

    fn files(folder: PathBuf, paths: &[PathBuf]) -> Self {
        let mut names = Names::default();
        for path in paths {
            names.push(path.strip_prefix(&folder).unwrap_or(path));
        }
        Self { root: folder.clone(), source: Source::Files { folder, names } }
    }

    fn shards(path: &Path, root: PathBuf, shards: Vec<PathBuf>) -> Result<Self, DataError> {
        let shards = Shards::index(shards)?;
        if shards.len() > 0 {
            return Ok(Self { root, source: Source::Shards(shards) });
        }
        let mut reason = "its shards hold no images (members named `key.jpg`, .jpeg, .png or .webp)".to_owned();
        if shards.passed_over > 0 {
            reason += &format!(
                "\nhint: {} members have another dot in their name, which makes them parts of a sample, not images",
                shards.passed_over
            );
        }
        Err(DataError::Source { path: path.display().to_string(), reason })
    }

    /// Images in all.
    pub fn len(&self) -> u64 {
        match &self.source {
            Source::Files { names, .. } => names.ends.len() as u64,
            Source::Shards(shards) => shards.len() as u64,
        }
    }

    /// Whether there are none; [`Dataset::open`] never makes such a one.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Shard members that were left out because of another dot in their name (`key.seg.png`).
    pub fn passed_over(&self) -> u64 {
        match &self.source {
            Source::Files { .. } => 0,
            Source::Shards(shards) => shards.passed_over,
        }
    }

    /// Replaces `bytes` by image `index` as it is encoded, and says what to call it in messages: its path, or
    /// `shard.tar: member`.
    ///
    /// # Errors
    /// [`DataError::Image`] when this image cannot be read, [`DataError::Vanished`] when the whole folder cannot.
    pub fn read(&self, index: u64, bytes: &mut Vec<u8>) -> Result<String, DataError> {
        let at = usize::try_from(index).ok().filter(|_| index < self.len());
        let Some(at) = at else {
            return Err(DataError::Image { path: format!("#{index}"), reason: "there is no such sample".into() });
        };
        let (path, read) = match &self.source {
            Source::Files { folder, names } => {
                let path = folder.join(names.get(at));
                let name = path.display().to_string();
                (path.clone(), read_file(&path, bytes).map(|()| name))
            }
            Source::Shards(shards) => {
                let path = shards.path(at).to_path_buf();
                let read = shards.read(at, bytes);
                (path.clone(), read.map(|member| format!("{}: {member}", path.display())))
            }
        };
        read.map_err(|error| {
            if error.kind() == io::ErrorKind::NotFound && self.vanished() {
                return DataError::Vanished { path: self.root.display().to_string() };
            }
            let reason = match error.kind() {
                io::ErrorKind::NotFound => "it is no longer there".to_owned(),
                _ => error.to_string(),
            };
            DataError::Image { path: path.display().to_string(), reason }
        })
    }

    /// Whether the data is gone as a whole; a file system that was unmounted leaves an empty folder.
    fn vanished(&self) -> bool {
        let root = if self.root.as_os_str().is_empty() { Path::new(".") } else { &self.root };
        fs::read_dir(root).map_or(true, |mut entries| entries.next().is_none())
    }
}

fn read_file(path: &Path, bytes: &mut Vec<u8>) -> io::Result<()> {
    // Opening a pipe would wait for its other end.
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is no ordinary file"));
    }
    if metadata.len() > MAX_ENCODED {
        return Err(io::Error::other(format!(
            "it has {} bytes; an image of at most {MAX_ENCODED} is read",
            metadata.len()
        )));
    }
    bytes.clear();
    File::open(path)?.take(MAX_ENCODED).read_to_end(bytes)?;
    Ok(())
}
