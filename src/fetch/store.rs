//! Where files live, and whether they are still what they were.
//!
//! ```text
//! <home>/blobs/<sha256>          a verified file        <home>/trees/<sha256>.json   its chunk hashes
//! <home>/models/<name>/          a model                <home>/trees/model-<name>.json  its files' chunk hashes
//! <home>/partial/<key>.part      a download in progress, with its journal
//! <home>/pins/<name>.toml        hashes of first use    <home>/zoo/<name>.toml       the user's manifests
//! <home>/locks/<key>.lock        who is at it           <home>/fingerprints/<name>.json  what `identify` knows
//! ```

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::caller::Caller;
use super::lock::Lock;
use super::tree::{Look, Stamp, Tree, hex, sha256};
use super::{Event, FetchError, boot};
use crate::staged::StagedFile;

/// A tree is 64 digits for 4 MiB; this one would be of a 4 TB file.
const MAX_TREE_BYTES: u64 = 128 << 20;

/// The folder of fetched files and models; several processes may use it at once.
#[derive(Debug, Clone)]
pub struct Store {
    home: PathBuf,
}

/// A verified file in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// sha256, lower-case hex.
    pub sha256: String,
    /// Where it is.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
}

/// What the store knows of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum State {
    /// Whole.
    Whole,
    /// These leaves of its tree differ.
    Damaged(Vec<usize>),
    /// Not there.
    Missing,
}

impl Store {
    /// The store in the folder `home`, made where it does not exist.
    ///
    /// # Errors
    /// [`FetchError::Io`] when the folder cannot be made.
    pub fn open(home: &Path) -> Result<Self, FetchError> {
        let home = std::path::absolute(home).map_err(FetchError::io("find", home))?;
        for folder in ["blobs", "trees", "models", "partial", "pins", "locks"] {
            let path = home.join(folder);
            std::fs::create_dir_all(&path).map_err(FetchError::io("make", &path))?;
        }
        Ok(Self { home })
    }

    /// The folder.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// The user's own manifests, for [`crate::zoo::Zoo::with_overlay`]; need not exist.
    pub fn overlay(&self) -> PathBuf {
        self.home.join("zoo")
    }

    /// Fingerprints of models that are or were here, for [`crate::identify`]; need not exist.
    pub fn fingerprints(&self) -> PathBuf {
        self.home.join("fingerprints")
    }

    /// Where the model `name` is, in the common format, if it is there and unchanged since it was written.
    pub fn model(&self, name: &str) -> Option<PathBuf> {
        let dir = self.model_dir(name);
        let files = self.model_trees(name)?;
        let untouched = |(file, tree): (&String, &Tree)| matches!(tree.look(&dir.join(file)), Ok(Look::Untouched));
        files.iter().all(untouched).then_some(dir)
    }

    /// Checks that `bytes` more fit on the disk.
    pub(super) fn admit(&self, bytes: u64, options: &super::Options) -> Result<(), FetchError> {
        let folder = self.home.join("partial");
        let needed = bytes.saturating_add(options.keep_free);
        let free = fs4::available_space(&folder).map_err(FetchError::io("ask for the free space of", &folder))?;
        if free < needed {
            return Err(FetchError::NoSpace { path: folder.display().to_string(), needed, free });
        }
        Ok(())
    }

    /// The file with this sha256, if it is there and unchanged since it was verified. A file that was touched is read
    /// and hashed again first.
    ///
    /// # Errors
    /// [`FetchError::Io`] when it cannot be read.
    pub fn blob(&self, sha256: &str) -> Result<Option<Blob>, FetchError> {
        self.find(sha256, &Caller::absent())
    }

    /// [`Store::blob`], for a caller who may say stop while it is read.
    pub(super) fn find(&self, sha256: &str, caller: &Caller) -> Result<Option<Blob>, FetchError> {
        if self.state(sha256, caller)? != State::Whole {
            return Ok(None);
        }
        let path = self.blob_path(sha256);
        let bytes = std::fs::metadata(&path).map_err(FetchError::io("read", &path))?.len();
        Ok(Some(Blob { sha256: sha256.to_owned(), path, bytes }))
    }

    /// What became of the file with this sha256; it is read only where its metadata changed.
    pub(super) fn state(&self, sha256: &str, caller: &Caller) -> Result<State, FetchError> {
        match self.tree(sha256) {
            Some(tree) if matches!(tree.look(&self.blob_path(sha256)), Ok(Look::Untouched)) => Ok(State::Whole),
            _ => self.verify_blob(sha256, caller),
        }
    }

    /// Reads the file with this sha256 and compares all of it.
    pub(super) fn verify_blob(&self, sha256: &str, caller: &Caller) -> Result<State, FetchError> {
        let path = self.blob_path(sha256);
        let io = || FetchError::io("read", &path);
        if !path.exists() {
            return Ok(State::Missing);
        }
        caller.tell(Event::Reading { path: path.display().to_string() });
        let Some(mut tree) = self.tree(sha256) else {
            // Without a tree only the whole can be judged.
            let (tree, whole) = Tree::of(&path, super::Options::default().chunk, caller)?;
            if whole != sha256 {
                return Ok(State::Damaged((0..tree.leaves.len()).collect()));
            }
            self.write_tree(&tree, sha256)?;
            return Ok(State::Whole);
        };
        let stamp = Stamp::now(&path, false).map_err(io())?;
        let damage = tree.damage(&path, caller).map_err(io())?;
        caller.check()?;
        if !damage.is_empty() {
            return Ok(State::Damaged(damage));
        }
        // What was read back after a restart came from the disk.
        let settled = tree.stamp != stamp;
        tree.stamp = stamp;
        if settled && boot::id().is_some() {
            self.write_tree(&tree, sha256)?;
        }
        Ok(State::Whole)
    }

    /// Moves a verified file into the store.
    pub(super) fn adopt(&self, path: &Path, sha256: &str, chunk: u64, leaves: &[[u8; 32]]) -> Result<Blob, FetchError> {
        let target = self.blob_path(sha256);
        let io = || FetchError::io("store", &target);
        if boot::id().is_none() {
            // Nothing will tell a power cut later, so wait for the disk now.
            std::fs::File::open(path).and_then(|file| file.sync_all()).map_err(io())?;
        }
        let bytes = std::fs::metadata(path).map_err(io())?.len();
        std::fs::rename(path, &target).map_err(io())?;
        let stamp = Stamp::now(&target, true).map_err(io())?;
        self.write_tree(&Tree::new(bytes, chunk, leaves, stamp), sha256)?;
        Ok(Blob { sha256: sha256.to_owned(), path: target, bytes })
    }

    /// Removes a file that is not wanted any more; one that is not there is no trouble.
    pub(super) fn discard(&self, sha256: &str) {
        // The tree first: a tree without its file says nothing, a file without its tree is read as a whole.
        let _ = std::fs::remove_file(self.tree_path(sha256));
        let _ = std::fs::remove_file(self.blob_path(sha256));
    }

    /// Puts the model directory `fresh` in place as `name`, and notes its files' chunk hashes.
    pub(super) fn replace_model(
        &self,
        name: &str,
        fresh: &Path,
        chunk: u64,
        caller: &Caller,
    ) -> Result<(), FetchError> {
        let dir = self.model_dir(name);
        // All reading first: what follows is done in a moment, and is not stopped half-way.
        let mut files = std::collections::BTreeMap::new();
        for entry in std::fs::read_dir(fresh).map_err(FetchError::io("read", fresh))? {
            let path = entry.map_err(FetchError::io("read", fresh))?.path();
            let (mut tree, _) = Tree::of(&path, chunk, caller)?;
            tree.stamp = Stamp::now(&path, true).map_err(FetchError::io("read", &path))?;
            if let Some(name) = path.file_name().and_then(|name| name.to_str()) {
                files.insert(name.to_owned(), tree);
            }
        }
        let tree_path = self.model_tree_path(name);
        // Without its tree a directory is no model: nobody takes the one that goes, or half of the one that comes.
        match std::fs::remove_file(&tree_path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(FetchError::io("remove", &tree_path)(error));
            }
            _ => {}
        }
        match std::fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(FetchError::io("remove", &dir)(error));
            }
            _ => {}
        }
        std::fs::rename(fresh, &dir).map_err(FetchError::io("rename", fresh))?;
        let text = serde_json::to_string(&files).unwrap_or_default();
        write_atomically(&self.model_tree_path(name), &text)
    }

    /// Reads a model's files and compares all of them; the damaged ones by name. `None` without such a model.
    pub(super) fn verify_model(&self, name: &str, caller: &Caller) -> Result<Option<Vec<String>>, FetchError> {
        let dir = self.model_dir(name);
        let Some(mut files) = self.model_trees(name) else { return Ok(None) };
        caller.tell(Event::Reading { path: dir.display().to_string() });
        let mut damaged = Vec::new();
        let mut fresh = false;
        for (file, tree) in &mut files {
            let path = dir.join(file);
            let stamp = Stamp::now(&path, false);
            let damage = tree.damage(&path, caller);
            caller.check()?;
            if !matches!(damage, Ok(damage) if damage.is_empty()) {
                damaged.push(file.clone());
            } else if let Ok(stamp) = stamp
                && tree.stamp != stamp
                && boot::id().is_some()
            {
                fresh = true;
                tree.stamp = stamp;
            }
        }
        if fresh && damaged.is_empty() {
            write_atomically(&self.model_tree_path(name), &serde_json::to_string(&files).unwrap_or_default())?;
        }
        Ok(Some(damaged))
    }

    pub(super) fn model_trees(&self, name: &str) -> Option<std::collections::BTreeMap<String, Tree>> {
        let text = read_bounded(&self.model_tree_path(name))?;
        let files: std::collections::BTreeMap<String, Tree> = serde_json::from_str(&text).ok()?;
        let plain = |file: &String| Path::new(file).file_name().is_some_and(|name| name == file.as_str());
        (!files.is_empty() && files.iter().all(|(file, tree)| plain(file) && tree.is_sound())).then_some(files)
    }

    /// The tree of a blob, when there is a sound one.
    pub(super) fn tree(&self, sha256: &str) -> Option<Tree> {
        let tree: Tree = serde_json::from_str(&read_bounded(&self.tree_path(sha256))?).ok()?;
        tree.is_sound().then_some(tree)
    }

    fn write_tree(&self, tree: &Tree, sha256: &str) -> Result<(), FetchError> {
        write_atomically(&self.tree_path(sha256), &serde_json::to_string(tree).unwrap_or_default())
    }

    pub(super) fn blob_path(&self, sha256: &str) -> PathBuf {
        self.home.join("blobs").join(sha256)
    }

    fn tree_path(&self, sha256: &str) -> PathBuf {
        self.home.join("trees").join(format!("{sha256}.json"))
    }

    fn model_tree_path(&self, name: &str) -> PathBuf {
        self.home.join("trees").join(format!("model-{name}.json"))
    }

    /// Where a model is, or will be.
    pub(super) fn model_dir(&self, name: &str) -> PathBuf {
        self.home.join("models").join(name)
    }

    pub(super) fn pins_path(&self, name: &str) -> PathBuf {
        self.home.join("pins").join(format!("{name}.toml"))
    }

    /// Where the download of `content` (a sha256, or an address) is kept while it goes on.
    pub(super) fn part_path(&self, content: &str) -> PathBuf {
        self.home.join("partial").join(format!("{}.part", short(content)))
    }

    /// Waits for the right to work on `what`.
    pub(super) fn lock(&self, what: &str, stale: Duration, caller: &Caller) -> Result<Lock, FetchError> {
        let path = self.home.join("locks").join(format!("{}.lock", short(what)));
        Lock::acquire(&path, stale, caller)
    }
}

/// A file name for anything.
fn short(text: &str) -> String {
    hex(&sha256(text.as_bytes()))[..32].to_owned()
}

fn read_bounded(path: &Path) -> Option<String> {
    if std::fs::metadata(path).ok()?.len() > MAX_TREE_BYTES {
        return None;
    }
    std::fs::read_to_string(path).ok()
}

/// Writes a small file that appears whole or not at all.
pub(super) fn write_atomically(path: &Path, text: &str) -> Result<(), FetchError> {
    let write = || {
        let mut staged = StagedFile::new(path)?;
        staged.file().write_all(text.as_bytes())?;
        staged.commit()
    };
    write().map_err(FetchError::io("write", path))
}
