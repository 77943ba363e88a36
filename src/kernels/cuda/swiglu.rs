//! SwiGLU's gate over rows, and its gradient.

use candle_core::{D, Result, Tensor};

use super::{Argument, ELEMENTWISE, Grid, address, device, suffix, unwritten};

pub(in crate::kernels) fn forward(x: &Tensor) -> Result<Tensor> {
    let (device, dtype, n, hidden) = (device(x)?, x.dtype(), x.elem_count() / 2, half(x)?);
    let mut dims = x.dims().to_vec();
    if let Some(last) = dims.last_mut() {
        *last = hidden;
    }
    let y = unwritten(dims, dtype, device)?;
    let (count, width) = (Argument::Long(n as u64), Argument::Word(hidden as u32));
    let arguments = [address(x, dtype, 2 * n)?, address(&y, dtype, n)?, count, width];
    // SAFETY: 2·n values, n values, n, and the values of a row of y.
    unsafe { ELEMENTWISE.launch(device, &format!("swiglu_forward_{}", suffix(dtype)?), Grid::each(n), &arguments)? };
    Ok(y)
}

pub(in crate::kernels) fn backward(x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let (device, dtype, n, hidden) = (device(x)?, x.dtype(), x.elem_count() / 2, half(x)?);
    let dx = unwritten(x.shape(), dtype, device)?;
    let (count, width) = (Argument::Long(n as u64), Argument::Word(hidden as u32));
    let arguments = [address(x, dtype, 2 * n)?, address(dy, dtype, n)?, address(&dx, dtype, 2 * n)?, count, width];
    // SAFETY: 2·n, n and 2·n values, n, and the values of a row of dy.
    unsafe { ELEMENTWISE.launch(device, &format!("swiglu_backward_{}", suffix(dtype)?), Grid::each(n), &arguments)? };
    Ok(dx)
}

fn half(x: &Tensor) -> Result<usize> {
    match x.dim(D::Minus1)? {
        last if last > 0 && last.is_multiple_of(2) => Ok(last / 2),
        _ => candle_core::bail!("swiglu: {:?} has no two equal halves", x.dims()),
    }
}
