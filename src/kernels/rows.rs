//! Softmax over rows in a task's scratch.

use super::normal::exp;
use super::simd::{Simd, vectors};

/// exp(x − max) / Σ, in place.
///
/// # Safety
/// [`Simd`]'s; `row` holds `len` values.
#[inline(always)]
pub(super) unsafe fn softmax<S: Simd>(row: *mut f32, len: usize) {
    // SAFETY: the caller's.
    unsafe {
        let mut most = S::splat(f32::NEG_INFINITY);
        let mut at = 0;
        while at + S::LANES <= len {
            most = S::max(S::load(row.add(at)), most);
            at += S::LANES;
        }
        let mut most = S::largest(most);
        for i in at..len {
            most = most.max(*row.add(i));
        }
        let (most, mut total) = (S::splat(-most), S::splat(0.0));
        vectors!(S, len, |i, n| {
            let e = exp::<S>(S::add(load::<S>(row.add(i), n), most));
            store::<S>(row.add(i), n, e);
            // Lanes beyond the row are exp(−max), which is not part of the sum.
            total = S::add(total, if n == S::LANES { e } else { load::<S>(row.add(i), n) });
        });
        let scale = S::splat(1.0 / S::sum(total));
        vectors!(S, len, |i, n| {
            store::<S>(row.add(i), n, S::mul(load::<S>(row.add(i), n), scale));
        });
    }
}

/// Gradient of [`softmax`]'s input from its output p and the gradient of that, in place: p·(dp − Σ p·dp).
///
/// # Safety
/// [`Simd`]'s; both hold `len` values.
#[inline(always)]
pub(super) unsafe fn softmax_gradient<S: Simd>(p: *const f32, dp: *mut f32, len: usize) {
    // SAFETY: the caller's.
    unsafe {
        let mut total = S::splat(0.0);
        vectors!(S, len, |i, n| {
            total = S::fma(load::<S>(p.add(i), n), load::<S>(dp.add(i), n), total);
        });
        let mean = S::splat(S::sum(total));
        vectors!(S, len, |i, n| {
            let slope = S::sub(load::<S>(dp.add(i), n), mean);
            store::<S>(dp.add(i), n, S::mul(load::<S>(p.add(i), n), slope));
        });
    }
}

#[inline(always)]
unsafe fn load<S: Simd>(from: *const f32, n: usize) -> S::V {
    // SAFETY: the caller's.
    unsafe { <f32 as super::simd::Lane>::load::<S>(from, n) }
}

#[inline(always)]
unsafe fn store<S: Simd>(to: *mut f32, n: usize, v: S::V) {
    // SAFETY: the caller's.
    unsafe { <f32 as super::simd::Lane>::store::<S>(to, n, v) }
}
