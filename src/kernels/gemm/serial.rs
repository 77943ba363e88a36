//! Products inside a kernel's own task: on the calling thread, on raw strides.

use std::cell::RefCell;

use half::bf16;

use super::drive::{Job, Operand, Share};
use super::finish::{Activation, Finish, Pointer, Rows};
use super::isa::Isa;
use super::pack::View;
use crate::kernels::simd::Lane;

#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Line([f32; 16]);

/// A buffer that keeps its size.
#[derive(Default)]
pub(in crate::kernels) struct Room(Vec<Line>);

impl Room {
    /// Room for several, each from the beginning of a line.
    pub(in crate::kernels) fn parts<const N: usize>(&mut self, sizes: [usize; N]) -> [*mut f32; N] {
        let mut end = 0;
        let starts = sizes.map(|size| {
            let start = end;
            end += size.next_multiple_of(16);
            start
        });
        let at = self.of(end);
        starts.map(|start| at.wrapping_add(start))
    }

    /// Room for `values` values, whatever they are.
    pub(in crate::kernels) fn of(&mut self, values: usize) -> *mut f32 {
        let lines = values.div_ceil(16);
        if self.0.len() < lines {
            self.0.resize(lines, Line([0.0; 16]));
        }
        self.0.as_mut_ptr().cast()
    }
}

/// A thread's buffers: nothing is allocated once the largest task has been seen.
#[derive(Default)]
pub(in crate::kernels) struct Scratch {
    pub(super) a: Room,
    pub(super) b: Room,
    pub(super) sums: Room,
    /// The whole of a B, packed for all threads.
    pub(super) shared: Room,
    /// The kernel's own.
    pub(in crate::kernels) free: Room,
}

/// Hands `f` this thread's buffers.
pub(in crate::kernels) fn with_scratch<R>(f: impl FnOnce(&mut Scratch) -> R) -> R {
    thread_local! {
        static SCRATCH: RefCell<Scratch> = RefCell::default();
    }
    SCRATCH.with_borrow_mut(f)
}

/// A number that can be an operand.
pub(in crate::kernels) trait Number: Lane {
    /// Element (i, j) at `i · strides[0] + j · strides[1]`.
    fn operand(at: *const Self, strides: [usize; 2]) -> Operand;
    /// Contiguous rows, `stride` apart.
    fn rows(at: *mut Self, stride: usize) -> Rows;
}

impl Number for f32 {
    fn operand(at: *const f32, [row, column]: [usize; 2]) -> Operand {
        Operand::F32(View { at, strides: (row, column) })
    }

    fn rows(at: *mut f32, stride: usize) -> Rows {
        Rows { at: Pointer::F32(at), stride }
    }
}

impl Number for bf16 {
    fn operand(at: *const bf16, [row, column]: [usize; 2]) -> Operand {
        Operand::Bf16(View { at, strides: (row, column) })
    }

    fn rows(at: *mut bf16, stride: usize) -> Rows {
        Rows { at: Pointer::Bf16(at), stride }
    }
}

/// C (m, n) = α·A (m, k)·B (k, n), added to what C holds with `add`.
///
/// # Safety
/// Every element is valid, C is ours alone, and the caller is compiled for `I`.
#[inline(always)]
pub(in crate::kernels) unsafe fn product<I: Isa>(
    [m, n, k]: [usize; 3],
    (a, b): (Operand, Operand),
    alpha: f32,
    (c, add): (Rows, bool),
    scratch: &mut Scratch,
) {
    let finish = Finish { c, alpha, accumulate: add, bias: None, residual: None, activation: Activation::None };
    let job = Job { shape: (m, n, k), a, b, row_sums: None, finish };
    let panels = (m.div_ceil(I::ROWS), n.div_ceil(I::COLS));
    // SAFETY: the caller's.
    unsafe {
        Share { job: &job, panels, rows: 0..panels.0, columns: 0..panels.1, packed: false, scratch }.compute::<I>();
    }
}
