//! What happens to a tile of sums on its way into memory.

use half::bf16;

use super::isa::{Ask, Asks, Isa};
use crate::kernels::normal;
use crate::kernels::simd::{Lane, Simd};

/// Values that are read or written, of either type.
#[derive(Clone, Copy)]
pub(in crate::kernels) enum Pointer {
    F32(*mut f32),
    Bf16(*mut bf16),
}

/// A matrix whose rows are contiguous.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct Rows {
    pub(super) at: Pointer,
    pub(super) stride: usize,
}

/// An activation after the product.
#[derive(Clone, Copy)]
pub(super) enum Activation {
    None,
    Gelu { keep: Option<Rows> },
    GeluGradient { of: Rows },
}

/// Everything done to a sum; see [`super::Product`].
#[derive(Clone, Copy)]
pub(super) struct Finish<'a> {
    pub(super) c: Rows,
    pub(super) alpha: f32,
    pub(super) accumulate: bool,
    pub(super) bias: Option<&'a [f32]>,
    pub(super) residual: Option<Rows>,
    pub(super) activation: Activation,
}

impl Rows {
    /// `n` ≤ `LANES` values.
    ///
    /// # Safety
    /// They exist.
    #[inline(always)]
    unsafe fn load<S: Simd>(self, row: usize, column: usize, n: usize) -> S::V {
        let offset = row * self.stride + column;
        // SAFETY: the caller's.
        unsafe {
            match self.at {
                Pointer::F32(at) => f32::load::<S>(at.add(offset), n),
                Pointer::Bf16(at) => bf16::load::<S>(at.add(offset), n),
            }
        }
    }

    /// # Safety
    /// `n` ≤ `LANES` values exist from there on, and nobody else looks at them.
    #[inline(always)]
    unsafe fn store<S: Simd>(self, row: usize, column: usize, n: usize, v: S::V) {
        let offset = row * self.stride + column;
        // SAFETY: the caller's.
        unsafe {
            match self.at {
                Pointer::F32(at) => f32::store::<S>(at.add(offset), n, v),
                Pointer::Bf16(at) => bf16::store::<S>(at.add(offset), n, v),
            }
        }
    }

    /// Its rows from (row, column) on.
    fn ask(self, row: usize, column: usize) -> Ask {
        let (at, size) = match self.at {
            Pointer::F32(at) => (at.cast::<u8>(), 4),
            Pointer::Bf16(at) => (at.cast::<u8>(), 2),
        };
        Ask { at: at.wrapping_add((row * self.stride + column) * size), twin: 64, step: self.stride * size }
    }
}

impl Finish<'_> {
    /// Has `asks` ask for the memory of the tile from (row, column) on.
    #[inline(always)]
    pub(super) fn ask(&self, row: usize, column: usize, asks: &mut Asks) {
        asks.write[0] = self.c.ask(row, column);
        if let Some(residual) = self.residual {
            asks.read[2] = residual.ask(row, column);
        }
        match self.activation {
            Activation::Gelu { keep: Some(keep) } => asks.write[1] = keep.ask(row, column),
            Activation::GeluGradient { of } => asks.read[2] = of.ask(row, column),
            Activation::None | Activation::Gelu { keep: None } => {}
        }
    }

    /// Where in C the tile from `at` on lies, and how far apart its rows are, if all there is to do is to put it, or the one
    /// block it is the sum of, there or to add it.
    #[inline(always)]
    pub(super) fn place<I: Isa>(&self, at: (usize, usize), cols: usize, blocks: usize) -> Option<(*mut f32, usize)> {
        let Pointer::F32(c) = self.c.at else { return None };
        let plain = self.alpha == 1.0
            && self.bias.is_none()
            && self.residual.is_none()
            && matches!(self.activation, Activation::None)
            && (!self.accumulate || blocks == 1)
            && cols == I::COLS;
        plain.then(|| (c.wrapping_add(at.0 * self.c.stride + at.1), self.c.stride))
    }

    /// Writes `tile` (rows, I::COLS), of which `cols` columns count, to C from (row, column) on.
    ///
    /// # Safety
    /// Those elements exist in every matrix named, and nobody else looks at those written.
    #[inline(always)]
    pub(super) unsafe fn tile<I: Isa>(
        &self,
        tile: *const f32,
        (row, rows): (usize, usize),
        (column, cols): (usize, usize),
    ) {
        let Self { c, alpha, accumulate, bias, residual, activation } = *self;
        // A loop for every activation: which it is would otherwise be asked for every vector.
        macro_rules! vectors_of_tile {
            (|$v:ident, $row:ident, $column:ident, $n:ident| $activated:expr) => {
                for i in 0..rows {
                    for j in (0..cols).step_by(I::LANES) {
                        let ($row, $column, $n) = (row + i, column + j, I::LANES.min(cols - j));
                        let mut $v = I::load(tile.add(i * I::COLS + j));
                        if alpha != 1.0 {
                            $v = I::mul($v, I::splat(alpha));
                        }
                        if let Some(bias) = bias {
                            $v = I::add($v, f32::load::<I>(bias.as_ptr().add($column), $n));
                        }
                        if let Some(residual) = residual {
                            $v = I::add($v, residual.load::<I>($row, $column, $n));
                        }
                        if accumulate {
                            $v = I::add($v, c.load::<I>($row, $column, $n));
                        }
                        c.store::<I>($row, $column, $n, $activated);
                    }
                }
            };
        }
        // SAFETY: the caller's; a tile's rows are whole vectors wide.
        unsafe {
            match activation {
                Activation::None => vectors_of_tile!(|v, row, column, n| v),
                Activation::Gelu { keep: None } => vectors_of_tile!(|v, row, column, n| normal::gelu::<I>(v)),
                Activation::Gelu { keep: Some(keep) } => vectors_of_tile!(|v, row, column, n| {
                    keep.store::<I>(row, column, n, v);
                    // What the backward pass will see, should it be rounded.
                    normal::gelu::<I>(keep.load::<I>(row, column, n))
                }),
                Activation::GeluGradient { of } => vectors_of_tile!(|v, row, column, n| {
                    I::mul(v, normal::gelu_gradient::<I>(of.load::<I>(row, column, n)))
                }),
            }
        }
    }
}
