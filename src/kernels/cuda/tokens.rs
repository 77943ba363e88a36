//! Visible tokens back to their places among the hidden ones.

use candle_core::{DType, Device, Result, Tensor};

use super::super::tokens::Restore;
use super::{Argument, Grid, Module, address, columns, device, module, suffix, unwritten};

const TOKENS: Module = module!("tokens");

pub(in crate::kernels) fn unshuffle(
    x: &Tensor,
    token: &Tensor,
    position: &Tensor,
    restore: &Restore,
) -> Result<Tensor> {
    let (batch, _, d) = x.dims3()?;
    let (device, tokens) = (device(x)?, 1 + restore.patches);
    let places = places(restore, x.device())?;
    let y = unwritten((batch, tokens, d), DType::F32, device)?;
    let arguments = [
        address(x, x.dtype(), batch * (1 + restore.kept) * d)?,
        address(token, DType::F32, d)?,
        address(position, DType::F32, tokens * d)?,
        address(places, DType::U32, batch * restore.patches)?,
        address(&y, DType::F32, batch * tokens * d)?,
        Argument::Word(restore.kept as u32),
        Argument::Word(d as u32),
    ];
    let name = format!("unshuffle_{}", suffix(x.dtype())?);
    // SAFETY: (B, 1 + K, d), (d), (1 + L, d), (B, L) and what is written, (B, 1 + L, d).
    unsafe { TOKENS.launch(device, &name, Grid::rows([tokens, batch, 1], d), &arguments)? };
    Ok(y)
}

pub(in crate::kernels) fn unshuffle_backward(
    dy: &Tensor,
    restore: &Restore,
    dtoken: &Tensor,
    fresh: bool,
) -> Result<Tensor> {
    let (batch, tokens, d) = dy.dims3()?;
    let device = device(dy)?;
    let places = places(restore, dy.device())?;
    let dx = unwritten((batch, 1 + restore.kept, d), DType::F32, device)?;
    let partial = unwritten((batch, d), DType::F32, device)?;
    let word = |n: usize| Argument::Word(n as u32);
    let from = address(dy, DType::F32, batch * (1 + restore.patches) * d)?;
    let at = address(places, DType::U32, batch * restore.patches)?;
    let (to, sums) = (address(&dx, DType::F32, dx.elem_count())?, address(&partial, DType::F32, batch * d)?);
    // SAFETY: (B, 1 + L, d), (B, L) and what is written: (B, 1 + K, d), of which each row has its place; (B, d).
    unsafe {
        let arguments = [from, at, to, word(restore.kept), word(d)];
        TOKENS.launch(device, "unshuffle_backward", Grid::rows([tokens, batch, 1], d), &arguments)?;
        let arguments = [from, at, sums, word(restore.patches), word(restore.kept), word(d)];
        TOKENS.launch(device, "hidden_sums", Grid::columns(d, batch), &arguments)?;
    }
    columns::merge(&partial, &dtoken.flatten_all()?, fresh)?;
    Ok(dx)
}

pub(in crate::kernels) fn hidden_patches(x: &Tensor, restore: &Restore, prefix: usize) -> Result<Tensor> {
    let (batch, tokens, d) = x.dims3()?;
    let rows = hidden_rows(restore, prefix, x.device())?;
    x.reshape((batch * tokens, d))?.index_select(rows, 0)?.reshape((batch, (), d))
}

pub(in crate::kernels) fn hidden_patches_backward(dy: &Tensor, restore: &Restore, prefix: usize) -> Result<Tensor> {
    let (batch, _, d) = dy.dims3()?;
    let tokens = prefix + restore.patches;
    let rows = hidden_rows(restore, prefix, dy.device())?;
    let dx = Tensor::zeros((batch * tokens, d), dy.dtype(), dy.device())?;
    dx.index_add(rows, &dy.reshape(((), d))?, 0)?.reshape((batch, tokens, d))
}

/// Rows of the hidden patches among those of all images, each with `prefix` tokens before its patches.
fn hidden_rows<'r>(restore: &'r Restore, prefix: usize, device: &Device) -> Result<&'r Tensor> {
    let Some(kept) = restore.hidden_on_device.get(prefix) else {
        candle_core::bail!("tokens: {prefix} before the patches");
    };
    if let Some(rows) = kept.get() {
        return Ok(rows);
    }
    let tokens = prefix + restore.patches;
    let images = restore.places.len() / restore.patches;
    let row = |image: usize| move |patch: usize| (image * tokens + prefix + patch) as u32;
    let rows: Vec<u32> = (0..images).flat_map(|image| restore.hidden(image).map(row(image))).collect();
    let rows = Tensor::from_slice(&rows, rows.len(), device)?;
    Ok(kept.get_or_init(|| rows))
}

fn places<'r>(restore: &'r Restore, device: &Device) -> Result<&'r Tensor> {
    if let Some(places) = restore.on_device.get() {
        return Ok(places);
    }
    let places = Tensor::from_slice(&restore.places, restore.places.len(), device)?;
    Ok(restore.on_device.get_or_init(|| places))
}
