//! Multi-head attention over a fused qkv, straight from its strides: no per-head copies of q, k and v.
//!
//! The backward pass computes the attention weights again instead of keeping B·N·T² of them.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::product::{Disjoint, product};
use super::slices::{self, Element, by_dtype, read};

const NAME: &str = "attention";

/// Query rows whose scores are held at a time: (256, T) floats stay in cache at the sizes ViTs use.
const QUERY_ROWS: usize = 256;

/// (B, T, 3·C) → (B, T, C): softmax(q·kᵀ·d^-0.5)·v for each head.
pub(crate) fn forward(qkv: &Tensor, heads: usize) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if qkv.device().is_cuda() {
        return super::cuda::attention::forward(qkv, heads);
    }
    by_dtype!(qkv, NAME, T => {
        let shape = Heads::of(qkv, heads)?;
        let values = widened::<T>(qkv)?;
        let mut out = vec![0f32; values.len() / 3];
        let writer = Disjoint(out.as_mut_ptr());
        (0..shape.batch * heads).into_par_iter().for_each(|index| {
            // SAFETY: a task writes the channels of its own head in its own image, and nobody else's.
            unsafe { shape.forward(&values, index, writer.get()) }
        });
        slices::tensor(out.into_iter().map(T::narrow).collect::<Vec<T>>(), (shape.batch, shape.tokens, shape.width))
    })
}

/// Gradient of qkv (B, T, 3·C) from that of the output (B, T, C).
pub(crate) fn backward(qkv: &Tensor, dout: &Tensor, heads: usize) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if qkv.device().is_cuda() {
        return super::cuda::attention::backward(qkv, dout, heads);
    }
    by_dtype!(qkv, NAME, T => {
        let shape = Heads::of(qkv, heads)?;
        let (values, dout) = (widened::<T>(qkv)?, widened::<T>(dout)?);
        if dout.len() * 3 != values.len() {
            candle_core::bail!("{NAME}: a gradient of {} values for {}", dout.len(), values.len() / 3);
        }
        let mut out = vec![0f32; values.len()];
        let writer = Disjoint(out.as_mut_ptr());
        (0..shape.batch * heads).into_par_iter().for_each(|index| {
            // SAFETY: a task writes the channels of its own head in its own image, and nobody else's.
            unsafe { shape.backward(&values, &dout, index, writer.get()) }
        });
        slices::tensor(out.into_iter().map(T::narrow).collect::<Vec<T>>(), qkv.shape())
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

    /// q, k and v of head `index % N` in image `index / N`: rows of d, 3·C apart.
    fn qkv<'v>(&self, values: &'v [f32], index: usize) -> [&'v [f32]; 3] {
        let image = &values[index / self.heads * self.tokens * 3 * self.width..][..self.tokens * 3 * self.width];
        let first = index % self.heads * self.d;
        [&image[first..], &image[self.width + first..], &image[2 * self.width + first..]]
    }

    /// # Safety
    /// `out` is (B, T, C), and nobody else touches the channels of head `index`.
    unsafe fn forward(&self, values: &[f32], index: usize, out: *mut f32) {
        let (tokens, d, stride) = (self.tokens, self.d, 3 * self.width);
        let [q, k, v] = self.qkv(values, index);
        let at = index / self.heads * tokens * self.width + index % self.heads * d;
        let mut scores = vec![0f32; QUERY_ROWS.min(tokens) * tokens];
        for first in (0..tokens).step_by(QUERY_ROWS) {
            let rows = QUERY_ROWS.min(tokens - first);
            let scores = &mut scores[..rows * tokens];
            // SAFETY: rows and columns stay within the head's channels of this image; `scores` is ours.
            unsafe {
                let q = q.as_ptr().add(first * stride);
                product(
                    [rows, tokens, d],
                    (q, [stride, 1]),
                    (k.as_ptr(), [1, stride]),
                    self.scale(),
                    (scores.as_mut_ptr(), tokens),
                    false,
                );
                scores.chunks_exact_mut(tokens).for_each(softmax);
                let out = out.add(at + first * self.width);
                product(
                    [rows, d, tokens],
                    (scores.as_ptr(), [tokens, 1]),
                    (v.as_ptr(), [stride, 1]),
                    1.0,
                    (out, self.width),
                    false,
                );
            }
        }
    }

    /// With P the weights: dV = Pᵀ·dO, dP = dO·Vᵀ, dS = P∘(dP − rowsum(P∘dP)), dQ = s·dS·K, dK = s·dSᵀ·Q.
    ///
    /// # Safety
    /// `dqkv` is (B, T, 3·C), zero, and nobody else touches the channels of head `index`.
    unsafe fn backward(&self, values: &[f32], dout: &[f32], index: usize, dqkv: *mut f32) {
        let (tokens, d, width) = (self.tokens, self.d, self.width);
        let stride = 3 * width;
        let [q, k, v] = self.qkv(values, index);
        let head = index % self.heads * d;
        let dout = &dout[index / self.heads * tokens * width + head..];
        let at = index / self.heads * tokens * stride + head;
        let mut weights = vec![0f32; QUERY_ROWS.min(tokens) * tokens];
        let mut slopes = weights.clone();
        for first in (0..tokens).step_by(QUERY_ROWS) {
            let rows = QUERY_ROWS.min(tokens - first);
            let (weights, slopes) = (&mut weights[..rows * tokens], &mut slopes[..rows * tokens]);
            // SAFETY: rows and columns stay within the head's channels of this image; the scratch is ours.
            unsafe {
                let q = q.as_ptr().add(first * stride);
                let dout = dout.as_ptr().add(first * width);
                let [dq, dk, dv] = [dqkv.add(at), dqkv.add(at + width), dqkv.add(at + 2 * width)];
                let s = self.scale();
                product(
                    [rows, tokens, d],
                    (q, [stride, 1]),
                    (k.as_ptr(), [1, stride]),
                    s,
                    (weights.as_mut_ptr(), tokens),
                    false,
                );
                weights.chunks_exact_mut(tokens).for_each(softmax);
                product(
                    [tokens, d, rows],
                    (weights.as_ptr(), [1, tokens]),
                    (dout, [width, 1]),
                    1.0,
                    (dv, stride),
                    true,
                );
                product(
                    [rows, tokens, d],
                    (dout, [width, 1]),
                    (v.as_ptr(), [1, stride]),
                    1.0,
                    (slopes.as_mut_ptr(), tokens),
                    false,
                );
                for (weights, slopes) in weights.chunks_exact(tokens).zip(slopes.chunks_exact_mut(tokens)) {
                    let mean: f32 = weights.iter().zip(&*slopes).map(|(p, dp)| p * dp).sum();
                    for (dp, p) in slopes.iter_mut().zip(weights) {
                        *dp = p * (*dp - mean);
                    }
                }
                product(
                    [rows, d, tokens],
                    (slopes.as_ptr(), [tokens, 1]),
                    (k.as_ptr(), [stride, 1]),
                    s,
                    (dq.add(first * stride), stride),
                    false,
                );
                product([tokens, d, rows], (slopes.as_ptr(), [1, tokens]), (q, [stride, 1]), s, (dk, stride), true);
            }
        }
    }
}

fn softmax(row: &mut [f32]) {
    let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut total = 0f32;
    for value in row.iter_mut() {
        *value = (*value - most).exp();
        total += *value;
    }
    let scale = 1.0 / total;
    for value in row.iter_mut() {
        *value *= scale;
    }
}

fn widened<T: Element>(x: &Tensor) -> Result<Vec<f32>> {
    Ok(read::<T>(x, NAME)?.iter().map(|x| x.wide()).collect())
}
