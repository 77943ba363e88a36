//! A product as the caller writes it down, and the checks that make it safe.

use super::drive::{self, Job, Operand};
use super::finish::{Activation, Finish, Pointer, Rows};
use super::pack::View;
use super::{GemmError, Mat, MatMut, Packed, Values, ValuesMut};
use crate::kernels::simd::Kind;

/// The right-hand operand.
#[derive(Debug, Clone, Copy)]
pub enum Factor<'a> {
    /// As it lies in memory.
    Mat(Mat<'a>),
    /// Packed before.
    Packed(&'a Packed),
}

impl<'a> From<Mat<'a>> for Factor<'a> {
    fn from(mat: Mat<'a>) -> Self {
        Self::Mat(mat)
    }
}

impl<'a> From<&'a Packed> for Factor<'a> {
    fn from(packed: &'a Packed) -> Self {
        Self::Packed(packed)
    }
}

impl Factor<'_> {
    fn shape(&self) -> (usize, usize) {
        match self {
            Self::Mat(mat) => mat.shape(),
            Self::Packed(packed) => packed.shape(),
        }
    }
}

#[derive(Debug)]
enum After<'a> {
    Nothing,
    Gelu(Option<MatMut<'a>>),
    GeluGradient(Mat<'a>),
}

/// `C = act(α·A·B + bias + residual + C)`, of which everything but `A·B` is left out unless asked for.
#[derive(Debug)]
#[must_use = "nothing is computed before `run`"]
pub struct Product<'a> {
    a: Mat<'a>,
    b: Factor<'a>,
    c: MatMut<'a>,
    alpha: f32,
    accumulate: bool,
    bias: Option<&'a [f32]>,
    residual: Option<Mat<'a>>,
    row_sums: Option<&'a mut [f32]>,
    after: After<'a>,
}

impl<'a> Product<'a> {
    /// `C = A·B` of (m, k) and (k, n).
    pub fn new(a: Mat<'a>, b: impl Into<Factor<'a>>, c: MatMut<'a>) -> Self {
        let b = b.into();
        let (bias, residual, row_sums) = (None, None, None);
        Self { a, b, c, alpha: 1.0, accumulate: false, bias, residual, row_sums, after: After::Nothing }
    }

    /// Scales the product.
    pub fn alpha(self, alpha: f32) -> Self {
        Self { alpha, ..self }
    }

    /// Adds what C holds.
    pub fn accumulate(self) -> Self {
        Self { accumulate: true, ..self }
    }

    /// Adds `bias` (n) to every row.
    pub fn bias(self, bias: &'a [f32]) -> Self {
        Self { bias: Some(bias), ..self }
    }

    /// Adds `residual` (m, n), whose rows must be contiguous.
    pub fn residual(self, residual: Mat<'a>) -> Self {
        Self { residual: Some(residual), ..self }
    }

    /// Puts the sum of each row of A in `sums` (m): the gradient of a bias, when A is that of a layer's output. They are not
    /// written where C has no columns.
    pub fn row_sums(self, sums: &'a mut [f32]) -> Self {
        Self { row_sums: Some(sums), ..self }
    }

    /// C becomes GELU (the error-function form) of the sum.
    pub fn gelu(self) -> Self {
        Self { after: After::Gelu(None), ..self }
    }

    /// [`Self::gelu`], and the sum itself is written to `before` (m, n): the backward pass needs it. Where `before`
    /// is bf16, C is the GELU of the rounded sum.
    pub fn gelu_keeping(self, before: MatMut<'a>) -> Self {
        Self { after: After::Gelu(Some(before)), ..self }
    }

    /// The sum is multiplied by the derivative of GELU at `before` (m, n), whose rows must be contiguous.
    pub fn gelu_gradient(self, before: Mat<'a>) -> Self {
        Self { after: After::GeluGradient(before), ..self }
    }

    /// Computes it, over rayon's current pool.
    ///
    /// # Errors
    /// Shapes that do not go together, or a slice shorter than its matrix; C is untouched then.
    pub fn run(self) -> Result<(), GemmError> {
        let kind = match self.b {
            Factor::Packed(packed) => packed.kind,
            Factor::Mat(_) => Kind::best(),
        };
        self.run_on(kind)
    }

    fn run_on(mut self, kind: Kind) -> Result<(), GemmError> {
        let ((m, k), (inner, n)) = (self.a.shape(), self.b.shape());
        let (a, b) = ((m, k), (inner, n));
        let shape = |what, found, expected| match found == expected {
            true => Ok(()),
            false => Err(GemmError::Shape { what, found, expected, a, b }),
        };
        shape("B", (inner, n), (k, n))?;
        shape("C", (self.c.rows, self.c.cols), (m, n))?;
        check_read("A", &self.a)?;
        check_write("C", &self.c)?;
        if self.accumulate && !self.c.there {
            return Err(GemmError::Unwritten);
        }
        if let Factor::Mat(b) = &self.b {
            check_read("B", b)?;
        }
        if let Some(bias) = self.bias {
            shape("the bias", (1, bias.len()), (1, n))?;
        }
        let rows_of = |what: &'static str, mat: &Mat<'_>| {
            shape(what, mat.shape(), (m, n))?;
            check_read(what, mat)?;
            match mat.col_stride {
                1 => Ok(rows(mat)),
                _ => Err(bounds(what, mat)),
            }
        };
        if let Some(sums) = &self.row_sums {
            shape("the sums of rows", (sums.len(), 1), (m, 1))?;
        }
        let residual = self.residual.as_ref().map(|residual| rows_of("the residual", residual)).transpose()?;
        let activation = match &mut self.after {
            After::Nothing => Activation::None,
            After::Gelu(keep) => {
                if let Some(keep) = keep {
                    shape("the sum kept", (keep.rows, keep.cols), (m, n))?;
                    check_write("the sum kept", keep)?;
                }
                Activation::Gelu { keep: keep.as_mut().map(rows_mut) }
            }
            After::GeluGradient(before) => Activation::GeluGradient { of: rows_of("the sum kept", before)? },
        };
        let c = rows_mut(&mut self.c);
        let finish =
            Finish { c, alpha: self.alpha, accumulate: self.accumulate, bias: self.bias, residual, activation };
        let b = match &self.b {
            Factor::Mat(b) => operand(b),
            Factor::Packed(packed) => Operand::Packed(packed.as_ptr()),
        };
        let row_sums = self.row_sums.as_mut().map(|sums| sums.as_mut_ptr());
        let job = Job { shape: (m, n, k), a: operand(&self.a), b, row_sums, finish };
        // SAFETY: every matrix lies inside its slice, and so do the sums; those written are borrowed alone and have rows apart; `kind` is
        // detected or a packed operand's, which was.
        unsafe { drive::run(kind, &job) };
        Ok(())
    }
}

pub(super) fn check_read(what: &'static str, mat: &Mat<'_>) -> Result<(), GemmError> {
    if mat.fits() { Ok(()) } else { Err(bounds(what, mat)) }
}

fn bounds(what: &'static str, mat: &Mat<'_>) -> GemmError {
    let strides = (mat.row_stride, mat.col_stride);
    GemmError::Bounds { what, shape: mat.shape(), strides, len: mat.values.len() }
}

fn check_write(what: &'static str, mat: &MatMut<'_>) -> Result<(), GemmError> {
    let (shape, strides) = ((mat.rows, mat.cols), (mat.row_stride, 1));
    if mat.fits() { Ok(()) } else { Err(GemmError::Bounds { what, shape, strides, len: mat.values.len() }) }
}

pub(super) fn operand(mat: &Mat<'_>) -> Operand {
    let strides = (mat.row_stride, mat.col_stride);
    match mat.values {
        Values::F32(values) => Operand::F32(View { at: values.as_ptr(), strides }),
        Values::Bf16(values) => Operand::Bf16(View { at: values.as_ptr(), strides }),
    }
}

/// Only for reading.
fn rows(mat: &Mat<'_>) -> Rows {
    let at = match mat.values {
        Values::F32(values) => Pointer::F32(values.as_ptr().cast_mut()),
        Values::Bf16(values) => Pointer::Bf16(values.as_ptr().cast_mut()),
    };
    Rows { at, stride: mat.row_stride }
}

fn rows_mut(mat: &mut MatMut<'_>) -> Rows {
    let at = match &mut mat.values {
        ValuesMut::F32(values) => Pointer::F32(values.as_mut_ptr().cast()),
        ValuesMut::Bf16(values) => Pointer::Bf16(values.as_mut_ptr().cast()),
    };
    Rows { at, stride: mat.row_stride }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction_set_computes_the_same() {
        for (m, n, k) in [(1, 1, 1), (37, 75, 300), (14, 32, 256), (100, 17, 513)] {
            let wave = |len: usize, step: f32| (0..len).map(|i| (i as f32 * step).sin()).collect::<Vec<_>>();
            let (a, b, bias) = (wave(m * k, 0.7), wave(k * n, 1.3), wave(n, 0.1));
            let run = |kind: Kind, transposed: bool| {
                let (mut c, mut kept, mut sums) = (vec![0f32; m * n], vec![0f32; m * n], vec![f32::NAN; m]);
                let (left, right) = match transposed {
                    true => (Mat::new(&a, k, m).t(), Mat::new(&b, n, k).t()),
                    false => (Mat::new(&a, m, k), Mat::new(&b, k, n)),
                };
                let product = Product::new(left, right, MatMut::new(&mut c, m, n)).alpha(0.1).bias(&bias);
                let done = product.gelu_keeping(MatMut::new(&mut kept, m, n)).row_sums(&mut sums).run_on(kind);
                assert_eq!(done, Ok(()));
                for (i, sum) in sums.iter().enumerate() {
                    let row = (0..k).map(|d| f64::from(a[if transposed { d * m + i } else { i * k + d }]));
                    // Up to 513 values of at most 1.
                    assert!((f64::from(*sum) - row.sum::<f64>()).abs() < 1e-4, "{kind:?} {m}×{n}×{k}, row {i}");
                }
                (c, kept)
            };
            for transposed in [false, true] {
                let portable = run(Kind::Portable, transposed);
                let all: Vec<_> = Kind::available().map(|kind| (kind, run(kind, transposed))).collect();
                for (kind, (c, kept)) in &all {
                    let pairs = c.iter().zip(&portable.0).chain(kept.iter().zip(&portable.1));
                    // |sums| ≤ 0.1·√k, of which a product rounded before it is added costs half a unit each.
                    let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                    assert!(worst < 1e-5, "{kind:?} {m}×{n}×{k}: {worst:e}");
                }
                // Where both multiply and add in one rounding, to the bit.
                for (kind, result) in all.iter().filter(|(kind, _)| *kind != Kind::Portable) {
                    assert!(*result == all[0].1, "{kind:?} {m}×{n}×{k}");
                }
            }
        }
    }
}
