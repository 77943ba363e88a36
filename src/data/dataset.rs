//! Images to train on, found by number: a folder tree, a list, or WebDataset shards.

use std::fs::{self, File};
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::braces;
use super::formats::{READ_NAMES, Unread, has_extension, is_image};
use super::input::listed;
use super::kept::Kept;
use super::names::Names;
use super::scan::{Hear, Listener, ScanEvent};
use super::shards::{DamagedShard, Shards};
use super::stamp::{Stamp, nanoseconds};
use super::walk::Walk;
use super::{DataError, EpochOrder};

/// Largest encoded image that is read.
const MAX_ENCODED: u64 = 1 << 28;

/// What cannot be looked at has this size.
const NO_SIZE: u64 = u64::MAX;

/// Files whose sizes are compared before a kept scan is believed.
const COMPARED: u64 = 1 << 16;

/// Decides which those are.
const SEED: u64 = 0;

/// Where the images are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Source {
    /// Paths relative to the root, and their sizes.
    Files { names: Names, sizes: Vec<u64>, unread: Unread },
    /// Archives.
    Shards(Shards),
}

/// Encoded images, numbered from 0 in an order that only depends on their names; labels do not matter.
#[derive(Debug)]
pub struct Dataset {
    /// What must be there as long as the data is; paths are relative to it.
    root: PathBuf,
    source: Source,
    /// What was looked at to find the images, as it was then.
    stamps: Vec<Stamp>,
    /// When the search began, in nanoseconds since 1970.
    began: u64,
    /// Whether an earlier scan was used.
    kept: bool,
}

impl Dataset {
    /// Finds the images of `path`, which is one of
    ///
    /// * a folder: all its images (jpeg, png, webp, bmp, tiff, gif, pnm), however deep, sorted by path; or all its `.tar` shards,
    /// * a `.tar`, or a pattern of them such as `train-{000000..000146}.tar`,
    /// * an image, or a text file with the path of one a line (relative to the list; blank lines and `#` do not count).
    ///
    /// Files are only opened when they are read; of shards, the headers are read now. A name in memory takes as many bytes as
    /// it has letters and 16 more, a member of a shard 16.
    ///
    /// # Errors
    /// [`DataError::Io`] for what cannot be read, [`DataError::Source`] for what holds no images and a bad pattern.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        Self::scan(path, &mut |_| ControlFlow::Continue(()))
    }

    /// [`Dataset::open`], telling how far it is and what it passes over.
    ///
    /// # Errors
    /// Those of [`Dataset::open`], and [`DataError::Interrupted`].
    pub fn scan(path: &Path, hear: Hear<'_>) -> Result<Self, DataError> {
        let mut listener = Listener::new(hear);
        let dataset = Self::found(path, &mut listener)?;
        dataset.told(&mut listener)?;
        Ok(dataset)
    }

    /// [`Dataset::scan`], unless [`Dataset::keep`] wrote the file `kept` about the same path and nothing it looked at was
    /// changed since: no folder, no list, no shard, and no size of the first 65,536 images of a random order.
    ///
    /// Whatever is wrong with the file is a reason to scan, not an error.
    ///
    /// # Errors
    /// Those of [`Dataset::scan`].
    pub fn scan_or_kept(path: &Path, kept: &Path, hear: Hear<'_>) -> Result<Self, DataError> {
        let mut listener = Listener::new(hear);
        let dataset = match Kept::read(kept, path) {
            Some(Kept { root, source, stamps, began, .. }) => {
                let dataset = Self { root, source, stamps, began, kept: true };
                dataset.still_holds(&mut listener)?.then_some(dataset)
            }
            None => None,
        };
        let dataset = match dataset {
            Some(dataset) => dataset,
            None => Self::found(path, &mut listener)?,
        };
        dataset.told(&mut listener)?;
        Ok(dataset)
    }

    /// Writes what was found as the file `kept`, for [`Dataset::scan_or_kept`].
    ///
    /// # Errors
    /// [`DataError::Write`].
    pub fn keep(&self, path: &Path, kept: &Path) -> Result<(), DataError> {
        let write = || Kept::write(kept, path, &self.root, &self.source, &self.stamps, self.began);
        write().map_err(|source| DataError::Write { path: kept.display().to_string(), source })
    }

    /// Whether a scan that was kept was used instead of looking for the images again.
    pub fn is_kept(&self) -> bool {
        self.kept
    }

    fn found(path: &Path, listener: &mut Listener<'_>) -> Result<Self, DataError> {
        let refused = |reason: String| DataError::Source { path: path.display().to_string(), reason };
        let io = |source| DataError::Io { path: path.display().to_string(), source };
        let is_shard = |path: &Path| has_extension(path, &["tar"]);
        let parent = path.parent().map_or(PathBuf::new(), Path::to_path_buf);
        let search = Search { path, began: nanoseconds(SystemTime::now()) };
        let pattern = path.to_str().filter(|text| braces::is_pattern(text) && !path.exists());
        if let Some(pattern) = pattern {
            let shards: Vec<PathBuf> =
                braces::expand(pattern).map_err(refused)?.into_iter().map(PathBuf::from).collect();
            // What all of them have in common.
            let open = pattern.find('{').unwrap_or(0);
            let root = Path::new(&pattern[..pattern[..open].rfind('/').unwrap_or(0)]).to_path_buf();
            return search.shards(root, shards, Vec::new(), listener);
        }
        if fs::metadata(path).map_err(io)?.is_dir() {
            let root = path.to_path_buf();
            let walk = Walk::below(path, |path| is_image(path) || is_shard(path), listener)?;
            let (shards, images): (Vec<_>, Vec<_>) = walk.files.into_iter().partition(|path| is_shard(path));
            return match (images.is_empty(), shards.is_empty()) {
                (false, true) => search.files(root, &images, walk.folders, walk.unread, listener),
                (true, false) => search.shards(root, shards, walk.folders, listener),
                (true, true) => {
                    let unread = match walk.unread.total() {
                        0 => String::new(),
                        _ => format!("; {}", walk.unread),
                    };
                    Err(refused(format!("it holds neither images ({READ_NAMES}) nor .tar shards{unread}")))
                }
                (false, false) => {
                    let (images, shards) = (images.len() as u64, shards.len() as u64);
                    Err(DataError::Mixed { path: path.display().to_string(), images, shards })
                }
            };
        }
        if is_shard(path) {
            return search.shards(parent, vec![path.to_path_buf()], Vec::new(), listener);
        }
        let stamp = Stamp::of(path).map_err(io)?;
        if is_image(path) {
            return search.files(parent, &[path.to_path_buf()], vec![stamp], Unread::default(), listener);
        }
        match listed(path)? {
            images if images.is_empty() => {
                Err(refused("it lists no images, and is neither a folder nor a shard".into()))
            }
            images => search.files(parent, &images, vec![stamp], Unread::default(), listener),
        }
    }

    /// Whether nothing that was looked at has changed, as far as can be told without looking at everything.
    fn still_holds(&self, listener: &mut Listener<'_>) -> Result<bool, DataError> {
        let event = |done, of| ScanEvent::Reading { done, of };
        let stamps = listener.in_parallel(self.stamps.len(), event, |at, _| self.stamps[at].holds(self.began))?;
        let Source::Files { names, sizes, .. } = &self.source else { return Ok(stamps.iter().all(|holds| *holds)) };
        if !stamps.iter().all(|holds| *holds) {
            return Ok(false);
        }
        let order = EpochOrder::new(self.len(), SEED, 0);
        let compared = listener.in_parallel(self.len().min(COMPARED) as usize, event, |at, _| {
            let image = order.sample(at as u64) as usize;
            size(&self.root.join(names.get(image))) == sizes[image]
        })?;
        Ok(compared.iter().all(|same| *same))
    }

    /// Tells what was passed over.
    fn told(&self, listener: &mut Listener<'_>) -> Result<(), DataError> {
        if self.unread().total() > 0 {
            listener.tell(ScanEvent::Unread(self.unread()))?;
        }
        self.damaged().iter().try_for_each(|damaged| listener.tell(ScanEvent::Damaged(damaged)))
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn source(&self) -> &Source {
        &self.source
    }

    /// Images in all.
    pub fn len(&self) -> u64 {
        match &self.source {
            Source::Files { names, .. } => names.len() as u64,
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

    /// Files, or members of shards, that look like images and are not read.
    pub fn unread(&self) -> &Unread {
        match &self.source {
            Source::Files { unread, .. } => unread,
            Source::Shards(shards) => &shards.unread,
        }
    }

    /// Archives of which only a part can be read.
    pub fn damaged(&self) -> &[DamagedShard] {
        match &self.source {
            Source::Files { .. } => &[],
            Source::Shards(shards) => &shards.damaged,
        }
    }

    /// Bytes of image `at` as it is encoded; [`u64::MAX`] for what could not be looked at.
    pub(super) fn size(&self, at: usize) -> u64 {
        match &self.source {
            Source::Files { sizes, .. } => sizes[at],
            Source::Shards(shards) => shards.size(at),
        }
    }

    /// Where image `index` lies: its own path, or its shard's.
    pub fn place(&self, index: u64) -> String {
        let Some(at) = usize::try_from(index).ok().filter(|_| index < self.len()) else { return format!("#{index}") };
        match &self.source {
            Source::Files { names, .. } => self.root.join(names.get(at)).display().to_string(),
            Source::Shards(shards) => shards.path(at).display().to_string(),
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
        let (path, read) = self.read_most(at, MAX_ENCODED, bytes);
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

    /// Reads the first `most` bytes of image `at`; also says which file that is.
    pub(super) fn read_most(&self, at: usize, most: u64, bytes: &mut Vec<u8>) -> (PathBuf, io::Result<String>) {
        match &self.source {
            Source::Files { names, .. } => {
                let path = self.root.join(names.get(at));
                let name = path.display().to_string();
                let read = read_file(&path, most, bytes).map(|()| name);
                (path, read)
            }
            Source::Shards(shards) => {
                let path = shards.path(at).to_path_buf();
                let read = shards.read(at, most, bytes).map(|member| format!("{}: {member}", path.display()));
                (path, read)
            }
        }
    }

    /// Whether the data is gone as a whole; a file system that was unmounted leaves an empty folder.
    fn vanished(&self) -> bool {
        let root = if self.root.as_os_str().is_empty() { Path::new(".") } else { &self.root };
        fs::read_dir(root).map_or(true, |mut entries| entries.next().is_none())
    }
}

/// A search for images.
struct Search<'a> {
    path: &'a Path,
    began: u64,
}

impl Search<'_> {
    fn files(
        self,
        root: PathBuf,
        paths: &[PathBuf],
        stamps: Vec<Stamp>,
        unread: Unread,
        listener: &mut Listener<'_>,
    ) -> Result<Dataset, DataError> {
        let mut names = Names::default();
        for path in paths {
            names.push(path.strip_prefix(&root).unwrap_or(path));
        }
        let event = |done, of| ScanEvent::Reading { done, of };
        let sizes = listener.in_parallel(paths.len(), event, |at, _| size(&paths[at]))?;
        let source = Source::Files { names, sizes, unread };
        Ok(Dataset { root, source, stamps, began: self.began, kept: false })
    }

    fn shards(
        self,
        root: PathBuf,
        paths: Vec<PathBuf>,
        mut stamps: Vec<Stamp>,
        listener: &mut Listener<'_>,
    ) -> Result<Dataset, DataError> {
        let (shards, own) = Shards::index(paths, listener)?;
        stamps.extend(own);
        if shards.len() > 0 {
            return Ok(Dataset { root, source: Source::Shards(shards), stamps, began: self.began, kept: false });
        }
        let mut reason = format!("its shards hold no images (members such as `key.jpg`; {READ_NAMES})");
        if shards.unread.total() > 0 {
            reason += &format!("; {}", shards.unread);
        }
        for damaged in &shards.damaged {
            reason += &format!("\n  `{}`: {}", damaged.path.display(), damaged.reason);
        }
        if shards.passed_over > 0 {
            reason += &format!(
                "; {} members have another dot in their name, which makes them parts of a sample, not images",
                shards.passed_over
            );
        }
        Err(DataError::Source { path: self.path.display().to_string(), reason })
    }
}

/// Bytes of the file; [`NO_SIZE`] when it cannot be looked at.
fn size(path: &Path) -> u64 {
    fs::metadata(path).ok().filter(fs::Metadata::is_file).map_or(NO_SIZE, |metadata| metadata.len())
}

fn read_file(path: &Path, most: u64, bytes: &mut Vec<u8>) -> io::Result<()> {
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
    File::open(path)?.take(most).read_to_end(bytes)?;
    Ok(())
}
