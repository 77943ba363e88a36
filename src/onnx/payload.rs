//! A tensor's values on their way into a file: straight from the mapped checkpoint where nothing changes, and band by
//! band where a Linear's weight is turned or a narrower float is widened, so no second copy of a model is ever in memory.

use std::io::{self, Write};

use half::{bf16, f16};
use safetensors::Dtype;

use crate::model::TensorView;

/// Bytes of output produced at a time.
const BAND: usize = 1 << 20;

/// Where an initializer's values come from.
#[derive(Debug, Clone)]
pub(super) enum Payload<'a> {
    /// Made by the exporter: shapes, indices, a resampled position table.
    Own(Vec<u8>),
    /// A parameter as it stands, or the rows of one that `bytes` holds.
    Stored(TensorView<'a>),
    /// A parameter (out, in) written (in, out).
    Transposed(TensorView<'a>),
}

/// One value, widened. `bytes` holds exactly one element.
fn element(dtype: Dtype, bytes: &[u8]) -> f32 {
    match (dtype, bytes) {
        (Dtype::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
        (Dtype::F16, &[a, b]) => f16::from_le_bytes([a, b]).to_f32(),
        (Dtype::BF16, &[a, b]) => bf16::from_le_bytes([a, b]).to_f32(),
        (Dtype::F64, &[a, b, c, d, e, f, g, h]) => f64::from_le_bytes([a, b, c, d, e, f, g, h]) as f32,
        // `Canonical::open` admits these four types only.
        _ => f32::NAN,
    }
}

/// Bytes of one element of a float type.
fn width(dtype: Dtype) -> usize {
    dtype.bitsize() / 8
}

/// All values of a parameter as f32.
pub(super) fn to_f32(view: TensorView<'_>) -> Vec<f32> {
    view.bytes.chunks_exact(width(view.dtype)).map(|bytes| element(view.dtype, bytes)).collect()
}

impl Payload<'_> {
    /// From little-endian f32.
    pub(super) fn f32(values: &[f32]) -> Self {
        Self::Own(values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    /// From i64.
    pub(super) fn i64(values: &[i64]) -> Self {
        Self::Own(values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    /// Bytes it will write.
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Own(bytes) => bytes.len() as u64,
            Self::Stored(view) | Self::Transposed(view) => (view.bytes.len() / width(view.dtype)) as u64 * 4,
        }
    }

    /// Streams the values, little-endian.
    pub(super) fn write(&self, out: &mut impl Write) -> io::Result<()> {
        match self {
            Self::Own(bytes) => out.write_all(bytes),
            Self::Stored(view) if view.dtype == Dtype::F32 => out.write_all(view.bytes),
            Self::Stored(view) => {
                let size = width(view.dtype);
                let mut band = Vec::with_capacity(BAND);
                for values in view.bytes.chunks(BAND / 4 * size) {
                    band.clear();
                    band.extend(values.chunks_exact(size).flat_map(|v| element(view.dtype, v).to_le_bytes()));
                    out.write_all(&band)?;
                }
                Ok(())
            }
            Self::Transposed(view) => match *view.shape {
                [rows, columns] => transpose(view, rows, columns, out),
                _ => out.write_all(view.bytes),
            },
        }
    }
}

/// Writes the (rows, columns) matrix as (columns, rows).
///
/// A band of output rows is filled at a time, in square tiles: column-wise reads of a large matrix would otherwise miss
/// the cache on every element and cost more than writing the file.
fn transpose(view: &TensorView<'_>, rows: usize, columns: usize, out: &mut impl Write) -> io::Result<()> {
    const TILE: usize = 16;
    let size = width(view.dtype);
    let per_band = (BAND / 4 / rows.max(1) / TILE * TILE).max(TILE);
    let mut band = vec![0_u8; per_band.min(columns) * rows * 4];
    for first in (0..columns).step_by(per_band) {
        let wide = per_band.min(columns - first);
        let band = &mut band[..wide * rows * 4];
        for row_tile in (0..rows).step_by(TILE) {
            let row_end = (row_tile + TILE).min(rows);
            for column_tile in (0..wide).step_by(TILE) {
                let column_end = (column_tile + TILE).min(wide);
                for row in row_tile..row_end {
                    let from = (row * columns + first + column_tile) * size;
                    let source = &view.bytes[from..from + (column_end - column_tile) * size];
                    for (i, value) in source.chunks_exact(size).enumerate() {
                        let to = ((column_tile + i) * rows + row) * 4;
                        band[to..to + 4].copy_from_slice(&element(view.dtype, value).to_le_bytes());
                    }
                }
            }
        }
        out.write_all(band)?;
    }
    Ok(())
}
