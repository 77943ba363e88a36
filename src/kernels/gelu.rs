//! GELU over a slice.

use candle_core::cpu::erf::erf_f32;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape};
use rayon::prelude::*;

use crate::model::Activation;

/// Values a thread takes at a time; fewer than this are not worth a second thread.
const CHUNK: usize = 16 * 1024;

/// GELU without backward.
pub(super) struct Gelu(pub(super) Activation);

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "tec-zoo gelu"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = super::eager::contiguous(storage, layout, self.name())?;
        let f = match self.0 {
            Activation::GeluErf => gelu_erf,
            Activation::GeluTanh => gelu_tanh,
        };
        let mut out = vec![0f32; x.len()];
        out.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(out, x)| {
            for (y, &x) in out.iter_mut().zip(x) {
                *y = f(x);
            }
        });
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }
}

/// `x·Φ(x)`, PyTorch's `nn.GELU()`.
fn gelu_erf(x: f32) -> f32 {
    0.5 * x * (1.0 + erf_f32(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// PyTorch's `nn.GELU(approximate="tanh")`.
fn gelu_tanh(x: f32) -> f32 {
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
    0.5 * x * (1.0 + (SQRT_2_OVER_PI * (x + 0.044715 * x * x * x)).tanh())
}
