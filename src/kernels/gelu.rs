//! GELU, elementwise, and its gradient.

use std::mem::MaybeUninit;

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::normal;
use super::simd::{Isa, Lane, Task, dispatch, vectors};
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
        Activation::GeluErf => map::<T>(x, |x, out| dispatch(Forward { x, out })),
        Activation::GeluTanh => map::<T>(x, |x, out| {
            for (y, x) in out.iter_mut().zip(x) {
                y.write(T::narrow(gelu_tanh(x.wide())));
            }
        }),
    })
}

/// Gradient of the input: dy·GELU′(x), in the type of `dy`.
pub(crate) fn backward(x: &Tensor, dy: &Tensor, kind: Activation) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return super::cuda::gelu::backward(x, dy, kind);
    }
    by_dtype!(x, NAME, T => match kind {
        Activation::GeluErf => zip::<T>(x, dy, |x, dy, out| dispatch(Backward { x, dy, out })),
        Activation::GeluTanh => zip::<T>(x, dy, |x, dy, out| {
            for ((dx, x), dy) in out.iter_mut().zip(x).zip(dy) {
                dx.write(T::narrow(dy.wide() * slope_tanh(x.wide())));
            }
        }),
    })
}

fn map<T: Element>(x: &Tensor, f: impl Fn(&[T], &mut [MaybeUninit<T>]) + Sync) -> Result<Tensor> {
    let values = read::<T>(x, NAME)?;
    let fill = |out: &mut [MaybeUninit<T>]| {
        out.par_chunks_mut(CHUNK).zip(values.par_chunks(CHUNK)).for_each(|(out, x)| f(x, out));
        Ok(())
    };
    // SAFETY: `f` writes as many values as it reads.
    let out = unsafe { slices::made(values.len(), fill)? };
    slices::tensor(out, x.shape())
}

fn zip<T: Element>(x: &Tensor, dy: &Tensor, f: impl Fn(&[T], &[T], &mut [MaybeUninit<T>]) + Sync) -> Result<Tensor> {
    let (values, dy) = (read::<T>(x, NAME)?, read::<T>(dy, NAME)?);
    if values.len() != dy.len() {
        candle_core::bail!("{NAME}: a gradient of {} values for {}", dy.len(), values.len());
    }
    let fill = |out: &mut [MaybeUninit<T>]| {
        let parts = values.par_chunks(CHUNK).zip(dy.par_chunks(CHUNK));
        out.par_chunks_mut(CHUNK).zip(parts).for_each(|(out, (x, dy))| f(x, dy, out));
        Ok(())
    };
    // SAFETY: as in `map`.
    let out = unsafe { slices::made(values.len(), fill)? };
    slices::tensor(out, x.shape())
}

/// `x·Φ(x)`, PyTorch's `nn.GELU()`.
struct Forward<'a, T> {
    x: &'a [T],
    out: &'a mut [MaybeUninit<T>],
}

impl<T: Lane> Task for Forward<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Isa>(self) {
        let (x, out) = (self.x.as_ptr(), self.out.as_mut_ptr().cast::<T>());
        // SAFETY: the instructions are there, and as many values in both.
        unsafe {
            vectors!(S, self.x.len().min(self.out.len()), |i, n| {
                T::store::<S>(out.add(i), n, normal::gelu::<S>(T::load::<S>(x.add(i), n)));
            });
        }
    }
}

/// dy·(Φ(x) + x·φ(x)).
struct Backward<'a, T> {
    x: &'a [T],
    dy: &'a [T],
    out: &'a mut [MaybeUninit<T>],
}

impl<T: Lane> Task for Backward<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Isa>(self) {
        let (x, dy, out) = (self.x.as_ptr(), self.dy.as_ptr(), self.out.as_mut_ptr().cast::<T>());
        // SAFETY: the instructions are there, and as many values in all.
        unsafe {
            vectors!(S, self.x.len().min(self.dy.len()).min(self.out.len()), |i, n| {
                let slope = normal::gelu_gradient::<S>(T::load::<S>(x.add(i), n));
                T::store::<S>(out.add(i), n, S::mul(T::load::<S>(dy.add(i), n), slope));
            });
        }
    }
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
