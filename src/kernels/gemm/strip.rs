//! Products of a strip of rows at a time, for kernels that look at the strip between one product and the next.
//!
//! What a product leaves in a [`Strip`] is, as it lies, the left operand of the next one, and of a product of its transpose.

use std::ops::Range;

use super::drive::{Pack, blocks, span, step};
use super::isa::{Isa, Panel, ROW_STRIDE};
use super::serial::Number;
use crate::kernels::simd::{Lane, Simd, Task, vectors};

/// A right operand (k, n), packed.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct Right {
    at: *const f32,
    k: usize,
    n: usize,
}

impl Right {
    /// Values that (k, n) takes.
    pub(in crate::kernels) fn room<I: Isa>(k: usize, n: usize) -> usize {
        k * n.next_multiple_of(I::COLS)
    }

    /// Packs the matrix (k, n) whose element (i, j) is `i · strides[0] + j · strides[1]` values from `from`.
    ///
    /// # Safety
    /// The elements exist, `to` has the room asked for, and the caller is compiled for `I`.
    #[inline(always)]
    pub(in crate::kernels) unsafe fn pack<I: Isa, T: Number>(
        from: *const T,
        strides: [usize; 2],
        (k, n): (usize, usize),
        to: *mut f32,
    ) -> Self {
        let b = T::operand(from, strides);
        // SAFETY: the caller's.
        unsafe { Pack { b, n, k, blocks: 0..blocks(k), panels: 0..n.div_ceil(I::COLS), to }.run::<I>() };
        Self { at: to, k, n }
    }
}

/// Rows of f32 in blocks of columns, within which rows are contiguous and `ROW_STRIDE` apart. Whole vectors may be read and
/// written at the end of a row.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct Strip {
    at: *mut f32,
    rows: usize,
    columns: usize,
}

impl Strip {
    /// Values that (rows, columns) takes.
    pub(in crate::kernels) fn room(rows: usize, columns: usize) -> usize {
        rows * ROW_STRIDE * blocks(columns)
    }

    /// A strip in the room at `at`.
    pub(in crate::kernels) fn new(at: *mut f32, rows: usize, columns: usize) -> Self {
        Self { at, rows, columns }
    }

    /// Its blocks of columns.
    pub(in crate::kernels) fn blocks(self) -> impl Iterator<Item = Range<usize>> + Clone {
        (0..blocks(self.columns)).map(move |index| span(self.columns, index))
    }

    /// The element at (row, column); those after it in the same row and block follow.
    #[inline(always)]
    pub(in crate::kernels) fn place(self, row: usize, column: usize) -> *mut f32 {
        let step = step(self.columns);
        let (block, column) = if column < step { (0, column) } else { (column / step, column % step) };
        self.at.wrapping_add((block * self.rows + row) * ROW_STRIDE + column)
    }

    /// Puts `count` rows, `stride` apart from `from` on, in the strip's first, times `scale`.
    ///
    /// # Safety
    /// The values and the rows exist, and the caller is compiled for `S`.
    #[inline(always)]
    pub(in crate::kernels) unsafe fn fill<S: Simd, T: Lane>(
        self,
        (from, stride): (*const T, usize),
        count: usize,
        scale: f32,
    ) {
        for row in 0..count {
            for block in self.blocks() {
                let (from, to) = (from.wrapping_add(row * stride + block.start), self.place(row, block.start));
                // SAFETY: the caller's.
                unsafe {
                    vectors!(S, block.len(), |i, n| {
                        let value = S::mul(T::load::<S>(from.add(i), n), S::splat(scale));
                        f32::store::<S>(to.add(i), n, value);
                    });
                }
            }
        }
    }

    /// Writes row `row`, times `scale`, to `to`.
    ///
    /// # Safety
    /// The row exists, `to` has room for it, and the caller is compiled for `S`.
    #[inline(always)]
    pub(in crate::kernels) unsafe fn write<S: Simd, T: Lane>(self, row: usize, scale: f32, to: *mut T) {
        for block in self.blocks() {
            let (from, to) = (self.place(row, block.start), to.wrapping_add(block.start));
            // SAFETY: the caller's.
            unsafe {
                vectors!(S, block.len(), |i, n| {
                    T::store::<S>(to.add(i), n, S::mul(f32::load::<S>(from.add(i), n), S::splat(scale)));
                });
            }
        }
    }

    /// The product of `rows`, at most `ROWS` of them, with `right`, a matrix of as many rows as the strip has columns: put in
    /// `to` from row `row` on, or added to what is there with `add`.
    ///
    /// # Safety
    /// The rows exist in both strips, `to` is as wide as `right`, and the caller is compiled for `I`.
    #[inline(always)]
    pub(in crate::kernels) unsafe fn times<I: Isa>(
        self,
        rows: Range<usize>,
        right: Right,
        (to, row): (Self, usize),
        add: bool,
    ) {
        let panels = right.n.div_ceil(I::COLS);
        for j in 0..panels {
            let cols = I::COLS.min(right.n - j * I::COLS);
            for (index, block) in self.blocks().enumerate() {
                let shape = (rows.len(), cols, block.len());
                let b = right.at.wrapping_add((panels * block.start + j * block.len()) * I::COLS);
                let out = (to.place(row, j * I::COLS), ROW_STRIDE);
                // SAFETY: the caller's; a block of a strip is a panel of rows.
                unsafe {
                    let a = self.place(rows.start, block.start);
                    I::tile(Panel::Rows, shape, (a, b), out, add || index > 0, None);
                }
            }
        }
    }

    /// The product of the transpose of (`rows`, `columns`) with `right`, a matrix of as many rows: put in `to` from row
    /// `columns.start` on, or added to what is there with `add`. There are at most `ROWS` columns, of one block, and at most
    /// `MOST_DEPTH` rows.
    ///
    /// # Safety
    /// As [`Self::times`].
    #[inline(always)]
    pub(in crate::kernels) unsafe fn turned_times<I: Isa>(
        self,
        rows: Range<usize>,
        columns: Range<usize>,
        right: Right,
        to: Self,
        add: bool,
    ) {
        debug_assert_eq!(rows.len(), right.k);
        for j in 0..right.n.div_ceil(I::COLS) {
            let shape = (columns.len(), I::COLS.min(right.n - j * I::COLS), rows.len());
            let b = right.at.wrapping_add(j * rows.len() * I::COLS);
            let out = (to.place(columns.start, j * I::COLS), ROW_STRIDE);
            // SAFETY: the caller's; rows of a strip are columns of its transpose.
            unsafe {
                let a = self.place(rows.start, columns.start);
                I::tile(Panel::Columns(ROW_STRIDE), shape, (a, b), out, add, None);
            }
        }
    }
}

/// `range` in the fewest parts of at most `most`, as even as can be.
pub(in crate::kernels) fn evenly(range: Range<usize>, most: usize) -> impl Iterator<Item = Range<usize>> {
    let parts = range.len().div_ceil(most);
    let start = move |index: usize| range.start + index * range.len() / parts;
    (0..parts).map(move |index| start(index)..start(index + 1))
}
