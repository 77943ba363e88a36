//! AVX2 with FMA: 6 × 16 tiles, 12 of the 16 registers accumulating.

use std::arch::x86_64::*;

use super::isa::{Asks, Isa, Panel, ROW_STRIDE, pace};
use crate::kernels::simd::Avx2;

impl Isa for Avx2 {
    const ROWS: usize = 6;
    const COLS: usize = 16;
    const COLUMN_STRIDE: usize = 6;

    #[inline(always)]
    unsafe fn tile(
        panel: Panel,
        (rows, cols, depth): (usize, usize, usize),
        operands: (*const f32, *const f32),
        out: (*mut f32, usize),
        add: bool,
        asks: Option<&Asks>,
    ) {
        macro_rules! tiles {
            ($($n:literal)*) => {
                match (panel, rows, cols > 8) {
                    // SAFETY: the caller's, and AVX2 is there: `Isa`'s functions are called in its code only.
                    $((Panel::Rows, $n, true) => unsafe { tile::<$n, 2, ROW_STRIDE>(1, depth, operands, out, add, asks) },)*
                    // SAFETY: as above.
                    $((Panel::Rows, $n, false) => unsafe { tile::<$n, 1, ROW_STRIDE>(1, depth, operands, out, add, asks) },)*
                    // SAFETY: as above.
                    $((Panel::Columns(step), $n, true) => unsafe { tile::<$n, 2, 1>(step, depth, operands, out, add, asks) },)*
                    // SAFETY: as above.
                    $((Panel::Columns(step), $n, false) => unsafe { tile::<$n, 1, 1>(step, depth, operands, out, add, asks) },)*
                    _ => debug_assert!(false, "{rows} rows"),
                }
            };
        }
        tiles!(1 2 3 4 5 6);
    }
}

/// W vectors of columns are computed; elements of `a` are ROW apart from row to row and `step` from product to product.
///
/// # Safety
/// [`Isa::tile`]'s, and AVX2 with FMA.
#[target_feature(enable = "avx2,fma")]
unsafe fn tile<const N: usize, const W: usize, const ROW: usize>(
    step: usize,
    depth: usize,
    (mut a, mut b): (*const f32, *const f32),
    (out, stride): (*mut f32, usize),
    add: bool,
    asks: Option<&Asks>,
) {
    let mut sums = [[_mm256_setzero_ps(); W]; N];
    // SAFETY: every offset lies inside the panels the caller promises.
    unsafe {
        let (steps, pace) = pace(asks, depth, N);
        for index in 0..=steps {
            if let Some(asks) = asks.filter(|_| index < steps) {
                asks.ask::<Avx2>(index);
            }
            for _ in 0..if index < steps { pace } else { depth - steps * pace } {
                let columns: [_; W] = std::array::from_fn(|half| _mm256_loadu_ps(b.add(half * 8)));
                for (i, sum) in sums.iter_mut().enumerate() {
                    let value = _mm256_set1_ps(*a.add(i * ROW));
                    for (sum, column) in sum.iter_mut().zip(columns) {
                        *sum = _mm256_fmadd_ps(value, column, *sum);
                    }
                }
                a = a.add(step);
                b = b.add(16);
            }
        }
        for (i, sum) in sums.iter_mut().enumerate() {
            for (half, sum) in sum.iter_mut().enumerate() {
                let to = out.add(i * stride + half * 8);
                if add {
                    *sum = _mm256_add_ps(_mm256_loadu_ps(to), *sum);
                }
                _mm256_storeu_ps(to, *sum);
            }
        }
    }
}
