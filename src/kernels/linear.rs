//! Linear layers: y = x·Wᵀ + b, W (out, in) as PyTorch stores it.
//!
//! On the CPU a product takes f32 and bf16 on either side, exactly, so nothing is converted for it.

use candle_core::{DType, Result, Tensor};

use super::gemm::{Factor, GemmError, Mat, MatMut, Packed, Product, Values, ValuesMut};
use super::slices::{self, Element, by_dtype, read, write};

const NAME: &str = "linear";

/// The weight of a layer.
#[derive(Clone, Copy)]
pub(crate) enum Weight<'a> {
    /// (out, in)
    Stored(&'a Tensor),
    /// Its transpose (in, out), packed for the CPU.
    Packed(&'a Packed),
}

impl Weight<'_> {
    /// (out, in)
    fn shape(self) -> Result<(usize, usize)> {
        match self {
            Self::Stored(weight) => weight.dims2(),
            Self::Packed(weight) => Ok((weight.shape().1, weight.shape().0)),
        }
    }

    fn with<R>(self, f: impl FnOnce(Factor<'_>) -> Result<R>) -> Result<R> {
        let (width, inner) = self.shape()?;
        match self {
            Self::Packed(weight) => f(weight.into()),
            Self::Stored(weight) => with_values(weight, |values| f(Mat::new(values, width, inner).t().into())),
        }
    }
}

/// A weight (out, in), packed once for many products on the CPU.
pub(crate) fn packed(weight: &Tensor) -> Result<Packed> {
    let (width, inner) = weight.dims2()?;
    with_values(weight, |values| Packed::new(Mat::new(values, width, inner).t()).map_err(wrong))
}

/// (…, in) → (…, out) in `out`; with `residual` (…, out), which is f32, added.
pub(crate) fn forward(
    x: &Tensor,
    weight: Weight<'_>,
    bias: &Tensor,
    residual: Option<&Tensor>,
    out: DType,
) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let (Weight::Stored(weight), true) = (weight, x.device().is_cuda()) {
        return super::cuda::linear::forward(x, weight, bias, residual, out);
    }
    let (width, inner) = weight.shape()?;
    let shape = with_last(x, inner, width)?;
    let rows = x.elem_count() / inner;
    let bias = read::<f32>(bias, NAME)?;
    let residual = residual.map(|residual| read::<f32>(residual, NAME)).transpose()?;
    let fill = |y: ValuesMut<'_>| {
        with_values(x, |x| {
            weight.with(|weight| {
                let to = MatMut::unwritten(y, rows, width);
                let product = Product::new(Mat::new(x, rows, inner), weight, to).bias(&bias);
                let product = match &residual {
                    Some(residual) => product.residual(Mat::new(f32::values(residual), rows, width)),
                    None => product,
                };
                product.run().map_err(wrong)
            })
        })
    };
    // SAFETY: a product writes every element.
    unsafe { made(rows * width, shape, out, fill) }
}

/// GELU (the error-function form) of [`forward`] in `out`, on the CPU; with `keep`, also what it is GELU of.
pub(crate) fn forward_gelu(
    x: &Tensor,
    weight: Weight<'_>,
    bias: &Tensor,
    out: DType,
    keep: bool,
) -> Result<(Option<Tensor>, Tensor)> {
    let (width, inner) = weight.shape()?;
    let shape = with_last(x, inner, width)?;
    let rows = x.elem_count() / inner;
    let bias = read::<f32>(bias, NAME)?;
    let run = |before: Option<ValuesMut<'_>>, after: ValuesMut<'_>| {
        with_values(x, |x| {
            weight.with(|weight| {
                let to = MatMut::unwritten(after, rows, width);
                let product = Product::new(Mat::new(x, rows, inner), weight, to).bias(&bias);
                let product = match before {
                    Some(before) => product.gelu_keeping(MatMut::unwritten(before, rows, width)),
                    None => product.gelu(),
                };
                product.run().map_err(wrong)
            })
        })
    };
    let (len, mut before) = (rows * width, None);
    // SAFETY: a product writes every element of what it is given.
    let after = unsafe {
        made(len, shape.clone(), out, |after| {
            if !keep {
                return run(None, after);
            }
            before = Some(made(len, shape, out, |before| run(Some(before), after))?);
            Ok(())
        })?
    };
    Ok((before, after))
}

/// Gradient of the input, in `out`: dx = dy·W. On the CPU, where the input was GELU of `before`, the gradient of that.
pub(crate) fn backward_input(dy: &Tensor, weight: &Tensor, out: DType, before: Option<&Tensor>) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if dy.device().is_cuda() && before.is_none() {
        return super::cuda::linear::backward_input(dy, weight, out);
    }
    let (width, inner) = weight.dims2()?;
    let shape = with_last(dy, width, inner)?;
    let rows = dy.elem_count() / width;
    let fill = |dx: ValuesMut<'_>| {
        with_values(dy, |dy| {
            with_values(weight, |weight| {
                let to = MatMut::unwritten(dx, rows, inner);
                let product = Product::new(Mat::new(dy, rows, width), Mat::new(weight, width, inner), to);
                match before {
                    None => product.run().map_err(wrong),
                    Some(before) => with_values(before, |before| {
                        product.gelu_gradient(Mat::new(before, rows, inner)).run().map_err(wrong)
                    }),
                }
            })
        })
    };
    // SAFETY: a product writes every element.
    unsafe { made(rows * inner, shape, out, fill) }
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
    // Both gradients may lie in one buffer, of which one at a time can be written.
    let mut sums = vec![0f32; width];
    with_values(x, |x| {
        with_values(dy, |dy| {
            let mut done = Ok(());
            write::<f32>(dweight, NAME, |dweight| {
                let (dy, x) = (Mat::new(dy, rows, width).t(), Mat::new(x, rows, inner));
                let product = Product::new(dy, x, MatMut::new(dweight, width, inner)).row_sums(&mut sums);
                done = if fresh { product.run() } else { product.accumulate().run() };
            })?;
            done.map_err(wrong)
        })
    })?;
    slices::accumulate(dbias, &slices::tensor(sums, width)?, fresh)
}

/// The shape of `x`, whose last axis is `inner`, with `width` in its place.
fn with_last(x: &Tensor, inner: usize, width: usize) -> Result<Vec<usize>> {
    let mut shape = x.dims().to_vec();
    match shape.last_mut() {
        Some(last) if *last == inner && inner > 0 => *last = width,
        _ => candle_core::bail!("{NAME}: a layer of {inner} inputs cannot take {:?}", x.dims()),
    }
    Ok(shape)
}

fn with_values<R>(x: &Tensor, f: impl FnOnce(Values<'_>) -> Result<R>) -> Result<R> {
    by_dtype!(x, NAME, T => f(T::values(&read::<T>(x, NAME)?)))
}

/// A tensor of `out` whose values `fill` writes.
///
/// # Safety
/// When `fill` succeeds, it has written all of them.
unsafe fn made(
    len: usize,
    shape: Vec<usize>,
    out: DType,
    fill: impl FnOnce(ValuesMut<'_>) -> Result<()>,
) -> Result<Tensor> {
    // SAFETY: the caller's promise.
    unsafe {
        match out {
            DType::F32 => slices::tensor(slices::made::<f32>(len, |values| fill(values.into()))?, shape),
            DType::BF16 => slices::tensor(slices::made::<half::bf16>(len, |values| fill(values.into()))?, shape),
            other => slices::unsupported(other, NAME),
        }
    }
}

fn wrong(error: GemmError) -> candle_core::Error {
    candle_core::Error::wrap(error)
}
