//! GELU, elementwise, and its gradient.

use candle_core::cpu::erf::erf_f32;
use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::slices::{self, Element, by_dtype, read};
use crate::model::Activation;

const NAME: &str = "gelu";

/// Values a thread takes at a time; fewer than this are not worth a second thread.
const CHUNK: usize = 16 * 1024;

/// GELU of every value, in the type of `x`.
pub(crate) fn forward(x: &Tensor, kind: Activation) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return super::cuda::gelu::forward(x, kind);
    }
    by_dtype!(x, NAME, T => match kind {
        Activation::GeluErf => map::<T>(x, gelu_erf),
        Activation::GeluTanh => map::<T>(x, gelu_tanh),
    })
}

/// Gradient of the input: dy·GELU′(x), in the type of `dy`.
pub(crate) fn backward(x: &Tensor, dy: &Tensor, kind: Activation) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return super::cuda::gelu::backward(x, dy, kind);
    }
    by_dtype!(x, NAME, T => match kind {
        Activation::GeluErf => zip::<T>(x, dy, slope_erf),
        Activation::GeluTanh => zip::<T>(x, dy, slope_tanh),
    })
}

fn map<T: Element>(x: &Tensor, f: impl Fn(f32) -> f32 + Sync) -> Result<Tensor> {
    let values = read::<T>(x, NAME)?;
    let out = slices::filled::<T>(values.len(), |out| {
        out.par_chunks_mut(CHUNK).zip(values.par_chunks(CHUNK)).for_each(|(out, x)| {
            for (y, x) in out.iter_mut().zip(x) {
                *y = T::narrow(f(x.wide()));
            }
        });
    });
    slices::tensor(out, x.shape())
}

fn zip<T: Element>(x: &Tensor, dy: &Tensor, slope: impl Fn(f32) -> f32 + Sync) -> Result<Tensor> {
    let (values, dy) = (read::<T>(x, NAME)?, read::<T>(dy, NAME)?);
    if values.len() != dy.len() {
        candle_core::bail!("{NAME}: a gradient of {} values for {}", dy.len(), values.len());
    }
    let out = slices::filled::<T>(values.len(), |out| {
        out.par_chunks_mut(CHUNK).zip(values.par_chunks(CHUNK).zip(dy.par_chunks(CHUNK))).for_each(|(out, (x, dy))| {
            for ((dx, x), dy) in out.iter_mut().zip(x).zip(dy) {
                *dx = T::narrow(dy.wide() * slope(x.wide()));
            }
        });
    });
    slices::tensor(out, x.shape())
}

/// `x·Φ(x)`, PyTorch's `nn.GELU()`.
fn gelu_erf(x: f32) -> f32 {
    0.5 * x * (1.0 + erf_f32(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// Φ(x) + x·φ(x).
fn slope_erf(x: f32) -> f32 {
    const SQRT_1_OVER_2_PI: f32 = 0.398_942_3;
    0.5 * (1.0 + erf_f32(x * std::f32::consts::FRAC_1_SQRT_2)) + x * SQRT_1_OVER_2_PI * (-0.5 * x * x).exp()
}

const SQRT_2_OVER_PI: f32 = 0.797_884_6;
const CUBIC: f32 = 0.044715;

/// PyTorch's `nn.GELU(approximate="tanh")`.
fn gelu_tanh(x: f32) -> f32 {
    0.5 * x * (1.0 + (SQRT_2_OVER_PI * (x + CUBIC * x * x * x)).tanh())
}

fn slope_tanh(x: f32) -> f32 {
    let t = (SQRT_2_OVER_PI * (x + CUBIC * x * x * x)).tanh();
    0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * SQRT_2_OVER_PI * (1.0 + 3.0 * CUBIC * x * x)
}
