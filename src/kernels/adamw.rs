//! AdamW over all parameters at once (PyTorch's `torch.optim.AdamW`; decoupled decay, bias-corrected moments).

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::parameters::Parameters;
use super::simd::{Isa, Lane, Task, dispatch, vectors};
use super::slices::{read, write};

const NAME: &str = "adamw";

/// Values a task updates at a time.
const CHUNK: usize = 32 * 1024;

/// Settings of one update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// β₁ and β₂.
    pub betas: (f64, f64),
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decay of the parameters that decay, times the learning rate.
    pub weight_decay: f64,
}

impl AdamW {
    /// An update with learning rate `lr`, which is number `updates[i]`, counted from 1, of parameter i.
    pub(crate) fn update(&self, parameters: &Parameters, updates: &[u64], lr: f64) -> Result<()> {
        #[cfg(feature = "cuda")]
        if parameters.state().device().is_cuda() {
            return super::cuda::adamw::update(self, parameters, updates, lr);
        }
        let betas = (self.betas.0 as f32, self.betas.1 as f32);
        let keep = (1.0 - lr * self.weight_decay) as f32;
        let gradients = read::<f32>(parameters.gradients(), NAME)?;
        let eps = self.eps as f32;
        let count = parameters.count();
        write::<f32>(parameters.state(), NAME, |state| {
            let (mut p, moments) = state.split_at_mut(count);
            let (mut m, mut v) = moments.split_at_mut(count);
            let mut g = &*gradients;
            for (slot, updates) in parameters.slots().iter().zip(updates) {
                let [step_size, root] = self.corrections(*updates, lr);
                let len = slot.padded;
                let keep = if slot.decays { keep } else { 1.0 };
                let (p1, m1, v1) = (take(&mut p, len), take(&mut m, len), take(&mut v, len));
                let (g1, rest) = g.split_at(len);
                g = rest;
                p1.par_chunks_mut(CHUNK)
                    .zip(m1.par_chunks_mut(CHUNK))
                    .zip(v1.par_chunks_mut(CHUNK))
                    .zip(g1.par_chunks(CHUNK))
                    .for_each(|(((p, m), v), g)| dispatch(Update { p, m, v, g, betas, keep, step_size, root, eps }));
            }
        })
    }

    /// lr/(1 − β₁ᵗ) and √(1 − β₂ᵗ): as PyTorch, p ← p·(1 − lr·wd); m, v; p ← p − lr/(1 − β₁ᵗ) · m / (√v/√(1 − β₂ᵗ) + eps).
    pub(super) fn corrections(&self, updates: u64, lr: f64) -> [f32; 2] {
        let t = i32::try_from(updates).unwrap_or(i32::MAX);
        let (b1, b2) = self.betas;
        [lr / (1.0 - b1.powi(t)), (1.0 - b2.powi(t)).sqrt()].map(|x| x as f32)
    }
}

/// The update of as many values in each slice.
struct Update<'a> {
    p: &'a mut [f32],
    m: &'a mut [f32],
    v: &'a mut [f32],
    g: &'a [f32],
    betas: (f32, f32),
    keep: f32,
    step_size: f32,
    root: f32,
    eps: f32,
}

impl Task for Update<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Isa>(self) {
        let len = self.p.len().min(self.m.len()).min(self.v.len()).min(self.g.len());
        let (p, m, v, g) = (self.p.as_mut_ptr(), self.m.as_mut_ptr(), self.v.as_mut_ptr(), self.g.as_ptr());
        // SAFETY: the instructions are there, and `len` values in each.
        unsafe {
            let [b2, one_b1, one_b2] = [self.betas.1, 1.0 - self.betas.0, 1.0 - self.betas.1].map(|b| S::splat(b));
            let [keep, step, root, eps] = [self.keep, -self.step_size, self.root, self.eps].map(|x| S::splat(x));
            vectors!(S, len, |i, n| {
                let (g, m0) = (f32::load::<S>(g.add(i), n), f32::load::<S>(m.add(i), n));
                let m1 = S::fma(one_b1, S::sub(g, m0), m0);
                let v1 = S::fma(S::mul(one_b2, g), g, S::mul(f32::load::<S>(v.add(i), n), b2));
                let size = S::add(S::div(S::sqrt(v1), root), eps);
                let p1 = S::fma(S::div(m1, size), step, S::mul(f32::load::<S>(p.add(i), n), keep));
                f32::store::<S>(m.add(i), n, m1);
                f32::store::<S>(v.add(i), n, v1);
                f32::store::<S>(p.add(i), n, p1);
            });
        }
    }
}

fn take<'s>(slice: &mut &'s mut [f32], len: usize) -> &'s mut [f32] {
    let (taken, rest) = std::mem::take(slice).split_at_mut(len);
    *slice = rest;
    taken
}

/// Euclidean norm of the gradients; not finite when any of them is not.
pub(crate) fn norm(gradients: &Tensor) -> Result<f64> {
    if !matches!(gradients.device(), candle_core::Device::Cpu) {
        return Ok(f64::from(gradients.sqr()?.sum_all()?.to_scalar::<f32>()?.sqrt()));
    }
    let gradients = read::<f32>(gradients, NAME)?;
    let sums: Vec<f64> = gradients.par_chunks(CHUNK).map(|values| dispatch(Squares(values))).collect();
    Ok(sums.iter().sum::<f64>().sqrt())
}

/// The sum of squares in lanes, which a compiler keeps in registers; as many as it takes not to wait for an addition.
struct Squares<'a>(&'a [f32]);

impl Task for Squares<'_> {
    type Output = f64;

    #[inline(always)]
    unsafe fn run<S: Isa>(self) -> f64 {
        let mut lanes = [0f64; 32];
        let (chunks, rest) = self.0.as_chunks::<32>();
        for chunk in chunks {
            for (lane, x) in lanes.iter_mut().zip(chunk) {
                *lane += f64::from(*x) * f64::from(*x);
            }
        }
        lanes.iter().sum::<f64>() + rest.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>()
    }
}
