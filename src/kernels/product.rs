//! One small matrix product inside a task, on raw strides.

use super::gemm::{self, Number, Scratch, with_scratch};
use super::simd::{Isa, Task, dispatch};

/// C (m, n), rows `c.1` apart, = s·A (m, k)·B (k, n), added to what it holds when `add`; strides are `[row, column]`.
///
/// # Safety
/// Every element the strides reach is valid, and C is ours alone.
pub(super) unsafe fn product<A: Number, B: Number>(
    shape: [usize; 3],
    a: (*const A, [usize; 2]),
    b: (*const B, [usize; 2]),
    s: f32,
    c: (*mut f32, usize),
    add: bool,
) {
    with_scratch(|scratch| dispatch(Small { shape, a, b, s, c, add, scratch }));
}

struct Small<'a, A, B> {
    shape: [usize; 3],
    a: (*const A, [usize; 2]),
    b: (*const B, [usize; 2]),
    s: f32,
    c: (*mut f32, usize),
    add: bool,
    scratch: &'a mut Scratch,
}

impl<A: Number, B: Number> Task for Small<'_, A, B> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Isa>(self) {
        let operands = (A::operand(self.a.0, self.a.1), B::operand(self.b.0, self.b.1));
        // SAFETY: `product`'s caller's.
        unsafe {
            let to = (f32::rows(self.c.0, self.c.1), self.add);
            gemm::product::<S>(self.shape, operands, self.s, to, self.scratch);
        }
    }
}
