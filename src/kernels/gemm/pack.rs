//! Copies of operands in the order the inner loop reads them, widened to f32 on the way.

use super::element::Element;
use super::isa::{Isa, Panel, ROW_STRIDE};

/// Where an operand's elements are: (row, column) is at `row · strides.0 + column · strides.1`.
#[derive(Clone, Copy)]
pub(super) struct View<T> {
    pub(super) at: *const T,
    pub(super) strides: (usize, usize),
}

impl<T> View<T> {
    /// # Safety
    /// The element exists.
    #[inline(always)]
    unsafe fn pointer(self, row: usize, column: usize) -> *const T {
        // SAFETY: the caller's.
        unsafe { self.at.add(row * self.strides.0 + column * self.strides.1) }
    }
}

/// Packs rows `row..row + rows` and columns `k..k + depth` of A, and says in which order.
///
/// # Safety
/// The elements exist, and `to` has room for `I::ROWS` rows of `ROW_STRIDE`.
#[inline(always)]
pub(super) unsafe fn pack_a<I: Isa, T: Element>(
    a: View<T>,
    (row, rows): (usize, usize),
    (k, depth): (usize, usize),
    to: *mut f32,
) -> Panel {
    // SAFETY: the caller's; what is written stays within `rows` rows of `ROW_STRIDE` or `depth` columns of
    // `COLUMN_STRIDE`, which is less.
    unsafe {
        if a.strides.1 == 1 || a.strides.0 != 1 {
            for i in 0..rows {
                let (from, to) = (a.pointer(row + i, k), to.add(i * ROW_STRIDE));
                if a.strides.1 == 1 {
                    copy(from, to, depth);
                } else {
                    for d in 0..depth {
                        *to.add(d) = (*from.add(d * a.strides.1)).widen();
                    }
                }
            }
            return Panel::Rows;
        }
        for d in 0..depth {
            let (from, to) = (a.pointer(row, k + d), to.add(d * I::COLUMN_STRIDE));
            if rows == I::ROWS {
                copy(from, to, I::ROWS);
            } else {
                copy(from, to, rows);
            }
        }
        Panel::Columns
    }
}

/// Packs rows `k..k + depth` and columns `column..column + cols` of B as (depth, I::COLS), zeros on the right.
///
/// # Safety
/// The elements exist, `cols ≤ I::COLS`, and `to` has room.
#[inline(always)]
pub(super) unsafe fn pack_b<I: Isa, T: Element>(
    b: View<T>,
    (k, depth): (usize, usize),
    (column, cols): (usize, usize),
    to: *mut f32,
) {
    // SAFETY: the caller's.
    unsafe {
        if cols == I::COLS && b.strides.1 == 1 {
            for d in 0..depth {
                copy(b.pointer(k + d, column), to.add(d * I::COLS), I::COLS);
            }
            return;
        }
        // Whole squares are transposed in registers where the columns are what is contiguous.
        let (mut columns_done, mut depth_done) = (0, 0);
        if b.strides.0 == 1 {
            (columns_done, depth_done) = (cols / 16 * 16, depth / 16 * 16);
            for j in (0..columns_done).step_by(16) {
                for d in (0..depth_done).step_by(16) {
                    I::transpose(b.pointer(k + d, column + j), b.strides.1, to.add(d * I::COLS + j), I::COLS);
                }
            }
        }
        for d in 0..depth {
            let first = if d < depth_done { columns_done } else { 0 };
            for j in first..cols {
                *to.add(d * I::COLS + j) = (*b.pointer(k + d, column + j)).widen();
            }
            for j in cols..I::COLS {
                *to.add(d * I::COLS + j) = 0.0;
            }
        }
    }
}

/// # Safety
/// `len` elements exist on both sides, apart from each other.
#[inline(always)]
unsafe fn copy<T: Element>(from: *const T, to: *mut f32, len: usize) {
    for i in 0..len {
        // SAFETY: the caller's.
        unsafe { *to.add(i) = (*from.add(i)).widen() };
    }
}
