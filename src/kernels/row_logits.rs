//! Attention logits of chosen query rows: TEC's attention target, and the student's prediction of it.
//!
//! B images, T tokens of which the last L are patches, R rows, N heads of d channels.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::gemm::Number;
use super::product::product;
use super::slices::{self, by_dtype, read};

const NAME: &str = "row logits";

/// Where the queries and the keys lie in x (B, T, channels): queries first, keys right after.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowLogits {
    /// N.
    pub(crate) heads: usize,
    /// Channels of the queries, and of the keys: N·d.
    pub(crate) width: usize,
    /// Factor of every product.
    pub(crate) scale: f64,
    /// Tokens before the patches; their columns are not computed.
    pub(crate) prefix: usize,
}

impl RowLogits {
    /// x (B, T, ≥ 2·N·d) and `rows` (B, R), u32 token numbers → (B, R, N, L), f32: each row's query against every
    /// patch's key. The class token's column is not computed (upstream drops it: `basemodel_vit.py:106`).
    pub(crate) fn forward(&self, x: &Tensor, rows: &Tensor) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            return super::cuda::row_logits::forward(self, x, rows);
        }
        let (batch, tokens, channels) = self.check(x)?;
        let picked = rows.dim(1)?;
        let (n, patches) = (self.heads, tokens - self.prefix);
        let rows: Vec<u32> = rows.flatten_all()?.to_vec1()?;
        bounded(&rows, batch * picked, tokens)?;
        let out = by_dtype!(x, NAME, T => Ok(self.logits(&read::<T>(x, NAME)?, &rows, picked, tokens, channels)))?;
        slices::tensor(out, (batch, picked, n, patches))
    }

    /// Logits of images of `tokens` × `channels` values, for `picked` rows of each.
    fn logits<T: Number>(&self, values: &[T], rows: &[u32], picked: usize, tokens: usize, channels: usize) -> Vec<f32> {
        let (d, n, patches) = (self.width / self.heads, self.heads, tokens - self.prefix);
        let images = values.len() / (tokens * channels);
        slices::filled::<f32>(images * picked * n * patches, |out| {
            out.par_chunks_mut(picked * n * patches).enumerate().for_each(|(image, out)| {
                let x = &values[image * tokens * channels..][..tokens * channels];
                let q = gather(x, channels, self.width, &rows[image * picked..][..picked]);
                for head in 0..n {
                    // SAFETY: q is (R, N·d); keys are the patches' rows of x; the head's logits are (R, L), N·L apart.
                    unsafe {
                        let keys = (x.as_ptr().add(self.prefix * channels + self.width + head * d), [1, channels]);
                        let q = (q.as_ptr().add(head * d), [self.width, 1]);
                        let out = (out.as_mut_ptr().add(head * patches), n * patches);
                        product([picked, patches, d], q, keys, self.scale as f32, out, false);
                    }
                }
            });
        })
    }

    /// Gradient of x, in its own type, from that of the logits (B, R, N, L).
    pub(crate) fn backward(&self, x: &Tensor, rows: &Tensor, dlogits: &Tensor) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            return super::cuda::row_logits::backward(self, x, rows, dlogits);
        }
        let (batch, tokens, channels) = self.check(x)?;
        let picked = rows.dim(1)?;
        let (n, patches) = (self.heads, tokens - self.prefix);
        let rows: Vec<u32> = rows.flatten_all()?.to_vec1()?;
        bounded(&rows, batch * picked, tokens)?;
        let dlogits = read::<f32>(dlogits, NAME)?;
        if dlogits.len() != batch * picked * n * patches {
            candle_core::bail!("{NAME}: {} gradients for {batch}×{picked}×{n}×{patches} logits", dlogits.len());
        }
        let out = by_dtype!(x, NAME, T => Ok(self.gradient(&read::<T>(x, NAME)?, &rows, &dlogits, tokens, channels)))?;
        slices::tensor(out, x.shape())?.to_dtype(x.dtype())
    }

    /// Gradient of images of `tokens` × `channels` values.
    fn gradient<T: Number>(
        &self,
        values: &[T],
        rows: &[u32],
        dlogits: &[f32],
        tokens: usize,
        channels: usize,
    ) -> Vec<f32> {
        let (d, n, patches) = (self.width / self.heads, self.heads, tokens - self.prefix);
        let picked = rows.len() * tokens * channels / values.len();
        let mut out = vec![0f32; values.len()];
        out.par_chunks_mut(tokens * channels).enumerate().for_each(|(image, out)| {
            let x = &values[image * tokens * channels..][..tokens * channels];
            let rows = &rows[image * picked..][..picked];
            let q = gather(x, channels, self.width, rows);
            let mut dq = vec![0f32; q.len()];
            let dlogits = &dlogits[image * picked * n * patches..];
            for head in 0..n {
                // SAFETY: as in `logits`; the gradient of x has the layout of x.
                unsafe {
                    let (s, row) = (self.scale as f32, n * patches);
                    let at = self.prefix * channels + self.width + head * d;
                    let dlogits = dlogits.as_ptr().add(head * patches);
                    let keys = (x.as_ptr().add(at), [channels, 1]);
                    let dq = (dq.as_mut_ptr().add(head * d), self.width);
                    product([picked, d, patches], (dlogits, [row, 1]), keys, s, dq, false);
                    let q = (q.as_ptr().add(head * d), [self.width, 1]);
                    let dk = (out.as_mut_ptr().add(at), channels);
                    product([patches, d, picked], (dlogits, [1, row]), q, s, dk, false);
                }
            }
            for (row, dq) in rows.iter().zip(dq.chunks_exact(self.width)) {
                for (out, dq) in out[*row as usize * channels..].iter_mut().zip(dq) {
                    *out += dq;
                }
            }
        });
        out
    }

    pub(super) fn check(&self, x: &Tensor) -> Result<(usize, usize, usize)> {
        let (batch, tokens, channels) = x.dims3()?;
        if self.heads == 0
            || !self.width.is_multiple_of(self.heads)
            || channels < 2 * self.width
            || tokens <= self.prefix
        {
            candle_core::bail!(
                "{NAME}: {:?} does not hold queries and keys of {} channels in {} heads",
                x.dims(),
                self.width,
                self.heads
            );
        }
        Ok((batch, tokens, channels))
    }
}

/// The queries of `rows`: (R, N·d).
fn gather<T: Copy>(x: &[T], channels: usize, width: usize, rows: &[u32]) -> Vec<T> {
    rows.iter().flat_map(|row| x[*row as usize * channels..][..width].iter().copied()).collect()
}

fn bounded(rows: &[u32], count: usize, tokens: usize) -> Result<()> {
    if rows.len() != count || rows.iter().any(|row| *row as usize >= tokens) {
        candle_core::bail!("{NAME}: {} rows for {count}, of {tokens} tokens", rows.len());
    }
    Ok(())
}
