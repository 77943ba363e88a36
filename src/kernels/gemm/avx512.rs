//! AVX-512: 14 × 32 tiles, 28 of the 32 registers accumulating.

use std::arch::x86_64::*;

use super::isa::{Asks, Isa, Panel, ROW_STRIDE, pace};
use crate::kernels::simd::{Avx512, Lane};

impl Isa for Avx512 {
    const ROWS: usize = 14;
    const COLS: usize = 32;
    const COLUMN_STRIDE: usize = 16;

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
                match (panel, rows, cols > 16) {
                    // SAFETY: the caller's, and AVX-512 is there: `Isa`'s functions are called in its code only.
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
        tiles!(1 2 3 4 5 6 7 8 9 10 11 12 13 14);
    }

    #[inline(always)]
    unsafe fn transpose<T: Lane>(
        from: *const T,
        from_stride: usize,
        counts: (usize, usize),
        to: *mut f32,
        to_stride: usize,
    ) {
        // SAFETY: the caller's, and AVX-512 is there.
        unsafe { transpose(from, from_stride, counts, to, to_stride) }
    }
}

/// W vectors of columns are computed; elements of `a` are ROW apart from row to row and `step` from product to product.
///
/// # Safety
/// [`Isa::tile`]'s, and AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,fma")]
unsafe fn tile<const N: usize, const W: usize, const ROW: usize>(
    step: usize,
    depth: usize,
    (mut a, mut b): (*const f32, *const f32),
    (out, stride): (*mut f32, usize),
    add: bool,
    asks: Option<&Asks>,
) {
    let mut sums = [[_mm512_setzero_ps(); W]; N];
    // SAFETY: every offset lies inside the panels the caller promises.
    unsafe {
        let (steps, pace) = pace(asks, depth, N);
        for index in 0..=steps {
            if let Some(asks) = asks.filter(|_| index < steps) {
                asks.ask::<Avx512>(index);
            }
            for _ in 0..if index < steps { pace } else { depth - steps * pace } {
                let columns: [_; W] = std::array::from_fn(|half| _mm512_loadu_ps(b.add(half * 16)));
                for (i, sum) in sums.iter_mut().enumerate() {
                    let value = _mm512_set1_ps(*a.add(i * ROW));
                    for (sum, column) in sum.iter_mut().zip(columns) {
                        *sum = _mm512_fmadd_ps(value, column, *sum);
                    }
                }
                a = a.add(step);
                b = b.add(32);
            }
        }
        for (i, sum) in sums.iter_mut().enumerate() {
            for (half, sum) in sum.iter_mut().enumerate() {
                let to = out.add(i * stride + half * 16);
                if add {
                    *sum = _mm512_add_ps(_mm512_loadu_ps(to), *sum);
                }
                _mm512_storeu_ps(to, *sum);
            }
        }
    }
}

/// # Safety
/// [`Isa::transpose`]'s, and AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,fma")]
unsafe fn transpose<T: Lane>(
    from: *const T,
    from_stride: usize,
    counts: (usize, usize),
    to: *mut f32,
    to_stride: usize,
) {
    let mut r = [_mm512_setzero_ps(); 16];
    for (j, r) in r.iter_mut().enumerate().take(counts.1) {
        // SAFETY: row j has that many.
        *r = unsafe { T::load::<Avx512>(from.add(j * from_stride), counts.0) };
    }
    // Rows 4q..4q+4 are transposed in each 128-bit lane; lanes are then gathered across the four groups.
    let mut quads = [_mm512_setzero_ps(); 16];
    for q in 0..4 {
        let (a, b, c, d) = (r[4 * q], r[4 * q + 1], r[4 * q + 2], r[4 * q + 3]);
        let (ab_low, ab_high) = (_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        let (cd_low, cd_high) = (_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
        quads[4 * q] = _mm512_shuffle_ps::<0b01_00_01_00>(ab_low, cd_low);
        quads[4 * q + 1] = _mm512_shuffle_ps::<0b11_10_11_10>(ab_low, cd_low);
        quads[4 * q + 2] = _mm512_shuffle_ps::<0b01_00_01_00>(ab_high, cd_high);
        quads[4 * q + 3] = _mm512_shuffle_ps::<0b11_10_11_10>(ab_high, cd_high);
    }
    for i in 0..4 {
        // Lane l of quads[4q + i] is column 4l + i of rows 4q..4q+4.
        let even = _mm512_shuffle_f32x4::<0b10_00_10_00>(quads[i], quads[4 + i]);
        let odd = _mm512_shuffle_f32x4::<0b11_01_11_01>(quads[i], quads[4 + i]);
        let even_high = _mm512_shuffle_f32x4::<0b10_00_10_00>(quads[8 + i], quads[12 + i]);
        let odd_high = _mm512_shuffle_f32x4::<0b11_01_11_01>(quads[8 + i], quads[12 + i]);
        let columns = [
            _mm512_shuffle_f32x4::<0b10_00_10_00>(even, even_high),
            _mm512_shuffle_f32x4::<0b10_00_10_00>(odd, odd_high),
            _mm512_shuffle_f32x4::<0b11_01_11_01>(even, even_high),
            _mm512_shuffle_f32x4::<0b11_01_11_01>(odd, odd_high),
        ];
        for (l, column) in columns.into_iter().enumerate() {
            if 4 * l + i < counts.0 {
                // SAFETY: row 4l + i is writable.
                unsafe { _mm512_storeu_ps(to.add((4 * l + i) * to_stride), column) };
            }
        }
    }
}
