//! The product in blocks: what is packed when, and which thread computes what.

use std::cell::RefCell;
use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::finish::Finish;
use super::isa::{DEPTH, Isa, ROW_STRIDE};
use super::pack::{View, pack_a, pack_b};
use crate::kernels::simd::{Kind, Task, dispatch_on};

/// An operand that is read.
#[derive(Clone, Copy)]
pub(super) enum Operand {
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
    (0..parts.0 * parts.1).into_par_iter().with_max_len(1).for_each(|index| {
        let (i, j) = (index / parts.1, index % parts.1);
        // SAFETY: the caller's; shares are disjoint.
        unsafe { share(kind, job, panels, (part(panels.0, parts.0, i), part(panels.1, parts.1, j))) };
    });
}

/// One thread's share: panels of A by panels of B.
struct Share<'a, 'j> {
    job: &'a Job<'j>,
    /// Of the whole product.
    panels: (usize, usize),
    rows: Range<usize>,
    columns: Range<usize>,
    scratch: &'a mut Scratch,
}

/// # Safety
/// As [`run`].
unsafe fn share(kind: Kind, job: &Job<'_>, panels: (usize, usize), (rows, columns): (Range<usize>, Range<usize>)) {
    SCRATCH.with_borrow_mut(|scratch| {
        // SAFETY: the caller's.
        unsafe { dispatch_on(kind, Share { job, panels, rows, columns, scratch }) }
    });
}

/// Packs the whole of B, a (k, n) matrix, to `to`.
pub(super) struct Pack {
    pub(super) b: Operand,
    pub(super) n: usize,
    pub(super) k: usize,
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

#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Line([f32; 16]);

/// A thread's buffers, which keep their size: nothing is allocated once a step's largest products have been seen.
#[derive(Default)]
struct Scratch {
    a: Vec<Line>,
    b: Vec<Line>,
    sums: Vec<Line>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

fn room(lines: &mut Vec<Line>, values: usize) -> *mut f32 {
    let count = values.div_ceil(16);
    if lines.len() < count {
        lines.resize(count, Line([0.0; 16]));
    }
    lines.as_mut_ptr().cast()
}

impl Task for Share<'_, '_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        let Self { job, panels, rows, columns, scratch } = self;
        let (m, n, k) = job.shape;
        let blocks = blocks(k);
        let tile = I::ROWS * I::COLS;
        let a = room(&mut scratch.a, (I::ROWS * ROW_STRIDE).max(DEPTH * I::COLUMN_STRIDE));
        let b = room(&mut scratch.b, columns.len() * I::COLS * DEPTH);
        // Sums wait here between blocks of the inner dimension; with a single block, one tile is enough.
        let sums = room(&mut scratch.sums, if blocks > 1 { rows.len() * columns.len() * tile } else { tile });
        for block in 0..blocks {
            let span = part(k, blocks, block);
            let depth = span.len();
            for j in columns.clone() {
                let to = b.wrapping_add((j - columns.start) * I::COLS * depth);
                let cols = I::COLS.min(n - j * I::COLS);
                // SAFETY: the panel is inside B, and `to` inside its buffer.
                unsafe {
                    match job.b {
                        Operand::F32(view) => pack_b::<I, f32>(view, (span.start, depth), (j * I::COLS, cols), to),
                        Operand::Bf16(view) => pack_b::<I, bf16>(view, (span.start, depth), (j * I::COLS, cols), to),
                        Operand::Packed(_) => break,
                    }
                }
            }
            for i in rows.clone() {
                // Even panels rather than full ones and a thin last.
                let taken = part(m, panels.0, i);
                // SAFETY: the panel is inside A, and inside its buffer.
                let panel = unsafe {
                    match job.a {
                        Operand::F32(view) => {
                            pack_a::<I, f32>(view, (taken.start, taken.len()), (span.start, depth), a)
                        }
                        Operand::Bf16(view) => {
                            pack_a::<I, bf16>(view, (taken.start, taken.len()), (span.start, depth), a)
                        }
                        Operand::Packed(_) => unreachable!("only B is packed before"),
                    }
                };
                for j in columns.clone() {
                    let b = match job.b {
                        Operand::Packed(all) => all.wrapping_add(panels.1 * I::COLS * span.start + j * I::COLS * depth),
                        _ => b.wrapping_add((j - columns.start) * I::COLS * depth).cast_const(),
                    };
                    let at = if blocks > 1 { (i - rows.start) * columns.len() + j - columns.start } else { 0 };
                    let cols = I::COLS.min(n - j * I::COLS);
                    // SAFETY: packed panels and the tile of sums are inside their buffers, and the tile of C inside C.
                    unsafe {
                        let sums = sums.add(at * tile);
                        if block + 1 == blocks {
                            job.finish.prefetch::<I>((taken.start, taken.len()), (j * I::COLS, cols));
                        }
                        I::tile(panel, taken.len(), depth, a, b, sums, block > 0);
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
        let Self { b, n, k, to } = self;
        let panels = n.div_ceil(I::COLS);
        for block in 0..blocks(k) {
            let span = part(k, blocks(k), block);
            for j in 0..panels {
                let to = to.wrapping_add(panels * I::COLS * span.start + j * I::COLS * span.len());
                let (depth, columns) = ((span.start, span.len()), (j * I::COLS, I::COLS.min(n - j * I::COLS)));
                // SAFETY: the panel is inside B, and there is room for it.
                unsafe {
                    match b {
                        Operand::F32(view) => pack_b::<I, f32>(view, depth, columns, to),
                        Operand::Bf16(view) => pack_b::<I, bf16>(view, depth, columns, to),
                        Operand::Packed(_) => {}
                    }
                }
            }
        }
    }
}
