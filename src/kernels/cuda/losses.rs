//! The losses, each with its gradient, and the normalisation of targets. The values stay on the device.

use candle_core::{CudaDevice, DType, Result, Tensor};

use super::super::losses::{Axis, Loss, VARIANCE_EPS};
use super::{Argument, Grid, Module, THREADS, address, device, module, suffix, unwritten};

const LOSSES: Module = module!("losses");

pub(in crate::kernels) fn squared_error(prediction: &Tensor, target: &Tensor, weight: f64) -> Result<Loss> {
    let (batch, patches, c) = prediction.dims3()?;
    let (device, dtype, n) = (device(prediction)?, prediction.dtype(), prediction.elem_count());
    let rows = batch * patches;
    let gradient = unwritten(prediction.shape(), dtype, device)?;
    let sums = unwritten(rows, DType::F32, device)?;
    let arguments = [
        address(prediction, dtype, n)?,
        address(target, DType::F32, n)?,
        address(&gradient, dtype, n)?,
        address(&sums, DType::F32, rows)?,
        Argument::Word(c as u32),
        Argument::Float((2.0 * weight / n as f64) as f32),
    ];
    let name = format!("squared_error_{}", suffix(dtype)?);
    // SAFETY: three of (rows, c), one of (rows), c and a factor.
    unsafe { LOSSES.launch(device, &name, Grid::rows([rows, 1, 1], c), &arguments)? };
    Ok(Loss { value: total(device, &sums, 1.0 / n as f32)?, gradient })
}

pub(in crate::kernels) fn soft_cross_entropy(
    prediction: &Tensor,
    target: &Tensor,
    tau: f64,
    weight: f64,
) -> Result<Loss> {
    let (batch, picked, heads, l) = prediction.dims4()?;
    let (device, n, rows) = (device(prediction)?, prediction.elem_count(), batch * picked * heads);
    let gradient = unwritten(prediction.shape(), DType::F32, device)?;
    let sums = unwritten(rows, DType::F32, device)?;
    let arguments = [
        address(prediction, DType::F32, n)?,
        address(target, DType::F32, n)?,
        address(&gradient, DType::F32, n)?,
        address(&sums, DType::F32, rows)?,
        Argument::Word(l as u32),
        Argument::Float((1.0 / tau) as f32),
        Argument::Float((weight / rows as f64) as f32),
    ];
    // SAFETY: three of (rows, l), one of (rows), l and two factors.
    unsafe { LOSSES.launch(device, "soft_cross_entropy", Grid::rows([rows, 1, 1], l), &arguments)? };
    Ok(Loss { value: total(device, &sums, 1.0 / rows as f32)?, gradient })
}

pub(in crate::kernels) fn normalise(x: &Tensor, axis: Axis) -> Result<Tensor> {
    let (batch, patches, c) = x.dims3()?;
    let (device, n) = (device(x)?, x.elem_count());
    let y = unwritten(x.shape(), DType::F32, device)?;
    let (from, to) = (address(x, DType::F32, n)?, address(&y, DType::F32, n)?);
    let (width, eps) = (Argument::Word(c as u32), Argument::Float(VARIANCE_EPS as f32));
    // SAFETY: (B, L, C) in and out, and the sizes each kernel takes.
    unsafe {
        match axis {
            Axis::Channels => {
                let grid = Grid::rows([batch * patches, 1, 1], c);
                LOSSES.launch(device, "normalise_channels", grid, &[from, to, width, eps])?;
            }
            Axis::Patches => {
                let arguments = [from, to, Argument::Word(patches as u32), width, eps];
                LOSSES.launch(device, "normalise_patches", Grid::columns(c, batch), &arguments)?;
            }
        }
    }
    Ok(y)
}

/// Σ x · `factor`, a scalar on the device.
fn total(device: &CudaDevice, x: &Tensor, factor: f32) -> Result<Tensor> {
    let out = unwritten((), DType::F32, device)?;
    let n = x.elem_count();
    let arguments =
        [address(x, DType::F32, n)?, address(&out, DType::F32, 1)?, Argument::Long(n as u64), Argument::Float(factor)];
    let grid = Grid { blocks: [1, 1, 1], threads: THREADS, shared: 0 };
    // SAFETY: n values, and one to write.
    unsafe { LOSSES.launch(device, "total", grid, &arguments)? };
    Ok(out)
}
