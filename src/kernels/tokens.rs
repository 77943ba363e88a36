//! Moving tokens: those a mask leaves visible, back to their places, and those it hides.
//!
//! L patches, K of them kept, D channels; token 0 is the class token.

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

use super::columns;
use super::slices::{self, Element, by_dtype, read, write};

const NAME: &str = "tokens";

/// Where each patch of each image of a batch went: upstream's `ids_restore` (B, L), and how many are visible.
#[derive(Debug, Clone)]
pub(crate) struct Restore {
    /// Place of patch j in the shuffled order: visible when less than `kept`.
    pub places: Vec<u32>,
    /// Patches L.
    pub patches: usize,
    /// Visible patches K.
    pub kept: usize,
    /// `places` on the GPU, from the first use on: both decoders and their backward passes ask for them.
    #[cfg(feature = "cuda")]
    pub(super) on_device: std::sync::OnceLock<Tensor>,
    /// Rows of the hidden patches among those of all images, without and with a class token before each image's.
    #[cfg(feature = "cuda")]
    pub(super) hidden_on_device: [std::sync::OnceLock<Tensor>; 2],
}

impl Restore {
    /// Of `places` (B, L), those below `kept` are visible.
    pub(crate) fn new(places: Vec<u32>, patches: usize, kept: usize) -> Self {
        Self {
            places,
            patches,
            kept,
            #[cfg(feature = "cuda")]
            on_device: std::sync::OnceLock::new(),
            #[cfg(feature = "cuda")]
            hidden_on_device: Default::default(),
        }
    }

    fn rows(&self, image: usize) -> &[u32] {
        &self.places[image * self.patches..][..self.patches]
    }

    /// The hidden patches of an image, in its own order.
    pub(super) fn hidden(&self, image: usize) -> impl Iterator<Item = usize> {
        let hidden = |(_, place): &(usize, &u32)| **place as usize >= self.kept;
        self.rows(image).iter().enumerate().filter(hidden).map(|(patch, _)| patch)
    }

    /// (images, tokens before the patches of each, D) of x (B, P + L, D).
    fn batch_of(&self, x: &Tensor) -> Result<(usize, usize, usize)> {
        let (batch, tokens, d) = x.dims3()?;
        if self.places.len() != batch * self.patches || tokens < self.patches || self.kept >= self.patches {
            let (known, l, k) = (self.places.len(), self.patches, self.kept);
            candle_core::bail!("{NAME}: {:?} for {known} places, {k} of {l} visible", x.dims());
        }
        Ok((batch, tokens - self.patches, d))
    }
}

/// (B, 1 + K, D) → (B, 1 + L, D): the class token, then each patch in its place, with `token` (D values) where it was
/// hidden; `position` (1 + L)·D is added.
pub(crate) fn unshuffle(x: &Tensor, token: &Tensor, position: &Tensor, restore: &Restore) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return super::cuda::tokens::unshuffle(x, token, position, restore);
    }
    let (batch, d) = check(x, token, restore)?;
    by_dtype!(x, NAME, T => {
        let (x, token, position) = (read::<T>(x, NAME)?, read::<f32>(token, NAME)?, read::<f32>(position, NAME)?);
        let tokens = 1 + restore.patches;
        if position.len() != tokens * d {
            candle_core::bail!("{NAME}: {} positions for {tokens} tokens of {d}", position.len());
        }
        let out = slices::filled::<f32>(batch * tokens * d, |out| {
            out.par_chunks_mut(tokens * d).enumerate().for_each(|(image, out)| {
                let x = &x[image * (1 + restore.kept) * d..];
                for (j, (out, position)) in out.chunks_exact_mut(d).zip(position.chunks_exact(d)).enumerate() {
                    match source(restore.rows(image), j, restore.kept) {
                        Some(row) => {
                            for ((out, x), position) in out.iter_mut().zip(&x[row * d..]).zip(position) {
                                *out = x.wide() + position;
                            }
                        }
                        None => {
                            for ((out, x), position) in out.iter_mut().zip(&*token).zip(position) {
                                *out = x + position;
                            }
                        }
                    }
                }
            });
        });
        slices::tensor(out, (batch, tokens, d))
    })
}

/// Gradient of [`unshuffle`]'s x, in f32; that of the token is added to `dtoken` or, when `fresh`, put there.
pub(crate) fn unshuffle_backward(dy: &Tensor, restore: &Restore, dtoken: &Tensor, fresh: bool) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if dy.device().is_cuda() {
        return super::cuda::tokens::unshuffle_backward(dy, restore, dtoken, fresh);
    }
    let (batch, _, d) = dy.dims3()?;
    let kept = 1 + restore.kept;
    let dy = read::<f32>(dy, NAME)?;
    let mut partial: Vec<Vec<f32>> = Vec::new();
    let dx = slices::filled::<f32>(batch * kept * d, |dx| {
        partial = dx
            .par_chunks_mut(kept * d)
            .enumerate()
            .map(|(image, dx)| {
                let mut hidden = vec![0f32; d];
                let dy = &dy[image * (1 + restore.patches) * d..][..(1 + restore.patches) * d];
                for (j, dy) in dy.chunks_exact(d).enumerate() {
                    match source(restore.rows(image), j, restore.kept) {
                        Some(row) => dx[row * d..][..d].copy_from_slice(dy),
                        None => {
                            for (sum, dy) in hidden.iter_mut().zip(dy) {
                                *sum += dy;
                            }
                        }
                    }
                }
                hidden
            })
            .collect();
    });
    write::<f32>(dtoken, NAME, |sums| columns::merge(&partial, sums, fresh))?;
    slices::tensor(dx, (batch, kept, d))
}

/// (B, P + L, D) → (B, L − K, D): the hidden patches, in the order of their images, without the P tokens before them.
pub(crate) fn hidden_patches(x: &Tensor, restore: &Restore) -> Result<Tensor> {
    let (batch, prefix, d) = restore.batch_of(x)?;
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return super::cuda::tokens::hidden_patches(x, restore, prefix);
    }
    let (tokens, count) = (prefix + restore.patches, restore.patches - restore.kept);
    by_dtype!(x, NAME, T => {
        let x = read::<T>(x, NAME)?;
        let out = slices::filled::<T>(batch * count * d, |out| {
            out.par_chunks_mut(count * d).enumerate().for_each(|(image, out)| {
                for (out, patch) in out.chunks_exact_mut(d).zip(restore.hidden(image)) {
                    out.copy_from_slice(&x[(image * tokens + prefix + patch) * d..][..d]);
                }
            });
        });
        slices::tensor(out, (batch, count, d))
    })
}

/// Gradient of [`hidden_patches`]' x, of so many tokens, from that of its output.
pub(crate) fn hidden_patches_backward(dy: &Tensor, restore: &Restore, tokens: usize) -> Result<Tensor> {
    let (batch, count, d) = dy.dims3()?;
    let prefix = tokens.saturating_sub(restore.patches);
    #[cfg(feature = "cuda")]
    if dy.device().is_cuda() {
        return super::cuda::tokens::hidden_patches_backward(dy, restore, prefix);
    }
    by_dtype!(dy, NAME, T => {
        let dy = read::<T>(dy, NAME)?;
        let dx = slices::filled::<T>(batch * tokens * d, |dx| {
            dx.par_chunks_mut(tokens * d).zip(dy.par_chunks(count * d)).enumerate().for_each(|(image, (dx, dy))| {
                for (dy, patch) in dy.chunks_exact(d).zip(restore.hidden(image)) {
                    dx[(prefix + patch) * d..][..d].copy_from_slice(dy);
                }
            });
        });
        slices::tensor(dx, (batch, tokens, d))
    })
}

/// Row of (1 + K, D) that token `j` comes from, if it was visible.
fn source(places: &[u32], j: usize, kept: usize) -> Option<usize> {
    match j {
        0 => Some(0),
        j => Some(places[j - 1] as usize).filter(|place| *place < kept).map(|place| 1 + place),
    }
}

fn check(x: &Tensor, token: &Tensor, restore: &Restore) -> Result<(usize, usize)> {
    let (batch, tokens, d) = x.dims3()?;
    if tokens != 1 + restore.kept || restore.places.len() != batch * restore.patches || token.elem_count() != d {
        candle_core::bail!(
            "{NAME}: {:?} and a token of {} do not fit {} places of {} patches, {} visible",
            x.dims(),
            token.elem_count(),
            restore.places.len(),
            restore.patches,
            restore.kept
        );
    }
    Ok((batch, d))
}

/// Patches of `images` (B, 3, H, W) as rows (B, L, 3·p·p), laid out as a convolution kernel is: channel, row, column.
/// With `visible` (B, K), only those patches, in that order.
pub(crate) fn patches(
    images: &Tensor,
    patch: usize,
    visible: Option<(&[u32], usize)>,
    dtype: candle_core::DType,
) -> Result<Tensor> {
    let (batch, channels, height, width) = images.dims4()?;
    let (rows, columns) = (height / patch, width / patch);
    let size = channels * patch * patch;
    if !matches!(images.device(), Device::Cpu) {
        let all = images.reshape(&[batch, channels, rows, patch, columns, patch][..])?;
        let all = all.permute([0, 2, 4, 1, 3, 5])?.contiguous()?.reshape((batch, rows * columns, size))?;
        let all = match visible {
            None => all,
            Some((ids, kept)) => {
                let flat: Vec<u32> =
                    ids.iter().enumerate().map(|(at, id)| (at / kept * rows * columns) as u32 + id).collect();
                let flat = Tensor::from_vec(flat, batch * kept, images.device())?;
                all.reshape((batch * rows * columns, size))?.index_select(&flat, 0)?.reshape((batch, kept, size))?
            }
        };
        return all.to_dtype(dtype);
    }
    let kept = visible.map_or(rows * columns, |(_, kept)| kept);
    let values = read::<f32>(images, NAME)?;
    let fill = |out: &mut [f32]| {
        out.par_chunks_mut(size).enumerate().for_each(|(at, out)| {
            let (image, slot) = (at / kept, at % kept);
            let id = visible.map_or(slot, |(ids, _)| ids[image * kept + slot] as usize);
            let origin = (id / columns * width + id % columns) * patch;
            for (line, out) in out.chunks_exact_mut(patch).enumerate() {
                let (channel, y) = (line / patch, line % patch);
                let from = (image * channels + channel) * height * width + origin + y * width;
                out.copy_from_slice(&values[from..from + patch]);
            }
        });
    };
    slices::tensor(slices::filled::<f32>(batch * kept * size, fill), (batch, kept, size))?.to_dtype(dtype)
}
