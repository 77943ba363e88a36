//! Attention logits of chosen query rows, and their gradient.

use candle_core::{DType, Result, Tensor};

use super::super::RowLogits;
use super::{Argument, Grid, Module, address, device, module, suffix, unwritten};

const ROW_LOGITS: Module = module!("row_logits");

pub(in crate::kernels) fn forward(shape: &RowLogits, x: &Tensor, rows: &Tensor) -> Result<Tensor> {
    let (batch, tokens, channels) = shape.check(x)?;
    let (device, picked, n, d) = (device(x)?, rows.dim(1)?, shape.heads, shape.width / shape.heads);
    let logits = unwritten((batch, picked, n, tokens - 1), DType::F32, device)?;
    let word = |n: usize| Argument::Word(n as u32);
    let arguments = [
        address(x, x.dtype(), batch * tokens * channels)?,
        address(rows, DType::U32, batch * picked)?,
        address(&logits, DType::F32, batch * picked * n * (tokens - 1))?,
        word(tokens),
        word(channels),
        word(shape.width),
        word(d),
        Argument::Float(shape.scale as f32),
    ];
    let grid = Grid { shared: 4 * d, ..Grid::rows([picked, n, batch], tokens - 1) };
    // SAFETY: (B, T, channels), (B, R) of token numbers below T, (B, R, N, L), and those sizes; d floats are shared.
    unsafe { ROW_LOGITS.launch(device, &format!("row_logits_forward_{}", suffix(x.dtype())?), grid, &arguments)? };
    Ok(logits)
}

pub(in crate::kernels) fn backward(shape: &RowLogits, x: &Tensor, rows: &Tensor, dlogits: &Tensor) -> Result<Tensor> {
    let (batch, tokens, channels) = shape.check(x)?;
    let (device, picked, n, d) = (device(x)?, rows.dim(1)?, shape.heads, shape.width / shape.heads);
    let dx = match channels == 2 * shape.width {
        true => unwritten(x.shape(), x.dtype(), device)?,
        // Channels beyond queries and keys.
        false => x.zeros_like()?,
    };
    let word = |n: usize| Argument::Word(n as u32);
    let arguments = [
        address(x, x.dtype(), batch * tokens * channels)?,
        address(rows, DType::U32, batch * picked)?,
        address(dlogits, DType::F32, batch * picked * n * (tokens - 1))?,
        address(&dx, x.dtype(), batch * tokens * channels)?,
        word(tokens),
        word(channels),
        word(shape.width),
        word(d),
        word(picked),
        Argument::Float(shape.scale as f32),
    ];
    let grid = Grid::rows([tokens, n, batch], d);
    // SAFETY: as in `forward`, with the gradient of x, which is as x is.
    unsafe { ROW_LOGITS.launch(device, &format!("row_logits_backward_{}", suffix(x.dtype())?), grid, &arguments)? };
    Ok(dx)
}
