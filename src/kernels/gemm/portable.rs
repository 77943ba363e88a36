//! Any processor: 4 × 16 tiles in plain Rust, which compilers turn into whatever vectors there are.

use super::isa::{Asks, Isa, Panel, ROW_STRIDE};
use crate::kernels::simd::{Portable, Simd};

impl Isa for Portable {
    const ROWS: usize = 4;
    const COLS: usize = 16;
    const COLUMN_STRIDE: usize = 4;

    #[inline(always)]
    unsafe fn tile(
        panel: Panel,
        (rows, _, depth): (usize, usize, usize),
        (a, b): (*const f32, *const f32),
        (out, stride): (*mut f32, usize),
        add: bool,
        _asks: Option<&Asks>,
    ) {
        let (row, step) = match panel {
            Panel::Rows => (ROW_STRIDE, 1),
            Panel::Columns(step) => (1, step),
        };
        // SAFETY: the caller's; rows beyond `rows` are neither read nor written.
        unsafe {
            let mut sums = [[Self::splat(0.0); 2]; Self::ROWS];
            for k in 0..depth {
                let columns = [Self::load(b.add(k * Self::COLS)), Self::load(b.add(k * Self::COLS + Self::LANES))];
                for (i, sum) in sums.iter_mut().enumerate().take(rows) {
                    let value = Self::splat(*a.add(i * row + k * step));
                    *sum = [Self::fma(value, columns[0], sum[0]), Self::fma(value, columns[1], sum[1])];
                }
            }
            for (i, sum) in sums.into_iter().enumerate().take(rows) {
                for (half, sum) in sum.into_iter().enumerate() {
                    let to = out.add(i * stride + half * Self::LANES);
                    Self::store(to, if add { Self::add(Self::load(to), sum) } else { sum });
                }
            }
        }
    }
}
