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
        (rows, depth): (usize, usize),
        operands: (*const f32, *const f32),
        out: *mut f32,
        add: bool,
        asks: &Asks,
    ) {
        macro_rules! tiles {
            ($($n:literal)*) => {
                match (panel, rows) {
                    // SAFETY: the caller's, and AVX2 is there: `Isa`'s functions are called in its code only.
                    $((Panel::Rows, $n) => unsafe { tile::<$n, ROW_STRIDE, 1>(depth, operands, out, add, asks) },)*
                    // SAFETY: as above.
                    $((Panel::Columns, $n) => unsafe { tile::<$n, 1, 6>(depth, operands, out, add, asks) },)*
                    _ => debug_assert!(false, "{rows} rows"),
                }
            };
        }
        tiles!(1 2 3 4 5 6);
    }
}

/// # Safety
/// [`Isa::tile`]'s, and AVX2 with FMA.
#[target_feature(enable = "avx2,fma")]
unsafe fn tile<const N: usize, const ROW: usize, const STEP: usize>(
    depth: usize,
    (mut a, mut b): (*const f32, *const f32),
    out: *mut f32,
    add: bool,
    asks: &Asks,
) {
    let mut sums = [[_mm256_setzero_ps(); 2]; N];
    // SAFETY: every offset lies inside the panels the caller promises.
    unsafe {
        let pace = pace(depth, N);
        for index in 0..=N {
            if index < N {
                asks.ask::<Avx2>(index);
            }
            for _ in 0..if index < N { pace } else { depth - N * pace } {
                let columns = [_mm256_loadu_ps(b), _mm256_loadu_ps(b.add(8))];
                for (i, sum) in sums.iter_mut().enumerate() {
                    let value = _mm256_set1_ps(*a.add(i * ROW));
                    sum[0] = _mm256_fmadd_ps(value, columns[0], sum[0]);
                    sum[1] = _mm256_fmadd_ps(value, columns[1], sum[1]);
                }
                a = a.add(STEP);
                b = b.add(16);
            }
        }
        for (i, sum) in sums.iter_mut().enumerate() {
            for (half, sum) in sum.iter_mut().enumerate() {
                let to = out.add(i * 16 + half * 8);
                if add {
                    *sum = _mm256_add_ps(_mm256_loadu_ps(to), *sum);
                }
                _mm256_storeu_ps(to, *sum);
            }
        }
    }
}
