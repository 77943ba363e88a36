//! The folder of a run: who may use it, and what was asked for.
//!
//! ```text
//! recipe.toml      the resolved recipe: with overrides, k and τ
//! run.json         seed, tool, revision, base and its sha256, data
//! data.json        where the images are: what a scan found, and how to tell whether it is still true
//! metrics.jsonl    one line for each update
//! events.out.…     the same for TensorBoard
//! checkpoints/     step-00000120, …
//! base/            the base, where it was another run's checkpoint
//! model/           the result, once it is done
//! summary.json     how it went
//! ```

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::branch::BranchFile;
use super::checkpoint;
use super::error::RunError;
use crate::data::{DataDigest, lossless};
use crate::hint::Hint;
use crate::staged::StagedFile;
use crate::train::Recipe;

const LOCK: &str = "lock";
/// What unfinished writes are called until they have their name; see [`crate::staged`].
const UNFINISHED: &str = ".tec-zoo-";

/// `run.json`: what a run was started with, beside its recipe. The keys are stable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunFile {
    /// Tool and version.
    pub tool: String,
    /// Git revision of the source, where the build could tell (`build.rs`).
    pub revision: Option<String>,
    /// The recipe's seed.
    pub seed: u64,
    /// The base.
    pub base: Option<BaseFile>,
    /// The images, as given. A path that is no text is an object with its bytes.
    #[serde(with = "lossless")]
    pub data: PathBuf,
    /// How many there were.
    pub images: u64,
    /// Which they were; runs of older versions do not say.
    #[serde(default)]
    pub digest: Option<DataDigest>,
    /// Data the run went on from to other data, which had to be allowed; the oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier_data: Vec<EarlierData>,
    /// The run it began from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<BranchFile>,
}

/// What a run was trained on before it went on with other data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EarlierData {
    /// Updates made when it went on with other data.
    pub until: u64,
    /// The images.
    #[serde(with = "lossless")]
    pub data: PathBuf,
    /// How many there were.
    pub images: u64,
    /// Which they were, where the run said so.
    pub digest: Option<DataDigest>,
}

/// The base of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaseFile {
    /// What it is called.
    pub name: String,
    /// Where it is; a relative path is in the run's folder.
    #[serde(with = "lossless")]
    pub directory: PathBuf,
    /// Of its `model.safetensors`, lower-case hex.
    pub sha256: String,
}

/// A run's folder, ours alone until dropped.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    _lock: File,
}

impl Folder {
    pub(super) const RECIPE: &str = "recipe.toml";
    pub(super) const RUN: &str = "run.json";
    /// The kept scan of the data.
    pub(super) const SCAN: &str = "data.json";
    pub(super) const CHECKPOINTS: &str = "checkpoints";
    pub(super) const BASE: &str = "base";
    pub(super) const MODEL: &str = "model";
    pub(super) const SUMMARY: &str = "summary.json";

    /// Takes `path`: a new folder, or with `resume` one that holds a run.
    pub(super) fn claim(path: &Path, resume: bool) -> Result<Self, RunError> {
        let shown = || path.display().to_string();
        let foreign = match fs::read_dir(path) {
            Ok(entries) => {
                let names = entries.map(|entry| Ok(entry?.file_name())).collect::<Result<Vec<_>, std::io::Error>>();
                names.map_err(RunError::io("read", path))?
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(RunError::io("read", path)(error)),
        };
        // What a run that ended before its start leaves.
        let empty = |name: &OsString| fs::read_dir(path.join(name)).is_ok_and(|mut entries| entries.next().is_none());
        let own = |name: &OsString| {
            name == LOCK || name.to_string_lossy().starts_with(UNFINISHED) || (name == Self::CHECKPOINTS && empty(name))
        };
        let started = foreign.iter().any(|name| name == Self::RECIPE || name == Self::RUN);
        match foreign.iter().all(own) {
            true => {}
            false if !started && resume => return Err(RunError::NoRun { path: shown() }),
            false if !started => {
                let hint = "give the name of a new folder".into();
                return Err(RunError::Exists { path: shown(), why: "is not empty", hint });
            }
            false if !resume => {
                let hint = Hint::new().option("resume").words(" continues it; or give the name of a new folder");
                return Err(RunError::Exists { path: shown(), why: "holds a run", hint });
            }
            false => {}
        }
        let checkpoints = path.join(Self::CHECKPOINTS);
        fs::create_dir_all(&checkpoints).map_err(RunError::io("write", &checkpoints))?;
        let lock = path.join(LOCK);
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&lock);
        let file = file.map_err(RunError::io("write", &lock))?;
        // Some file systems cannot lock; there the user is trusted.
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            return Err(RunError::Busy { path: shown() });
        }
        let folder = Self { path: path.to_path_buf(), _lock: file };
        folder.sweep(path)?;
        folder.sweep(&checkpoints)?;
        Ok(folder)
    }

    /// Removes what writes that were killed left behind.
    fn sweep(&self, folder: &Path) -> Result<(), RunError> {
        for entry in fs::read_dir(folder).map_err(RunError::io("read", folder))? {
            let path = entry.map_err(RunError::io("read", folder))?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if name.starts_with(UNFINISHED) {
                let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                removed.map_err(RunError::io("write", &path))?;
            }
        }
        Ok(())
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub(super) fn checkpoints(&self) -> PathBuf {
        self.path.join(Self::CHECKPOINTS)
    }

    pub(super) fn model(&self) -> PathBuf {
        self.path.join(Self::MODEL)
    }

    /// Writes `value` as the file `name`, in JSON.
    pub(super) fn write_json(&self, name: &str, value: &impl Serialize) -> Result<(), RunError> {
        let text = serde_json::to_string_pretty(value).map_err(std::io::Error::from);
        self.write(name, &text.map_err(RunError::io("write", &self.file(name)))?)
    }

    /// Writes `text` as the file `name`.
    pub(super) fn write(&self, name: &str, text: &str) -> Result<(), RunError> {
        let path = self.file(name);
        let write = || {
            let mut staged = StagedFile::new(&path)?;
            staged.file().write_all(text.as_bytes())?;
            staged.file().sync_all()?;
            staged.commit()
        };
        write().map_err(RunError::io("write", &path))
    }
}

/// The recipe a run in `folder` was started with, if one was.
///
/// # Errors
/// [`RunError::Recipe`], when somebody damaged the file.
pub fn started_recipe(folder: &Path) -> Result<Option<Recipe>, RunError> {
    let path = folder.join(Folder::RECIPE);
    if !path.exists() {
        return Ok(None);
    }
    Ok(Some(Recipe::load(&path.to_string_lossy(), &[])?))
}

/// What a run was started with, and why `run.json` itself did not say so, where it did not.
#[derive(Debug, Clone, PartialEq)]
pub struct Started {
    /// What it was started with.
    pub run: RunFile,
    /// What is wrong with `run.json`; what it should say is then the newest checkpoint's own record.
    pub damaged: Option<String>,
}

/// What a run in `folder` was started with, if one was. Where `run.json` is damaged, its newest checkpoint says it.
///
/// # Errors
/// [`RunError::Io`]; [`RunError::Invalid`] when `run.json` is damaged and no checkpoint says what it should.
pub fn started_run(folder: &Path) -> Result<Option<Started>, RunError> {
    let path = folder.join(Folder::RUN);
    // A base that the run keeps is named by its place in the folder, wherever that is now.
    let found = |mut run: RunFile, damaged: Option<String>| {
        if let Some(base) = &mut run.base {
            base.directory = base.directory(folder);
        }
        Ok(Some(Started { run, damaged }))
    };
    let read = match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| error.to_string()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err("it is not there".to_owned()),
        Err(error) => return Err(RunError::io("read", &path)(error)),
    };
    let reason = match read {
        Ok(run) => return found(run, None),
        Err(reason) => reason,
    };
    if let Some(run) = checkpoint::newest_record(&folder.join(Folder::CHECKPOINTS)).and_then(|belongs| belongs.run) {
        return found(run, Some(reason));
    }
    match path.exists() {
        false => Ok(None),
        true => Err(RunError::Invalid { path: path.display().to_string(), reason }),
    }
}
