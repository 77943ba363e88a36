//! The losses, each with its gradient: a loss ends a pass, so both are computed at once.
//!
//! B images, L patches, C channels, R rows, N heads. Sums are in f64 and in a fixed order.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::slices::{self, Element, by_dtype, read};

const NAME: &str = "loss";

/// A loss (a scalar, f32) and its gradient for the prediction.
pub(crate) struct Loss {
    pub(crate) value: Tensor,
    pub(crate) gradient: Tensor,
}

/// Squared error, mean over channels, then over patches: given those the mask hides, `models_tec_vit.py:434-437` upstream.
///
/// `prediction` and `target` (f32) are (B, L, C). The gradient, multiplied by `weight`, has the type of the prediction.
pub(crate) fn squared_error(prediction: &Tensor, target: &Tensor, weight: f64) -> Result<Loss> {
    #[cfg(feature = "cuda")]
    if prediction.device().is_cuda() {
        return super::cuda::losses::squared_error(prediction, target, weight);
    }
    let (batch, patches, c) = prediction.dims3()?;
    if target.dims() != prediction.dims() || batch * patches * c == 0 {
        candle_core::bail!("{NAME}: {:?} against {:?}", prediction.dims(), target.dims());
    }
    by_dtype!(prediction, NAME, T => {
        let (values, target) = (read::<T>(prediction, NAME)?, read::<f32>(target, NAME)?);
        let rows = (batch * patches) as f64;
        let scale = (2.0 * weight / (rows * c as f64)) as f32;
        let mut sums: Vec<f64> = Vec::new();
        let gradient = slices::filled::<T>(values.len(), |gradient| {
            let parts = values.par_chunks(patches * c).zip(target.par_chunks(patches * c));
            sums = gradient
                .par_chunks_mut(patches * c)
                .zip(parts)
                .map(|(gradient, (values, target))| {
                    let mut squares = 0f64;
                    for ((g, x), t) in gradient.iter_mut().zip(values).zip(target) {
                        let difference = x.wide() - t;
                        squares += f64::from(difference * difference);
                        *g = T::narrow(difference * scale);
                    }
                    squares / c as f64
                })
                .collect();
        });
        let value = (sums.iter().sum::<f64>() / rows) as f32;
        Ok(Loss { value: Tensor::new(value, prediction.device())?, gradient: slices::tensor(gradient, prediction.shape())? })
    })
}

/// −Σ softmax(target/τ)·log softmax(prediction) over the L columns, mean over B, R and N; the mask plays no part
/// (`models_tec_vit.py:440-451` upstream). Both are logits (B, R, N, L), f32; the gradient is multiplied by `weight`.
pub(crate) fn soft_cross_entropy(prediction: &Tensor, target: &Tensor, tau: f64, weight: f64) -> Result<Loss> {
    #[cfg(feature = "cuda")]
    if prediction.device().is_cuda() {
        return super::cuda::losses::soft_cross_entropy(prediction, target, tau, weight);
    }
    let (batch, rows, heads, columns) = prediction.dims4()?;
    if target.dims() != prediction.dims() {
        candle_core::bail!("{NAME}: {:?} against {:?}", prediction.dims(), target.dims());
    }
    let (values, target) = (read::<f32>(prediction, NAME)?, read::<f32>(target, NAME)?);
    let lines = (batch * rows * heads) as f64;
    let mut sums: Vec<f64> = Vec::new();
    let gradient = slices::filled::<f32>(values.len(), |gradient| {
        let parts = values.par_chunks(rows * heads * columns).zip(target.par_chunks(rows * heads * columns));
        sums = gradient
            .par_chunks_mut(rows * heads * columns)
            .zip(parts)
            .map(|(gradient, (values, target))| {
                let mut wanted = vec![0f64; columns];
                let mut sum = 0f64;
                for ((gradient, x), t) in gradient
                    .chunks_exact_mut(columns)
                    .zip(values.chunks_exact(columns))
                    .zip(target.chunks_exact(columns))
                {
                    softmax(t, 1.0 / tau, &mut wanted);
                    let most = f64::from(x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
                    let total: f64 = x.iter().map(|x| (f64::from(*x) - most).exp()).sum();
                    let log_total = total.ln();
                    for ((g, x), p) in gradient.iter_mut().zip(x).zip(&wanted) {
                        let log_q = f64::from(*x) - most - log_total;
                        sum -= p * log_q;
                        *g = ((log_q.exp() - p) * weight / lines) as f32;
                    }
                }
                sum
            })
            .collect();
    });
    let value = (sums.iter().sum::<f64>() / lines) as f32;
    Ok(Loss {
        value: Tensor::new(value, prediction.device())?,
        gradient: slices::tensor(gradient, prediction.shape())?,
    })
}

fn softmax(x: &[f32], scale: f64, out: &mut [f64]) {
    let most = f64::from(x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    for (p, x) in out.iter_mut().zip(x) {
        *p = ((f64::from(*x) - most) * scale).exp();
    }
    let total: f64 = out.iter().sum();
    for p in out {
        *p /= total;
    }
}

/// The axis a target is brought to zero mean and unit variance over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Axis {
    /// Each channel over the L patches.
    Patches,
    /// Each patch over its C channels.
    Channels,
}

/// Variance floor of both normalisations upstream.
pub(super) const VARIANCE_EPS: f64 = 1e-6;

/// (B, L, C), f32 → (x − μ)/√(σ² + 1e-6) over `axis`, σ² unbiased (`models_tec_vit.py:431-433` upstream; MAE's
/// `norm_pix_loss` over channels).
pub(crate) fn normalise(x: &Tensor, axis: Axis) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return super::cuda::losses::normalise(x, axis);
    }
    let (_, patches, c) = x.dims3()?;
    let values = read::<f32>(x, NAME)?;
    let out = slices::filled::<f32>(values.len(), |out| match axis {
        Axis::Channels => out.par_chunks_mut(c).zip(values.par_chunks(c)).for_each(|(out, x)| {
            let n = c as f64;
            let mean = x.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
            let variance = x.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / (n - 1.0);
            let scale = 1.0 / (variance + VARIANCE_EPS).sqrt();
            for (out, x) in out.iter_mut().zip(x) {
                *out = ((f64::from(*x) - mean) * scale) as f32;
            }
        }),
        Axis::Patches => {
            out.par_chunks_mut(patches * c).zip(values.par_chunks(patches * c)).for_each(|(out, x)| {
                let n = patches as f64;
                let (mut mean, mut variance) = (vec![0f64; c], vec![0f64; c]);
                for row in x.chunks_exact(c) {
                    mean.iter_mut().zip(row).for_each(|(mean, x)| *mean += f64::from(*x) / n);
                }
                for row in x.chunks_exact(c) {
                    for ((variance, mean), x) in variance.iter_mut().zip(&mean).zip(row) {
                        *variance += (f64::from(*x) - mean).powi(2) / (n - 1.0);
                    }
                }
                variance.iter_mut().for_each(|v| *v = 1.0 / (*v + VARIANCE_EPS).sqrt());
                for (out, row) in out.chunks_exact_mut(c).zip(x.chunks_exact(c)) {
                    for (((out, x), mean), scale) in out.iter_mut().zip(row).zip(&mean).zip(&variance) {
                        *out = ((f64::from(*x) - mean) * scale) as f32;
                    }
                }
            });
        }
    });
    slices::tensor(out, x.shape())
}
