//! Multi-head attention over a fused qkv, straight from its strides: no per-head copies of q, k and v.
//!
//! The backward pass computes the attention weights again instead of keeping B·N·T² of them.

use std::mem::MaybeUninit;

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

use super::gemm::{self, Number, Scratch, with_scratch};
use super::relative::Relative;
use super::rows::{softmax, softmax_gradient};
use super::simd::{Isa, Lane, Task, dispatch, vectors};
use super::slices::{self, Disjoint, Element, by_dtype, read};

const NAME: &str = "attention";

/// Query rows whose scores are held at a time: (256, T) floats stay in a second-level cache at the sizes ViTs use.
const QUERY_ROWS: usize = 256;

/// (B, T, 3·C) → (B, T, C): softmax(q·kᵀ·d^-0.5)·v for each head.
pub(crate) fn forward(qkv: &Tensor, heads: usize) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if qkv.device().is_cuda() {
        return super::cuda::attention::forward(qkv, heads);
    }
    forward_with(qkv, heads, None)
}

/// [`forward`] with what `relative` adds to the logits; on the CPU.
pub(crate) fn forward_relative(qkv: &Tensor, heads: usize, relative: &Relative) -> Result<Tensor> {
    if !matches!(qkv.device(), Device::Cpu) {
        candle_core::bail!("{NAME}: relative positions are computed on the CPU only");
    }
    let shape = Heads::of(qkv, heads)?;
    relative.check(shape.tokens, heads, shape.d)?;
    forward_with(qkv, heads, Some(relative))
}

fn forward_with(qkv: &Tensor, heads: usize, relative: Option<&Relative>) -> Result<Tensor> {
    by_dtype!(qkv, NAME, T => {
        let shape = Heads::of(qkv, heads)?;
        let values = read::<T>(qkv, NAME)?;
        let fill = |out: &mut [MaybeUninit<T>]| {
            let out = Disjoint(out.as_mut_ptr().cast::<T>());
            (0..shape.batch * heads).into_par_iter().with_max_len(1).for_each(|index| {
                with_scratch(|scratch| dispatch(Forward { shape: &shape, qkv: &values, relative, index, out: out.get(), scratch }));
            });
            Ok(())
        };
        // SAFETY: every head of every image writes all its channels.
        let out = unsafe { slices::made(values.len() / 3, fill)? };
        slices::tensor(out, (shape.batch, shape.tokens, shape.width))
    })
}

/// Gradient of qkv (B, T, 3·C) from that of the output (B, T, C), of the same type.
pub(crate) fn backward(qkv: &Tensor, dout: &Tensor, heads: usize) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if qkv.device().is_cuda() {
        return super::cuda::attention::backward(qkv, dout, heads);
    }
    by_dtype!(qkv, NAME, T => {
        let shape = Heads::of(qkv, heads)?;
        let (values, dout) = (read::<T>(qkv, NAME)?, read::<T>(dout, NAME)?);
        if dout.len() * 3 != values.len() {
            candle_core::bail!("{NAME}: a gradient of {} values for {}", dout.len(), values.len() / 3);
        }
        let fill = |dqkv: &mut [MaybeUninit<T>]| {
            let dqkv = Disjoint(dqkv.as_mut_ptr().cast::<T>());
            (0..shape.batch * heads).into_par_iter().with_max_len(1).for_each(|index| {
                with_scratch(|scratch| {
                    let (qkv, dout, dqkv) = (&values, &dout, dqkv.get());
                    dispatch(Backward { shape: &shape, qkv, dout, index, dqkv, scratch });
                });
            });
            Ok(())
        };
        // SAFETY: as in `forward`.
        let out = unsafe { slices::made(values.len(), fill)? };
        slices::tensor(out, qkv.shape())
    })
}

/// B images of T tokens, C channels in N heads of d.
struct Heads {
    batch: usize,
    heads: usize,
    tokens: usize,
    width: usize,
    d: usize,
}

impl Heads {
    fn of(qkv: &Tensor, heads: usize) -> Result<Self> {
        let (batch, tokens, channels) = qkv.dims3()?;
        if heads == 0 || channels == 0 || channels % (3 * heads) != 0 {
            candle_core::bail!("{NAME}: {channels} channels are not q, k and v of {heads} heads");
        }
        let width = channels / 3;
        Ok(Self { batch, heads, tokens, width, d: width / heads })
    }

    fn scale(&self) -> f32 {
        1.0 / (self.d as f32).sqrt()
    }

    /// Where q, k and v of head `index % N` in image `index / N` begin in (B, T, 3·C): rows of d, 3·C apart.
    fn parts(&self, index: usize) -> [usize; 3] {
        let q = index / self.heads * self.tokens * 3 * self.width + index % self.heads * self.d;
        [q, q + self.width, q + 2 * self.width]
    }

    /// Where the head's channels begin in (B, T, C): rows of d, C apart.
    fn out(&self, index: usize) -> usize {
        index / self.heads * self.tokens * self.width + index % self.heads * self.d
    }
}

/// One head of one image.
struct Forward<'a, T> {
    shape: &'a Heads,
    qkv: &'a [T],
    relative: Option<&'a Relative>,
    index: usize,
    /// (B, T, C), of which nobody else touches this head's channels.
    out: *mut T,
    scratch: &'a mut Scratch,
}

impl<T: Element> Task for Forward<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Isa>(self) {
        let Self { shape, qkv, relative, index, out, scratch } = self;
        let &Heads { tokens, width, d, .. } = shape;
        let [q, k, v] = shape.parts(index).map(|at| qkv[at..].as_ptr());
        let stride = 3 * width;
        let scores = scratch.free[0].of(QUERY_ROWS.min(tokens) * tokens);
        let mut query_values = Vec::new();
        for first in (0..tokens).step_by(QUERY_ROWS) {
            let rows = QUERY_ROWS.min(tokens - first);
            // SAFETY: rows and columns stay within the head's channels of this image; `scores` is ours.
            unsafe {
                let queries = T::operand(q.add(first * stride), [stride, 1]);
                let keys = T::operand(k, [1, stride]);
                let to = (f32::rows(scores, tokens), false);
                gemm::product::<S>([rows, tokens, d], (queries, keys), shape.scale(), to, scratch);
                for row in 0..rows {
                    if let Some(relative) = relative {
                        let query = &qkv[shape.parts(index)[0] + (first + row) * stride..][..d];
                        query_values.clear();
                        query_values.extend(query.iter().map(|value| value.wide()));
                        let logits = std::slice::from_raw_parts_mut(scores.add(row * tokens), tokens);
                        relative.add(index % shape.heads, first + row, &query_values, logits);
                    }
                    softmax::<S>(scores.add(row * tokens), tokens);
                }
                let (weights, values) = (f32::operand(scores, [tokens, 1]), T::operand(v, [stride, 1]));
                let to = (T::rows(out.add(shape.out(index) + first * width), width), false);
                gemm::product::<S>([rows, d, tokens], (weights, values), 1.0, to, scratch);
            }
        }
    }
}

/// With P the weights: dV = Pᵀ·dO, dP = dO·Vᵀ, dS = P∘(dP − rowsum(P∘dP)), dQ = s·dS·K, dK = s·dSᵀ·Q.
struct Backward<'a, T> {
    shape: &'a Heads,
    qkv: &'a [T],
    /// (B, T, C)
    dout: &'a [T],
    index: usize,
    /// (B, T, 3·C), of which nobody else touches this head's channels.
    dqkv: *mut T,
    scratch: &'a mut Scratch,
}

impl<T: Number> Task for Backward<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Isa>(self) {
        let Self { shape, qkv, dout, index, dqkv, scratch } = self;
        let &Heads { tokens, width, d, .. } = shape;
        let [q, k, v] = shape.parts(index).map(|at| qkv[at..].as_ptr());
        let [dq, dk, dv] = shape.parts(index).map(|at| dqkv.wrapping_add(at));
        let dout = dout[shape.out(index)..].as_ptr();
        let (stride, scale) = (3 * width, shape.scale());
        let scores = QUERY_ROWS.min(tokens) * tokens;
        let [weights, slopes] = [scratch.free[0].of(scores), scratch.free[1].of(scores)];
        // Summed over the blocks of queries in f32.
        let [key_sums, value_sums] = [scratch.free[2].of(tokens * d), scratch.free[3].of(tokens * d)];
        for first in (0..tokens).step_by(QUERY_ROWS) {
            let (rows, add) = (QUERY_ROWS.min(tokens - first), first > 0);
            // SAFETY: rows and columns stay within the head's channels of this image; the scratch is ours.
            unsafe {
                let (q, dout) = (q.add(first * stride), dout.add(first * width));
                let (queries, grads) = (T::operand(q, [stride, 1]), T::operand(dout, [width, 1]));
                let to = (f32::rows(weights, tokens), false);
                gemm::product::<S>([rows, tokens, d], (queries, T::operand(k, [1, stride])), scale, to, scratch);
                for row in 0..rows {
                    softmax::<S>(weights.add(row * tokens), tokens);
                }
                let transposed = f32::operand(weights, [1, tokens]);
                let to = (f32::rows(value_sums, d), add);
                gemm::product::<S>([tokens, d, rows], (transposed, grads), 1.0, to, scratch);
                let to = (f32::rows(slopes, tokens), false);
                gemm::product::<S>([rows, tokens, d], (grads, T::operand(v, [1, stride])), 1.0, to, scratch);
                for row in 0..rows {
                    softmax_gradient::<S>(weights.add(row * tokens), slopes.add(row * tokens), tokens);
                }
                let operands = (f32::operand(slopes, [tokens, 1]), T::operand(k, [stride, 1]));
                let to = (T::rows(dq.wrapping_add(first * stride), stride), false);
                gemm::product::<S>([rows, d, tokens], operands, scale, to, scratch);
                let to = (f32::rows(key_sums, d), add);
                gemm::product::<S>([tokens, d, rows], (f32::operand(slopes, [1, tokens]), queries), scale, to, scratch);
            }
        }
        for (sums, to) in [(key_sums, dk), (value_sums, dv)] {
            for row in 0..tokens {
                // SAFETY: as above.
                unsafe { copy::<S, T>(sums.add(row * d), to.wrapping_add(row * stride), d) };
            }
        }
    }
}

/// # Safety
/// The instructions are there; both hold `len` values.
#[inline(always)]
unsafe fn copy<S: Isa, T: Lane>(from: *const f32, to: *mut T, len: usize) {
    // SAFETY: the caller's.
    unsafe {
        vectors!(S, len, |i, n| {
            T::store::<S>(to.add(i), n, f32::load::<S>(from.add(i), n));
        });
    }
}
