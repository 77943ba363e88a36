//! Telling what kind of position table a file holds, by its values.

use super::{AxisOrder, PositionKind};

/// Whether the patch rows of `table` are the fixed sine-cosine table of `grid` `[rows, columns]` in `order`, and its class
/// row is zero. `table` is row-major (1 + rows·columns, width), class row first.
///
/// `tolerance` is absolute. Upstream tables are made in f64 and rounded (MAE) or in f32 throughout (MoCo v3): there an
/// angle of up to a few hundred radians carries a few units of 2⁻²⁴ relative, under 1e-4 in all; a table of the other
/// axis order is off by nearly 2.
pub fn is_sin_cos(table: &[f32], grid: [usize; 2], width: usize, order: AxisOrder, tolerance: f32) -> bool {
    let [rows, columns] = grid;
    let Some(values) = rows.checked_mul(columns).and_then(|patches| patches.checked_add(1)?.checked_mul(width)) else {
        return false;
    };
    if width == 0 || !width.is_multiple_of(4) || table.len() != values {
        return false;
    }
    let (class, patches) = table.split_at(width);
    if class.iter().any(|value| value.abs() > 0.0 || value.is_nan()) {
        return false;
    }
    let quarter = width / 4;
    let rates: Vec<f64> = (0..quarter).map(|k| 10_000_f64.powf(-(k as f64) / quarter as f64)).collect();
    let near = |value: f32, expected: f64| (f64::from(value) - expected).abs() <= f64::from(tolerance);
    patches.chunks_exact(width).enumerate().all(|(patch, values)| {
        let (row, column) = ((patch / columns) as f64, (patch % columns) as f64);
        let [first, second] = match order {
            AxisOrder::ColumnFirst => [column, row],
            AxisOrder::RowFirst => [row, column],
        };
        let (left, right) = values.split_at(width / 2);
        [(left, first), (right, second)].into_iter().all(|(half, position)| {
            rates.iter().enumerate().all(|(k, rate)| {
                let angle = position * rate;
                near(half[k], angle.sin()) && near(half[quarter + k], angle.cos())
            })
        })
    })
}

/// The kind of a table: sine-cosine in one of the two axis orders, or learned. A square one-patch table is the same in both
/// orders and counts as [`AxisOrder::ColumnFirst`].
pub fn position_kind(table: &[f32], grid: [usize; 2], width: usize, tolerance: f32) -> PositionKind {
    [AxisOrder::ColumnFirst, AxisOrder::RowFirst]
        .into_iter()
        .find(|order| is_sin_cos(table, grid, width, *order, tolerance))
        .map_or(PositionKind::Learned, |axis_order| PositionKind::SinCos { axis_order })
}
