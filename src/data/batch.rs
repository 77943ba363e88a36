//! An input as batches of normalised images.

use std::path::PathBuf;

use safetensors::Dtype;

use super::{DataError, EvalTransform, Input};
use crate::model::{Preprocessing, Weights};

/// Normalised images (B, 3, H, W), and where each came from when it was a file.
#[derive(Debug)]
pub struct Batch {
    /// Row-major values.
    pub values: Vec<f32>,
    /// `[B, 3, H, W]`.
    pub shape: [usize; 4],
    /// One path an image; empty for tensors.
    pub paths: Vec<PathBuf>,
}

/// Iterates over an [`Input`] in batches.
#[derive(Debug)]
pub struct ImageBatches {
    source: Source,
    batch: usize,
    skip_broken: bool,
    skipped: Vec<DataError>,
}

#[derive(Debug)]
enum Source {
    Files { paths: std::vec::IntoIter<PathBuf>, transform: Box<EvalTransform>, size: [usize; 2] },
    Tensor { weights: Weights, at: usize },
}

impl ImageBatches {
    /// Batches of at most `batch` images; files go through the evaluation transform to `size` `[H, W]`.
    ///
    /// # Errors
    /// [`DataError::Tensors`] when a safetensors input has no f32 tensor `images` (B, 3, H, W).
    pub fn new(
        input: Input,
        preprocessing: Preprocessing,
        size: [usize; 2],
        batch: usize,
        skip_broken: bool,
    ) -> Result<Self, DataError> {
        let source = match input {
            Input::Images(paths) => {
                let transform = Box::new(EvalTransform::new(preprocessing, size));
                Source::Files { paths: paths.into_iter(), transform, size }
            }
            Input::Tensors(path) => {
                let bad = |reason: String| DataError::Tensors { path: path.display().to_string(), reason };
                let weights = Weights::open(&path).map_err(|error| bad(error.to_string()))?;
                let Some(images) = weights.get("images") else {
                    return Err(bad("it has no tensor `images`".into()));
                };
                if images.dtype != Dtype::F32 || images.shape.len() != 4 || images.shape[1] != 3 {
                    return Err(bad(format!(
                        "`images` is {} {:?}; it must be F32 [B, 3, H, W], already normalised",
                        images.dtype, images.shape
                    )));
                }
                if images.shape.contains(&0) {
                    return Err(bad(format!("`images` is empty: {:?}", images.shape)));
                }
                Source::Tensor { weights, at: 0 }
            }
        };
        Ok(Self { source, batch: batch.max(1), skip_broken, skipped: Vec::new() })
    }

    /// Images in all.
    pub fn total(&self) -> usize {
        match &self.source {
            Source::Files { paths, .. } => paths.len(),
            Source::Tensor { weights, .. } => weights.get("images").map_or(0, |images| images.shape[0]),
        }
    }

    /// What was skipped so far, and why.
    pub fn skipped(&self) -> &[DataError] {
        &self.skipped
    }

    /// The next batch, or `None` at the end.
    ///
    /// # Errors
    /// [`DataError::Image`] for a broken image, unless broken images are skipped.
    pub fn next_batch(&mut self) -> Result<Option<Batch>, DataError> {
        match &mut self.source {
            Source::Tensor { weights, at } => {
                let Some(images) = weights.get("images") else { return Ok(None) };
                let [total, _, height, width] = *images.shape else { return Ok(None) };
                let count = self.batch.min(total - *at);
                if count == 0 {
                    return Ok(None);
                }
                let each = 3 * height * width;
                let bytes = &images.bytes[*at * each * 4..(*at + count) * each * 4];
                let values = bytes.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect();
                *at += count;
                Ok(Some(Batch { values, shape: [count, 3, height, width], paths: Vec::new() }))
            }
            Source::Files { paths, transform, size } => {
                let (mut values, mut kept) = (Vec::new(), Vec::new());
                while kept.len() < self.batch {
                    let Some(path) = paths.next() else { break };
                    match transform.append(&path, &mut values) {
                        Ok(()) => kept.push(path),
                        Err(error) if self.skip_broken => self.skipped.push(error),
                        Err(error) => return Err(error),
                    }
                }
                if kept.is_empty() {
                    return Ok(None);
                }
                Ok(Some(Batch { values, shape: [kept.len(), 3, size[0], size[1]], paths: kept }))
            }
        }
    }
}
