//! Operands: slices seen as matrices.

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
    F32(&'a mut [f32]),
    /// bfloat16, rounded to nearest even when written.
    Bf16(&'a mut [bf16]),
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
    &'a mut [f32], ValuesMut::F32;
    &'a mut [bf16], ValuesMut::Bf16;
    &'a mut Vec<f32>, ValuesMut::F32;
    &'a mut Vec<bf16>, ValuesMut::Bf16;
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
}

impl<'a> MatMut<'a> {
    /// A contiguous (rows, cols) matrix, row by row.
    pub fn new(values: impl Into<ValuesMut<'a>>, rows: usize, cols: usize) -> Self {
        Self::strided(values, rows, cols, cols)
    }

    /// A (rows, cols) matrix whose rows begin `row_stride` values apart.
    pub fn strided(values: impl Into<ValuesMut<'a>>, rows: usize, cols: usize, row_stride: usize) -> Self {
        Self { values: values.into(), rows, cols, row_stride }
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
