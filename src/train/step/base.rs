//! The frozen base, and the targets it sets (`basemodel_vit.py` upstream).

use candle_core::{D, DType, Device, Tensor};

use super::super::{AttentionRows, Method, Normalise, Target};
use super::error::StepError;
use super::kernel;
use super::phase::{Listener, Phase, enter};
use crate::kernels::{Axis, Eager, KernelError, RowLogits, normalise, sum};
use crate::model::position::{Matrix, resample_matrices};
use crate::model::{Canonical, Resample, Vit, VitConfig};

/// A base model as a student's target.
#[derive(Debug)]
pub(super) struct Base<'b> {
    ops: Eager<'b>,
    vit: VitConfig,
    /// The student's patch grid, which the base is run on.
    grid: [usize; 2],
    /// What brings the student's images to the size that gives the base the same grid; `None` where they fit.
    resize: Option<[Tensor; 2]>,
    last_blocks: usize,
    features: Option<Normalise>,
    attention: Option<(AttentionRows, usize)>,
}

/// What a student is to predict.
#[derive(Debug)]
pub(super) struct Targets {
    /// (B, L, C_base), f32, normalised.
    pub(super) features: Option<Tensor>,
    /// Logits (B, R, N, L), f32, and their rows (B, R), u32.
    pub(super) attention: Option<(Tensor, Tensor)>,
}

impl<'b> Base<'b> {
    pub(super) fn new(
        model: &'b Canonical,
        student: &VitConfig,
        method: &Method,
        device: &Device,
        precision: DType,
    ) -> Result<Self, StepError> {
        let vit = model.config().vit.clone();
        let setup = |reason: String| Err(StepError::Setup { reason });
        let grid = student.grid();
        if !vit.class_token || !vit.plain_attention() {
            return Err(StepError::Base);
        }
        if method.last_blocks == 0 || method.last_blocks > vit.depth {
            return setup(format!("`last_blocks` is {}; the base has {} blocks", method.last_blocks, vit.depth));
        }
        let features =
            matches!(method.target, Target::Feature | Target::FeatureAndAttention).then_some(method.normalise);
        let attention = match method.target {
            Target::Attention | Target::FeatureAndAttention => {
                let top_k = match (method.attention_rows, method.top_k) {
                    (AttentionRows::Selected, None) => {
                        return setup("`top_k` is not set, and the base's manifest has none".into());
                    }
                    (AttentionRows::Selected, Some(k)) if k == 0 || k > student.patches() => {
                        return setup(format!("`top_k` is {k}; the student has {} patches", student.patches()));
                    }
                    (_, k) => k.unwrap_or(0),
                };
                Some((method.attention_rows, top_k))
            }
            _ => None,
        };
        let size = [grid[0] * vit.patch_size, grid[1] * vit.patch_size];
        let resize = match size == student.image_size {
            true => None,
            false => {
                let [down, across] = resample_matrices(student.image_size, size, Resample::SizeAntialias)?;
                Some([matrix(down, device)?, matrix(across, device)?])
            }
        };
        let ops = Eager::on(model, device.clone(), precision);
        Ok(Self { ops, vit, grid, resize, last_blocks: method.last_blocks, features, attention })
    }

    /// Targets for the student's images (B, 3, H, W).
    pub(super) fn targets(&mut self, images: &Tensor, hear: &mut Listener<'_>) -> Result<Targets, StepError> {
        let images = match &self.resize {
            None => images.clone(),
            Some([down, across]) => kernel("resize for the base", || {
                // (B, 3, H, W) → (B, 3, H', W'): down·image·acrossᵀ.
                down.broadcast_matmul(&images.contiguous()?)?.broadcast_matmul(&across.t()?)?.contiguous()
            })?,
        };
        let vit = Vit::new(&self.vit);
        let mut x = vit.embed(&mut self.ops, &images, self.grid)?;
        let mut last: Vec<Tensor> = Vec::new();
        let mut qkv = None;
        for i in 0..self.vit.depth {
            enter(Phase::Base { block: i, of: self.vit.depth }, hear)?;
            let (y, block_qkv) = vit.block_at(&mut self.ops, &x, &format!("blocks.{i}"))?;
            x = y;
            if i + self.last_blocks >= self.vit.depth {
                last.push(x.clone());
            }
            if i + 1 == self.vit.depth {
                qkv = Some(block_qkv);
            }
        }
        let prefix = self.vit.prefix_tokens();
        let features =
            self.features.map(|rule| kernel("feature target", || feature_target(&last, rule, prefix))).transpose()?;
        let attention = match (&self.attention, &qkv) {
            (Some((rows, top_k)), Some(qkv)) => {
                Some(kernel("attention target", || attention_target(qkv, self.vit.heads, prefix, *rows, *top_k))?)
            }
            _ => None,
        };
        Ok(Targets { features, attention })
    }
}

/// Mean of raw block outputs (B, P + L, C), the P class and register tokens dropped, normalised: (B, L, C).
fn feature_target(blocks: &[Tensor], rule: Normalise, prefix: usize) -> candle_core::Result<Tensor> {
    let mut total = blocks[0].clone();
    for block in &blocks[1..] {
        total = sum(&total, block)?;
    }
    let tokens = total.dim(1)?;
    let mean = (total.narrow(1, prefix, tokens - prefix)?.contiguous()? / blocks.len() as f64)?;
    match rule {
        Normalise::None => Ok(mean),
        Normalise::Channel => normalise(&mean, Axis::Channels),
        Normalise::Patch => normalise(&mean, Axis::Patches),
    }
}

/// Pre-softmax logits of the chosen rows, and the rows as the student counts its tokens: [class, picked …], best first.
///
/// Patches are ranked by the head-mean of the class row's *logits*, not of its softmax (`basemodel_vit.py:96-98`).
fn attention_target(
    qkv: &Tensor,
    heads: usize,
    prefix: usize,
    rows: AttentionRows,
    top_k: usize,
) -> candle_core::Result<(Tensor, Tensor)> {
    let (batch, tokens, channels) = qkv.dims3()?;
    let width = channels / 3;
    let logits = RowLogits { heads, width, scale: ((width / heads) as f64).powf(-0.5), prefix };
    let device = qkv.device();
    let class = Tensor::zeros((batch, 1), DType::U32, device)?;
    // (B, R − 1): numbers of the patches whose rows are wanted.
    let picked = match rows {
        AttentionRows::Class => None,
        AttentionRows::All => {
            let patches = Tensor::arange(0, (tokens - prefix) as u32, device)?.unsqueeze(0)?;
            Some(patches.broadcast_as((batch, tokens - prefix))?.contiguous()?)
        }
        AttentionRows::Selected => {
            let score = logits.forward(qkv, &class)?.squeeze(1)?.mean(1)?;
            Some(score.arg_sort_last_dim(false)?.narrow(D::Minus1, 0, top_k)?)
        }
    };
    // The base may have registers before its patches; the student has the class token alone.
    let behind = |prefix: usize| match &picked {
        None => Ok(class.clone()),
        Some(picked) => {
            Tensor::cat(&[&class, &picked.broadcast_add(&Tensor::full(prefix as u32, (1, 1), device)?)?], 1)
        }
    };
    Ok((logits.forward(qkv, &behind(prefix)?)?, behind(1)?))
}

fn matrix(matrix: Matrix, device: &Device) -> Result<Tensor, KernelError> {
    kernel("resize for the base", || Tensor::from_vec(matrix.values, (matrix.rows, matrix.columns), device))
}
