//! Matrix products over slices, with what training does to a result on its way to memory.
//!
//! `C = act(α·A·B + bias + residual + C)`: operands are f32 or bf16, in either order in memory; products are summed in
//! f32. bf16 is widened, exactly, as operands are packed, so a bf16 product is as accurate as an f32 one of the same
//! values and as fast; what bf16 saves is memory traffic. (AVX512-BF16's dot product issues every second cycle on
//! Sapphire and Emerald Rapids, where an f32 product-sum issues twice a cycle on half as many values: it would halve the
//! speed there.)
//!
//! **Bits do not depend on threads.** Each element is summed by one thread: blocks of at most 384 products in order, each
//! block one chain of fused multiply-adds in order. The AVX-512 and AVX2 loops therefore agree with each other to the
//! bit as well; the portable one, on processors without a fused multiply-add, rounds every product.
//!
//! ```
//! use tec_zoo::kernels::gemm::{Mat, MatMut, Product};
//!
//! let (x, w, bias) = ([1.0f32, 2.0, 3.0, 4.0], [1.0f32, 0.0, 1.0, 1.0], [10.0f32, 20.0]);
//! let mut y = [0f32; 4];
//! // y = x·wᵀ + bias
//! Product::new(Mat::new(&x[..], 2, 2), Mat::new(&w[..], 2, 2).t(), MatMut::new(&mut y[..], 2, 2)).bias(&bias).run()?;
//! assert_eq!(y, [11.0, 23.0, 13.0, 27.0]);
//! # Ok::<(), tec_zoo::kernels::gemm::GemmError>(())
//! ```

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod drive;
mod finish;
mod isa;
mod mat;
mod pack;
mod packed;
mod portable;
mod product;
mod serial;
mod strip;

pub(super) use isa::Isa;
pub use mat::{Mat, MatMut, Stored, Values, ValuesMut};
pub use packed::Packed;
pub use product::{Factor, Product};
pub(super) use serial::{Number, Scratch, product, with_scratch};
pub(super) use strip::{Right, Strip, evenly};

/// Why a product could not be computed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GemmError {
    /// Shapes do not go together.
    #[error("{what} is {found:?}, where a product of {a:?} and {b:?} wants {expected:?}")]
    Shape {
        /// Which matrix.
        what: &'static str,
        /// (rows, cols) of it.
        found: (usize, usize),
        /// (rows, cols) it should have.
        expected: (usize, usize),
        /// A's shape.
        a: (usize, usize),
        /// B's shape.
        b: (usize, usize),
    },
    /// A sum is to be added to memory nobody has written.
    #[error("there is nothing yet in C that a product could be added to")]
    Unwritten,
    /// A slice is shorter than its matrix.
    #[error("{what} of shape {shape:?} and strides {strides:?} does not fit {len} values")]
    Bounds {
        /// Which matrix.
        what: &'static str,
        /// (rows, cols) of it.
        shape: (usize, usize),
        /// Its strides.
        strides: (usize, usize),
        /// Values of the slice.
        len: usize,
    },
}
