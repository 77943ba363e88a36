//! LayerNorm over the last axis, and its gradients.
//!
//! The backward pass computes the moments again: a row is in cache by then, and nothing needs to be kept between the
//! passes. Moments are summed in as many lanes as a register has, the mean first: no cancellation, and short chains.

use std::mem::MaybeUninit;

use candle_core::{D, DType, Result, Tensor};
use rayon::prelude::*;

use super::columns::{self, ROWS};
use super::simd::{Isa, Lane, Task, dispatch, vectors};
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
    let fill = |out: &mut [MaybeUninit<U>]| {
        out.par_chunks_mut(ROWS * c).zip(values.par_chunks(ROWS * c)).for_each(|(out, x)| {
            dispatch(Forward { x, weight: &weight, bias: &bias, eps, out });
        });
        Ok(())
    };
    // SAFETY: the last axis is C, so there are whole rows, and every row is written.
    let out = unsafe { slices::made(values.len(), fill)? };
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
    let fill = |dx: &mut [MaybeUninit<f32>]| {
        partial = dx
            .par_chunks_mut(ROWS * c)
            .zip(values.par_chunks(ROWS * c).zip(dy.par_chunks(ROWS * c)))
            .map(|(dx, (x, dy))| {
                let (mut dweight, mut dbias) = (vec![0f32; c], vec![0f32; c]);
                let sums = [&mut dweight[..], &mut dbias[..]];
                dispatch(Backward { x, dy, weight: &weight, eps, dx, sums });
                (dweight, dbias)
            })
            .collect();
        Ok(())
    };
    // SAFETY: as in `forward_cpu`.
    let dx = unsafe { slices::made(values.len(), fill)? };
    let (weights, biases): (Vec<_>, Vec<_>) = partial.into_iter().unzip();
    write::<f32>(dweight, NAME, |sums| columns::merge(&weights, sums, fresh))?;
    write::<f32>(dbias, NAME, |sums| columns::merge(&biases, sums, fresh))?;
    slices::tensor(dx, x.shape())
}

/// Rows of C = `weight.len()` values each.
struct Forward<'a, T, U> {
    x: &'a [T],
    weight: &'a [f32],
    bias: &'a [f32],
    eps: f64,
    out: &'a mut [MaybeUninit<U>],
}

impl<T: Lane, U: Lane> Task for Forward<'_, T, U> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Isa>(self) {
        let c = self.weight.len();
        let (weight, bias) = (self.weight.as_ptr(), self.bias.as_ptr());
        for (x, out) in self.x.chunks_exact(c).zip(self.out.chunks_exact_mut(c)) {
            let (x, out) = (x.as_ptr(), out.as_mut_ptr().cast::<U>());
            // SAFETY: the instructions are there, and all four hold `c` values.
            unsafe {
                let (mean, scale) = moments::<S, T>(x, c, self.eps);
                vectors!(S, c, |i, n| {
                    let normal = S::mul(S::sub(T::load::<S>(x.add(i), n), mean), scale);
                    let y = S::fma(normal, f32::load::<S>(weight.add(i), n), f32::load::<S>(bias.add(i), n));
                    U::store::<S>(out.add(i), n, y);
                });
            }
        }
    }
}

/// With n = (x − μ)·s and g = dy·w: dx = s·(g − mean(g) − n·mean(g·n)), dw += dy·n, db += dy.
struct Backward<'a, T, U> {
    x: &'a [T],
    dy: &'a [U],
    weight: &'a [f32],
    eps: f64,
    dx: &'a mut [MaybeUninit<f32>],
    /// dw and db.
    sums: [&'a mut [f32]; 2],
}

impl<T: Lane, U: Lane> Task for Backward<'_, T, U> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Isa>(self) {
        let c = self.weight.len();
        let weight = self.weight.as_ptr();
        let [dweight, dbias] = self.sums.map(<[f32]>::as_mut_ptr);
        let rows = self.x.chunks_exact(c).zip(self.dy.chunks_exact(c)).zip(self.dx.chunks_exact_mut(c));
        for ((x, dy), dx) in rows {
            let (x, dy, dx) = (x.as_ptr(), dy.as_ptr(), dx.as_mut_ptr().cast::<f32>());
            // SAFETY: the instructions are there, and everything holds `c` values.
            unsafe {
                let (mean, scale) = moments::<S, T>(x, c, self.eps);
                let (mut sum_g, mut sum_gn) = (S::splat(0.0), S::splat(0.0));
                vectors!(S, c, |i, n| {
                    // Beyond the row, dy is 0 and adds nothing.
                    let normal = S::mul(S::sub(T::load::<S>(x.add(i), n), mean), scale);
                    let dy = U::load::<S>(dy.add(i), n);
                    let g = S::mul(dy, f32::load::<S>(weight.add(i), n));
                    sum_g = S::add(sum_g, g);
                    sum_gn = S::fma(g, normal, sum_gn);
                    f32::store::<S>(dweight.add(i), n, S::fma(dy, normal, f32::load::<S>(dweight.add(i), n)));
                    f32::store::<S>(dbias.add(i), n, S::add(dy, f32::load::<S>(dbias.add(i), n)));
                    f32::store::<S>(dx.add(i), n, g);
                });
                let mean_g = S::splat(S::sum(sum_g) / c as f32);
                let mean_gn = S::splat(-S::sum(sum_gn) / c as f32);
                vectors!(S, c, |i, n| {
                    let normal = S::mul(S::sub(T::load::<S>(x.add(i), n), mean), scale);
                    let g = S::sub(f32::load::<S>(dx.add(i), n), mean_g);
                    f32::store::<S>(dx.add(i), n, S::mul(scale, S::fma(normal, mean_gn, g)));
                });
            }
        }
    }
}

fn width(x: &Tensor, weight: &Tensor) -> Result<usize> {
    let c = x.dim(D::Minus1)?;
    if c == 0 || weight.elem_count() != c {
        candle_core::bail!("{NAME}: {} weights for {:?}", weight.elem_count(), x.dims());
    }
    Ok(c)
}

/// Mean and 1/√(variance + eps) of `c` values, in every lane.
///
/// # Safety
/// The instructions are there, and the values.
#[inline(always)]
unsafe fn moments<S: Isa, T: Lane>(x: *const T, c: usize, eps: f64) -> (S::V, S::V) {
    // SAFETY: the caller's.
    unsafe {
        let mut sum = S::splat(0.0);
        vectors!(S, c, |i, n| {
            sum = S::add(sum, T::load::<S>(x.add(i), n));
        });
        let center = S::sum(sum) / c as f32;
        let (mean, mut squares) = (S::splat(center), S::splat(0.0));
        let mut at = 0;
        while at + S::LANES <= c {
            let difference = S::sub(T::load::<S>(x.add(at), S::LANES), mean);
            squares = S::fma(difference, difference, squares);
            at += S::LANES;
        }
        let mut variance = S::sum(squares);
        for i in at..c {
            variance += ((*x.add(i)).widen() - center).powi(2);
        }
        let scale = 1.0 / (f64::from(variance) / c as f64 + eps).sqrt();
        (mean, S::splat(scale as f32))
    }
}
