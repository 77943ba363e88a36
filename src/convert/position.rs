//! The position table against the family's expectation: the one value test among tests of names and shapes.

use safetensors::Dtype;

use super::ConvertError;
use super::assemble::{Assembly, Values};
use super::mapping::{ExpectedPosition, Mapping};
use super::numbers::to_f64;
use crate::checkpoint::Checkpoint;
use crate::model::{AxisOrder, PositionKind, is_sin_cos, position_kind};

const COLUMN_FIRST: &str = "a sine-cosine table, columns in the first half of the channels";
const ROW_FIRST: &str = "a sine-cosine table, rows in the first half of the channels";
const LEARNED: &str = "a learned table";

/// The table's kind in words and as a value, or why it is not the family's. The outer error is of reading it.
///
/// `size` is the native image size in patches where it is known; a table of unknown grid counts as learned.
#[allow(clippy::type_complexity, reason = "two kinds of failure: unreadable, and refused")]
pub(crate) fn check_position(
    mapping: &Mapping,
    checkpoint: &Checkpoint,
    assembly: &Assembly,
    grid: Option<[usize; 2]>,
) -> Result<Result<(&'static str, PositionKind), ConvertError>, ConvertError> {
    let Some(piece) = assembly.model.iter().find(|piece| piece.name == "pos_embed") else {
        return Ok(Ok((LEARNED, PositionKind::Learned)));
    };
    let Values::Copy(at) = piece.values else { return Ok(Ok((LEARNED, PositionKind::Learned))) };
    let Some(grid) = grid else { return Ok(Ok((LEARNED, PositionKind::Learned))) };
    let bytes = checkpoint.bytes(&checkpoint.tensors()[at])?;
    let table: Vec<f32> = to_f64(&bytes, piece.dtype).into_iter().map(|value| value as f32).collect();
    // Rounding to the stored type comes on top of the arithmetic's 1e-4 (see `is_sin_cos`).
    let tolerance = match piece.dtype {
        Dtype::F16 => 1e-4 + 1.0 / 2048.0,
        Dtype::BF16 => 1e-4 + 1.0 / 256.0,
        _ => 1e-4,
    };
    let width = assembly.vit.width;
    let is = |order| is_sin_cos(&table, grid, width, order, tolerance);
    let found = position_kind(&table, grid, width, tolerance);
    let named = match found {
        PositionKind::Learned => LEARNED,
        PositionKind::SinCos { axis_order: AxisOrder::ColumnFirst } => COLUMN_FIRST,
        PositionKind::SinCos { axis_order: AxisOrder::RowFirst } => ROW_FIRST,
    };
    let sin_cos = |axis_order| PositionKind::SinCos { axis_order };
    // Fine-tuning trains the table (timm's `pos_embed` is an ordinary parameter), whatever it began as.
    if assembly.vit.classifier.is_some() && found == PositionKind::Learned {
        return Ok(Ok((named, found)));
    }
    let (expected, holds) = match mapping.position {
        ExpectedPosition::Any => return Ok(Ok((named, found))),
        ExpectedPosition::Learned if found == PositionKind::Learned => return Ok(Ok((named, found))),
        ExpectedPosition::Learned => (LEARNED, None),
        // One patch: both orders are the same table, and the family's is the one to record.
        ExpectedPosition::SinCosColumnFirst => {
            (COLUMN_FIRST, is(AxisOrder::ColumnFirst).then_some(AxisOrder::ColumnFirst))
        }
        ExpectedPosition::SinCosRowFirst => (ROW_FIRST, is(AxisOrder::RowFirst).then_some(AxisOrder::RowFirst)),
    };
    if let Some(order) = holds {
        return Ok(Ok((expected, sin_cos(order))));
    }
    let hint = match (mapping.position, found) {
        (ExpectedPosition::Learned, _) => "fixed tables are MAE's, TEC's and MoCo v3's: is this the right family?",
        (_, PositionKind::SinCos { .. }) => {
            "this is a transposed position table (MAE's and MoCo v3's axis orders are swapped): is this the right family?"
        }
        _ => "the family's table is fixed, with a zero class row: another family's file, or a changed table",
    };
    Ok(Err(ConvertError::Position { family: mapping.name.clone(), expected, found: named, hint: hint.into() }))
}
