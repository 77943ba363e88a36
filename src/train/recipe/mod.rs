//! A pretraining as data: everything that decides its numbers, in one file (`recipes/*.toml`).
//!
//! A recipe is complete: nothing is defaulted behind the reader's back, except k and τ, which are the base's and come from
//! its manifest. A key nobody knows is an error, in a file and in `--set` alike.

mod difference;
mod embedded;
mod load;
mod student;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{AttentionRows, Initialise, Method, StepSettings, Target};
use crate::kernels::AdamW;
use crate::model::stats::TecShape;
use crate::model::{AxisOrder, Mlp, PositionKind, VitConfig};
use crate::zoo::TecDefaults;

pub use difference::Difference;
pub use load::RecipeError;
pub use student::Student;

/// A pretraining's settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// One line for people.
    pub title: String,
    /// Name in the zoo of the base these settings were published for; absent where it was not released, or where they
    /// suit any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// Where the settings are stated.
    pub evidence: String,
    /// What the student predicts and through what.
    pub method: Method,
    /// The update and its schedule.
    pub optimizer: Optimizer,
    /// What happens to an image before it is a sample.
    pub data: Augmentation,
    /// Seed, precision, and how often to save.
    pub run: RunSettings,
    /// Architecture of the student.
    pub student: Student,
}

/// AdamW and its schedule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Optimizer {
    /// Learning rate for a batch of 256; the rate at the end of the warm-up is this × `batch` / 256.
    pub base_lr: f64,
    /// Where the half cosine ends.
    pub min_lr: f64,
    /// Epochs over which the rate rises linearly from 0.
    pub warmup_epochs: f64,
    /// Epochs in all.
    pub epochs: usize,
    /// Images of one update, over all processes and micro-batches.
    pub batch: usize,
    /// Images one process computes at a time, at most; gradients of several such add up to `batch`.
    pub micro_batch: usize,
    /// Decay rates of the two moments.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled, on tensors of rank above 1.
    pub weight_decay: f64,
}

/// `RandomResizedCrop` and the horizontal flip; then the base's mean and standard deviation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Augmentation {
    /// Bounds of the crop's share of the image's area.
    pub scale: [f64; 2],
    /// Bounds of its width divided by its height.
    pub ratio: [f64; 2],
    /// Probability of a flip.
    pub flip: f64,
    /// Decoding threads; 0 is one for each processor. Not part of the result: any number gives the same samples.
    pub workers: usize,
    /// Broken images in all above which the run stops; each is named and skipped.
    pub broken: usize,
    /// Whether large JPEGs are decoded at full size even where a reduced size would do (`docs/data.md`).
    pub exact_decode: bool,
}

/// What is left to say about a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunSettings {
    /// Every random number is a function of this, the epoch and the sample.
    pub seed: u64,
    /// What is computed with; weights and moments are f32 always.
    pub precision: Precision,
    /// Whether the insides of blocks are computed again in the backward pass: less memory, more time, the same numbers.
    pub recompute: bool,
    /// A checkpoint after each so many updates …
    pub save_steps: u64,
    /// … and at the latest after so many minutes.
    pub save_minutes: u64,
    /// How many of the newest checkpoints stay.
    pub keep_last: usize,
    /// A checkpoint at a multiple of this many updates stays for good; 0 for none.
    pub keep_steps: u64,
    /// A run in which no micro-batch ends for so many minutes, and for 50 times what one takes, is reported as stalled; 0 for
    /// never. Recipes of older runs do not say it.
    #[serde(default = "RunSettings::usual_watchdog")]
    pub watchdog_minutes: f64,
}

impl RunSettings {
    fn usual_watchdog() -> f64 {
        30.0
    }

    /// After how long, at the least, a run stands still; `None` where nobody watches.
    pub fn watchdog(&self) -> Option<Duration> {
        (self.watchdog_minutes > 0.0).then(|| Duration::from_secs_f64(60.0 * self.watchdog_minutes))
    }
}

/// What activations are computed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Single precision throughout.
    F32,
    /// bfloat16 products with f32 sums; weights, moments and losses stay f32.
    Bf16,
}

impl Recipe {
    /// The learning rate at the end of the warm-up.
    pub fn peak_lr(&self) -> f64 {
        self.optimizer.base_lr * self.optimizer.batch as f64 / 256.0
    }

    /// What every update needs to know.
    pub fn step_settings(&self) -> StepSettings {
        let Optimizer { betas: [first, second], eps, weight_decay, .. } = self.optimizer;
        let adamw = AdamW { betas: (first, second), eps, weight_decay };
        let recompute = self.run.recompute;
        StepSettings {
            method: self.method.clone(),
            precision: self.run.precision,
            adamw,
            seed: self.run.seed,
            recompute,
        }
    }

    /// The recipe with the base's k and τ where it leaves them out; `None` when they are needed and nobody says them.
    pub fn resolved(&self, base: Option<TecDefaults>) -> Option<Self> {
        let mut recipe = self.clone();
        if self.has_attention() {
            let method = &mut recipe.method;
            method.tau = Some(method.tau.or(base.map(|base| base.tau))?);
            if method.attention_rows == AttentionRows::Selected {
                method.top_k = Some(method.top_k.or(base.map(|base| base.top_k))?);
            }
        }
        Some(recipe)
    }

    /// The recipe with a student that has the shape of `base`, where it asks for one.
    #[must_use]
    pub fn with_student_of(&self, base: &VitConfig) -> Self {
        let student = if self.student == Student::Base { Student::of(base) } else { self.student.clone() };
        Self { student, ..self.clone() }
    }

    /// Whether anything of a base model is needed.
    pub fn needs_base(&self) -> bool {
        self.method.target != Target::Pixels
            || self.method.initialise == Initialise::Base
            || self.student == Student::Base
    }

    /// Whether k and τ matter.
    pub fn has_attention(&self) -> bool {
        matches!(self.method.target, Target::Attention | Target::FeatureAndAttention)
    }

    /// What the method adds to the student, for counting; `top_k` is the base's, used where the recipe leaves k out.
    ///
    /// `None` when neither says k and the method needs it, or the student's shape is not known.
    pub fn shape(&self, top_k: Option<usize>) -> Option<TecShape> {
        let method = &self.method;
        let rows = match method.attention_rows {
            AttentionRows::Class => Some(0),
            AttentionRows::Selected => method.top_k.or(top_k),
            AttentionRows::All => self.student.vit().map(VitConfig::patches),
        };
        Some(TecShape {
            decoder_width: method.decoder.width,
            decoder_depth: method.decoder.depth,
            feature: matches!(method.target, Target::Feature | Target::FeatureAndAttention),
            top_k: if self.has_attention() { Some(rows?) } else { None },
            pixels: method.target == Target::Pixels,
            mask_ratio: method.mask_ratio,
            blocks_per_group: method.encoder_adapter().then_some(method.blocks_per_group),
            input_adapter: method.input_adapter(),
        })
    }

    /// Checks that the numbers fit together.
    ///
    /// # Errors
    /// One line: the key, its value and what it must be.
    pub fn validate(&self) -> Result<(), String> {
        if let Some(student) = self.student.vit() {
            validate_student(student)?;
            self.validate_method(student)?;
        }
        self.validate_optimizer()?;
        self.validate_data()?;
        let run = &self.run;
        positive("run.save_steps", run.save_steps as f64)?;
        positive("run.save_minutes", run.save_minutes as f64)?;
        positive("run.keep_last", run.keep_last as f64)?;
        within("run.watchdog_minutes", run.watchdog_minutes, 0.0, 1e6)
    }

    fn validate_method(&self, student: &VitConfig) -> Result<(), String> {
        let method = &self.method;
        within("method.mask_ratio", method.mask_ratio, 0.0, 1.0)?;
        let kept = student.visible_patches(method.mask_ratio);
        if kept == 0 || kept == student.patches() {
            return Err(format!(
                "`method.mask_ratio` {} keeps {kept} of {} patches",
                method.mask_ratio,
                student.patches()
            ));
        }
        positive("method.last_blocks", method.last_blocks as f64)?;
        if method.encoder_adapter() {
            positive("method.blocks_per_group", method.blocks_per_group as f64)?;
            if !student.depth.is_multiple_of(method.blocks_per_group) {
                return Err(format!(
                    "`method.blocks_per_group` {} does not divide `student.depth` {}",
                    method.blocks_per_group, student.depth
                ));
            }
        }
        let decoder = method.decoder;
        for (key, value) in [("width", decoder.width), ("depth", decoder.depth), ("heads", decoder.heads)] {
            if value == 0 || value > 1 << 16 {
                return Err(format!("`method.decoder.{key}` is {value}"));
            }
        }
        if !decoder.width.is_multiple_of(4) || !decoder.width.is_multiple_of(decoder.heads) {
            let (width, heads) = (decoder.width, decoder.heads);
            return Err(format!("`method.decoder.width` {width} is not a multiple of 4 and of its {heads} heads"));
        }
        if let Some(tau) = method.tau {
            positive("method.tau", tau)?;
        }
        match method.top_k {
            Some(k) if k == 0 || k > student.patches() => {
                Err(format!("`method.top_k` is {k}; an image has {} patches", student.patches()))
            }
            _ => Ok(()),
        }
    }

    fn validate_optimizer(&self) -> Result<(), String> {
        let optimizer = &self.optimizer;
        positive("optimizer.base_lr", optimizer.base_lr)?;
        within("optimizer.min_lr", optimizer.min_lr, 0.0, self.peak_lr())?;
        positive("optimizer.epochs", optimizer.epochs as f64)?;
        within("optimizer.warmup_epochs", optimizer.warmup_epochs, 0.0, optimizer.epochs as f64)?;
        positive("optimizer.batch", optimizer.batch as f64)?;
        positive("optimizer.micro_batch", optimizer.micro_batch as f64)?;
        if optimizer.batch > 1 << 24 {
            return Err(format!("`optimizer.batch` is {}; at most {} is accepted", optimizer.batch, 1 << 24));
        }
        let micro_batch = optimizer.micro_batch.min(optimizer.batch);
        if !optimizer.batch.is_multiple_of(micro_batch) {
            return Err(format!(
                "`optimizer.batch` {} is not a multiple of `optimizer.micro_batch` {micro_batch}",
                optimizer.batch
            ));
        }
        positive("optimizer.eps", optimizer.eps)?;
        within("optimizer.weight_decay", optimizer.weight_decay, 0.0, 1.0)?;
        match optimizer.betas.iter().find(|beta| !(0.0..1.0).contains(*beta)) {
            Some(beta) => Err(format!("`optimizer.betas` has {beta}; both are at least 0 and below 1")),
            None => Ok(()),
        }
    }

    fn validate_data(&self) -> Result<(), String> {
        let data = &self.data;
        within("data.flip", data.flip, 0.0, 1.0)?;
        let [low, high] = data.scale;
        if !(0.0 < low && low <= high && high <= 1.0) {
            return Err(format!("`data.scale` is [{low}, {high}]; it is a range between 0 and 1"));
        }
        let [low, high] = data.ratio;
        if !(0.0 < low && low <= high && high.is_finite()) {
            return Err(format!("`data.ratio` is [{low}, {high}]; it is a range above 0"));
        }
        Ok(())
    }
}

fn validate_student(student: &VitConfig) -> Result<(), String> {
    student.validate().map_err(|reason| format!("`student`: {reason}"))?;
    if student.classifier.is_some() || student.adapters.is_some() || student.decoder.is_some() {
        return Err("`student` is a plain encoder; adapters and decoder are `method`'s".into());
    }
    if student.layer_scale || student.registers > 0 || student.mlp != Mlp::Plain {
        return Err("`student` is a plain ViT, without LayerScale, registers and SwiGLU".into());
    }
    if !student.final_norm {
        return Err("`student.final_norm` is false; the student has a final norm".into());
    }
    if student.position.kind != (PositionKind::SinCos { axis_order: AxisOrder::ColumnFirst }) {
        return Err("`student.position.kind` must be sin-cos, column-first: the table is fixed".into());
    }
    if !student.width.is_multiple_of(4) {
        return Err(format!("`student.width` {} is not a multiple of 4, as its position table is", student.width));
    }
    Ok(())
}

fn positive(key: &str, value: f64) -> Result<(), String> {
    if value > 0.0 && value.is_finite() { Ok(()) } else { Err(format!("`{key}` is {value}; it must be above 0")) }
}

fn within(key: &str, value: f64, low: f64, high: f64) -> Result<(), String> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    Err(format!("`{key}` is {value}; it must be between {low} and {high}"))
}
