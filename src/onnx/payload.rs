//! A tensor's values on their way into a file: straight from the mapped checkpoint where nothing changes, and band by
//! band where a Linear's weight is turned or a number changes its type, so no second copy of a model is ever in memory.

use std::io::{self, Write};

use half::{bf16, f16};
use safetensors::Dtype;

use super::graph::Element;
use crate::model::TensorView;

/// Bytes of output produced at a time.
const BAND: usize = 1 << 20;

/// Where an initializer's values come from.
#[derive(Debug, Clone)]
pub(super) enum Payload<'a> {
    /// Made by the exporter, as they are written: shapes, indices, a resampled position table.
    Own(Vec<u8>),
    /// A parameter as it stands, or the rows of one that `bytes` holds.
    Stored(TensorView<'a>),
    /// A parameter (out, in) written (in, out).
    Transposed(TensorView<'a>),
    /// The same in eight bits, by the scales of its output channels.
    Quantized(TensorView<'a>, Vec<f32>),
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

/// How a value is written.
trait Number {
    const BYTES: usize;

    /// Writes `value`, which belongs to output channel `channel`, to `to`, of `BYTES` bytes.
    fn put(&self, value: f32, channel: usize, to: &mut [u8]);
}

struct Single;

impl Number for Single {
    const BYTES: usize = 4;

    fn put(&self, value: f32, _: usize, to: &mut [u8]) {
        to.copy_from_slice(&value.to_le_bytes());
    }
}

struct Half;

impl Number for Half {
    const BYTES: usize = 2;

    fn put(&self, value: f32, _: usize, to: &mut [u8]) {
        to.copy_from_slice(&f16::from_f32(value).to_le_bytes());
    }
}

/// The nearest of 255 steps about zero.
struct Step<'a> {
    scales: &'a [f32],
    /// What stands for zero.
    zero: u8,
}

impl Number for Step<'_> {
    const BYTES: usize = 1;

    fn put(&self, value: f32, channel: usize, to: &mut [u8]) {
        let steps = (value / self.scales[channel]).round_ties_even();
        to[0] = (steps.clamp(-127.0, 127.0) as i8 as u8).wrapping_add(self.zero);
    }
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

    /// All its values, in the order they are stored in; those of the exporter's own are f32.
    pub(super) fn values(&self) -> impl Iterator<Item = f32> {
        let (dtype, bytes) = match self {
            Self::Own(bytes) => (Dtype::F32, bytes.as_slice()),
            Self::Stored(view) | Self::Transposed(view) | Self::Quantized(view, _) => (view.dtype, view.bytes),
        };
        bytes.chunks_exact(width(dtype)).map(move |bytes| element(dtype, bytes))
    }

    /// The largest magnitude of its values.
    pub(super) fn largest(&self) -> f32 {
        // `f32::max` prefers what is a number: one that is not must not get lost.
        let larger = |a: f32, b: f32| if a.is_nan() || b.is_nan() { f32::NAN } else { a.max(b.abs()) };
        self.values().fold(0.0, larger)
    }

    /// The exporter's own f32 as f16; parameters are written in any type.
    pub(super) fn halved(&self) -> Self {
        match self {
            Self::Own(_) => Self::Own(self.values().flat_map(|value| f16::from_f32(value).to_le_bytes()).collect()),
            parameter => parameter.clone(),
        }
    }

    /// Bytes it will write as `element`.
    pub(super) fn len(&self, element: Element) -> u64 {
        match self {
            Self::Own(bytes) => bytes.len() as u64,
            Self::Stored(view) | Self::Transposed(view) | Self::Quantized(view, _) => {
                (view.bytes.len() / width(view.dtype) * element.bytes()) as u64
            }
        }
    }

    /// Streams the values as `element`, little-endian.
    pub(super) fn write(&self, to: Element, out: &mut impl Write) -> io::Result<()> {
        match (self, to) {
            (Self::Own(bytes), _) => out.write_all(bytes),
            (Self::Stored(view), Element::F32) if view.dtype == Dtype::F32 => out.write_all(view.bytes),
            (Self::Stored(view), Element::F16) if view.dtype == Dtype::F16 => out.write_all(view.bytes),
            (Self::Stored(view), Element::F16) => straight(view, &Half, out),
            (Self::Stored(view), _) => straight(view, &Single, out),
            (Self::Transposed(view), Element::F16) => transposed(view, &Half, out),
            (Self::Transposed(view), _) => transposed(view, &Single, out),
            (Self::Quantized(view, scales), Element::U8) => transposed(view, &Step { scales, zero: 128 }, out),
            (Self::Quantized(view, scales), _) => transposed(view, &Step { scales, zero: 0 }, out),
        }
    }
}

/// Writes the values in their order.
fn straight<N: Number>(view: &TensorView<'_>, number: &N, out: &mut impl Write) -> io::Result<()> {
    let size = width(view.dtype);
    let mut band = vec![0; BAND];
    for values in view.bytes.chunks(BAND / N::BYTES * size) {
        let band = &mut band[..values.len() / size * N::BYTES];
        for (to, value) in band.chunks_exact_mut(N::BYTES).zip(values.chunks_exact(size)) {
            number.put(element(view.dtype, value), 0, to);
        }
        out.write_all(band)?;
    }
    Ok(())
}

/// Writes the (rows, columns) matrix as (columns, rows); its rows are the output channels.
///
/// A band of output rows is filled at a time, in square tiles: column-wise reads of a large matrix would otherwise miss
/// the cache on every element and cost more than writing the file.
fn transposed<N: Number>(view: &TensorView<'_>, number: &N, out: &mut impl Write) -> io::Result<()> {
    const TILE: usize = 16;
    let [rows, columns] = *view.shape else { return straight(view, number, out) };
    let size = width(view.dtype);
    let per_band = (BAND / N::BYTES / rows.max(1) / TILE * TILE).max(TILE);
    let mut band = vec![0_u8; per_band.min(columns) * rows * N::BYTES];
    for first in (0..columns).step_by(per_band) {
        let wide = per_band.min(columns - first);
        let band = &mut band[..wide * rows * N::BYTES];
        for row_tile in (0..rows).step_by(TILE) {
            let row_end = (row_tile + TILE).min(rows);
            for column_tile in (0..wide).step_by(TILE) {
                let column_end = (column_tile + TILE).min(wide);
                for row in row_tile..row_end {
                    let from = (row * columns + first + column_tile) * size;
                    let source = &view.bytes[from..from + (column_end - column_tile) * size];
                    for (i, value) in source.chunks_exact(size).enumerate() {
                        let to = ((column_tile + i) * rows + row) * N::BYTES;
                        number.put(element(view.dtype, value), row, &mut band[to..to + N::BYTES]);
                    }
                }
            }
        }
        out.write_all(band)?;
    }
    Ok(())
}
