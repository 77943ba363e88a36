//! One small matrix product inside a task, on raw strides.

use gemm::Parallelism;

/// A buffer whose parts tasks write without overlapping.
pub(super) struct Disjoint(pub(super) *mut f32);

// SAFETY: whoever writes through it promises not to overlap.
unsafe impl Sync for Disjoint {}

impl Disjoint {
    pub(super) fn get(&self) -> *mut f32 {
        self.0
    }
}

/// C (m, n), rows `c.1` apart, = s·A (m, k)·B (k, n), added to what it holds when `add`; strides are `[row, column]`.
///
/// # Safety
/// Every element the strides reach is valid, and C is ours alone.
pub(super) unsafe fn product(
    [m, n, k]: [usize; 3],
    (a, a_strides): (*const f32, [usize; 2]),
    (b, b_strides): (*const f32, [usize; 2]),
    s: f32,
    (c, c_row): (*mut f32, usize),
    add: bool,
) {
    // SAFETY: the caller's promise.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c,
            1,
            c_row as isize,
            add,
            a,
            a_strides[1] as isize,
            a_strides[0] as isize,
            b,
            b_strides[1] as isize,
            b_strides[0] as isize,
            1.0,
            s,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}
