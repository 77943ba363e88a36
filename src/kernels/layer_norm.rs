//! LayerNorm over the last axis, and its gradients.
//!
//! Moments are summed in f64, so the result does not depend on how a compiler orders the sum. The backward pass computes
//! them again: a row is in cache by then, and nothing needs to be kept between the passes.

use candle_core::{D, DType, Result, Tensor};
use rayon::prelude::*;

use super::columns::{self, ROWS};
use super::slices::{self, Element, by_dtype, read, write};

const NAME: &str = "layer norm";

/// (…, C) with a weight and a bias of C values → (…, C) in `out`.
pub(crate) fn forward(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64, out: DType) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return super::cuda::layer_norm::forward(x, weight, bias, eps, out);
    }
    by_dtype!(x, NAME, T => match out {
        DType::F32 => forward_cpu::<T, f32>(x, weight, bias, eps),
        DType::BF16 => forward_cpu::<T, half::bf16>(x, weight, bias, eps),
        other => slices::unsupported(other, NAME),
    })
}

fn forward_cpu<T: Element, U: Element>(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let c = width(x, weight)?;
    let (values, weight, bias) = (read::<T>(x, NAME)?, read::<f32>(weight, NAME)?, read::<f32>(bias, NAME)?);
    if bias.len() != c {
        candle_core::bail!("{NAME}: {c} weights and {} biases", bias.len());
    }
    let out = slices::filled::<U>(values.len(), |out| {
        out.par_chunks_mut(ROWS * c).zip(values.par_chunks(ROWS * c)).for_each(|(out, x)| {
            for (out, x) in out.chunks_exact_mut(c).zip(x.chunks_exact(c)) {
                let (mean, scale) = moments(x, eps);
                for (((out, x), weight), bias) in out.iter_mut().zip(x).zip(&*weight).zip(&*bias) {
                    *out = U::narrow((x.wide() - mean) * scale * weight + bias);
                }
            }
        });
    });
    slices::tensor(out, x.shape())
}

/// Gradient of the input (…, C), in f32; those of the weight and the bias are added to `dweight` and `dbias` or, when
/// `fresh`, put there.
pub(crate) fn backward(
    x: &Tensor,
    dy: &Tensor,
    weight: &Tensor,
    eps: f64,
    dweight: &Tensor,
    dbias: &Tensor,
    fresh: bool,
) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return super::cuda::layer_norm::backward(x, dy, weight, eps, dweight, dbias, fresh);
    }
    by_dtype!(x, NAME, T => by_dtype!(dy, NAME, U => {
        backward_cpu::<T, U>(x, dy, weight, eps, dweight, dbias, fresh)
    }))
}

fn backward_cpu<T: Element, U: Element>(
    x: &Tensor,
    dy: &Tensor,
    weight: &Tensor,
    eps: f64,
    dweight: &Tensor,
    dbias: &Tensor,
    fresh: bool,
) -> Result<Tensor> {
    let c = width(x, weight)?;
    let (values, dy, weight) = (read::<T>(x, NAME)?, read::<U>(dy, NAME)?, read::<f32>(weight, NAME)?);
    if dy.len() != values.len() {
        candle_core::bail!("{NAME}: a gradient of {} values for {}", dy.len(), values.len());
    }
    let mut partial: Vec<(Vec<f32>, Vec<f32>)> = Vec::new();
    let dx = slices::filled::<f32>(values.len(), |dx| {
        partial = dx
            .par_chunks_mut(ROWS * c)
            .zip(values.par_chunks(ROWS * c).zip(dy.par_chunks(ROWS * c)))
            .map(|(dx, (x, dy))| {
                let (mut dweight, mut dbias) = (vec![0f32; c], vec![0f32; c]);
                for ((dx, x), dy) in dx.chunks_exact_mut(c).zip(x.chunks_exact(c)).zip(dy.chunks_exact(c)) {
                    backward_row(dx, x, dy, &weight, eps, &mut dweight, &mut dbias);
                }
                (dweight, dbias)
            })
            .collect();
    });
    let (weights, biases): (Vec<_>, Vec<_>) = partial.into_iter().unzip();
    write::<f32>(dweight, NAME, |sums| columns::merge(&weights, sums, fresh))?;
    write::<f32>(dbias, NAME, |sums| columns::merge(&biases, sums, fresh))?;
    slices::tensor(dx, x.shape())
}

/// With n = (x − μ)·s and g = dy·w: dx = s·(g − mean(g) − n·mean(g·n)), dw += dy·n, db += dy.
fn backward_row<T: Element, U: Element>(
    dx: &mut [f32],
    x: &[T],
    dy: &[U],
    weight: &[f32],
    eps: f64,
    dweight: &mut [f32],
    dbias: &mut [f32],
) {
    let (mean, scale) = moments(x, eps);
    let (mut sum_g, mut sum_gn) = (0f64, 0f64);
    for (i, dx) in dx.iter_mut().enumerate() {
        let n = (x[i].wide() - mean) * scale;
        let dy = dy[i].wide();
        let g = dy * weight[i];
        sum_g += f64::from(g);
        sum_gn += f64::from(g * n);
        dweight[i] += dy * n;
        dbias[i] += dy;
        *dx = g;
    }
    let count = x.len() as f64;
    let (mean_g, mean_gn) = ((sum_g / count) as f32, (sum_gn / count) as f32);
    for (dx, x) in dx.iter_mut().zip(x) {
        let n = (x.wide() - mean) * scale;
        *dx = scale * (*dx - mean_g - n * mean_gn);
    }
}

fn width(x: &Tensor, weight: &Tensor) -> Result<usize> {
    let c = x.dim(D::Minus1)?;
    if c == 0 || weight.elem_count() != c {
        candle_core::bail!("{NAME}: {} weights for {:?}", weight.elem_count(), x.dims());
    }
    Ok(c)
}

/// Mean and 1/√(variance + eps).
fn moments<T: Element>(x: &[T], eps: f64) -> (f32, f32) {
    let n = x.len() as f64;
    let mean = sum(x, f64::from) / n;
    let variance = sum(x, |v| (f64::from(v) - mean).powi(2)) / n;
    (mean as f32, (1.0 / (variance + eps).sqrt()) as f32)
}

/// Sum in eight lanes, which a compiler can keep in registers.
fn sum<T: Element>(x: &[T], f: impl Fn(f32) -> f64) -> f64 {
    let mut lanes = [0f64; 8];
    let (chunks, rest) = x.as_chunks::<8>();
    for chunk in chunks {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane += f(v.wide());
        }
    }
    lanes.iter().sum::<f64>() + rest.iter().map(|v| f(v.wide())).sum::<f64>()
}
