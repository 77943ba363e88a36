//! What a processor contributes: the inner loop, and the shape it likes.

use crate::kernels::simd::{Lane, Simd};

/// Depth of a block of the inner dimension, about: every element is summed in blocks, the same on every processor, so
/// neither the number of threads nor the width of a register changes a bit of the result.
///
/// The width of a ViT-S, so that most of its products are done in one block and no sums wait. A panel of B comes from the
/// second-level cache as it is used, one of A stays nearby.
pub(super) const DEPTH: usize = 384;

/// Depth up to which a single block is made, which spares sums a wait, and B being packed for each share.
pub(super) const MOST_DEPTH: usize = DEPTH + DEPTH / 3;

/// Distance between rows of a packed panel of A. Not a power of two, or all rows would compete for the same cache sets.
pub(super) const ROW_STRIDE: usize = MOST_DEPTH + 16;

/// How a packed panel of A lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::kernels) enum Panel {
    /// Row by row, `ROW_STRIDE` apart.
    Rows,
    /// Column by column, so far apart: [`Isa::COLUMN_STRIDE`] when packed so, or `ROW_STRIDE`, which is `Rows` seen as its
    /// transpose.
    Columns(usize),
}

/// Memory that will be needed: a line at `at` and one `twin` bytes from it, and as many at every `step` bytes from there.
#[derive(Debug, Clone, Copy)]
pub(in crate::kernels) struct Ask {
    pub(super) at: *const u8,
    pub(super) twin: usize,
    pub(super) step: usize,
}

/// What is asked for while a tile is computed, a step of each for every row of the tile. Asked for all at once, it would
/// keep the tile's own operands waiting.
#[derive(Debug, Clone, Copy)]
pub(in crate::kernels) struct Asks {
    pub(super) read: [Ask; 3],
    pub(super) write: [Ask; 2],
}

impl Asks {
    /// Nothing but `at`, which is at hand.
    pub(super) fn nothing(at: *const f32) -> Self {
        let ask = Ask { at: at.cast(), twin: 0, step: 0 };
        Self { read: [ask; 3], write: [ask; 2] }
    }

    /// Asks for step `index` of everything.
    ///
    /// # Safety
    /// [`Simd`]'s.
    #[inline(always)]
    pub(super) unsafe fn ask<S: Simd>(&self, index: usize) {
        for (asks, write) in [(&self.read[..], false), (&self.write[..], true)] {
            for ask in asks {
                let line = ask.at.wrapping_add(index * ask.step);
                for line in [line, line.wrapping_add(ask.twin)] {
                    // SAFETY: a prefetch never faults.
                    unsafe { if write { S::prefetch_to_write(line) } else { S::prefetch(line) } };
                }
            }
        }
    }
}

/// How many steps of `asks` there are in a tile of `rows`, and how many products between two, so that the last is asked
/// for a while before the tile is done. A tile that is not that deep asks for nothing.
#[inline(always)]
pub(super) fn pace(asks: Option<&Asks>, depth: usize, rows: usize) -> (usize, usize) {
    let pace = if asks.is_none() { 0 } else { depth / (rows + rows / 4 + 1) };
    (if pace == 0 { 0 } else { rows }, pace)
}

/// One instruction set's inner loop.
pub(in crate::kernels) trait Isa: Simd {
    /// Most rows of a tile; at most `LANES`.
    const ROWS: usize;
    /// Columns of a tile: whole vectors.
    const COLS: usize;
    /// Distance between columns of a panel of A packed by columns.
    const COLUMN_STRIDE: usize;

    /// `out = a·b`, or `out += a·b` with `add`: `a` is a packed panel of `rows` rows, `b` is (depth, COLS), `out`
    /// (rows, COLS), its rows `stride` apart, for `shape` (rows, columns that count, depth). Meanwhile it asks for `asks`.
    ///
    /// # Safety
    /// `1 ≤ rows ≤ ROWS`, `1 ≤ columns ≤ COLS`, `depth ≤ MOST_DEPTH`, and the pointers are valid for those shapes.
    unsafe fn tile(
        panel: Panel,
        shape: (usize, usize, usize),
        operands: (*const f32, *const f32),
        out: (*mut f32, usize),
        add: bool,
        asks: Option<&Asks>,
    );

    /// `to[i · to_stride + j] = from[j · from_stride + i]` for i < `counts.0` and j < `counts.1`, zero for the other j < 16.
    ///
    /// # Safety
    /// The pointers are valid for that, and both counts are at most 16.
    #[inline(always)]
    unsafe fn transpose<T: Lane>(
        from: *const T,
        from_stride: usize,
        counts: (usize, usize),
        to: *mut f32,
        to_stride: usize,
    ) {
        for i in 0..counts.0 {
            for j in 0..16 {
                // SAFETY: the caller's.
                unsafe {
                    let value = if j < counts.1 { (*from.add(j * from_stride + i)).widen() } else { 0.0 };
                    *to.add(i * to_stride + j) = value;
                }
            }
        }
    }
}
