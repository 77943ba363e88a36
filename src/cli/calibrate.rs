//! Ranges for `tec-zoo export --dtype int8 --calibrate`.

use std::path::Path;

use anyhow::Result;

use super::{interrupt, output::Output, runtimes};
use crate::data::{ImageBatches, Input};
use crate::model::Canonical;
use crate::onnx::runtime::Images;
use crate::onnx::{Calibration, Calibrator, Event, ExportOptions, Size};

/// Images looked at, of folders with more: ranges hardly widen after a few dozen.
const MOST: usize = 256;

/// What the Linears of the export take on the images of `input`. A broken image is named and skipped.
pub(super) fn calibrate(
    model: &Canonical,
    options: &ExportOptions,
    input: &Path,
    output: &mut Output,
) -> Result<Calibration> {
    let config = model.config();
    let size = match options.size {
        Size::Fixed(size) => size,
        Size::Native => options.purpose.size(&config.vit),
        Size::Dynamic => config.vit.image_size,
    };
    let input = match Input::resolve(input)? {
        // From the whole folder, which may be sorted by what is to be seen.
        Input::Images(paths) => Input::Images(spread(paths, MOST)),
        tensors => tensors,
    };
    let mut batches = ImageBatches::new(input, config.preprocessing, size, 1, true)?;
    let scratch = tempfile::tempdir()?;
    let mut hear = |_: Event<'_>| interrupt::flow();
    let mut calibrator = Calibrator::new(model, options, scratch.path(), &runtimes::options(None), &mut hear)?;
    let bar = output.images_bar(batches.total().min(MOST) as u64);
    for _ in 0..MOST {
        interrupt::check()?;
        let Some(batch) = batches.next_batch()? else { break };
        calibrator.observe(Images { shape: batch.shape, values: batch.values }, &mut hear)?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    for skipped in batches.skipped() {
        output.warn(skipped);
    }
    Ok(calibrator.finish()?)
}

/// At most `most` of `all`, evenly.
fn spread<T>(all: Vec<T>, most: usize) -> Vec<T> {
    let count = all.len();
    let wanted = |index: usize| index * most / count != (index + 1) * most / count;
    if count <= most {
        return all;
    }
    all.into_iter().enumerate().filter(|(index, _)| wanted(*index)).map(|(_, one)| one).collect()
}
