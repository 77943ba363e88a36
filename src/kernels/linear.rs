//! Linear layers: y = x·Wᵀ + b, W (out, in) as PyTorch stores it.

use candle_core::{D, DType, Result, Tensor};

use super::columns;
use super::gemm::{GemmError, Mat, MatMut, Product};
use super::slices::{self, Element, by_dtype, read, write};

const NAME: &str = "linear";

/// (…, in) → (…, out) in `out`; with `residual` (…, out), which is f32, added.
pub(crate) fn forward(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    residual: Option<&Tensor>,
    out: DType,
) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return super::cuda::linear::forward(x, weight, bias, residual, out);
    }
    let (width, inner) = weight.dims2()?;
    if x.dim(D::Minus1)? != inner {
        candle_core::bail!("linear: a layer of {inner} inputs cannot take {:?}", x.dims());
    }
    let mut shape = x.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = width;
    }
    let rows = x.elem_count() / inner;
    let bias = read::<f32>(bias, NAME)?;
    let residual = residual.map(|residual| read::<f32>(residual, NAME)).transpose()?;
    by_dtype!(x, NAME, T => {
        let (x, weight) = (read::<T>(x, NAME)?, read::<T>(weight, NAME)?);
        let fill = |y: MatMut<'_>| -> Result<()> {
            let weight = Mat::new(T::values(&weight), width, inner).t();
            let product = Product::new(Mat::new(T::values(&x), rows, inner), weight, y).bias(&bias);
            let product = match &residual {
                Some(residual) => product.residual(Mat::new(f32::values(residual), rows, width)),
                None => product,
            };
            product.run().map_err(wrong)
        };
        made(rows * width, shape, out, |values| fill(values.matrix(rows, width)))
    })
}

/// Gradient of the input: dx = dy·W, in the type of `dy`.
pub(crate) fn backward_input(dy: &Tensor, weight: &Tensor, out: DType) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if dy.device().is_cuda() {
        return super::cuda::linear::backward_input(dy, weight, out);
    }
    let (width, inner) = weight.dims2()?;
    let rows = dy.elem_count() / width;
    let mut shape = dy.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = inner;
    }
    by_dtype!(dy, NAME, T => {
        let (dy, weight) = (read::<T>(dy, NAME)?, read::<T>(weight, NAME)?);
        made(rows * inner, shape, out, |values| {
            let (dy, weight) = (Mat::new(T::values(&dy), rows, width), Mat::new(T::values(&weight), width, inner));
            Product::new(dy, weight, values.matrix(rows, inner)).run().map_err(wrong)
        })
    })
}

/// Gradients of the parameters, added to `dweight` (out, in) and `dbias` (out) or, when `fresh`, put there.
pub(crate) fn backward_parameters(
    x: &Tensor,
    dy: &Tensor,
    dweight: &Tensor,
    dbias: &Tensor,
    fresh: bool,
) -> Result<()> {
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return super::cuda::linear::backward_parameters(x, dy, dweight, dbias, fresh);
    }
    let (width, inner) = dweight.dims2()?;
    let rows = x.elem_count() / inner;
    by_dtype!(x, NAME, T => {
        let (x, dy) = (read::<T>(x, NAME)?, read::<T>(dy, NAME)?);
        let mut done = Ok(());
        write::<f32>(dweight, NAME, |dweight| {
            let (dy, x) = (Mat::new(T::values(&dy), rows, width).t(), Mat::new(T::values(&x), rows, inner));
            let product = Product::new(dy, x, MatMut::new(dweight, width, inner));
            done = if fresh { product.run() } else { product.accumulate().run() };
        })?;
        done.map_err(wrong)?;
        write::<f32>(dbias, NAME, |dbias| columns::add_rows(&dy, dbias, fresh))
    })
}

/// A result being made, in its type.
enum Made<'v> {
    F32(&'v mut [f32]),
    Bf16(&'v mut [half::bf16]),
}

impl<'v> Made<'v> {
    fn matrix(self, rows: usize, columns: usize) -> MatMut<'v> {
        match self {
            Self::F32(values) => MatMut::new(values, rows, columns),
            Self::Bf16(values) => MatMut::new(values, rows, columns),
        }
    }
}

fn made(len: usize, shape: Vec<usize>, out: DType, fill: impl FnOnce(Made<'_>) -> Result<()>) -> Result<Tensor> {
    match out {
        DType::F32 => {
            let mut values = vec![0f32; len];
            fill(Made::F32(&mut values))?;
            slices::tensor(values, shape)
        }
        DType::BF16 => {
            let mut values = vec![half::bf16::ZERO; len];
            fill(Made::Bf16(&mut values))?;
            slices::tensor(values, shape)
        }
        other => slices::unsupported(other, NAME),
    }
}

fn wrong(error: GemmError) -> candle_core::Error {
    candle_core::Error::wrap(error)
}
