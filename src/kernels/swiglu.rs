//! SwiGLU's gate over rows.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape};
use rayon::prelude::*;

/// Values a thread takes at a time, at least; fewer are not worth a second thread.
const CHUNK: usize = 16 * 1024;

/// (…, 2·h) as `[a | b]` → (…, h): silu(a)·b, without backward.
pub(super) struct SwiGlu;

impl CustomOp1 for SwiGlu {
    fn name(&self) -> &'static str {
        "tec-zoo swiglu"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = super::eager::contiguous(storage, layout, self.name())?;
        let mut dims = layout.dims().to_vec();
        let Some(last) = dims.last_mut().filter(|last| **last > 0 && last.is_multiple_of(2)) else {
            candle_core::bail!("{}: {:?} has no two equal halves", self.name(), layout.dims());
        };
        *last /= 2;
        let hidden = *last;
        let mut out = vec![0f32; x.len() / 2];
        let rows = CHUNK.div_ceil(hidden);
        out.par_chunks_mut(rows * hidden).zip(x.par_chunks(rows * 2 * hidden)).for_each(|(out, x)| {
            for (out, x) in out.chunks_exact_mut(hidden).zip(x.chunks_exact(2 * hidden)) {
                let (a, b) = x.split_at(hidden);
                for ((y, &a), &b) in out.iter_mut().zip(a).zip(b) {
                    *y = silu(a) * b;
                }
            }
        });
        Ok((CpuStorage::F32(out), Shape::from(dims)))
    }
}

/// `x / (1 + e^-x)`, PyTorch's `nn.SiLU()`.
fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}
