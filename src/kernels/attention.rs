//! Multi-head attention over a fused qkv, straight from its strides: no per-head copies of q, k and v.
//!
//! A tile's rows of queries at a time, whose weights never leave the nearest cache. The backward pass computes them again
//! instead of keeping B·N·T² of them.

use std::mem::MaybeUninit;

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

use super::gemm::{Number, Right, Scratch, Strip, evenly, with_scratch};
use super::relative::Relative;
use super::rows::{exponentials, softmax_gradient};
use super::simd::{Isa, Task, dispatch};
use super::slices::{self, Disjoint, Element, by_dtype, read};

const NAME: &str = "attention";

/// Queries of the backward pass whose weights and slopes are held at a time: they stay in a second-level cache at the sizes
/// ViTs use, and are enough for the sums over queries to be worth it.
const GROUP_ROWS: usize = 56;

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
        let [keys, values, queries, weights, sums] = scratch.free.parts([
            Right::room::<S>(d, tokens),
            Right::room::<S>(tokens, d),
            Strip::room(S::ROWS, d),
            Strip::room(S::ROWS, tokens),
            Strip::room(S::ROWS, d),
        ]);
        let [queries, weights, sums] =
            [(queries, d), (weights, tokens), (sums, d)].map(|(at, columns)| Strip::new(at, S::ROWS, columns));
        // SAFETY: rows and columns stay within the head's channels of this image; the scratch is ours, and has the room.
        unsafe {
            let keys = Right::pack::<S, T>(k, [1, stride], (d, tokens), keys);
            let values = Right::pack::<S, T>(v, [stride, 1], (tokens, d), values);
            for rows in evenly(0..tokens, S::ROWS) {
                let count = rows.len();
                queries.fill::<S, T>((q.add(rows.start * stride), stride), count, shape.scale());
                queries.times::<S>(0..count, keys, (weights, 0), false);
                let mut totals = [0f32; 16];
                for (row, total) in totals.iter_mut().enumerate().take(count) {
                    if let Some(relative) = relative {
                        let token = rows.start + row;
                        let query = &qkv[shape.parts(index)[0] + token * stride..][..d];
                        add_relative(relative, (index % shape.heads, token), query, (weights, row), tokens);
                    }
                    *total = exponentials::<S>(weights, row);
                }
                weights.times::<S>(0..count, values, (sums, 0), false);
                for (row, total) in totals.iter().enumerate().take(count) {
                    let to = out.add(shape.out(index) + (rows.start + row) * width);
                    sums.write::<S, T>(row, 1.0 / total, to);
                }
            }
        }
    }
}

/// Adds what `relative` has for `token` in `head` to row `row` of the logits.
///
/// # Safety
/// The row exists, and is `tokens` wide.
unsafe fn add_relative<T: Element>(
    relative: &Relative,
    (head, token): (usize, usize),
    query: &[T],
    (logits, row): (Strip, usize),
    tokens: usize,
) {
    let query: Vec<f32> = query.iter().map(|value| value.wide()).collect();
    let mut values = vec![0f32; tokens];
    relative.add(head, token, &query, &mut values);
    for block in logits.blocks() {
        let at = logits.place(row, block.start);
        for (i, value) in values[block].iter().enumerate() {
            // SAFETY: the caller's.
            unsafe { *at.add(i) += value };
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
        let most = GROUP_ROWS.min(tokens);
        let right = |k: usize, n: usize| Right::room::<S>(k, n);
        let [
            keys_turned,
            values_turned,
            keys,
            queries_right,
            grads_right,
            queries,
            grads,
            weights,
            slopes,
            sums,
            dks,
            dvs,
        ] = scratch.free.parts([
            right(d, tokens),
            right(d, tokens),
            right(tokens, d),
            right(most, d),
            right(most, d),
            Strip::room(most, d),
            Strip::room(most, d),
            Strip::room(most, tokens),
            Strip::room(most, tokens),
            Strip::room(S::ROWS, d),
            Strip::room(tokens, d),
            Strip::room(tokens, d),
        ]);
        let [queries, grads] = [queries, grads].map(|at| Strip::new(at, most, d));
        let [weights, slopes] = [weights, slopes].map(|at| Strip::new(at, most, tokens));
        let sums = Strip::new(sums, S::ROWS, d);
        // Over the groups of queries, in f32.
        let [dks, dvs] = [dks, dvs].map(|at| Strip::new(at, tokens, d));
        // SAFETY: rows and columns stay within the head's channels of this image; the scratch is ours, and has the room.
        unsafe {
            let keys_turned = Right::pack::<S, T>(k, [1, stride], (d, tokens), keys_turned);
            let values_turned = Right::pack::<S, T>(v, [1, stride], (d, tokens), values_turned);
            let keys = Right::pack::<S, T>(k, [stride, 1], (tokens, d), keys);
            for group in evenly(0..tokens, GROUP_ROWS) {
                let (q, dout, count) = (q.add(group.start * stride), dout.add(group.start * width), group.len());
                queries.fill::<S, T>((q, stride), count, scale);
                grads.fill::<S, T>((dout, width), count, 1.0);
                for rows in evenly(0..count, S::ROWS) {
                    queries.times::<S>(rows.clone(), keys_turned, (weights, rows.start), false);
                    grads.times::<S>(rows.clone(), values_turned, (slopes, rows.start), false);
                    for row in rows.clone() {
                        let total = exponentials::<S>(weights, row);
                        softmax_gradient::<S>(weights, slopes, row, 1.0 / total);
                    }
                    slopes.times::<S>(rows.clone(), keys, (sums, 0), false);
                    for row in 0..rows.len() {
                        sums.write::<S, T>(row, scale, dq.wrapping_add((group.start + rows.start + row) * stride));
                    }
                }
                let queries = Right::pack::<S, T>(q, [stride, 1], (count, d), queries_right);
                let grads = Right::pack::<S, T>(dout, [width, 1], (count, d), grads_right);
                for block in weights.blocks() {
                    for columns in evenly(block, S::ROWS) {
                        let add = group.start > 0;
                        weights.turned_times::<S>(0..count, columns.clone(), grads, dvs, add);
                        slopes.turned_times::<S>(0..count, columns, queries, dks, add);
                    }
                }
            }
            for row in 0..tokens {
                dks.write::<S, T>(row, scale, dk.wrapping_add(row * stride));
                dvs.write::<S, T>(row, 1.0, dv.wrapping_add(row * stride));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::simd::{Kind, dispatch_on};

    /// One head of one image in f64, term by term: the output (T, d), and the gradient of qkv (T, 3·d) from that of the
    /// output.
    fn defined(qkv: &[f32], dout: &[f32], tokens: usize, d: usize) -> (Vec<f64>, Vec<f64>) {
        let scale = (d as f64).powf(-0.5);
        let part = |token: usize, part: usize, c: usize| f64::from(qkv[token * 3 * d + part * d + c]);
        let dot = |f: &dyn Fn(usize) -> f64| (0..d).map(f).sum::<f64>();
        let (mut out, mut dqkv) = (vec![0f64; tokens * d], vec![0f64; tokens * 3 * d]);
        for i in 0..tokens {
            let exponentials: Vec<f64> =
                (0..tokens).map(|j| (scale * dot(&|c| part(i, 0, c) * part(j, 1, c))).exp()).collect();
            let total: f64 = exponentials.iter().sum();
            let weights: Vec<f64> = exponentials.iter().map(|e| e / total).collect();
            let slopes: Vec<f64> = (0..tokens).map(|j| dot(&|c| f64::from(dout[i * d + c]) * part(j, 2, c))).collect();
            let mean: f64 = weights.iter().zip(&slopes).map(|(w, s)| w * s).sum();
            for j in 0..tokens {
                let slope = scale * weights[j] * (slopes[j] - mean);
                for c in 0..d {
                    out[i * d + c] += weights[j] * part(j, 2, c);
                    dqkv[i * 3 * d + c] += slope * part(j, 1, c);
                    dqkv[j * 3 * d + d + c] += slope * part(i, 0, c);
                    dqkv[j * 3 * d + 2 * d + c] += weights[j] * f64::from(dout[i * d + c]);
                }
            }
        }
        (out, dqkv)
    }

    fn worst(ours: &[f32], defined: &[f64]) -> f64 {
        ours.iter().zip(defined).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max)
    }

    /// More tokens than a group of queries has, and more tokens or channels than a block of a product.
    #[test]
    fn every_instruction_set_computes_it_by_its_definition() {
        for (tokens, d) in [(1, 1), (5, 3), (61, 16), (420, 20), (30, 400)] {
            let wave = |len: usize, step: f32| (0..len).map(|i| (i as f32 * step).sin()).collect::<Vec<f32>>();
            let (qkv, dout) = (wave(tokens * 3 * d, 0.73), wave(tokens * d, 0.41));
            let (expected, gradient) = defined(&qkv, &dout, tokens, d);
            let shape = Heads { batch: 1, heads: 1, tokens, width: d, d };
            for kind in Kind::available() {
                let (mut out, mut dqkv) = (vec![f32::NAN; tokens * d], vec![f32::NAN; tokens * 3 * d]);
                with_scratch(|scratch| {
                    let (out, dqkv) = (out.as_mut_ptr(), dqkv.as_mut_ptr());
                    // SAFETY: the instructions are there, and all slices are as long as one head of one image.
                    unsafe {
                        let task = Forward { shape: &shape, qkv: &qkv, relative: None, index: 0, out, scratch };
                        dispatch_on(kind, task);
                        let task = Backward { shape: &shape, qkv: &qkv, dout: &dout, index: 0, dqkv, scratch };
                        dispatch_on(kind, task);
                    }
                });
                // Sums of up to 420 products of values up to 1, in f32.
                assert!(worst(&out, &expected) < 2e-6, "{kind:?}, {tokens} × {d}: {}", worst(&out, &expected));
                assert!(worst(&dqkv, &gradient) < 1e-5, "{kind:?}, {tokens} × {d}: {}", worst(&dqkv, &gradient));
            }
        }
    }
}
