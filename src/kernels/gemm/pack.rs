//! Copies of operands in the order the inner loop reads them, widened to f32 on the way.

use std::ops::Range;

use super::isa::{Ask, Isa, Panel, ROW_STRIDE};
use crate::kernels::simd::{Lane, vectors};

/// Lines of an operand, apart by more than a processor guesses, that are asked for before they are packed.
const AHEAD: usize = 4;

/// Where an operand's elements are: (row, column) is at `row · strides.0 + column · strides.1`.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct View<T> {
    pub(super) at: *const T,
    pub(super) strides: (usize, usize),
}

impl<T> View<T> {
    /// # Safety
    /// The element exists, or is one past the last.
    #[inline(always)]
    unsafe fn pointer(self, row: usize, column: usize) -> *const T {
        // SAFETY: the caller's.
        unsafe { self.at.add(row * self.strides.0 + column * self.strides.1) }
    }

    /// What a panel of A whose first row is `row` has from `column` on. The line a row begins in was there with the panel
    /// before, where columns are what is contiguous.
    #[inline(always)]
    pub(super) fn ask_a(self, panel: Panel, row: usize, rows: usize, column: usize) -> Ask {
        let at = |row: usize| self.at.wrapping_add(row * self.strides.0 + column * self.strides.1).cast();
        let [row_apart, column_apart] = [self.strides.0, self.strides.1].map(|stride| stride * size_of::<T>());
        match panel {
            Panel::Rows => Ask { at: at(row), twin: 64, step: row_apart },
            Panel::Columns(_) => Ask { at: at(row + rows - 1), twin: column_apart, step: 2 * column_apart },
        }
    }

    /// A row of B from (row, column) on, where rows are what is contiguous.
    #[inline(always)]
    pub(super) fn ask_b(self, row: usize, column: usize) -> Option<Ask> {
        let at = self.at.wrapping_add(row * self.strides.0 + column);
        (self.strides.1 == 1).then_some(Ask { at: at.cast(), twin: 64, step: 128 })
    }
}

/// Packs a panel of A, which has `m` rows: rows `rows`, columns `span`.
///
/// # Safety
/// The elements exist, and `to` has room for a panel.
#[inline(always)]
pub(super) unsafe fn pack_a<I: Isa, T: Lane>(
    a: View<T>,
    (panel, m): (Panel, usize),
    rows: Range<usize>,
    span: Range<usize>,
    to: *mut f32,
) {
    // SAFETY: the caller's.
    unsafe {
        match panel {
            Panel::Rows => pack_rows::<I, T>(a, rows, span, to),
            Panel::Columns(apart) => pack_columns::<I, T>(a, m, rows, span, (to, apart)),
        }
    }
}

/// Packs a panel of A, its rows `ROW_STRIDE` apart: rows `rows`, columns `span`.
///
/// # Safety
/// The elements exist, and `to` has room for `I::ROWS` rows.
#[inline(always)]
unsafe fn pack_rows<I: Isa, T: Lane>(a: View<T>, rows: Range<usize>, span: Range<usize>, to: *mut f32) {
    for (i, row) in rows.enumerate() {
        // SAFETY: the caller's.
        unsafe {
            let (from, to) = (a.pointer(row, span.start), to.add(i * ROW_STRIDE));
            if a.strides.1 == 1 {
                vectors!(I, span.len(), |d, n| {
                    f32::store::<I>(to.add(d), n, T::load::<I>(from.add(d), n));
                });
            } else {
                for d in 0..span.len() {
                    *to.add(d) = (*from.add(d * a.strides.1)).widen();
                }
            }
        }
    }
}

/// Packs a panel of A column by column, `apart`: rows `rows`, columns `span`. A's columns are contiguous, `m`
/// long.
///
/// # Safety
/// The elements exist, and `to` has room for `span.len()` columns.
#[inline(always)]
unsafe fn pack_columns<I: Isa, T: Lane>(
    a: View<T>,
    m: usize,
    rows: Range<usize>,
    span: Range<usize>,
    (to, apart): (*mut f32, usize),
) {
    // A whole vector is copied sooner than a part of one; nobody looks at the rest.
    let whole = apart == I::LANES && rows.start + I::LANES <= m;
    let count = if whole { I::LANES } else { rows.len() };
    for (d, column) in span.enumerate() {
        // SAFETY: the caller's; a panel's rows fit a vector, and a prefetch never faults.
        unsafe {
            I::prefetch(a.at.wrapping_add(rows.start + (column + AHEAD) * a.strides.1).cast());
            let (from, to) = (a.pointer(rows.start, column), to.add(d * apart));
            f32::store::<I>(to, count, T::load::<I>(from, count));
        }
    }
}

/// Puts the sum of each row of a packed panel (rows, depth) in `sums` or, with `add`, adds it to what is there.
///
/// # Safety
/// The panel is packed in a buffer with room for any, and there are as many sums as rows.
#[inline(always)]
pub(super) unsafe fn add_rows<I: Isa>(
    (a, panel): (*const f32, Panel),
    (rows, depth): (usize, usize),
    sums: *mut f32,
    add: bool,
) {
    // SAFETY: the caller's.
    unsafe {
        let total = match panel {
            Panel::Rows => {
                let mut totals = [0f32; 16];
                for (i, total) in totals.iter_mut().enumerate().take(rows) {
                    let mut partial = I::splat(0.0);
                    vectors!(I, depth, |d, n| {
                        partial = I::add(partial, f32::load::<I>(a.add(i * ROW_STRIDE + d), n));
                    });
                    *total = I::sum(partial);
                }
                I::load(totals.as_ptr())
            }
            Panel::Columns(apart) => {
                // Several sums, or each addition would wait for the last.
                let mut partial = [I::splat(0.0); 4];
                for d in 0..depth {
                    // A panel's rows fit a vector; what comes after them is not looked at.
                    partial[d % 4] = I::add(partial[d % 4], I::load(a.add(d * apart)));
                }
                I::add(I::add(partial[0], partial[1]), I::add(partial[2], partial[3]))
            }
        };
        let total = if add { I::add(total, f32::load::<I>(sums, rows)) } else { total };
        f32::store::<I>(sums, rows, total);
    }
}

/// Packs rows `span` of panels `panels` of B, which has `n` columns: each panel (depth, I::COLS), zeros on the right.
///
/// # Safety
/// The elements exist, and `to` has room.
#[inline(always)]
pub(super) unsafe fn pack_b<I: Isa, T: Lane>(
    b: View<T>,
    panels: Range<usize>,
    n: usize,
    span: Range<usize>,
    to: *mut f32,
) {
    let (depth, size) = (span.len(), span.len() * I::COLS);
    if b.strides.1 == 1 {
        // Row by row: what lies side by side is read side by side.
        for (d, row) in span.enumerate() {
            for (at, panel) in panels.clone().enumerate() {
                let column = panel * I::COLS;
                for j in (0..I::COLS).step_by(I::LANES) {
                    let count = I::LANES.min(n.saturating_sub(column + j));
                    // SAFETY: the caller's, and a prefetch never faults.
                    unsafe {
                        I::prefetch(b.at.wrapping_add((row + AHEAD) * b.strides.0 + column + j).cast());
                        let v = match count {
                            0 => I::splat(0.0),
                            count => T::load::<I>(b.pointer(row, column + j), count),
                        };
                        I::store(to.add(at * size + d * I::COLS + j), v);
                    }
                }
            }
        }
        return;
    }
    for (at, panel) in panels.enumerate() {
        let column = panel * I::COLS;
        for j in (0..I::COLS).step_by(16) {
            let count = 16.min(n.saturating_sub(column + j));
            for d in (0..depth).step_by(16) {
                let counts = (16.min(depth - d), count);
                // SAFETY: the caller's; an empty square is not looked for.
                unsafe {
                    let from = if count == 0 { b.at } else { b.pointer(span.start + d, column + j) };
                    let to = to.add(at * size + d * I::COLS + j);
                    if b.strides.0 == 1 {
                        I::transpose(from, b.strides.1, counts, to, I::COLS);
                    } else {
                        gather(View { at: from, strides: b.strides }, counts, to, I::COLS);
                    }
                }
            }
        }
    }
}

/// Any (counts.0, counts.1) square into rows of 16, zeros on the right.
///
/// # Safety
/// The elements exist, and `to` has room.
#[inline(always)]
unsafe fn gather<T: Lane>(from: View<T>, counts: (usize, usize), to: *mut f32, stride: usize) {
    for i in 0..counts.0 {
        for j in 0..16 {
            // SAFETY: the caller's.
            unsafe { *to.add(i * stride + j) = if j < counts.1 { (*from.pointer(i, j)).widen() } else { 0.0 } };
        }
    }
}
