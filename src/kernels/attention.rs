//! Multi-head attention over a fused qkv, straight from its strides: no per-head copies of q, k and v.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape};
use gemm::Parallelism;
use rayon::prelude::*;

/// Query rows whose scores are held at a time: (256, T) floats stay in cache at the sizes ViTs use.
const QUERY_ROWS: usize = 256;

/// (B, T, 3·C) → (B, T, C), without backward.
pub(super) struct Attention {
    pub(super) heads: usize,
}

impl CustomOp1 for Attention {
    fn name(&self) -> &'static str {
        "tec-zoo attention"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let qkv = super::eager::contiguous(storage, layout, self.name())?;
        let (batch, tokens, channels) = layout.shape().dims3()?;
        let heads = self.heads;
        if heads == 0 || channels == 0 || channels % (3 * heads) != 0 {
            candle_core::bail!("{}: {channels} channels are not q, k and v of {heads} heads", self.name());
        }
        let width = channels / 3;
        let d = width / heads;
        let shape = Shape::from((batch, tokens, width));
        if batch * tokens == 0 {
            return Ok((CpuStorage::F32(Vec::new()), shape));
        }
        // Each head writes its own (T, d); they are laid side by side afterwards.
        let mut by_head = vec![0f32; batch * tokens * width];
        by_head.par_chunks_mut(tokens * d).enumerate().for_each(|(index, out)| {
            let image = &qkv[index / heads * tokens * channels..][..tokens * channels];
            head(image, tokens, channels, index % heads * d, d, out);
        });
        let mut out = vec![0f32; batch * tokens * width];
        for (index, head) in by_head.chunks_exact(tokens * d).enumerate() {
            let (b, n) = (index / heads, index % heads);
            for (t, row) in head.chunks_exact(d).enumerate() {
                out[(b * tokens + t) * width + n * d..][..d].copy_from_slice(row);
            }
        }
        Ok((CpuStorage::F32(out), shape))
    }
}

/// One head of one image: `image` is (T, 3·C), `first` the head's first channel within each third, `out` (T, d).
fn head(image: &[f32], tokens: usize, channels: usize, first: usize, d: usize, out: &mut [f32]) {
    let width = channels / 3;
    let stride = channels as isize;
    let scale = 1.0 / (d as f32).sqrt();
    let (q, k, v) = (&image[first..], &image[width + first..], &image[2 * width + first..]);
    let mut scores = vec![0f32; QUERY_ROWS.min(tokens) * tokens];
    for (block, out) in out.chunks_mut(QUERY_ROWS * d).enumerate() {
        let rows = out.len() / d;
        let q = &q[block * QUERY_ROWS * channels..];
        let scores = &mut scores[..rows * tokens];
        // SAFETY: the last element read is at (T − 1)·3C + first + d − 1 of a third, inside `image`; `scores` is
        // (rows, T) and borrowed alone.
        unsafe {
            gemm::gemm(
                rows,
                tokens,
                d,
                scores.as_mut_ptr(),
                1,
                tokens as isize,
                false,
                q.as_ptr(),
                1,
                stride,
                k.as_ptr(),
                stride,
                1,
                0.0,
                scale,
                false,
                false,
                false,
                Parallelism::None,
            );
        }
        for row in scores.chunks_exact_mut(tokens) {
            softmax(row);
        }
        // SAFETY: as above; `out` is (rows, d) and borrowed alone.
        unsafe {
            gemm::gemm(
                rows,
                d,
                tokens,
                out.as_mut_ptr(),
                1,
                d as isize,
                false,
                scores.as_ptr(),
                1,
                tokens as isize,
                v.as_ptr(),
                1,
                stride,
                0.0,
                1.0,
                false,
                false,
                false,
                Parallelism::None,
            );
        }
    }
}

fn softmax(row: &mut [f32]) {
    let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut total = 0f32;
    for value in row.iter_mut() {
        *value = (*value - most).exp();
        total += *value;
    }
    let scale = 1.0 / total;
    for value in row.iter_mut() {
        *value *= scale;
    }
}
