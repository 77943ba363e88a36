//! Operands: slices seen as matrices.

use std::mem::MaybeUninit;

use half::bf16;

/// Values of a matrix that is read.
#[derive(Debug, Clone, Copy)]
pub enum Values<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// bfloat16, widened exactly when read.
    Bf16(&'a [bf16]),
}

/// Values of a matrix that is written.
#[derive(Debug)]
pub enum ValuesMut<'a> {
    /// Single precision.
    F32(&'a mut [MaybeUninit<f32>]),
    /// bfloat16, rounded to nearest even when written.
    Bf16(&'a mut [MaybeUninit<bf16>]),
}

impl Values<'_> {
    pub(super) fn len(self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::Bf16(values) => values.len(),
        }
    }
}

impl ValuesMut<'_> {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::Bf16(values) => values.len(),
        }
    }
}

macro_rules! values_from {
    ($($from:ty, $to:ident :: $variant:ident;)*) => {
        $(impl<'a> From<$from> for $to<'a> {
            fn from(values: $from) -> Self {
                Self::$variant(values)
            }
        })*
    };
}
values_from! {
    &'a [f32], Values::F32;
    &'a [bf16], Values::Bf16;
    &'a Vec<f32>, Values::F32;
    &'a Vec<bf16>, Values::Bf16;
    &'a mut [MaybeUninit<f32>], ValuesMut::F32;
    &'a mut [MaybeUninit<bf16>], ValuesMut::Bf16;
}

/// Values that are there are a special case of values that may be.
fn perhaps<T>(values: &mut [T]) -> &mut [MaybeUninit<T>] {
    let (at, len) = (values.as_mut_ptr(), values.len());
    // SAFETY: the layout is the same, and nothing uninitialised is ever written.
    unsafe { std::slice::from_raw_parts_mut(at.cast(), len) }
}

/// A (rows, cols) matrix inside a slice: element (i, j) is at `i · row_stride + j · col_stride`.
#[derive(Debug, Clone, Copy)]
pub struct Mat<'a> {
    pub(super) values: Values<'a>,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) row_stride: usize,
    pub(super) col_stride: usize,
}

impl<'a> Mat<'a> {
    /// A contiguous (rows, cols) matrix, row by row.
    pub fn new(values: impl Into<Values<'a>>, rows: usize, cols: usize) -> Self {
        Self::strided(values, rows, cols, cols)
    }

    /// A (rows, cols) matrix whose rows are contiguous and begin `row_stride` values apart.
    pub fn strided(values: impl Into<Values<'a>>, rows: usize, cols: usize, row_stride: usize) -> Self {
        Self { values: values.into(), rows, cols, row_stride, col_stride: 1 }
    }

    /// The transpose, of the same values.
    #[must_use]
    pub fn t(self) -> Self {
        let Self { values, rows, cols, row_stride, col_stride } = self;
        Self { values, rows: cols, cols: rows, row_stride: col_stride, col_stride: row_stride }
    }

    /// (rows, cols).
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// Whether the values reach as far as the shape and the strides say.
    pub(super) fn fits(&self) -> bool {
        fits(self.values.len(), (self.rows, self.row_stride), (self.cols, self.col_stride))
    }
}

/// A (rows, cols) matrix to write; rows are contiguous.
#[derive(Debug)]
pub struct MatMut<'a> {
    pub(super) values: ValuesMut<'a>,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) row_stride: usize,
    /// Whether there are values already.
    pub(super) there: bool,
}

/// What a matrix may be made of: f32 and bf16.
pub trait Stored: Sized {
    /// Them as values to write.
    fn values_mut(values: &mut [MaybeUninit<Self>]) -> ValuesMut<'_>;
}

impl Stored for f32 {
    fn values_mut(values: &mut [MaybeUninit<f32>]) -> ValuesMut<'_> {
        ValuesMut::F32(values)
    }
}

impl Stored for bf16 {
    fn values_mut(values: &mut [MaybeUninit<bf16>]) -> ValuesMut<'_> {
        ValuesMut::Bf16(values)
    }
}

impl<'a> MatMut<'a> {
    /// A contiguous (rows, cols) matrix, row by row.
    pub fn new<T: Stored>(values: &'a mut [T], rows: usize, cols: usize) -> Self {
        Self::strided(values, rows, cols, cols)
    }

    /// A (rows, cols) matrix whose rows begin `row_stride` values apart.
    pub fn strided<T: Stored>(values: &'a mut [T], rows: usize, cols: usize, row_stride: usize) -> Self {
        Self { values: T::values_mut(perhaps(values)), rows, cols, row_stride, there: true }
    }

    /// A contiguous (rows, cols) matrix of memory nobody has written yet. A product that does not
    /// [accumulate](super::Product::accumulate) writes every element of it.
    pub fn unwritten(values: impl Into<ValuesMut<'a>>, rows: usize, cols: usize) -> Self {
        Self { values: values.into(), rows, cols, row_stride: cols, there: false }
    }

    /// Whether the values reach as far as shape and stride say, and no two rows share one.
    pub(super) fn fits(&self) -> bool {
        (self.row_stride >= self.cols || self.rows <= 1)
            && fits(self.values.len(), (self.rows, self.row_stride), (self.cols, 1))
    }
}

fn fits(len: usize, rows: (usize, usize), cols: (usize, usize)) -> bool {
    if rows.0 == 0 || cols.0 == 0 {
        return true;
    }
    let last = |(count, stride): (usize, usize)| (count - 1).checked_mul(stride);
    // `len` is at most isize::MAX, so every offset within it is a valid pointer offset.
    matches!((last(rows), last(cols)), (Some(r), Some(c)) if r.checked_add(c).is_some_and(|last| last < len))
}
