//! LayerNorm over the last axis.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape};
use rayon::prelude::*;

/// Rows a thread takes at a time.
const ROWS: usize = 32;

/// LayerNorm of (…, C) with a weight and a bias of C values, without backward.
///
/// Moments are summed in f64, so the result does not depend on how a compiler orders the sum.
pub(super) struct LayerNorm {
    pub(super) eps: f64,
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "tec-zoo layer-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let shape = x_layout.shape();
        let x = super::eager::contiguous(x, x_layout, self.name())?;
        let weight = super::eager::contiguous(weight, weight_layout, self.name())?;
        let bias = super::eager::contiguous(bias, bias_layout, self.name())?;
        let c = shape.dims().last().copied().unwrap_or(0);
        if c == 0 || weight.len() != c || bias.len() != c {
            let (weight, bias) = (weight.len(), bias.len());
            candle_core::bail!("{}: {weight} weights and {bias} biases for {shape:?}", self.name());
        }
        let mut out = vec![0f32; x.len()];
        out.par_chunks_mut(ROWS * c).zip(x.par_chunks(ROWS * c)).for_each(|(out, x)| {
            for (out, x) in out.chunks_exact_mut(c).zip(x.chunks_exact(c)) {
                self.row(x, weight, bias, out);
            }
        });
        Ok((CpuStorage::F32(out), shape.clone()))
    }
}

impl LayerNorm {
    fn row(&self, x: &[f32], weight: &[f32], bias: &[f32], out: &mut [f32]) {
        let n = x.len() as f64;
        let mean = sum(x, f64::from) / n;
        let variance = sum(x, |v| (f64::from(v) - mean).powi(2)) / n;
        let scale = 1.0 / (variance + self.eps).sqrt();
        for (((out, &x), &weight), &bias) in out.iter_mut().zip(x).zip(weight).zip(bias) {
            *out = ((f64::from(x) - mean) * scale) as f32 * weight + bias;
        }
    }
}

/// Sum in four lanes, which a compiler can keep in registers.
fn sum(x: &[f32], f: impl Fn(f32) -> f64) -> f64 {
    let mut lanes = [0f64; 4];
    let chunks = x.chunks_exact(4);
    let rest: f64 = chunks.remainder().iter().map(|&v| f(v)).sum();
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane += f(v);
        }
    }
    lanes.iter().sum::<f64>() + rest
}
