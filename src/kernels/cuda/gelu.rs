//! GELU and its gradient.

use candle_core::{Result, Tensor};

use super::{Argument, ELEMENTWISE, Grid, address, device, suffix, unwritten};
use crate::model::Activation;

pub(in crate::kernels) fn forward(x: &Tensor, kind: Activation) -> Result<Tensor> {
    let (device, dtype, n) = (device(x)?, x.dtype(), x.elem_count());
    let y = unwritten(x.shape(), dtype, device)?;
    let arguments = [address(x, dtype, n)?, address(&y, dtype, n)?, Argument::Long(n as u64), form(kind)];
    // SAFETY: two buffers of n values, n, and which form.
    unsafe { ELEMENTWISE.launch(device, &format!("gelu_forward_{}", suffix(dtype)?), Grid::each(n), &arguments)? };
    Ok(y)
}

pub(in crate::kernels) fn backward(x: &Tensor, dy: &Tensor, kind: Activation) -> Result<Tensor> {
    let (device, dtype, n) = (device(x)?, x.dtype(), x.elem_count());
    let dx = unwritten(x.shape(), dtype, device)?;
    let buffers = [address(x, dtype, n)?, address(dy, dtype, n)?, address(&dx, dtype, n)?];
    let arguments = [buffers[0], buffers[1], buffers[2], Argument::Long(n as u64), form(kind)];
    // SAFETY: three buffers of n values, n, and which form.
    unsafe { ELEMENTWISE.launch(device, &format!("gelu_backward_{}", suffix(dtype)?), Grid::each(n), &arguments)? };
    Ok(dx)
}

fn form(kind: Activation) -> Argument {
    Argument::Word(match kind {
        Activation::GeluErf => 0,
        Activation::GeluTanh => 1,
    })
}
