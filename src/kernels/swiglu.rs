//! SwiGLU's gate over rows, and its gradient: (…, 2·h) as `[a | b]` → (…, h): silu(a)·b.

use candle_core::{D, Result, Tensor};
use rayon::prelude::*;

use super::slices::{self, Element, by_dtype, read};

const NAME: &str = "swiglu";

/// Rows a thread takes at a time.
const ROWS: usize = 16;

/// In the type of `x`.
pub(crate) fn forward(x: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return super::cuda::swiglu::forward(x);
    }
    let (hidden, mut dims) = (half(x)?, x.dims().to_vec());
    if let Some(last) = dims.last_mut() {
        *last = hidden;
    }
    by_dtype!(x, NAME, T => {
        let values = read::<T>(x, NAME)?;
        let out = slices::filled::<T>(values.len() / 2, |out| {
            out.par_chunks_mut(ROWS * hidden).zip(values.par_chunks(ROWS * 2 * hidden)).for_each(|(out, x)| {
                for (out, x) in out.chunks_exact_mut(hidden).zip(x.chunks_exact(2 * hidden)) {
                    let (a, b) = x.split_at(hidden);
                    for ((y, a), b) in out.iter_mut().zip(a).zip(b) {
                        *y = T::narrow(a.wide() * sigmoid(a.wide()) * b.wide());
                    }
                }
            });
        });
        slices::tensor(out, dims)
    })
}

/// Gradient of the input, in its type: da = dy·b·σ(a)·(1 + a·(1 − σ(a))), db = dy·silu(a).
pub(crate) fn backward(x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return super::cuda::swiglu::backward(x, dy);
    }
    let hidden = half(x)?;
    by_dtype!(x, NAME, T => {
        let (values, dy) = (read::<T>(x, NAME)?, read::<T>(dy, NAME)?);
        if dy.len() * 2 != values.len() {
            candle_core::bail!("{NAME}: a gradient of {} values for {}", dy.len(), values.len() / 2);
        }
        let out = slices::filled::<T>(values.len(), |out| {
            let parts = values.par_chunks(ROWS * 2 * hidden).zip(dy.par_chunks(ROWS * hidden));
            out.par_chunks_mut(ROWS * 2 * hidden).zip(parts).for_each(|(out, (x, dy))| {
                let rows = x.chunks_exact(2 * hidden).zip(dy.chunks_exact(hidden));
                for (out, (x, dy)) in out.chunks_exact_mut(2 * hidden).zip(rows) {
                    let ((a, b), (da, db)) = (x.split_at(hidden), out.split_at_mut(hidden));
                    for i in 0..hidden {
                        let (a, b, dy) = (a[i].wide(), b[i].wide(), dy[i].wide());
                        let s = sigmoid(a);
                        da[i] = T::narrow(dy * b * s * (1.0 + a * (1.0 - s)));
                        db[i] = T::narrow(dy * a * s);
                    }
                }
            });
        });
        slices::tensor(out, x.shape())
    })
}

fn half(x: &Tensor) -> Result<usize> {
    match x.dim(D::Minus1)? {
        last if last > 0 && last.is_multiple_of(2) => Ok(last / 2),
        _ => candle_core::bail!("{NAME}: {:?} has no two equal halves", x.dims()),
    }
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}
