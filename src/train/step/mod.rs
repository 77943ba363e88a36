//! One update: targets from the frozen base, the student's predictions, losses, gradients, AdamW.
//!
//! Shape letters: B images, L patches of which K are visible, C channels, R attention rows, N heads.

mod base;
mod error;
mod initial;
mod mask;
mod phase;
mod student;
mod token;
mod update;
mod worker;

use std::ops::{ControlFlow, Range};

use candle_core::{DType, Device, Tensor};
use serde::Serialize;

use super::distributed::World;
use super::{Initialise, Method, Precision, Target};
use crate::kernels::{
    AdamW, Axis, Eager, KernelError, Parameters, Slot, Tape, Var, hidden_patches, norm, normalise, patches,
    soft_cross_entropy, squared_error, to_host,
};
use crate::model::{
    AxisOrder, Canonical, ModelFile, Ops, ParameterSpec, PositionConfig, PositionKind, Resample, VitConfig,
};
use base::{Base, Targets};
pub use error::StepError;
use mask::Mask;
pub use phase::Phase;
use phase::{Listener, enter};
use student::{Predicted, Student};
pub(super) use token::merged_class_token;
pub use update::Update;

/// Settings of every update of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct StepSettings {
    /// The method; `top_k` and `tau` must be set where an attention target needs them.
    pub method: Method,
    /// What products are computed in.
    pub precision: Precision,
    /// The optimizer.
    pub adamw: AdamW,
    /// What the student's initial weights are a function of.
    pub seed: u64,
    /// The insides of blocks are computed again in the backward pass instead of being kept: less memory, more time, the same
    /// numbers up to the order of a few sums.
    pub recompute: bool,
}

/// Images whose gradients are computed at once.
#[derive(Debug, Clone, PartialEq)]
pub struct MicroBatch {
    /// B.
    pub count: usize,
    /// Normalised (B, 3, H, W), row-major.
    pub images: Vec<f32>,
    /// Uniform (B, L): its argsort is the mask.
    pub noise: Vec<f32>,
}

/// What happened in one update.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct StepReport {
    /// The update, counted from 1.
    pub step: u64,
    /// Sum of the terms.
    pub loss: f64,
    /// The feature term.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub feature: Option<f64>,
    /// The attention term.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attention: Option<f64>,
    /// The pixel term.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pixels: Option<f64>,
    /// Euclidean norm of all gradients.
    pub grad_norm: f64,
}

/// Everything an update changes.
#[derive(Debug, Clone, PartialEq)]
pub struct StepState {
    /// Updates made.
    pub step: u64,
    /// Places of the parameters in each third of `values`.
    pub slots: Vec<Slot>,
    /// Updates the moments of each have seen, which their bias is corrected by.
    pub updates: Vec<u64>,
    /// Parameters, first moments, second moments: 3·N, padding included.
    pub values: Vec<f32>,
}

/// What step 0 of a reference compares: the pass's intermediate values, for tests of the method.
#[derive(Debug, Clone)]
pub struct Intermediates {
    /// (B, L, C_base).
    pub feature_target: Option<Tensor>,
    /// Logits (B, R, N, L), and their rows (B, R).
    pub attention_target: Option<(Tensor, Tensor)>,
    /// (B, L): where every patch went; the first K are visible.
    pub restore: Vec<u32>,
    /// (B, 1 + K, C): Z_e, or the normed output without an encoder adapter.
    pub latent: Tensor,
    /// (B, L − K, C_base): the hidden patches, in the order of their images.
    pub feature_prediction: Option<Tensor>,
    /// (B, R, N, L).
    pub attention_prediction: Option<Tensor>,
}

/// A student in training.
pub struct Step<'b> {
    settings: StepSettings,
    student: Student,
    base: Option<Base<'b>>,
    parameters: Parameters,
    device: Device,
    step: u64,
    /// [`StepState::updates`].
    updates: Vec<u64>,
    /// Whether an update has shown that every parameter has a gradient.
    inspected: bool,
}

/// The losses of one micro-batch, on the tape.
#[derive(Default)]
struct Terms {
    feature: Option<Tensor>,
    attention: Option<Tensor>,
    pixels: Option<Tensor>,
}

impl<'b> Step<'b> {
    /// A student of architecture `student`, freshly initialised, that learns from `base`. Its position table is fixed:
    /// sine-cosine, or the base's where the method starts from the base.
    ///
    /// # Errors
    /// [`StepError::Setup`] when the method needs a base, or something of the base that it does not have.
    pub fn new(
        base: Option<&'b Canonical>,
        student: &VitConfig,
        settings: StepSettings,
        device: &Device,
    ) -> Result<Self, StepError> {
        let setup = |reason: &str| StepError::Setup { reason: reason.into() };
        let method = &settings.method;
        student.validate().map_err(|reason| StepError::Setup { reason })?;
        if !(method.mask_ratio >= 0.0 && method.mask_ratio < 1.0) {
            return Err(setup(&format!("`mask_ratio` is {}; it must be in [0, 1)", method.mask_ratio)));
        }
        if student.visible_patches(method.mask_ratio) == student.patches() {
            return Err(setup(&format!("`mask_ratio` {} hides no patch", method.mask_ratio)));
        }
        if !student.width.is_multiple_of(4) {
            return Err(setup(&format!(
                "a sine-cosine table needs a width that is a multiple of 4, not {}",
                student.width
            )));
        }
        let predicted = match (method.target, base) {
            (Target::Pixels, _) => Predicted { width: 3 * student.patch_size * student.patch_size, heads: 1 },
            (_, Some(base)) => {
                let vit = &base.config().vit;
                Predicted { width: vit.width, heads: vit.heads }
            }
            (_, None) => return Err(setup("features and attention are a base's, and none was given")),
        };
        let position = PositionConfig {
            kind: PositionKind::SinCos { axis_order: AxisOrder::ColumnFirst },
            resample: Resample::Size,
        };
        let vit = match (method.initialise, base) {
            (Initialise::Base, Some(base)) => VitConfig { position: base.config().vit.position, ..student.clone() },
            (Initialise::Base, None) => return Err(setup("`initialise = \"base\"` needs a base")),
            (Initialise::Random, _) => VitConfig { position, ..student.clone() },
        };
        let student = Student::new(&vit, method, predicted)?;
        let precision = products(settings.precision);
        let parameters = initial_parameters(&student, base, &settings, precision, device)?;
        let base = match (method.target, base) {
            (Target::Pixels, _) | (_, None) => None,
            (_, Some(base)) => Some(Base::new(base, &student.vit, method, device, precision)?),
        };
        let updates = vec![0; parameters.slots().len()];
        Ok(Self { settings, student, base, parameters, device: device.clone(), step: 0, updates, inspected: false })
    }

    /// The student's architecture, adapters included.
    pub fn vit(&self) -> &VitConfig {
        &self.student.vit
    }

    /// The trainable parameters.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Updates made so far.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// One update from the mean of the losses of `batches` over all processes of `world`, with learning rate `lr`.
    ///
    /// # Errors
    /// As [`Update::finish`].
    pub fn run(&mut self, batches: &[MicroBatch], lr: f64, world: &World) -> Result<StepReport, StepError> {
        let mut update = self.update(batches.len(), world)?;
        for batch in batches {
            update.add(batch, &mut |_| ControlFlow::Continue(()))?;
        }
        update.finish(lr, &mut |_| ControlFlow::Continue(()))
    }

    /// Begins an update from `micro_batches` micro-batches of this process, and as many of every other of `world`.
    ///
    /// # Errors
    /// The other processes cannot be reached.
    pub fn update<'s, 'w>(
        &'s mut self,
        micro_batches: usize,
        world: &'w World,
    ) -> Result<Update<'s, 'b, 'w>, StepError> {
        let sum = Some(world.reduction(self.parameters.gradients())?);
        let written = vec![false; self.parameters.slots().len()];
        Ok(Update { step: self, world, micro_batches, written, sum, passes: Vec::new(), seen: None })
    }

    /// Names the parameter whose gradient is not finite or, in the first update, zero.
    fn inspect_gradients(&self, written: &[bool], step: u64) -> Result<(), StepError> {
        for (index, (slot, written)) in self.parameters.slots().iter().zip(written).enumerate() {
            let name = &slot.spec.name;
            let value = kernel(name, || norm(&self.parameters.gradient(index)?))?;
            if !value.is_finite() {
                return Err(StepError::NonFinite { term: format!("the gradient of {name}"), value, step });
            }
            if !self.inspected && (!written || value == 0.0) {
                return Err(StepError::NoGradient { name: name.clone() });
            }
        }
        Ok(())
    }

    /// Forward and backward of one micro-batch.
    fn pass(
        &mut self,
        batch: &MicroBatch,
        weight: f64,
        written: &mut [bool],
        finished: &mut dyn FnMut(usize),
        hear: &mut Listener<'_>,
    ) -> Result<(Terms, Intermediates), StepError> {
        let [height, width] = self.student.vit.image_size;
        let patches_each = self.student.vit.patches();
        let count = batch.count;
        if count == 0 || batch.images.len() != count * 3 * height * width || batch.noise.len() != count * patches_each {
            let (images, noise) = (batch.images.len(), batch.noise.len());
            return Err(StepError::Batch { images, noise, count, height, width });
        }
        let kept = self.student.vit.visible_patches(self.settings.method.mask_ratio);
        let mask = Mask::new(&batch.noise, patches_each, kept);
        let images = kernel("batch", || Tensor::from_slice(&batch.images, (count, 3, height, width), &self.device))?;
        let targets = match &mut self.base {
            Some(base) => base.targets(&images, hear)?,
            None => Targets { features: Some(self.pixels(&images)?), attention: None },
        };

        let mut tape = Tape::new(&self.parameters);
        let pass = self.student.predict(&mut tape, &images, &mask, self.settings.recompute, hear)?;
        enter(Phase::Losses, hear)?;
        let mut terms = Terms::default();
        if let (Some(prediction), Some(target)) = (pass.feature, &targets.features) {
            let target = kernel("targets of hidden patches", || hidden_patches(target, &mask.restore))?;
            let loss = tape.loss(prediction, |x| squared_error(x, &target, weight))?;
            let term = Some(tape.value(loss).clone());
            match self.base {
                Some(_) => terms.feature = term,
                None => terms.pixels = term,
            }
        }
        let mut attention_prediction: Option<Var> = None;
        if let (Some(prediction), Some((target, rows))) = (pass.attention, &targets.attention) {
            let tau = self.settings.method.tau.unwrap_or(1.0);
            let logits = tape.row_logits(prediction, rows, self.student.attention_logits())?;
            let loss = tape.loss(logits, |x| soft_cross_entropy(x, target, tau, weight))?;
            terms.attention = Some(tape.value(loss).clone());
            attention_prediction = Some(logits);
        }
        let intermediates = Intermediates {
            feature_target: targets.features.clone(),
            attention_target: targets.attention.clone(),
            restore: mask.restore.places.clone(),
            latent: tape.value(pass.latent).clone(),
            feature_prediction: pass.feature.map(|var| tape.value(var).clone()),
            attention_prediction: attention_prediction.map(|var| tape.value(var).clone()),
        };
        match tape.backward(written, finished, &mut |left| hear(Phase::Backward { left }))? {
            ControlFlow::Continue(()) => Ok((terms, intermediates)),
            ControlFlow::Break(()) => Err(StepError::Interrupted),
        }
    }

    /// MAE's own target: the pixels of each patch (B, L, p·p·3), row, column, channel, normalised patch by patch when the
    /// method says so (`patchify` and `forward_loss` in mae's `models_mae.py`).
    fn pixels(&self, images: &Tensor) -> Result<Tensor, StepError> {
        let p = self.student.vit.patch_size;
        let target = kernel("pixel target", || {
            let rows = patches(images, p, None, DType::F32)?;
            let (batch, count, size) = rows.dims3()?;
            let rows = rows.reshape((batch, count, 3, p * p))?.transpose(2, 3)?.contiguous()?;
            let rows = rows.reshape((batch, count, size))?;
            match self.settings.method.norm_pix {
                true => normalise(&rows, Axis::Channels),
                false => Ok(rows),
            }
        })?;
        Ok(target)
    }

    /// A copy of everything an update changes.
    ///
    /// # Errors
    /// The device failed.
    pub fn state(&self) -> Result<StepState, StepError> {
        let values = self.state_values(0..self.state_len())?;
        Ok(StepState { step: self.step, slots: self.slots().to_vec(), updates: self.updates.clone(), values })
    }

    /// Has the next update show that every parameter has a gradient, as the first one does.
    pub(super) fn inspect_again(&mut self) {
        self.inspected = false;
    }

    /// [`StepState::updates`].
    pub(super) fn updates(&self) -> &[u64] {
        &self.updates
    }

    /// [`StepState::slots`].
    pub(super) fn slots(&self) -> &[Slot] {
        self.parameters.slots()
    }

    /// How many [`StepState::values`] there are.
    pub(super) fn state_len(&self) -> usize {
        3 * self.parameters.count()
    }

    /// Some of [`StepState::values`].
    pub(super) fn state_values(&self, range: Range<usize>) -> Result<Vec<f32>, StepError> {
        Ok(kernel("state", || to_host(&self.parameters.state().narrow(0, range.start, range.len())?))?)
    }

    /// Continues from `state`.
    ///
    /// # Errors
    /// [`StepError::State`] when it is another student's.
    pub fn restore(&mut self, state: StepState) -> Result<(), StepError> {
        let bad = |reason: String| Err(StepError::State { reason });
        let own = self.parameters.slots();
        if let Some((theirs, ours)) = state.slots.iter().zip(own).find(|(theirs, ours)| theirs != ours) {
            return bad(format!("it has `{}` where this student has `{}`", theirs.spec.name, ours.spec.name));
        }
        let count = own.len();
        if state.slots.len() != count || state.updates.len() != count || state.values.len() != self.state_len() {
            let (theirs, ours) = (state.values.len(), self.state_len());
            return bad(format!(
                "it has {} parameters in {theirs} values; this student has {} in {ours}",
                state.slots.len(),
                own.len()
            ));
        }
        self.parameters.restore(state.values)?;
        (self.step, self.updates) = (state.step, state.updates);
        self.inspected = self.step > 0;
        Ok(())
    }

    /// What the student uses and does not train: `pos_embed`, and the decoder's table.
    ///
    /// # Errors
    /// The device failed.
    pub fn tables(&self) -> Result<Vec<(ParameterSpec, Vec<f32>)>, StepError> {
        let value = |spec: ParameterSpec| {
            let values = kernel(&spec.name, || to_host(self.parameters.fixed_tensor(&spec.name)?))?;
            Ok((spec, values))
        };
        self.student.tables().into_iter().map(value).collect()
    }
}

/// The student's parameters before the first update.
fn initial_parameters(
    student: &Student,
    base: Option<&Canonical>,
    settings: &StepSettings,
    precision: DType,
    device: &Device,
) -> Result<Parameters, StepError> {
    let from_base = |spec: &ParameterSpec| -> Result<Option<Vec<f32>>, StepError> {
        let (Initialise::Base, Some(base)) = (settings.method.initialise, base) else { return Ok(None) };
        // What the base never had, such as a lost final norm, starts afresh.
        let Some(view) = base.model().get(&spec.name) else { return Ok(None) };
        if view.shape != spec.shape {
            let reason = format!("the base's `{}` is {:?}, the student's {:?}", spec.name, view.shape, spec.shape);
            return Err(StepError::Setup { reason });
        }
        let tensor = Eager::new(base).parameter(&spec.name)?;
        Ok(Some(kernel(&spec.name, || to_host(&tensor))?))
    };
    let mut values = Vec::new();
    for (index, (file, spec)) in student.parameters().into_iter().enumerate() {
        let copied = if file == ModelFile::Model { from_base(&spec)? } else { None };
        let patch_size = student.vit.patch_size;
        let value = copied.unwrap_or_else(|| initial::values(&spec, settings.seed, index as u64, patch_size));
        values.push((spec, value));
    }
    let mut fixed = Vec::new();
    for spec in student.tables() {
        let copied = if spec.name == "pos_embed" { from_base(&spec)? } else { None };
        let width = spec.shape[2];
        let table = copied.unwrap_or_else(|| initial::sin_cos(student.vit.grid(), width, AxisOrder::ColumnFirst));
        fixed.push((spec, table));
    }
    Ok(Parameters::new(values, fixed, precision, device)?)
}

/// The type matrix products run in.
fn products(precision: Precision) -> DType {
    match precision {
        Precision::F32 => DType::F32,
        Precision::Bf16 => DType::BF16,
    }
}

fn kernel<T>(operation: &str, f: impl FnOnce() -> candle_core::Result<T>) -> Result<T, KernelError> {
    f().map_err(|source| KernelError::Operation { operation: operation.into(), source })
}
