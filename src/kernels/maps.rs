//! Maps of rows × columns places, kept as tokens (B, rows·columns, C): windows, and what necks do with them.

use candle_core::{D, Result, Tensor};

use crate::model::Map;

const NAME: &str = "map";

/// Values a convolution gathers at a time: 64 MB.
const BAND: usize = 16 << 20;

/// (B, rows·columns, C) → (B, rows, columns, C).
fn unrolled(x: &Tensor, [rows, columns]: [usize; 2]) -> Result<Tensor> {
    let (batch, places, channels) = x.dims3()?;
    if places != rows * columns {
        candle_core::bail!("{NAME}: {places} places are not {rows} × {columns}");
    }
    x.reshape((batch, rows, columns, channels))
}

/// (B, rows, columns, C) → (B, rows·columns, C).
fn rolled(x: &Tensor) -> Result<Tensor> {
    let (batch, rows, columns, channels) = x.dims4()?;
    x.reshape((batch, rows * columns, channels))
}

/// (B, rows·columns, C) → (B·windows, size², C), zeros filling the last windows.
pub(super) fn windows(x: &Tensor, grid: [usize; 2], size: usize) -> Result<Tensor> {
    let x = unrolled(x, grid)?;
    let (batch, _, _, channels) = x.dims4()?;
    let [down, across] = grid.map(|side| side.div_ceil(size));
    let x = x.pad_with_zeros(1, 0, down * size - grid[0])?.pad_with_zeros(2, 0, across * size - grid[1])?;
    let x = x.contiguous()?.reshape(&[batch, down, size, across, size, channels][..])?;
    x.permute([0, 1, 3, 2, 4, 5])?.contiguous()?.reshape((batch * down * across, size * size, channels))
}

/// (B·windows, size², C) → (B, rows·columns, C), without the padding.
pub(super) fn unwindow(x: &Tensor, grid: [usize; 2], size: usize) -> Result<Tensor> {
    let [down, across] = grid.map(|side| side.div_ceil(size));
    let (windows, places, channels) = x.dims3()?;
    if places != size * size || down * across == 0 || !windows.is_multiple_of(down * across) {
        candle_core::bail!("{NAME}: {windows} windows of {places} places are not of {grid:?} in windows of {size}");
    }
    let batch = windows / (down * across);
    let x = x.reshape(&[batch, down, across, size, size, channels][..])?.permute([0, 1, 3, 2, 4, 5])?.contiguous()?;
    let x = x.reshape((batch, down * size, across * size, channels))?;
    rolled(&x.narrow(1, 0, grid[0])?.narrow(2, 0, grid[1])?.contiguous()?)
}

/// (B, rows·columns, 4·C), channels [down][across][C] → (B, 2·rows·2·columns, C).
pub(super) fn shuffle(x: &Tensor, [rows, columns]: [usize; 2]) -> Result<Map<Tensor>> {
    let (batch, _, channels) = x.dims3()?;
    let x = x.reshape(&[batch, rows, columns, 2, 2, channels / 4][..])?.permute([0, 1, 3, 2, 4, 5])?.contiguous()?;
    Ok(Map { value: x.reshape((batch, 4 * rows * columns, channels / 4))?, grid: [2 * rows, 2 * columns] })
}

/// Each place `factor` × `factor` times.
pub(super) fn repeat(x: &Tensor, grid: [usize; 2], factor: usize) -> Result<Map<Tensor>> {
    let (batch, _, channels) = x.dims3()?;
    let [rows, columns] = grid;
    let x = unrolled(x, grid)?.reshape(&[batch, rows, 1, columns, 1, channels][..])?;
    let x = x.broadcast_as(&[batch, rows, factor, columns, factor, channels][..])?.contiguous()?;
    let value = x.reshape((batch, factor * rows * factor * columns, channels))?;
    Ok(Map { value, grid: grid.map(|side| factor * side) })
}

/// The maximum of `side` × `side` places, at every second one.
pub(super) fn max_pool(x: &Tensor, grid: [usize; 2], side: usize) -> Result<Map<Tensor>> {
    if side == 0 || grid.iter().any(|places| *places < side) {
        candle_core::bail!("{NAME}: {grid:?} places hold no {side} × {side}");
    }
    let x = unrolled(x, grid)?;
    let every_second = |x: &Tensor, axis: usize, from: usize| -> Result<Tensor> {
        let count = (grid[axis - 1] - side) / 2 + 1;
        let places: Vec<u32> = (0..count).map(|i| (from + 2 * i) as u32).collect();
        x.index_select(&Tensor::from_vec(places, count, x.device())?, axis)
    };
    let mut most: Option<Tensor> = None;
    for down in 0..side {
        let rows = every_second(&x, 1, down)?;
        for across in 0..side {
            let here = every_second(&rows, 2, across)?;
            most = Some(match most {
                None => here,
                Some(most) => most.maximum(&here)?,
            });
        }
    }
    let value = rolled(&most.unwrap_or(x))?;
    Ok(Map { value, grid: grid.map(|places| (places - side) / 2 + 1) })
}

/// Applies `layer` to the `side` × `side` places around each place, (B, n, side²·C) with channels [down][across][C] and zeros
/// beyond the border, some rows at a time: (B, rows·columns, C) → (B, rows·columns, what `layer` makes).
pub(super) fn around(
    x: &Tensor,
    grid: [usize; 2],
    side: usize,
    layer: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    if side == 1 {
        return layer(x);
    }
    let (batch, _, channels) = x.dims3()?;
    let [rows, columns] = grid;
    let border = side / 2;
    let x = unrolled(x, grid)?.pad_with_zeros(1, border, border)?.pad_with_zeros(2, border, border)?.contiguous()?;
    let band = (BAND / (batch * columns * side * side * channels).max(1)).clamp(1, rows);
    let mut bands = Vec::with_capacity(rows.div_ceil(band));
    for first in (0..rows).step_by(band) {
        let high = band.min(rows - first);
        let mut shifted = Vec::with_capacity(side * side);
        for down in 0..side {
            for across in 0..side {
                shifted.push(x.narrow(1, first + down, high)?.narrow(2, across, columns)?);
            }
        }
        let gathered = Tensor::cat(&shifted, D::Minus1)?.reshape((batch, high * columns, side * side * channels))?;
        bands.push(layer(&gathered)?);
    }
    Tensor::cat(&bands, 1)
}
