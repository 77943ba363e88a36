//! Which variant of a model runs where: each one exported, run in every runtime at several sizes, and compared.

use std::path::Path;

use serde::Serialize;

use super::check::{CheckError, CheckOptions, Reference, check};
use super::event::Listener;
use super::export::{ExportError, ExportOptions, Size, export};
use super::runtime::Runtime;
use super::verdict::{CheckReport, RuntimeVerdict};
use crate::causes::in_full;
use crate::destination::Destination;
use crate::model::Canonical;

/// A way to export, with what distinguishes it.
#[derive(Debug, Clone)]
pub struct Variant {
    /// Values of the matrix's leading columns.
    pub labels: Vec<String>,
    /// How it is exported. A [`Size::Fixed`] stands for a file for that size and one for a rectangle a little larger.
    pub options: ExportOptions,
}

/// What became of a variant in one runtime, over all sizes.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "verdict", rename_all = "kebab-case")]
pub enum Cell {
    /// It ran, and every output holds.
    Ran {
        /// Largest difference of any output at any size.
        max_abs_diff: f32,
        /// Smallest cosine.
        cosine: f64,
    },
    /// It ran, and an output does not hold.
    Differs {
        /// Largest difference.
        max_abs_diff: f32,
        /// Smallest cosine.
        cosine: f64,
    },
    /// It did not run at some size, for this reason.
    CouldNotRun {
        /// The runtime's words.
        reason: String,
    },
}

/// A variant's line of the matrix.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// As the variant's.
    pub labels: Vec<String>,
    /// Heights and widths it was run at.
    pub sizes: Vec<[usize; 2]>,
    /// Why there is no such export of this model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// One for each runtime asked, in that order; none where the export was refused.
    pub cells: Vec<(Runtime, Cell)>,
}

impl Row {
    /// Whether no runtime ran it wrong.
    pub fn holds(&self) -> bool {
        !self.cells.iter().any(|(_, cell)| matches!(cell, Cell::Differs { .. }))
    }

    /// The runtimes that ran it.
    fn ran(&self) -> impl Iterator<Item = Runtime> {
        self.cells.iter().filter(|(_, cell)| !matches!(cell, Cell::CouldNotRun { .. })).map(|(runtime, _)| *runtime)
    }
}

/// Whether the matrix holds: no runtime ran a variant wrong, and each one that has to run ran one. `None` where nothing ran.
pub fn holds(rows: &[Row], options: &CheckOptions) -> Option<bool> {
    let ran = |runtime: &Runtime| rows.iter().flat_map(Row::ran).any(|one| one == *runtime);
    match rows.iter().all(Row::holds) && options.named().iter().all(ran) {
        false => Some(false),
        true => options.asked().iter().any(ran).then_some(true),
    }
}

/// Exports `variant` of `model` into the folder `scratch`, runs it everywhere, and leaves nothing there.
///
/// An export that the model does not admit is a row that says so.
///
/// # Errors
/// When a file that was written cannot be checked at all, or `hear` ends it.
pub fn row(
    model: &Canonical,
    variant: &Variant,
    scratch: &Path,
    options: &CheckOptions,
    hear: Listener<'_>,
) -> Result<Row, CheckError> {
    let path = scratch.join("variant.onnx");
    let mut row = Row { labels: variant.labels.clone(), sizes: vec![], refused: None, cells: vec![] };
    let mut reports: Vec<CheckReport> = Vec::new();
    for size in sizes(model, variant.options.size) {
        let export_options = ExportOptions { size, ..variant.options.clone() };
        match export(model, Destination::new(&path).overwrite(true), &export_options, hear) {
            Ok(_) => {}
            Err(ExportError::Interrupted(interrupted)) => return Err(interrupted.into()),
            Err(error) => {
                row.refused = Some(in_full(&error));
                return Ok(row);
            }
        }
        reports.push(check(&path, Reference::Model(model), options, hear)?);
    }
    // What is left behind would only be overwritten by the next variant.
    let _ = std::fs::remove_file(&path);
    let checks = || reports.iter().flat_map(|report| &report.runtimes);
    for entry in checks() {
        if !row.sizes.contains(&entry.size) {
            row.sizes.push(entry.size);
        }
    }
    for runtime in options.asked() {
        let verdicts = checks().filter(|entry| entry.runtime == runtime).map(|entry| &entry.verdict);
        row.cells.push((runtime, cell(verdicts)));
    }
    Ok(row)
}

/// The files a variant is: one, or for known sizes two, so that the resampled table is seen as well.
fn sizes(model: &Canonical, size: Size) -> Vec<Size> {
    let Size::Fixed([height, width]) = size else { return vec![size] };
    let patch = model.config().vit.patch_size;
    vec![size, Size::Fixed([height + patch, width + 5 * patch])]
}

fn cell<'a>(verdicts: impl Iterator<Item = &'a RuntimeVerdict>) -> Cell {
    let (mut max_abs_diff, mut cosine, mut holds) = (0.0_f32, 1.0_f64, true);
    for verdict in verdicts {
        match verdict {
            RuntimeVerdict::CouldNotRun { reason } => return Cell::CouldNotRun { reason: reason.clone() },
            RuntimeVerdict::Ran { outputs } => {
                for output in outputs {
                    // NaN, which stands for "cannot be compared", must not get lost.
                    max_abs_diff =
                        if output.max_abs_diff.is_nan() { f32::NAN } else { max_abs_diff.max(output.max_abs_diff) };
                    cosine = cosine.min(output.cosine);
                    holds &= output.passed;
                }
            }
        }
    }
    match holds {
        true => Cell::Ran { max_abs_diff, cosine },
        false => Cell::Differs { max_abs_diff, cosine },
    }
}
