//! The model of a run, before the run ends or after: made of a checkpoint alone, without its base, its images or a device.
//!
//! Nothing is copied or written to look at it: its tensors are places in the checkpoint's mapped file, which a run may remove
//! meanwhile. The result of a run is its last checkpoint's model, written out by the same lines.

use std::fs::File;
use std::io::Write as _;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::checkpoint::{self, Checkpoint};
use super::error::RunError;
use super::folder::Folder;
use super::state;
use crate::convert::{Progress, config_text};
use crate::destination::Destination;
use crate::kernels::Slot;
use crate::model::{
    Canonical, ModelConfig, ModelFile, ParameterSpec, Part, Weights, adapter_parameters, vit_parameters,
};
use crate::staged::StagedDir;
use crate::train::{Recipe, Schedule, merged_class_token};

/// The class token's name, and what it is called before its adapter.
const TOKEN: &str = "cls_token";
const RAW_TOKEN: &str = "input_adapter.cls_token";
const INPUT_ADAPTER: &str = "input_adapter.";

/// What a path of a run holds.
#[derive(Debug)]
pub enum RunModel {
    /// The run has ended: the directory of its result.
    Result(PathBuf),
    /// The model as it was after some of the updates.
    Checkpoint(Box<CheckpointModel>),
}

/// The model of a checkpoint.
#[derive(Debug)]
pub struct CheckpointModel {
    path: PathBuf,
    step: u64,
    steps: Option<u64>,
    model: Canonical,
    decoder: Weights,
}

/// Whether `path` is the folder of a run, or one of a run's checkpoints.
pub fn is_run(path: &Path) -> bool {
    let started = [Folder::RUN, Folder::RECIPE].iter().any(|file| path.join(file).is_file());
    (started && path.join(Folder::CHECKPOINTS).is_dir()) || checkpoint::is_checkpoint(path)
}

impl RunModel {
    /// The model of `path`: of a run, its result or else that of its newest whole checkpoint; or of the checkpoint it is.
    /// `damaged` hears of newer checkpoints that cannot be used. A run may be going on in the folder: it is not disturbed.
    ///
    /// # Errors
    /// [`RunError::NoCheckpoint`] and [`RunError::Young`] when there is none yet, [`RunError::Invalid`] when the checkpoint
    /// asked for cannot be used.
    pub fn open(path: &Path, damaged: &mut dyn FnMut(&Path, &str)) -> Result<Self, RunError> {
        if checkpoint::is_checkpoint(path) {
            let invalid = |reason| RunError::Invalid { path: path.display().to_string(), reason };
            let checkpoint = Checkpoint::open(path).map_err(invalid)?;
            return Ok(Self::Checkpoint(Box::new(CheckpointModel::new(&checkpoint)?)));
        }
        let result = path.join(Folder::MODEL);
        if result.join(ModelFile::Config.name()).is_file() {
            return Ok(Self::Result(result));
        }
        match checkpoint::newest(&path.join(Folder::CHECKPOINTS), damaged)? {
            (Some(checkpoint), _) => Ok(Self::Checkpoint(Box::new(CheckpointModel::new(&checkpoint)?))),
            (None, _) => Err(RunError::Young { path: path.display().to_string() }),
        }
    }

    /// The checkpoint, of a run that has not ended.
    pub fn checkpoint(&self) -> Option<&CheckpointModel> {
        match self {
            Self::Result(_) => None,
            Self::Checkpoint(model) => Some(model),
        }
    }

    /// Writes the model as the directory `out`, decoder included, and proves it by opening it. `progress` is called after
    /// each piece; [`ControlFlow::Break`] stops, and leaves nothing behind.
    ///
    /// # Errors
    /// [`RunError::Destination`]; [`RunError::Io`]; [`RunError::Interrupted`].
    pub fn write(
        &self,
        out: impl Into<Destination>,
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Canonical, RunError> {
        let out = out.into();
        let own = ModelFile::ALL.map(ModelFile::name);
        let staged = out.directory_output(&own)?;
        match self {
            Self::Checkpoint(model) => fill(staged.path(), &model.model, Some(&model.decoder), progress)?,
            Self::Result(directory) => {
                let decoder = Weights::open(&directory.join(ModelFile::Decoder.name()))?;
                fill(staged.path(), &Canonical::open(directory)?, Some(&decoder), progress)?;
            }
        }
        staged.commit()?;
        Ok(Canonical::open(out.path())?)
    }
}

impl CheckpointModel {
    /// The model of `checkpoint`.
    pub(super) fn new(checkpoint: &Checkpoint) -> Result<Self, RunError> {
        let path = &checkpoint.path;
        let invalid = |reason: String| RunError::Invalid { path: path.display().to_string(), reason };
        let Some(config) = &checkpoint.belongs.model else {
            let reason = "an older version wrote it, and it does not say what its model is; the run can go on from it";
            return Err(invalid(reason.into()));
        };
        let recipe = Recipe::parse("of the checkpoint", &checkpoint.belongs.recipe, &[])?;
        let mut config = ModelConfig::clone(config);
        let folder = path.file_name().unwrap_or_default().to_string_lossy();
        let source = &mut config.provenance;
        source.source_file = format!("{folder}/{}", checkpoint::STATE);
        source.source_bytes = checkpoint.file.file_bytes().len() as u64;
        source.source_sha256 = checkpoint.sha256();

        let files = tensors(checkpoint, &config, &recipe)?;
        let part = |file: ModelFile, tensors: Vec<(ParameterSpec, Part<'_>)>| {
            checkpoint.file.parts(tensors).ok_or_else(|| invalid(format!("it lacks values of {}", file.name())))
        };
        let [model, adapters, decoder] = files;
        let model = part(ModelFile::Model, model)?;
        // An input adapter alone has done its work once the class token is merged.
        let adapters = config.vit.adapters.is_some().then(|| part(ModelFile::Adapters, adapters)).transpose()?;
        let decoder = part(ModelFile::Decoder, decoder)?;
        let steps = Schedule::new(&recipe, checkpoint.belongs.images).map(|schedule| schedule.steps());
        let model = Canonical::of_parts(path, config, model, adapters)?;
        Ok(Self { path: path.clone(), step: checkpoint.belongs.step, steps, model, decoder })
    }

    /// The checkpoint's folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Updates made.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Updates of the whole run.
    pub fn steps(&self) -> Option<u64> {
        self.steps
    }

    /// The model, its values in the checkpoint.
    pub fn model(&self) -> &Canonical {
        &self.model
    }

    /// [`Self::model`], without the decoder it was trained with.
    pub fn into_model(self) -> Canonical {
        self.model
    }

    /// The decoder's parameters.
    pub(super) fn decoder(&self) -> &Weights {
        &self.decoder
    }
}

/// Writes `model` as the run's own directory `out`, which appears whole or not at all.
pub(super) fn write(out: &Path, model: &Canonical, decoder: Option<&Weights>) -> Result<(), RunError> {
    let staged = StagedDir::new(out).map_err(RunError::io("write", out))?;
    fill(staged.path(), model, decoder, &mut |_| ControlFlow::Continue(()))?;
    staged.commit().map_err(RunError::io("write", out))?;
    Canonical::open(out).map(drop)?;
    Ok(())
}

/// Writes the files of `model` in the common format into the empty folder `folder`.
fn fill(
    folder: &Path,
    model: &Canonical,
    decoder: Option<&Weights>,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<(), RunError> {
    let files = [
        (ModelFile::Model, Some(model.model())),
        (ModelFile::Adapters, model.adapters()),
        (ModelFile::Decoder, decoder),
    ];
    let files: Vec<(ModelFile, &Weights)> =
        files.into_iter().filter_map(|(file, weights)| Some((file, weights?))).collect();
    let bytes = |weights: &Weights| -> usize {
        weights.names().filter_map(|name| weights.get(name)).map(|view| view.bytes.len()).sum()
    };
    let total = files.iter().map(|(_, weights)| bytes(weights) as u64).sum();
    let (mut done, mut stopped) = (0, false);
    for (file, weights) in files {
        let path = folder.join(file.name());
        let mut put = |to: &mut File, bytes: &[u8]| {
            done += bytes.len() as u64;
            stopped = progress(Progress { done: done.min(total), total }).is_break();
            if stopped { Err(std::io::ErrorKind::Interrupted.into()) } else { to.write_all(bytes) }
        };
        let written = File::create_new(&path).and_then(|mut to| {
            state::stream(weights, &mut |bytes| put(&mut to, bytes))?;
            to.sync_all()
        });
        match written {
            Err(_) if stopped => return Err(RunError::Interrupted),
            written => written.map_err(RunError::io("write", &path))?,
        }
    }
    let path = folder.join(ModelFile::Config.name());
    std::fs::write(&path, config_text(model.config(), true)).map_err(RunError::io("write", &path))
}

type Tensors<'a> = Vec<(ParameterSpec, Part<'a>)>;

/// The tensors of the three files, by where their values are; the class token through the input adapter, where there is one.
fn tensors<'a>(
    checkpoint: &'a Checkpoint,
    config: &ModelConfig,
    recipe: &Recipe,
) -> Result<[Tensors<'a>; 3], RunError> {
    let names = |specs: Vec<ParameterSpec>| specs.into_iter().map(|spec| spec.name).collect::<Vec<_>>();
    let backbone = names(vit_parameters(&config.vit));
    let adapters = config.vit.adapters.map(|adapters| names(adapter_parameters(&adapters, config.vit.width)));
    let is_adapter = |name: &String| adapters.as_ref().is_some_and(|adapters| adapters.contains(name));
    let (mut model, mut beside, mut decoder) = (Vec::new(), Vec::new(), Vec::new());
    let mut token = Vec::new();
    for (slot, _) in &checkpoint.layout {
        let (mut spec, part) = (slot.spec.clone(), Part::Of { tensor: checkpoint::TENSOR, start: slot.range.start });
        if spec.name == TOKEN || spec.name.starts_with(INPUT_ADAPTER) {
            token.push(slot);
        }
        if spec.name == TOKEN && recipe.method.input_adapter() {
            spec.name = RAW_TOKEN.to_owned();
        }
        if backbone.contains(&spec.name) {
            model.push((spec, part));
        } else if is_adapter(&spec.name) || spec.name.starts_with(INPUT_ADAPTER) {
            beside.push((spec, part));
        } else {
            decoder.push((spec, part));
        }
    }
    for (table, file) in [("pos_embed", &mut model), ("decoder_pos_embed", &mut decoder)] {
        if let Some(view) = checkpoint.file.get(table) {
            let spec = ParameterSpec { name: table.to_owned(), shape: view.shape.to_vec() };
            file.push((spec, Part::Of { tensor: table, start: 0 }));
        }
    }
    if recipe.method.input_adapter() {
        let invalid = |reason| RunError::Invalid { path: checkpoint.path.display().to_string(), reason };
        let values = |slot: &&Slot| Ok((slot.spec.clone(), checkpoint.values(slot, 0).map_err(invalid)?));
        let token = token.iter().map(values).collect::<Result<_, RunError>>()?;
        let merged = merged_class_token(token, recipe.run.precision)?;
        let spec = ParameterSpec { name: TOKEN.to_owned(), shape: vec![1, 1, config.vit.width] };
        model.push((spec, Part::Own(merged)));
    }
    Ok([model, beside, decoder])
}
