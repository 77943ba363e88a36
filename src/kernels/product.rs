//! One small matrix product inside a task, on raw strides.

use super::gemm::{self, Number, Scratch, with_scratch};
use super::simd::{Isa, Task, dispatch};

/// C (m, n), rows `c.1` apart, = s·A (m, k)·B (k, n), added to what it holds when `add`; strides are `[row, column]`.
///
/// # Safety
/// Every element the strides reach is valid, and C is ours alone.
pub(super) unsafe fn product(
    shape: [usize; 3],
    a: (*const f32, [usize; 2]),
    b: (*const f32, [usize; 2]),
    s: f32,
    c: (*mut f32, usize),
    add: bool,
) {
    with_scratch(|scratch| dispatch(Small { shape, a, b, s, c, add, scratch }));
}

struct Small<'a> {
    shape: [usize; 3],
    a: (*const f32, [usize; 2]),
    b: (*const f32, [usize; 2]),
    s: f32,
    c: (*mut f32, usize),
    add: bool,
    scratch: &'a mut Scratch,
}

impl Task for Small<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Isa>(self) {
        let operands = (f32::operand(self.a.0, self.a.1), f32::operand(self.b.0, self.b.1));
        // SAFETY: `product`'s caller's.
        unsafe {
            let to = (f32::rows(self.c.0, self.c.1), self.add);
            gemm::product::<S>(self.shape, operands, self.s, to, self.scratch);
        }
    }
}
