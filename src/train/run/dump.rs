//! What a non-finite loss leaves: everything to see it again.
//!
//! ```text
//! checkpoint.json, state.safetensors   weights and moments before the update; a checkpoint like any other
//! batch.0.safetensors, …               `images` and `noise` of each micro-batch
//! dump.json                            term, learning rate, samples, base
//! ```

use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use candle_core::Device;
use serde::{Deserialize, Serialize};

use super::checkpoint::Checkpoint;
use super::error::RunError;
use super::folder::BaseFile;
use super::{checkpoint, result, state};
use crate::model::{Canonical, Weights};
use crate::staged::StagedDir;
use crate::train::distributed::{Place, World};
use crate::train::{MicroBatch, Phase, Recipe, Step, StepError};

const ABOUT: &str = "dump.json";

/// `dump.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct About {
    /// The loss that was not finite.
    pub(super) term: String,
    /// Learning rate of the update.
    pub(super) lr: f64,
    /// Epoch the samples were drawn in: with the seed and its number, what decides a sample's crop, flip and mask.
    pub(super) epoch: u64,
    /// Numbers of the samples in the data, by micro-batch.
    pub(super) samples: Vec<Vec<u64>>,
    /// What they are called.
    pub(super) names: Vec<Vec<String>>,
    pub(super) base: Option<BaseFile>,
}

/// The file of micro-batch `at`.
fn batch_file(at: usize) -> String {
    format!("batch.{at}.safetensors")
}

/// Writes a dump as the folder `path`. Batches come one at a time: an update's may be more than memory holds.
pub(super) fn write(
    path: &Path,
    belongs: checkpoint::Belongs,
    step: &Step<'_>,
    batches: impl Iterator<Item = io::Result<MicroBatch>>,
    about: &About,
) -> io::Result<()> {
    let staged = StagedDir::new(path)?;
    checkpoint::write_into(staged.path(), belongs, step)?;
    for (at, batch) in batches.enumerate() {
        let MicroBatch { count, images, noise } = batch?;
        let rows = |values: &[f32]| vec![count, values.len() / count.max(1)];
        let tensors = [("images", rows(&images), &images[..]), ("noise", rows(&noise), &noise[..])];
        state::write(&staged.path().join(batch_file(at)), &tensors)?;
    }
    std::fs::write(staged.path().join(ABOUT), serde_json::to_vec_pretty(about)?)?;
    staged.commit()
}

/// How a dump's update ended this time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Replay {
    /// The update, from 1.
    pub step: u64,
    /// The term that was not finite.
    pub was: String,
    /// The one that is not now; `None` when all are finite.
    pub is: Option<String>,
    /// The loss, when it is finite.
    pub loss: Option<f64>,
}

impl Replay {
    /// Whether the same thing happened.
    pub fn reproduced(&self) -> bool {
        self.is.as_ref() == Some(&self.was)
    }
}

/// Runs the update of the dump `path` again, with the base where it was, or with `base`. `hear` is told what the update is at,
/// and may end it.
///
/// # Errors
/// [`RunError::Invalid`] for what is no dump, [`RunError::Other`] for another base; what the update itself refuses;
/// [`StepError::Interrupted`].
pub fn replay(
    path: &Path,
    base: Option<Canonical>,
    device: &Device,
    hear: &mut (dyn FnMut(Phase) -> ControlFlow<()> + Send),
) -> Result<Replay, RunError> {
    let invalid = |file: PathBuf| move |reason: String| RunError::Invalid { path: file.display().to_string(), reason };
    let about = path.join(ABOUT);
    let text = std::fs::read(&about).map_err(RunError::io("read", &about))?;
    let about: About = serde_json::from_slice(&text).map_err(|error| invalid(about.clone())(error.to_string()))?;
    let checkpoint = Checkpoint::open(path).map_err(invalid(path.to_path_buf()))?;
    let belongs = &checkpoint.belongs;
    let recipe = Recipe::parse("of the dump", &belongs.recipe, &[])?;

    let model = match (base, &about.base) {
        (Some(model), _) => Some(model),
        (None, Some(base)) => Some(Canonical::open(&base.directory(path.parent().unwrap_or(path)))?),
        (None, None) => None,
    };
    if let (Some(model), Some(base)) = (&model, &about.base) {
        let (_, sha256) = result::sha256(model.model().path())?;
        if sha256 != base.sha256 {
            let (was, is) = (base.sha256.clone(), sha256);
            return Err(RunError::Other { path: path.display().to_string(), what: "base", was, is });
        }
    }

    let student = recipe.student.vit().ok_or(RunError::NoBase)?;
    let mut step = Step::new(model.as_ref(), student, recipe.step_settings(), device)?;
    step.restore(checkpoint.state().map_err(invalid(path.to_path_buf()))?)?;
    let world = World::join(Place::alone(), device)?;
    let mut update = step.update(about.samples.len(), &world)?;
    for (at, samples) in about.samples.iter().enumerate() {
        let file = path.join(batch_file(at));
        let weights = Weights::open(&file)?;
        let read = |what: &str| state::read(&weights, what).map_err(invalid(file.clone()));
        update.add(&MicroBatch { images: read("images")?, noise: read("noise")?, count: samples.len() }, hear)?;
    }
    let (is, loss) = match update.finish(about.lr, hear) {
        Ok(report) => (None, Some(report.loss)),
        Err(StepError::NonFinite { term, .. }) => (Some(term), None),
        Err(error) => return Err(error.into()),
    };
    Ok(Replay { step: belongs.step + 1, was: about.term, is, loss })
}
