//! The product in blocks: what is packed when, and which thread computes what.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use half::bf16;
use rayon::prelude::*;

use super::finish::Finish;
use super::isa::{Ask, Asks, DEPTH, Isa, MOST_DEPTH, Panel, ROW_STRIDE};
use super::pack::{View, add_rows, pack_a, pack_b};
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
    /// m values.
    pub(super) row_sums: Option<*mut f32>,
    pub(super) finish: Finish<'a>,
}

// SAFETY: what the pointers lead to is borrowed for as long as the job lives (`Product` holds the borrows), and threads
// write disjoint tiles of C only.
unsafe impl Sync for Job<'_> {}

/// Products with fewer multiplications than this are done by the calling thread: waking another takes longer.
const WORTH_SHARING: usize = 1 << 19;

/// Columns of B packed at a time: with `DEPTH`, 576 KiB, which a second-level cache holds beside the sums.
const CHUNK_COLS: usize = 384;

/// Panels of B a thread packs, one block of them, before it takes the next.
const PACKED_AT_ONCE: usize = 4;

/// Rows of A from which on B is packed once for all threads. Written and read through a cache further away, it costs more
/// than packing it for each share where shares are few; but then they can be small.
const MANY_ROWS: usize = 1024;

/// Panels of A in a share: their sums stay in a second-level cache beside a chunk of B.
const MOST_PANELS: usize = 32;

/// The same where B is packed already.
const MOST_PANELS_OF_PACKED: usize = 14;

/// Multiplications that are not divided further: some thirty microseconds of them.
const LEAST_SHARE: usize = 1 << 22;

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
    let columns = panels.1.div_ceil(CHUNK_COLS / cols);
    if m.saturating_mul(n).saturating_mul(k) < WORTH_SHARING {
        for j in 0..columns {
            // SAFETY: the caller's.
            unsafe { share(kind, job, panels, (0..panels.0, part(panels.1, columns, j)), false) };
        }
        return;
    }
    let threads = rayon::current_num_threads();
    let mut room = with_scratch(|scratch| std::mem::take(&mut scratch.shared));
    let b = match job.b {
        Operand::F32(_) | Operand::Bf16(_) if job.is_worth_packing(columns, threads) => {
            let to = Packing(room.of(k * panels.1 * cols));
            let blocks = blocks(k);
            in_turn(threads, blocks * panels.1.div_ceil(PACKED_AT_ONCE), |piece, _| {
                let (block, first) = (piece % blocks, piece / blocks * PACKED_AT_ONCE);
                let panels = first..(first + PACKED_AT_ONCE).min(panels.1);
                // SAFETY: the caller's; pieces are disjoint, and `room` is large enough.
                unsafe { dispatch_on(kind, Pack { b: job.b, n, k, blocks: block..block + 1, panels, to: to.get() }) };
            });
            Operand::Packed(to.get())
        }
        b => b,
    };
    let least = LEAST_SHARE / (rows * cols * k * panels.1.div_ceil(columns)).max(1);
    let single = blocks(k) == 1;
    let shares = match b {
        Operand::Packed(_) => {
            shares(panels, columns, threads, (2, least.clamp(1, MOST_PANELS_OF_PACKED), MOST_PANELS_OF_PACKED))
        }
        // What a thread has packed of a B of one block serves its next share.
        _ if single => shares(panels, columns, threads, (2, least.clamp(1, MOST_PANELS), MOST_PANELS)),
        _ => shares(panels, columns, threads, (1, 1, MOST_PANELS)),
    };
    let job = Job { b, ..*job };
    in_turn(threads, shares.len(), |index, last| {
        let packed = single && last.is_some_and(|last| shares[last].1 == shares[index].1);
        // SAFETY: the caller's; shares are disjoint.
        unsafe { share(kind, &job, panels, shares[index].clone(), packed) };
    });
    with_scratch(|scratch| scratch.shared = room);
}

/// Divides a product of `panels` into shares of rows and columns: in rounds, of which each gives every thread one part in
/// `parts` of what is left, but `least` panels of A and at most `most`. A thread that is slower, or was late, then keeps the
/// others waiting for a small share only.
fn shares(
    panels: (usize, usize),
    columns: usize,
    threads: usize,
    (parts, least, most): (usize, usize, usize),
) -> Vec<(Range<usize>, Range<usize>)> {
    let mut shares = Vec::new();
    let mut size = 0;
    for j in 0..columns {
        let mut first = 0;
        while first < panels.0 {
            if shares.len() % threads == 0 {
                let left = (columns - j) * panels.0 - first;
                size = left.div_ceil(parts * threads).clamp(least, most);
            }
            let left = panels.0 - first;
            let rows = first..first + left.div_ceil(left.div_ceil(size));
            first = rows.end;
            shares.push((rows, part(panels.1, columns, j)));
        }
    }
    shares
}

/// Calls `f` with 0 .. `count`, each next one on the first of `threads` threads that is free, and with what that thread
/// called it with last.
fn in_turn(threads: usize, count: usize, f: impl Fn(usize, Option<usize>) + Sync) {
    let next = AtomicUsize::new(0);
    (0..threads.min(count)).into_par_iter().with_max_len(1).for_each(|_| {
        let mut last = None;
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                break;
            }
            f(index, last);
            last = Some(index);
        }
    });
}

impl Job<'_> {
    /// Whether to pack B, once, before the product is divided.
    fn is_worth_packing(&self, columns: usize, threads: usize) -> bool {
        // Turning B costs more than copying it, and happens once anyway where shares have columns of their own.
        let turned = self.b.is_turned_to_pack() && columns < 2 * threads;
        !self.a.has_columns() && (self.shape.0 >= MANY_ROWS || turned)
    }
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
    /// Whether panels of an A are packed column by column, as they can be copied.
    fn has_columns(&self) -> bool {
        let (row, column) = match self {
            Self::F32(view) => view.strides,
            Self::Bf16(view) => view.strides,
            Self::Packed(_) => return false,
        };
        row == 1 && column != 1
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
    /// Whether these columns of B, of one block, are packed in `scratch`.
    pub(super) packed: bool,
    pub(super) scratch: &'a mut Scratch,
}

/// # Safety
/// As [`run`].
unsafe fn share(
    kind: Kind,
    job: &Job<'_>,
    panels: (usize, usize),
    (rows, columns): (Range<usize>, Range<usize>),
    packed: bool,
) {
    with_scratch(|scratch| {
        // SAFETY: the caller's.
        unsafe { dispatch_on(kind, Share { job, panels, rows, columns, packed, scratch }) }
    });
}

/// Packs panels of B, a (k, n) matrix, to their places in `to`.
pub(super) struct Pack {
    pub(super) b: Operand,
    pub(super) n: usize,
    pub(super) k: usize,
    /// Of the inner dimension.
    pub(super) blocks: Range<usize>,
    pub(super) panels: Range<usize>,
    /// Room for `k` · (n rounded up to a tile) values.
    pub(super) to: *mut f32,
}

/// Part `index` of `count` things in `parts` parts.
fn part(count: usize, parts: usize, index: usize) -> Range<usize> {
    index * count / parts..(index + 1) * count / parts
}

/// Blocks of the inner dimension; one, of nothing, when there is none.
pub(super) fn blocks(k: usize) -> usize {
    if k <= MOST_DEPTH { 1 } else { k.div_ceil(DEPTH) }
}

/// Length of every block of the inner dimension but the last: a multiple of 32, so of any tile's width.
pub(super) fn step(k: usize) -> usize {
    k.div_ceil(blocks(k)).next_multiple_of(32)
}

/// Block `index` of the inner dimension.
pub(super) fn span(k: usize, index: usize) -> Range<usize> {
    let step = step(k);
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
        let Self { job, panels, rows, columns, packed, scratch } = self;
        let (m, n, k) = job.shape;
        let blocks = blocks(k);
        let tile = I::ROWS * I::COLS;
        let panel = if job.a.has_columns() { Panel::Columns(I::COLUMN_STRIDE) } else { Panel::Rows };
        let a = scratch.a.of((I::ROWS * ROW_STRIDE).max(MOST_DEPTH * I::COLUMN_STRIDE));
        let b = scratch.b.of(columns.len() * I::COLS * MOST_DEPTH);
        // Sums wait here between blocks of the inner dimension; with a single block, one tile is enough.
        let sums = scratch.sums.of(if blocks > 1 { rows.len() * columns.len() * tile } else { tile });
        for block in 0..blocks {
            let next = if block + 1 < blocks { span(k, block + 1) } else { k..k };
            let span = span(k, block);
            let depth = span.len();
            // SAFETY: the panels are inside B, and inside their buffer.
            unsafe {
                match job.b {
                    Operand::F32(view) if !packed => pack_b::<I, f32>(view, columns.clone(), n, span.clone(), b),
                    Operand::Bf16(view) if !packed => pack_b::<I, bf16>(view, columns.clone(), n, span.clone(), b),
                    _ => {}
                }
            }
            // Even panels rather than full ones and a thin last.
            let (even, odd) = (m / panels.0, m % panels.0);
            let start = |i: usize| i * even + i.min(odd);
            // What is packed for the next block: every tile asks for a row of A, and for a piece of B.
            let mut row = next.start;
            let size = |span: &Range<usize>| columns.len() * I::COLS * span.len();
            let packed = |span: &Range<usize>| panels.1 * I::COLS * span.start + columns.start * I::COLS * span.len();
            let mut piece = packed(&next)..packed(&next) + size(&next);
            for i in rows.clone() {
                let below = if i + 1 < rows.end { (start(i + 1), span.start) } else { (start(rows.start), next.start) };
                let taken = start(i)..start(i + 1);
                // SAFETY: the panel is inside A, and inside its buffer; its rows are in no other share with the first columns.
                unsafe {
                    match job.a {
                        Operand::F32(view) => pack_a::<I, f32>(view, (panel, m), taken.clone(), span.clone(), a),
                        Operand::Bf16(view) => pack_a::<I, bf16>(view, (panel, m), taken.clone(), span.clone(), a),
                        Operand::Packed(_) => {}
                    }
                    if let Some(sums) = job.row_sums.filter(|_| columns.start == 0) {
                        add_rows::<I>((a, panel), (taken.len(), depth), sums.add(taken.start), block > 0);
                    }
                }
                for j in columns.clone() {
                    let b = match job.b {
                        Operand::Packed(all) => all.wrapping_add(panels.1 * I::COLS * span.start + j * I::COLS * depth),
                        _ => b.wrapping_add((j - columns.start) * I::COLS * depth).cast_const(),
                    };
                    let at = if blocks > 1 { (i - rows.start) * columns.len() + j - columns.start } else { 0 };
                    let cols = I::COLS.min(n - j * I::COLS);
                    // A tile nothing is done to goes straight to its place, and is added up there.
                    let place = job.finish.place::<I>((taken.start, j * I::COLS), cols, blocks);
                    let sums = sums.wrapping_add(at * tile);
                    let mut asks = Asks::nothing(sums);
                    let column = below.1 + (j - columns.start) * depth / columns.len();
                    let a_next = match job.a {
                        Operand::F32(view) => Some(view.ask_a(panel, below.0, taken.len(), column)),
                        Operand::Bf16(view) => Some(view.ask_a(panel, below.0, taken.len(), column)),
                        Operand::Packed(_) => None,
                    };
                    let b_next = match job.b {
                        Operand::Packed(all) if !piece.is_empty() => {
                            Some(Ask { at: all.wrapping_add(piece.start).cast(), twin: 64, step: 128 })
                        }
                        Operand::F32(view) if row < next.end => view.ask_b(row, columns.start * I::COLS),
                        Operand::Bf16(view) if row < next.end => view.ask_b(row, columns.start * I::COLS),
                        _ => None,
                    };
                    for (slot, ask) in asks.read.iter_mut().zip([a_next, b_next]) {
                        *slot = ask.unwrap_or(*slot);
                    }
                    piece.start += taken.len() * 32;
                    row += 1;
                    if block + 1 == blocks || place.is_some() {
                        job.finish.ask(taken.start, j * I::COLS, &mut asks);
                    }
                    // SAFETY: packed panels and the tile of sums are inside their buffers, and the tile of C inside C.
                    unsafe {
                        let (to, add) = match place {
                            Some(place) => (place, block > 0 || job.finish.accumulate),
                            None => ((sums, I::COLS), block > 0),
                        };
                        I::tile(panel, (taken.len(), cols, depth), (a, b), to, add, Some(&asks));
                        if block + 1 == blocks && place.is_none() {
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
        let Self { b, n, k, blocks, panels, to } = self;
        let all = n.div_ceil(I::COLS);
        for block in blocks {
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
