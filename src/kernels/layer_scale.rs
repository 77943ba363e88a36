//! LayerScale: each channel times a learned factor, and its gradients.

use candle_core::{D, Result, Tensor};
use rayon::prelude::*;

use super::columns::{self, ROWS};
use super::slices::{self, Element, by_dtype, read, write};

const NAME: &str = "layer scale";

/// (…, C) times `gamma` of C values, in the type of `x`.
pub(crate) fn forward(x: &Tensor, gamma: &Tensor) -> Result<Tensor> {
    if !x.device().is_cpu() {
        return x.broadcast_mul(&gamma.to_dtype(x.dtype())?);
    }
    let c = width(x, gamma)?;
    by_dtype!(x, NAME, T => {
        let (values, gamma) = (read::<T>(x, NAME)?, read::<f32>(gamma, NAME)?);
        let out = slices::filled::<T>(values.len(), |out| {
            out.par_chunks_mut(ROWS * c).zip(values.par_chunks(ROWS * c)).for_each(|(out, x)| {
                for (out, x) in out.chunks_exact_mut(c).zip(x.chunks_exact(c)) {
                    for ((y, x), gamma) in out.iter_mut().zip(x).zip(&*gamma) {
                        *y = T::narrow(x.wide() * gamma);
                    }
                }
            });
        });
        slices::tensor(out, x.shape())
    })
}

/// Gradient of x, in its type; that of gamma is added to `dgamma` or, when `fresh`, put there.
pub(crate) fn backward(x: &Tensor, dy: &Tensor, gamma: &Tensor, dgamma: &Tensor, fresh: bool) -> Result<Tensor> {
    if !x.device().is_cpu() {
        let products = (x.to_dtype(candle_core::DType::F32)? * dy.to_dtype(candle_core::DType::F32)?)?;
        let sum = products.flatten_to(D::Minus2)?.sum(0)?;
        slices::accumulate(dgamma, &sum, fresh)?;
        return dy.broadcast_mul(&gamma.to_dtype(dy.dtype())?);
    }
    let c = width(x, gamma)?;
    by_dtype!(x, NAME, T => {
        let (values, slopes) = (read::<T>(x, NAME)?, read::<T>(dy, NAME)?);
        if slopes.len() != values.len() {
            candle_core::bail!("{NAME}: a gradient of {} values for {}", slopes.len(), values.len());
        }
        let products: Vec<f32> = values.iter().zip(&*slopes).map(|(x, dy)| x.wide() * dy.wide()).collect();
        write::<f32>(dgamma, NAME, |sums| columns::add_rows(&products, &mut sums[..c], fresh))?;
        forward(dy, gamma)
    })
}

fn width(x: &Tensor, gamma: &Tensor) -> Result<usize> {
    match x.dim(D::Minus1)? {
        c if c > 0 && gamma.elem_count() == c => Ok(c),
        _ => candle_core::bail!("{NAME}: {} factors for {:?}", gamma.elem_count(), x.dims()),
    }
}
