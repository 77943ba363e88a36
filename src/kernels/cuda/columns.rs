//! Sums over rows, in an order that depends on the shape alone.

use candle_core::{DType, Result, Tensor};

use super::{Argument, Grid, Module, address, device, module, suffix, unwritten};

const COLUMNS: Module = module!("columns");

/// Rows a thread adds up.
pub(super) const EACH: usize = 64;

/// Adds to (or, when `fresh`, puts in) `sums` (C) the sum over rows of x (R, C).
pub(super) fn add_rows(x: &Tensor, sums: &Tensor, fresh: bool) -> Result<()> {
    let (rows, c) = x.dims2()?;
    let device = device(x)?;
    let chunks = rows.div_ceil(EACH);
    let partial = unwritten((chunks, c), DType::F32, device)?;
    let word = |n: usize| Argument::Word(n as u32);
    let (from, to) = (address(x, x.dtype(), rows * c)?, address(&partial, DType::F32, chunks * c)?);
    let name = format!("column_sums_{}", suffix(x.dtype())?);
    // SAFETY: (rows, c), (chunks, c), and those sizes.
    unsafe {
        let arguments = [from, to, word(rows), word(c), word(EACH)];
        COLUMNS.launch(device, &name, Grid::columns(c, chunks), &arguments)?;
    }
    merge(&partial, sums, fresh)
}

/// Adds to (or, when `fresh`, puts in) `sums` (C) the rows of `partial` (chunks, C), first row first.
pub(super) fn merge(partial: &Tensor, sums: &Tensor, fresh: bool) -> Result<()> {
    let (chunks, c) = partial.dims2()?;
    let arguments = [
        address(partial, DType::F32, chunks * c)?,
        address(sums, DType::F32, c)?,
        Argument::Word(chunks as u32),
        Argument::Word(c as u32),
        Argument::Word(u32::from(fresh)),
    ];
    // SAFETY: (chunks, c), (c), those sizes, and whether there is a sum already.
    unsafe { COLUMNS.launch(device(partial)?, "merge", Grid::columns(c, 1), &arguments) }
}
