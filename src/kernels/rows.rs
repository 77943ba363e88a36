//! Softmax over rows of a strip, in a task's scratch.

use super::gemm::Strip;
use super::normal::exp;
use super::simd::{Simd, vectors};

/// exp(x − max) of a row, in place; returns their sum.
///
/// # Safety
/// [`Simd`]'s; the row exists.
#[inline(always)]
pub(super) unsafe fn exponentials<S: Simd>(strip: Strip, row: usize) -> f32 {
    // SAFETY: the caller's; a strip's rows may be read and written to the end of a vector.
    unsafe {
        let mut most = S::splat(f32::NEG_INFINITY);
        for block in strip.blocks() {
            let x = strip.place(row, block.start);
            vectors!(S, block.len(), |i, n| {
                let value = S::load(x.add(i));
                most = S::max(if n == S::LANES { value } else { S::first(n, value, most) }, most);
            });
        }
        let most = S::splat(-S::largest(most));
        let mut total = S::splat(0.0);
        for block in strip.blocks() {
            let x = strip.place(row, block.start);
            vectors!(S, block.len(), |i, n| {
                let e = exp::<S>(S::add(S::load(x.add(i)), most));
                S::store(x.add(i), e);
                total = S::add(total, if n == S::LANES { e } else { S::first(n, e, S::splat(0.0)) });
            });
        }
        S::sum(total)
    }
}

/// Makes softmax's output p of its exponentials, multiplying by `scale`, and of that output's gradient dp the gradient of its
/// input: p·(dp − Σ p·dp). Both in place.
///
/// # Safety
/// [`Simd`]'s; the row exists in both, which are of one shape.
#[inline(always)]
pub(super) unsafe fn softmax_gradient<S: Simd>(exponentials: Strip, slopes: Strip, row: usize, scale: f32) {
    // SAFETY: as above.
    unsafe {
        let mut total = S::splat(0.0);
        for block in exponentials.blocks() {
            let (p, dp) = (exponentials.place(row, block.start), slopes.place(row, block.start));
            vectors!(S, block.len(), |i, n| {
                let product = S::mul(S::load(p.add(i)), S::load(dp.add(i)));
                total = S::add(total, if n == S::LANES { product } else { S::first(n, product, S::splat(0.0)) });
            });
        }
        let (scale, mean) = (S::splat(scale), S::splat(S::sum(total) * scale));
        for block in exponentials.blocks() {
            let (p, dp) = (exponentials.place(row, block.start), slopes.place(row, block.start));
            vectors!(S, block.len(), |i, _n| {
                let weight = S::mul(S::load(p.add(i)), scale);
                S::store(p.add(i), weight);
                S::store(dp.add(i), S::mul(weight, S::sub(S::load(dp.add(i)), mean)));
            });
        }
    }
}
