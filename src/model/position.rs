//! How a position table is resampled to another grid, as two small matrices.
//!
//! Bicubic resampling is separable and linear, so a rule *is* the pair (Wr, Wc) with `out = Wr · P · Wcᵀ` per channel:
//! the eager pass multiplies by them, a graph stores them. Weights follow PyTorch's CPU kernels
//! (`aten/src/ATen/native/cpu/UpSampleKernel.cpp`), computed in f64 where PyTorch uses f32: agreement is 1e-5.
//!
//! Tables are never regenerated here.

use super::Resample;

/// The convolution coefficient of PyTorch's bicubic without antialiasing.
pub(crate) const CUBIC: f64 = -0.75;
/// The one it takes from PIL with antialiasing.
pub(crate) const CUBIC_ANTIALIAS: f64 = -0.5;

/// A dense row-major matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    /// Target positions.
    pub rows: usize,
    /// Source positions.
    pub columns: usize,
    /// `rows × columns` weights; every row sums to 1.
    pub values: Vec<f32>,
}

/// Why a table cannot be resampled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PositionError {
    /// A grid has no cell.
    #[error("cannot resample a position table from {native:?} to {grid:?}: a side is 0")]
    EmptyGrid {
        /// The table's grid.
        native: [usize; 2],
        /// The wanted grid.
        grid: [usize; 2],
    },
    /// The table does not have the grid it is said to have.
    #[error(
        "a position table of {values} values is not {rows} × {columns} patches of width {width}, with or without a class row"
    )]
    Shape {
        /// Values in the table.
        values: usize,
        /// Rows of patches.
        rows: usize,
        /// Columns of patches.
        columns: usize,
        /// Channels.
        width: usize,
    },
}

/// Whether a model uses its table as it is.
///
/// For most rules resampling to the native grid changes nothing anyway. iBOT's and DINO's would change it (their scale
/// is never 1), so upstream skips it for a square image with as many patches as the table; their tables are square, so
/// that is `native == grid`. [`resample`] applies the rule unasked: whoever runs a model asks here first.
pub fn is_native(native: [usize; 2], grid: [usize; 2]) -> bool {
    native == grid
}

/// The matrices `[Wr, Wc]` of a rule: `grid rows × native rows` and `grid columns × native columns`.
///
/// # Errors
/// A grid with an empty side.
pub fn resample_matrices(native: [usize; 2], grid: [usize; 2], rule: Resample) -> Result<[Matrix; 2], PositionError> {
    if native.contains(&0) || grid.contains(&0) {
        return Err(PositionError::EmptyGrid { native, grid });
    }
    Ok([0, 1].map(|axis| axis_matrix(native[axis], grid[axis], rule)))
}

/// Resamples `table`, (1 + native rows · native columns, `width`) row-major with the class row first, to `grid`.
///
/// The class row is copied; a table without one gives a table without one.
///
/// # Errors
/// An empty grid, or a table of another size.
pub fn resample(
    table: &[f32],
    width: usize,
    native: [usize; 2],
    grid: [usize; 2],
    rule: Resample,
) -> Result<Vec<f32>, PositionError> {
    let [rows, columns] = native;
    let shape = PositionError::Shape { values: table.len(), rows, columns, width };
    let patches = rows.checked_mul(columns).and_then(|n| n.checked_mul(width)).filter(|_| width > 0);
    let class_row = match patches.and_then(|patches| table.len().checked_sub(patches)) {
        Some(0) => 0,
        Some(more) if more == width => width,
        _ => return Err(shape),
    };
    let [by_rows, by_columns] = resample_matrices(native, grid, rule)?;
    let (class_row, patches) = table.split_at(class_row);
    // (rows, columns·width) → (grid rows, columns·width)
    let tall = mix(&by_rows, patches, columns * width);
    let mut out = Vec::with_capacity((1 + grid[0] * grid[1]) * width);
    out.extend_from_slice(class_row);
    for row in tall.chunks_exact(columns * width) {
        // (columns, width) → (grid columns, width)
        out.extend(mix(&by_columns, row, width));
    }
    Ok(out)
}

/// `matrix` times a source of `matrix.columns` rows of `stride` values.
fn mix(matrix: &Matrix, source: &[f32], stride: usize) -> Vec<f32> {
    let mut out = vec![0f32; matrix.rows * stride];
    for (target, weights) in out.chunks_exact_mut(stride).zip(matrix.values.chunks_exact(matrix.columns)) {
        for (&weight, row) in weights.iter().zip(source.chunks_exact(stride)).filter(|(weight, _)| **weight != 0.0) {
            for (value, &from) in target.iter_mut().zip(row) {
                *value += weight * from;
            }
        }
    }
    out
}

fn axis_matrix(source: usize, target: usize, rule: Resample) -> Matrix {
    let mut values = Vec::with_capacity(target * source);
    for i in 0..target {
        let row = match rule {
            Resample::Size => interpolated_row(source, i, source as f64 / target as f64),
            // `interpolate(scale_factor=…)` hands 1 / scale_factor to the kernel as it is, whatever size came out.
            Resample::ScaleOffset { offset } => interpolated_row(source, i, source as f64 / (target as f64 + offset)),
            Resample::SizeAntialias => antialiased_row(source, i, source as f64 / target as f64),
        };
        values.extend(row.into_iter().map(|weight| weight as f32));
    }
    Matrix { rows: target, columns: source, values }
}

/// Four taps around `scale·(i + ½) − ½`, those outside clamped to the border.
fn interpolated_row(source: usize, i: usize, scale: f64) -> Vec<f64> {
    let mut row = vec![0.0; source];
    let position = scale * (i as f64 + 0.5) - 0.5;
    let base = position.floor();
    for tap in -1i32..=2 {
        let at = base + f64::from(tap);
        let index = at.clamp(0.0, (source - 1) as f64) as usize;
        row[index] += cubic(position - at, CUBIC);
    }
    row
}

/// PIL's antialiased filter: support widened by the scale when shrinking, weights normalised, no taps outside.
fn antialiased_row(source: usize, i: usize, scale: f64) -> Vec<f64> {
    let mut row = vec![0.0; source];
    let stretch = scale.max(1.0);
    let support = 2.0 * stretch;
    let centre = scale * (i as f64 + 0.5);
    let first = (centre - support + 0.5).max(0.0) as usize;
    let end = ((centre + support + 0.5) as usize).min(source);
    let mut total = 0.0;
    for (index, weight) in row.iter_mut().enumerate().take(end).skip(first) {
        *weight = cubic((index as f64 - centre + 0.5) / stretch, CUBIC_ANTIALIAS);
        total += *weight;
    }
    for weight in &mut row {
        *weight /= total;
    }
    row
}

/// Keys' cubic convolution kernel with coefficient `a`.
fn cubic(x: f64, a: f64) -> f64 {
    let x = x.abs();
    match x {
        _ if x < 1.0 => ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0,
        _ if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * a,
        _ => 0.0,
    }
}
