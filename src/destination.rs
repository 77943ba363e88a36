//! Where an output goes: the one rule by which every file and directory that was asked for is made, replaced or refused.
//!
//! | what is there | a file is asked for | a directory is asked for |
//! |---|---|---|
//! | nothing | it is made | it is made |
//! | a file | refused, unless it may be replaced | refused |
//! | a directory | refused | refused, unless it is empty, or may be replaced and holds nothing foreign |
//! | a character device, a FIFO | written to, never replaced | refused |
//! | a block device | refused, unless what is on it may be replaced; then written to | refused |
//! | a socket | refused | refused |
//! | a symbolic link | what it leads to decides, and takes the output; the link stays | the same |
//!
//! It is asked before the work begins ([`Destination::check_file`]), since hours later is too late to learn it, and again
//! at the end, where a name that has been taken meanwhile is not taken away.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File, FileType, Metadata};
use std::io::{self, Seek as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::hint::Hint;
use crate::staged::{StagedDir, StagedFile, folder_of};

/// Where an output goes, and whether it may replace what is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    place: Place,
    overwrite: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Stdout,
    Path(PathBuf),
}

/// Why an output cannot go where it was meant to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DestinationError {
    /// Something is there, and was not said to be replaceable.
    #[error("`{path}` exists and {why}")]
    Exists {
        /// The destination.
        path: String,
        /// What it is.
        why: &'static str,
    },
    /// A directory is there that holds something else, and is never replaced.
    #[error("`{path}` exists and holds `{name}`, which would be lost")]
    Foreign {
        /// The destination.
        path: String,
        /// What it holds.
        name: String,
    },
    /// Something is there that cannot become the output, nor take it.
    #[error("`{path}` is {is}, and {wanted} is to be written")]
    Kind {
        /// The destination.
        path: String,
        /// What it is.
        is: &'static str,
        /// What was asked for.
        wanted: &'static str,
    },
    /// A folder on the way is missing.
    #[error("cannot write `{path}`: the folder `{folder}` does not exist")]
    NoFolder {
        /// The destination.
        path: String,
        /// The folder.
        folder: String,
    },
    /// A folder on the way is none.
    #[error("cannot write `{path}`: `{folder}` is no folder")]
    NotAFolder {
        /// The destination.
        path: String,
        /// What should be a folder.
        folder: String,
    },
    /// The system refused.
    #[error("cannot write `{path}`")]
    Write {
        /// The destination.
        path: String,
        /// The system's reason.
        source: io::Error,
    },
}

impl DestinationError {
    /// What to do next.
    pub fn hint(&self) -> Option<Hint> {
        match self {
            Self::Exists { .. } => Some(Hint::new().option("overwrite").words(" replaces it")),
            Self::Foreign { .. } => Some("give the name of a new directory; this one is never replaced".into()),
            Self::Kind { wanted, .. } => Some(format!("give the name of {wanted}").into()),
            Self::NoFolder { .. } | Self::NotAFolder { .. } | Self::Write { .. } => None,
        }
    }
}

/// What a path leads to, links followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Nothing,
    File,
    Directory,
    /// A character device.
    Device,
    Fifo,
    Block,
    Socket,
}

impl Found {
    fn of(kind: FileType) -> Self {
        #[cfg(unix)]
        {
            use std::os::unix::fs::FileTypeExt as _;
            match kind {
                kind if kind.is_char_device() => return Self::Device,
                kind if kind.is_fifo() => return Self::Fifo,
                kind if kind.is_block_device() => return Self::Block,
                kind if kind.is_socket() => return Self::Socket,
                _ => {}
            }
        }
        if kind.is_dir() { Self::Directory } else { Self::File }
    }

    fn is_stream(self) -> bool {
        matches!(self, Self::Device | Self::Fifo | Self::Block)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::File => "a file",
            Self::Directory => "a directory",
            Self::Device => "a device",
            Self::Fifo => "a FIFO",
            Self::Block => "a block device",
            Self::Socket => "a socket",
        }
    }
}

const FILE: &str = "a file";
const DIRECTORY: &str = "a directory";

impl Destination {
    /// `path`, where nothing may be that would be lost.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { place: Place::Path(path.into()), overwrite: false }
    }

    /// Standard output, which takes files and no directories.
    pub fn stdout() -> Self {
        Self { place: Place::Stdout, overwrite: false }
    }

    /// Whether it is standard output.
    pub fn is_stdout(&self) -> bool {
        self.place == Place::Stdout
    }

    /// Whether what is there may be replaced.
    #[must_use]
    pub fn overwrite(self, overwrite: bool) -> Self {
        Self { overwrite, ..self }
    }

    /// Another file, written with this one and by the same leave.
    pub(crate) fn beside(&self, path: impl Into<PathBuf>) -> Self {
        Self { place: Place::Path(path.into()), overwrite: self.overwrite }
    }

    /// Whether a file would be written to something that cannot be read back: standard output, a device or a FIFO.
    pub fn is_stream(&self) -> bool {
        match &self.place {
            Place::Stdout => true,
            Place::Path(path) => fs::metadata(path).is_ok_and(|meta| Found::of(meta.file_type()).is_stream()),
        }
    }

    /// Whether a file may be written; nothing is changed by asking.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub fn check_file(&self) -> Result<(), DestinationError> {
        let Place::Path(path) = &self.place else { return Ok(()) };
        let (target, found) = self.file(path)?;
        let refused = |source| DestinationError::Write { path: shown(path), source };
        match found {
            // Opening one without a reader would wait for it.
            Found::Fifo => Ok(()),
            found if found.is_stream() => open(path).map(drop).map_err(refused),
            _ => StagedFile::new(&target).map(drop).map_err(refused),
        }
    }

    /// Whether a directory may be written that consists of files called `own`; nothing is changed by asking.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub fn check_directory(&self, own: &[&str]) -> Result<(), DestinationError> {
        self.directory(own).map(drop)
    }

    /// The folder to work in, links followed: it is there, or can be made.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub fn folder(&self) -> Result<PathBuf, DestinationError> {
        let Place::Path(path) = &self.place else {
            return Err(DestinationError::Kind { path: "-".to_owned(), is: "standard output", wanted: DIRECTORY });
        };
        match resolved(path)? {
            (target, Found::Nothing | Found::Directory) => Ok(target),
            (_, found) => Err(DestinationError::Kind { path: shown(path), is: found.name(), wanted: DIRECTORY }),
        }
    }

    /// Starts the file; see [`StagedOutput`].
    pub(crate) fn file_output(&self) -> Result<StagedOutput, DestinationError> {
        let Place::Path(path) = &self.place else {
            let buffer = tempfile::tempfile().map_err(|source| self.refused(source))?;
            return Ok(StagedOutput { of: self.clone(), kind: Kind::Streamed { buffer } });
        };
        let (target, found) = self.file(path)?;
        let kind = match found.is_stream() {
            true => tempfile::tempfile().map(|buffer| Kind::Streamed { buffer }),
            false => StagedFile::new(&target).map(|staged| Kind::Renamed { staged, target }),
        };
        Ok(StagedOutput { of: self.clone(), kind: kind.map_err(|source| self.refused(source))? })
    }

    /// Starts a directory that will consist of files called `own`.
    pub(crate) fn directory_output<'a>(&self, own: &'a [&'a str]) -> Result<StagedDirectory<'a>, DestinationError> {
        let staged = StagedDir::new(&self.directory(own)?).map_err(|source| self.refused(source))?;
        Ok(StagedDirectory { of: self.clone(), own, staged })
    }

    /// Copies the finished file `from` there.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub fn send(&self, from: &Path) -> Result<(), DestinationError> {
        let mut staged = self.file_output()?;
        let copied = File::open(from).and_then(|mut from| io::copy(&mut from, staged.file()));
        copied.map_err(|source| self.refused(source))?;
        staged.commit()
    }

    /// The path that was asked for; `-` for standard output.
    pub(crate) fn path(&self) -> &Path {
        match &self.place {
            Place::Stdout => Path::new("-"),
            Place::Path(path) => path,
        }
    }

    /// The file that stands at `path` with its links followed, and what it is now.
    fn file(&self, path: &Path) -> Result<(PathBuf, Found), DestinationError> {
        let (target, found) = resolved(path)?;
        match found {
            Found::Directory | Found::Socket => {
                Err(DestinationError::Kind { path: shown(path), is: found.name(), wanted: FILE })
            }
            Found::File if !self.overwrite => Err(self.exists("would be replaced")),
            Found::Block if !self.overwrite => Err(self.exists("is a block device, whose contents would be lost")),
            found => Ok((target, found)),
        }
    }

    fn directory(&self, own: &[&str]) -> Result<PathBuf, DestinationError> {
        let target = self.folder()?;
        if target.is_dir() {
            self.replaceable(&target, own)?;
        }
        Ok(target)
    }

    /// Refuses a directory with anything in it that must not be lost.
    fn replaceable(&self, directory: &Path, own: &[&str]) -> Result<(), DestinationError> {
        let mut empty = true;
        for entry in fs::read_dir(directory).map_err(|source| self.refused(source))? {
            let entry = entry.map_err(|source| self.refused(source))?;
            empty = false;
            let plain = entry.file_type().is_ok_and(|kind| !kind.is_dir());
            if !plain || !own.iter().any(|own| entry.file_name() == OsStr::new(own)) {
                let name = entry.file_name().to_string_lossy().into_owned();
                return Err(DestinationError::Foreign { path: shown(self.path()), name });
            }
        }
        if empty || self.overwrite { Ok(()) } else { Err(self.exists("is not empty")) }
    }

    fn exists(&self, why: &'static str) -> DestinationError {
        DestinationError::Exists { path: shown(self.path()), why }
    }

    fn refused(&self, source: io::Error) -> DestinationError {
        DestinationError::Write { path: shown(self.path()), source }
    }
}

/// A path alone is one where nothing may be that would be lost.
impl<P: AsRef<Path> + ?Sized> From<&P> for Destination {
    fn from(path: &P) -> Self {
        Self::new(path.as_ref())
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Stdout => out.write_str("standard output"),
            Place::Path(path) => write!(out, "{}", path.display()),
        }
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// More links than any system follows.
const MAX_LINKS: usize = 40;
/// How long a FIFO waits for somebody who reads it.
const READER_COMES: Duration = Duration::from_secs(60);

/// `path` with the links at its end followed, and what is there. A link may lead to nothing yet; the folder of what it
/// leads to is there.
fn resolved(path: &Path) -> Result<(PathBuf, Found), DestinationError> {
    let failed = |source| DestinationError::Write { path: shown(path), source };
    let found = match fs::metadata(path) {
        Ok(meta) => Found::of(meta.file_type()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Found::Nothing,
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Err(no_folder(path, path)),
        Err(error) => return Err(failed(error)),
    };
    // The links of `/dev/stdout` and its like name no paths; what they lead to is opened, not replaced.
    if !matches!(found, Found::Nothing | Found::File | Found::Directory) {
        return Ok((path.to_path_buf(), found));
    }
    let mut target = path.to_path_buf();
    for _ in 0..MAX_LINKS {
        match fs::symlink_metadata(&target) {
            Ok(meta) if meta.is_symlink() => {
                let next = fs::read_link(&target).map_err(failed)?;
                target = target.parent().unwrap_or(Path::new("")).join(next);
            }
            Ok(_) => return Ok((target, found)),
            Err(error) if error.kind() == io::ErrorKind::NotFound && target.file_name().is_some() => {
                return if folder_of(&target).is_dir() { Ok((target, found)) } else { Err(no_folder(path, &target)) };
            }
            Err(error) => return Err(failed(error)),
        }
    }
    Err(failed(io::Error::other("it is a link to a link to a link, without an end")))
}

/// Which folder on the way to `target` is missing, or is none.
fn no_folder(path: &Path, target: &Path) -> DestinationError {
    // Without a slash at its end, which would ask for the folder.
    let target = target.components().as_path();
    let (path, folder) = (shown(path), folder_of(target));
    match target.ancestors().find(|ancestor| fs::symlink_metadata(ancestor).is_ok()) {
        Some(file) if !file.is_dir() => DestinationError::NotAFolder { path, folder: shown(file) },
        _ => DestinationError::NoFolder { path, folder: shown(folder) },
    }
}

/// A device or FIFO, to write to; a file that took its place is not touched.
///
/// A FIFO opens once somebody reads it, which may be never: a thread waits for that, and is waited for within bounds.
fn open(path: &Path) -> io::Result<File> {
    let (sender, receiver) = mpsc::channel();
    let of = path.to_path_buf();
    thread::spawn(move || sender.send(fs::OpenOptions::new().write(true).open(of)));
    let nobody = |_| io::Error::new(io::ErrorKind::TimedOut, "nobody reads from it");
    let file = receiver.recv_timeout(READER_COMES).map_err(nobody)??;
    let is_stream = |meta: Metadata| Found::of(meta.file_type()).is_stream();
    if file.metadata().is_ok_and(is_stream) { Ok(file) } else { Err(io::ErrorKind::AlreadyExists.into()) }
}

/// A file that will be at its destination on [`StagedOutput::commit`]; dropped before, it leaves nothing. What goes to
/// a device or a FIFO waits in a nameless file until then, so that formats may seek and nothing half-made is sent.
#[derive(Debug)]
pub(crate) struct StagedOutput {
    of: Destination,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Renamed { staged: StagedFile, target: PathBuf },
    Streamed { buffer: File },
}

impl StagedOutput {
    /// The open file.
    pub(crate) fn file(&mut self) -> &mut File {
        match &mut self.kind {
            Kind::Renamed { staged, .. } => staged.file(),
            Kind::Streamed { buffer } => buffer,
        }
    }

    /// The file that will be there, links followed; `None` where the bytes go to a stream.
    pub(crate) fn target(&self) -> Option<&Path> {
        match &self.kind {
            Kind::Renamed { target, .. } => Some(target),
            Kind::Streamed { .. } => None,
        }
    }

    /// Puts it where it belongs.
    pub(crate) fn commit(self) -> Result<(), DestinationError> {
        let Self { of, kind } = self;
        let mut buffer = match kind {
            Kind::Streamed { buffer } => buffer,
            Kind::Renamed { staged, .. } if !of.overwrite => {
                return staged.commit_new().map_err(|source| match source.kind() {
                    io::ErrorKind::AlreadyExists => of.exists("would be replaced"),
                    _ => of.refused(source),
                });
            }
            Kind::Renamed { staged, target } => {
                // Something else than a file may have come there meanwhile.
                match of.file(&target)? {
                    (_, Found::File | Found::Nothing) => {}
                    (_, found) => {
                        let path = shown(of.path());
                        return Err(DestinationError::Kind { path, is: found.name(), wanted: FILE });
                    }
                }
                return staged.commit().map_err(|source| of.refused(source));
            }
        };
        let sent = buffer.rewind().and_then(|()| match &of.place {
            Place::Stdout => {
                let mut out = io::stdout().lock();
                io::copy(&mut buffer, &mut out)?;
                io::Write::flush(&mut out)
            }
            Place::Path(path) => io::copy(&mut buffer, &mut open(path)?).map(drop),
        });
        sent.map_err(|source| of.refused(source))
    }
}

/// A directory that will be at its destination on [`StagedDirectory::commit`]; dropped before, it leaves nothing.
#[derive(Debug)]
pub(crate) struct StagedDirectory<'a> {
    of: Destination,
    own: &'a [&'a str],
    staged: StagedDir,
}

impl StagedDirectory<'_> {
    /// Where to write now.
    pub(crate) fn path(&self) -> &Path {
        self.staged.path()
    }

    /// Moves it into place. One that is there is looked through again once it is aside, where nobody finds it.
    pub(crate) fn commit(self) -> Result<(), DestinationError> {
        let Self { of, own, staged } = self;
        if !of.overwrite {
            return staged.commit_new().map_err(|source| match source.kind() {
                io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty => of.exists("holds something by now"),
                io::ErrorKind::NotADirectory => of.exists("is no directory by now"),
                _ => of.refused(source),
            });
        }
        staged.commit_over(|source| of.refused(source), |aside| of.replaceable(aside, own))
    }
}
