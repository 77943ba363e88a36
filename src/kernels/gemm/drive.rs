//! The product in blocks: what is packed when, and which thread computes what.

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::finish::Finish;
use super::isa::{Ask, Asks, DEPTH, Isa, Panel, ROW_STRIDE};
use super::pack::{View, pack_b, pack_columns, pack_rows};
use super::serial::{Scratch, with_scratch};
use crate::kernels::simd::{Kind, Task, dispatch_on};

/// An operand that is read.
#[derive(Clone, Copy)]
pub(in crate::kernels) enum Operand {
    F32(View<f32>),
    Bf16(View<bf16>),
    /// B, packed before.
    Packed(*const f32),
}

/// A product whose shapes have been checked.
pub(super) struct Job<'a> {
    /// (m, n, k).
    pub(super) shape: (usize, usize, usize),
    pub(super) a: Operand,
    pub(super) b: Operand,
    pub(super) finish: Finish<'a>,
}

// SAFETY: what the pointers lead to is borrowed for as long as the job lives (`Product` holds the borrows), and threads
// write disjoint tiles of C only.
unsafe impl Sync for Job<'_> {}

/// Products with fewer multiplications than this are done by the calling thread: waking another takes longer.
const WORTH_SHARING: usize = 1 << 19;

/// Columns of B packed at a time: with `DEPTH`, 384 KiB, which a second-level cache holds beside the sums.
const CHUNK_COLS: usize = 384;

/// Rows of A a packed chunk of B is used for at least, if there are that many.
const CHUNK_ROWS: usize = 256;

/// (rows, columns) of the tiles of `kind`.
pub(super) fn tile_shape(kind: Kind) -> (usize, usize) {
    struct Shape;
    impl Task for Shape {
        type Output = (usize, usize);

        #[inline(always)]
        unsafe fn run<S: Isa>(self) -> (usize, usize) {
            (S::ROWS, S::COLS)
        }
    }
    // SAFETY: no instruction is used.
    unsafe { dispatch_on(kind, Shape) }
}

/// Computes `job` over rayon's current pool.
///
/// # Safety
/// Every element the job names exists, C's are not aliased, and `kind` is available.
pub(super) unsafe fn run(kind: Kind, job: &Job<'_>) {
    let (m, n, k) = job.shape;
    if m == 0 || n == 0 {
        return;
    }
    let (rows, cols) = tile_shape(kind);
    let panels = (m.div_ceil(rows), n.div_ceil(cols));
    let threads = rayon::current_num_threads();
    let columns = panels.1.div_ceil(CHUNK_COLS / cols);
    if threads == 1 || m.saturating_mul(n).saturating_mul(k) < WORTH_SHARING {
        for j in 0..columns {
            // SAFETY: the caller's.
            unsafe { share(kind, job, panels, (0..panels.0, part(panels.1, columns, j))) };
        }
        return;
    }
    // Two shares a thread, so that one that was late does not keep the others waiting for a whole half.
    let enough = (2 * threads).div_ceil(columns);
    let most = m.div_ceil(CHUNK_ROWS).max(threads.div_ceil(columns)).min(panels.0);
    let parts = (enough.min(most), columns);
    let all = |job: &Job<'_>| {
        (0..parts.0 * parts.1).into_par_iter().with_max_len(1).for_each(|index| {
            let (i, j) = (index / parts.1, index % parts.1);
            // SAFETY: the caller's; shares are disjoint.
            unsafe { share(kind, job, panels, (part(panels.0, parts.0, i), part(panels.1, parts.1, j))) };
        });
    };
    if parts.0 == 1 || !job.b.is_turned_to_pack() {
        return all(job);
    }
    // Turning B costs more than copying it: once is enough.
    let mut room = with_scratch(|scratch| std::mem::take(&mut scratch.shared));
    let to = Packing(room.of(k * panels.1 * cols));
    let pieces = panels.1.min(4 * threads);
    (0..pieces).into_par_iter().for_each(|piece| {
        // SAFETY: the caller's; pieces are disjoint, and `room` is large enough.
        unsafe { dispatch_on(kind, Pack { b: job.b, n, k, panels: part(panels.1, pieces, piece), to: to.get() }) };
    });
    all(&Job { b: Operand::Packed(to.get()), ..*job });
    with_scratch(|scratch| scratch.shared = room);
}

/// A buffer threads fill in disjoint pieces.
struct Packing(*mut f32);

// SAFETY: see above.
unsafe impl Sync for Packing {}

impl Packing {
    fn get(&self) -> *mut f32 {
        self.0
    }
}

impl Operand {
    /// In what order panels of an A are packed: as they can be copied.
    fn panel(&self) -> Panel {
        let (row, column) = match self {
            Self::F32(view) => view.strides,
            Self::Bf16(view) => view.strides,
            Self::Packed(_) => return Panel::Rows,
        };
        if row == 1 && column != 1 { Panel::Columns } else { Panel::Rows }
    }

    /// From (row, column) on, down the rows or along one of them.
    #[inline(always)]
    fn ask(&self, row: usize, column: usize, down: bool) -> Option<Ask> {
        match (self, down) {
            (Self::F32(view), true) => Some(view.ask_down(row, column)),
            (Self::F32(view), false) => Some(view.ask_along(row, column)),
            (Self::Bf16(view), true) => Some(view.ask_down(row, column)),
            (Self::Bf16(view), false) => Some(view.ask_along(row, column)),
            (Self::Packed(_), _) => None,
        }
    }

    /// Whether a B has to be transposed as it is packed.
    fn is_turned_to_pack(&self) -> bool {
        match self {
            Self::F32(view) => view.strides.1 != 1,
            Self::Bf16(view) => view.strides.1 != 1,
            Self::Packed(_) => false,
        }
    }
}

/// One thread's share: panels of A by panels of B.
pub(super) struct Share<'a, 'j> {
    pub(super) job: &'a Job<'j>,
    /// Of the whole product.
    pub(super) panels: (usize, usize),
    pub(super) rows: Range<usize>,
    pub(super) columns: Range<usize>,
    pub(super) scratch: &'a mut Scratch,
}

/// # Safety
/// As [`run`].
unsafe fn share(kind: Kind, job: &Job<'_>, panels: (usize, usize), (rows, columns): (Range<usize>, Range<usize>)) {
    with_scratch(|scratch| {
        // SAFETY: the caller's.
        unsafe { dispatch_on(kind, Share { job, panels, rows, columns, scratch }) }
    });
}

/// Packs panels of B, a (k, n) matrix, to their places in `to`.
pub(super) struct Pack {
    pub(super) b: Operand,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) panels: Range<usize>,
    /// Room for `k` · (n rounded up to a tile) values.
    pub(super) to: *mut f32,
}

/// Part `index` of `count` things in `parts` parts.
fn part(count: usize, parts: usize, index: usize) -> Range<usize> {
    index * count / parts..(index + 1) * count / parts
}

/// Blocks of the inner dimension; one, of nothing, when there is none.
fn blocks(k: usize) -> usize {
    k.div_ceil(DEPTH).max(1)
}

/// Block `index` of the inner dimension. Boundaries are multiples of 16, so that only the last block has an odd end.
fn span(k: usize, index: usize) -> Range<usize> {
    let step = k.div_ceil(blocks(k)).next_multiple_of(16);
    (index * step).min(k)..((index + 1) * step).min(k)
}

impl Task for Share<'_, '_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        // SAFETY: the caller's.
        unsafe { self.compute::<I>() }
    }
}

impl Share<'_, '_> {
    /// # Safety
    /// As [`run`], and the caller is compiled for `I`.
    #[inline(always)]
    pub(super) unsafe fn compute<I: Isa>(self) {
        let Self { job, panels, rows, columns, scratch } = self;
        let (m, n, k) = job.shape;
        let blocks = blocks(k);
        let tile = I::ROWS * I::COLS;
        // Where A's columns are what is contiguous, all panels of a block are packed at once: its lines are read whole.
        let panel = job.a.panel();
        let packed_rows = if panel == Panel::Columns { rows.len() } else { 1 };
        let a = scratch.a.of(packed_rows * (I::ROWS * ROW_STRIDE).max(DEPTH * I::COLUMN_STRIDE));
        let b = scratch.b.of(columns.len() * I::COLS * DEPTH);
        // Sums wait here between blocks of the inner dimension; with a single block, one tile is enough.
        let sums = scratch.sums.of(if blocks > 1 { rows.len() * columns.len() * tile } else { tile });
        for block in 0..blocks {
            let next = if block + 1 < blocks { span(k, block + 1) } else { k..k };
            let span = span(k, block);
            let depth = span.len();
            // SAFETY: the panels are inside B, and inside their buffer.
            unsafe {
                match job.b {
                    Operand::F32(view) => pack_b::<I, f32>(view, columns.clone(), n, span.clone(), b),
                    Operand::Bf16(view) => pack_b::<I, bf16>(view, columns.clone(), n, span.clone(), b),
                    Operand::Packed(_) => {}
                }
            }
            // Even panels rather than full ones and a thin last.
            let (even, odd) = (m / panels.0, m % panels.0);
            let start = |i: usize| i * even + i.min(odd);
            let taken = |i: usize| start(i)..start(i + 1);
            if panel == Panel::Columns {
                // SAFETY: the panels are inside A, and inside their buffer.
                unsafe {
                    match job.a {
                        Operand::F32(view) => pack_columns::<I, f32>(view, rows.clone(), taken, span.clone(), a),
                        Operand::Bf16(view) => pack_columns::<I, bf16>(view, rows.clone(), taken, span.clone(), a),
                        Operand::Packed(_) => {}
                    }
                }
            }
            // Tiles of this block so far: each asks for a row of what is packed for the next.
            let mut row = next.start;
            for i in rows.clone() {
                let below =
                    if i + 1 < rows.end { (taken(i + 1).start, span.start) } else { (start(rows.start), next.start) };
                let (taken, a) = match panel {
                    Panel::Rows => (taken(i), a),
                    Panel::Columns => (taken(i), a.wrapping_add((i - rows.start) * I::COLUMN_STRIDE * depth)),
                };
                if panel == Panel::Rows {
                    // SAFETY: the panel is inside A, and inside its buffer.
                    unsafe {
                        match job.a {
                            Operand::F32(view) => pack_rows::<I, f32>(view, taken.clone(), span.clone(), a),
                            Operand::Bf16(view) => pack_rows::<I, bf16>(view, taken.clone(), span.clone(), a),
                            Operand::Packed(_) => {}
                        }
                    }
                }
                for j in columns.clone() {
                    let b = match job.b {
                        Operand::Packed(all) => all.wrapping_add(panels.1 * I::COLS * span.start + j * I::COLS * depth),
                        _ => b.wrapping_add((j - columns.start) * I::COLS * depth).cast_const(),
                    };
                    let at = if blocks > 1 { (i - rows.start) * columns.len() + j - columns.start } else { 0 };
                    let cols = I::COLS.min(n - j * I::COLS);
                    let sums = sums.wrapping_add(at * tile);
                    let mut asks = Asks::nothing(sums);
                    let a_next = match panel {
                        Panel::Rows => {
                            let column = below.1 + (j - columns.start) * depth / columns.len();
                            job.a.ask(below.0, column, true)
                        }
                        Panel::Columns if row < next.end => job.a.ask(start(rows.start), row, false),
                        Panel::Columns => None,
                    };
                    let b_next = match row < next.end {
                        true => job.b.ask(row, columns.start * I::COLS, false),
                        false => None,
                    };
                    for (slot, ask) in asks.read.iter_mut().zip([a_next, b_next]) {
                        *slot = ask.unwrap_or(*slot);
                    }
                    row += 1;
                    if block + 1 == blocks {
                        job.finish.ask(taken.start, j * I::COLS, &mut asks);
                    }
                    // SAFETY: packed panels and the tile of sums are inside their buffers, and the tile of C inside C.
                    unsafe {
                        I::tile(panel, (taken.len(), depth), (a, b), sums, block > 0, &asks);
                        if block + 1 == blocks {
                            job.finish.tile::<I>(sums, (taken.start, taken.len()), (j * I::COLS, cols));
                        }
                    }
                }
            }
        }
    }
}

impl Task for Pack {
    type Output = ();

    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        let Self { b, n, k, panels, to } = self;
        let all = n.div_ceil(I::COLS);
        for block in 0..blocks(k) {
            let span = span(k, block);
            let to = to.wrapping_add(all * I::COLS * span.start + panels.start * I::COLS * span.len());
            // SAFETY: the panels are inside B, and there is room for them.
            unsafe {
                match b {
                    Operand::F32(view) => pack_b::<I, f32>(view, panels.clone(), n, span, to),
                    Operand::Bf16(view) => pack_b::<I, bf16>(view, panels.clone(), n, span, to),
                    Operand::Packed(_) => {}
                }
            }
        }
    }
}
