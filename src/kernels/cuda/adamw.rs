//! AdamW over all parameters in one launch; in one for each stretch of them, where some have seen fewer updates.

use std::ops::Range;

use candle_core::{DType, Result};

use super::super::parameters::ALIGNMENT;
use super::super::{AdamW, Parameters};
use super::{Argument, Grid, Module, address, device, module};

const ADAMW: Module = module!("adamw");

pub(in crate::kernels) fn update(settings: &AdamW, parameters: &Parameters, updates: &[u64], lr: f64) -> Result<()> {
    let mut at = 0;
    let stretches = parameters.slots().iter().zip(updates).collect::<Vec<_>>();
    for stretch in stretches.chunk_by(|(_, a), (_, b)| a == b) {
        let end = at + stretch.iter().map(|(slot, _)| slot.padded).sum::<usize>();
        launch(settings, parameters, at..end, *stretch[0].1, lr)?;
        at = end;
    }
    Ok(())
}

fn launch(settings: &AdamW, parameters: &Parameters, values: Range<usize>, updates: u64, lr: f64) -> Result<()> {
    let device = device(parameters.state())?;
    let (start, n) = (values.start, values.len());
    let (b1, b2) = settings.betas;
    let part =
        |third: usize| address(&parameters.state().narrow(0, third * parameters.count() + start, n)?, DType::F32, n);
    let float = |x: f64| Argument::Float(x as f32);
    let [step_size, root] = settings.corrections(updates, lr);
    // Parameters begin on multiples of the alignment.
    let decays = n.div_ceil(ALIGNMENT);
    let arguments = [
        part(0)?,
        part(1)?,
        part(2)?,
        address(&parameters.gradients().narrow(0, start, n)?, DType::F32, n)?,
        address(&parameters.decays().narrow(0, start / ALIGNMENT, decays)?, DType::U8, decays)?,
        Argument::Long(n as u64),
        float(1.0 - b1),
        float(b2),
        float(1.0 - b2),
        Argument::Float(step_size),
        Argument::Float(root),
        float(settings.eps),
        float(1.0 - lr * settings.weight_decay),
    ];
    // SAFETY: four buffers of n values, a byte for each 64 of them, n, and the numbers the kernel names.
    unsafe { ADAMW.launch(device, "adamw", Grid::each(n), &arguments) }
}
