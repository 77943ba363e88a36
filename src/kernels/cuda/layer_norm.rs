//! LayerNorm over the last axis, and its gradients.

use candle_core::{D, DType, Result, Tensor};

use super::columns::EACH;
use super::{Argument, Grid, Module, address, device, module, suffix, unwritten};

const LAYER_NORM: Module = module!("layer_norm");

pub(in crate::kernels) fn forward(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64, out: DType) -> Result<Tensor> {
    let (device, n, c) = (device(x)?, x.elem_count(), x.dim(D::Minus1)?);
    let y = unwritten(x.shape(), out, device)?;
    let arguments = [
        address(x, x.dtype(), n)?,
        address(weight, DType::F32, c)?,
        address(bias, DType::F32, c)?,
        address(&y, out, n)?,
        Argument::Word(c as u32),
        Argument::Float(eps as f32),
    ];
    let name = format!("layer_norm_forward_{}_{}", suffix(x.dtype())?, suffix(out)?);
    // SAFETY: (rows, c) in and out, two of (c), c and eps.
    unsafe { LAYER_NORM.launch(device, &name, Grid::rows([n / c, 1, 1], c), &arguments)? };
    Ok(y)
}

pub(in crate::kernels) fn backward(
    x: &Tensor,
    dy: &Tensor,
    weight: &Tensor,
    eps: f64,
    dweight: &Tensor,
    dbias: &Tensor,
    fresh: bool,
) -> Result<Tensor> {
    let (device, n, c) = (device(x)?, x.elem_count(), x.dim(D::Minus1)?);
    let rows = n / c;
    let chunks = rows.div_ceil(EACH);
    let dx = unwritten(x.shape(), DType::F32, device)?;
    let stats = unwritten((rows, 2), DType::F32, device)?;
    let partial = unwritten((chunks, 2 * c), DType::F32, device)?;
    let types = format!("{}_{}", suffix(x.dtype())?, suffix(dy.dtype())?);
    let word = |n: usize| Argument::Word(n as u32);
    let (x, dy) = (address(x, x.dtype(), n)?, address(dy, dy.dtype(), n)?);
    let (stats, partial) = (address(&stats, DType::F32, 2 * rows)?, address(&partial, DType::F32, chunks * 2 * c)?);
    let (weight, to) = (address(weight, DType::F32, c)?, address(&dx, DType::F32, n)?);
    let (dweight, dbias) = (address(dweight, DType::F32, c)?, address(dbias, DType::F32, c)?);
    // SAFETY: x, dy and dx are (rows, c), statistics (rows, 2), partial sums (chunks, 2·c), parameters (c); each kernel
    // takes them and the sizes in this order.
    unsafe {
        let arguments = [x, dy, weight, to, stats, word(c), Argument::Float(eps as f32)];
        let name = format!("layer_norm_backward_{types}");
        LAYER_NORM.launch(device, &name, Grid::rows([rows, 1, 1], c), &arguments)?;
        let arguments = [x, dy, stats, partial, word(rows), word(c), word(EACH)];
        let name = format!("layer_norm_parameters_{types}");
        LAYER_NORM.launch(device, &name, Grid::columns(c, chunks), &arguments)?;
        let arguments = [partial, dweight, dbias, word(chunks), word(c), word(usize::from(fresh))];
        LAYER_NORM.launch(device, "layer_norm_merge", Grid::columns(2 * c, 1), &arguments)?;
    }
    Ok(dx)
}
