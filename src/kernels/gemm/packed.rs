//! A right-hand operand packed once, for weights that do not change.

use super::drive::{Pack, blocks, tile_shape};
use super::product::{check_read, operand};
use super::{GemmError, Mat};
use crate::kernels::simd::{Kind, dispatch_on};

/// B of many products, in the order the inner loop reads it and widened to f32.
#[derive(Clone)]
pub struct Packed {
    pub(super) kind: Kind,
    pub(super) shape: (usize, usize),
    values: Vec<f32>,
}

impl Packed {
    /// Packs `b`; takes 4 bytes a value, its columns rounded up to the width of a tile.
    ///
    /// # Errors
    /// The slice is shorter than the matrix.
    pub fn new(b: Mat<'_>) -> Result<Self, GemmError> {
        check_read("B", &b)?;
        let kind = Kind::best();
        let (k, n) = b.shape();
        let (_, cols) = tile_shape(kind);
        let mut values = vec![0f32; if k == 0 || n == 0 { 0 } else { k * n.next_multiple_of(cols) }];
        let pack =
            Pack { b: operand(&b), n, k, blocks: 0..blocks(k), panels: 0..n.div_ceil(cols), to: values.as_mut_ptr() };
        // SAFETY: every element of `b` exists, `values` has the room asked for, and `kind` is available.
        unsafe { dispatch_on(kind, pack) };
        Ok(Self { kind, shape: (k, n), values })
    }

    /// (rows, cols).
    pub fn shape(&self) -> (usize, usize) {
        self.shape
    }

    pub(super) fn as_ptr(&self) -> *const f32 {
        self.values.as_ptr()
    }
}

impl std::fmt::Debug for Packed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packed").field("shape", &self.shape).finish_non_exhaustive()
    }
}
