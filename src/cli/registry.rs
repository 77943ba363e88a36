//! What `<MODEL>` names: a directory in the common format, a run or one of its checkpoints, or a model of the zoo.

use std::path::{Path, PathBuf};
use std::sync::Once;

use anyhow::Result;

use super::hint::Advised;
use super::output::{Output, warning};
use crate::fetch::Store;
use crate::hint::{Command, Hint};
use crate::model::{Canonical, ModelConfig, ModelFile};
use crate::train::{CheckpointModel, RunModel, is_run};
use crate::zoo::{Manifest, Zoo, ZooError};

/// The tool's own folder: `TEC_ZOO_HOME`, else `tec-zoo` in the platform's cache folder.
pub(super) fn home() -> Result<PathBuf> {
    if let Some(home) = std::env::var_os("TEC_ZOO_HOME").filter(|home| !home.is_empty()) {
        return Ok(PathBuf::from(home));
    }
    let cache = dirs::cache_dir()
        .ok_or_else(|| Advised::refusal("this system has no cache folder", "set TEC_ZOO_HOME to a folder"))?;
    Ok(cache.join("tec-zoo"))
}

/// The user's own manifests.
pub(super) fn overlay() -> Result<PathBuf> {
    Ok(home()?.join("zoo"))
}

/// The embedded catalogue under the user's overlay. What is ignored of that is said, once.
pub(super) fn zoo() -> Result<Zoo> {
    static SAID: Once = Once::new();
    let zoo = Zoo::with_overlay(&overlay()?)?;
    SAID.call_once(|| {
        for path in zoo.ignored() {
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            warning(format_args!(
                "`{}` is ignored: `{name}` is a released model's name\nhint: `replaces = true` in it puts it in that \
                 model's place; `tec-zoo register --remove {name}` removes it",
                path.display()
            ));
        }
    });
    Ok(zoo)
}

/// Whether `model` is meant as a directory rather than a name.
pub(super) fn is_directory(model: &str) -> bool {
    model.contains(['/', '\\'])
        || model == "."
        || model == ".."
        || Path::new(model).join(ModelFile::Config.name()).exists()
        || is_run(Path::new(model))
}

/// Where a model is.
#[derive(Debug)]
pub(super) enum Place {
    /// In a directory in the common format.
    Directory(PathBuf),
    /// In a checkpoint of a run.
    Checkpoint(Box<CheckpointModel>),
}

/// Where `model` is. What of a run is taken, and what of it cannot be used, is said.
pub(super) fn find(model: &str, output: &mut Output) -> Result<Place> {
    if Path::new(model).is_file() {
        let hint = Hint::new()
            .words("convert it first: ")
            .command(Command::new("convert").word(model.to_owned()).set("out", "DIR"));
        return Err(Advised::refusal(format!("`{model}` is a file, not a model"), hint));
    }
    if is_directory(model) {
        let path = Path::new(model);
        return match is_run(path) && !path.join(ModelFile::Config.name()).exists() {
            true => Ok(match run_model(path, output)? {
                RunModel::Result(directory) => Place::Directory(directory),
                RunModel::Checkpoint(model) => Place::Checkpoint(model),
            }),
            false => Ok(Place::Directory(path.to_path_buf())),
        };
    }
    let zoo = zoo()?;
    let manifest = match (zoo.get(model), resembling(model)) {
        (Ok(manifest), _) => manifest,
        (Err(ZooError::Unknown { .. }), Some(folder)) => {
            let text = format!("no model is called `{model}`");
            return Err(Advised::refusal(text, format!("did you mean the folder `{folder}`?")));
        }
        (Err(error), _) => return Err(error.into()),
    };
    match present(manifest)? {
        Some(directory) => Ok(Place::Directory(directory)),
        None => Err(absent(model)),
    }
}

/// A model's folder here whose name is close to `name`.
fn resembling(name: &str) -> Option<String> {
    let folders =
        std::fs::read_dir(".").ok()?.flatten().filter(|entry| entry.path().join(ModelFile::Config.name()).exists());
    let names = folders.filter_map(|entry| entry.file_name().into_string().ok());
    let near = names.map(|folder| (strsim::jaro_winkler(&folder, name), folder)).filter(|(near, _)| *near >= 0.85);
    near.max_by(|(a, _), (b, _)| a.total_cmp(b)).map(|(_, folder)| folder)
}

/// The refusal of a model that is known and not on this machine.
pub(super) fn absent(model: &str) -> anyhow::Error {
    let text = format!("`{model}` is a known model, but it is not here");
    Advised::refusal(text, Hint::new().command(Command::new("fetch").word(model.to_owned())))
}

/// The model of the run or checkpoint `path`.
pub(super) fn run_model(path: &Path, output: &mut Output) -> Result<RunModel> {
    let mut damaged = |path: &Path, reason: &str| {
        output.warn(format_args!("`{}` cannot be used: {reason}; going back further", path.display()));
    };
    let model = RunModel::open(path, &mut damaged)?;
    if let Some(model) = model.checkpoint() {
        let of = model.steps().map_or(String::new(), |steps| format!(" of {steps}"));
        output.say(format_args!("`{}`: the model after update {}{of}", model.path().display(), model.step()));
    }
    Ok(model)
}

/// Where a model of the zoo is, if it is on this machine.
pub(super) fn present(manifest: &Manifest) -> Result<Option<PathBuf>> {
    if let Some(directory) = &manifest.directory {
        return Ok(directory.is_dir().then(|| directory.clone()));
    }
    // Looking must not make the store's folders.
    match home()? {
        home if home.is_dir() => Ok(Store::open(&home)?.model(&manifest.name)),
        _ => Ok(None),
    }
}

/// Opens `model`.
pub(super) fn open(model: &str, output: &mut Output) -> Result<Canonical> {
    match find(model, output)? {
        Place::Directory(directory) => Ok(Canonical::open(&directory)?),
        Place::Checkpoint(model) => Ok(model.into_model()),
    }
}

/// The configuration of the directory, run or checkpoint `model`.
pub(super) fn config(model: &str, output: &mut Output) -> Result<ModelConfig> {
    match find(model, output)? {
        Place::Directory(directory) => Ok(Canonical::read_config(&directory)?),
        Place::Checkpoint(model) => Ok(model.model().config().clone()),
    }
}
