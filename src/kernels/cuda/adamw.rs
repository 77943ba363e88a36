//! AdamW over all parameters in one launch.

use candle_core::{DType, Result};

use super::super::{AdamW, Parameters};
use super::{Argument, Grid, Module, address, device, module};

const ADAMW: Module = module!("adamw");

pub(in crate::kernels) fn update(settings: &AdamW, parameters: &Parameters, step: u64, lr: f64) -> Result<()> {
    let device = device(parameters.state())?;
    let n = parameters.count();
    let step = i32::try_from(step).unwrap_or(i32::MAX);
    let (b1, b2) = settings.betas;
    let part = |third: usize| address(&parameters.state().narrow(0, third * n, n)?, DType::F32, n);
    let float = |x: f64| Argument::Float(x as f32);
    let arguments = [
        part(0)?,
        part(1)?,
        part(2)?,
        address(parameters.gradients(), DType::F32, n)?,
        address(parameters.decays(), DType::U8, n.div_ceil(super::super::parameters::ALIGNMENT))?,
        Argument::Long(n as u64),
        float(1.0 - b1),
        float(b2),
        float(1.0 - b2),
        float(lr / (1.0 - b1.powi(step))),
        float((1.0 - b2.powi(step)).sqrt()),
        float(settings.eps),
        float(1.0 - lr * settings.weight_decay),
    ];
    // SAFETY: four buffers of n values, a byte for each 64 of them, n, and the numbers the kernel names.
    unsafe { ADAMW.launch(device, "adamw", Grid::each(n), &arguments) }
}
