//! The evaluation transform: torchvision's `Resize(short side) → CenterCrop → ToTensor → Normalize` on 8-bit RGB.

use std::path::Path;

use super::decode::Picture;
use super::pixels::Normalise;
use super::resample::Resample;
use super::{Crop, DataError};
use crate::model::Preprocessing;

/// Largest resized image, in pixels.
const MAX_RESIZED: u64 = 1 << 27;

/// Decodes, resizes, crops and normalises one image at a time to `[H, W]`.
///
/// Resampling is Pillow's algorithm, so that the pixels equal torchvision's on the same decoded image to the bit. Like torchvision's `ImageFolder`, it ignores EXIF
/// orientation and drops alpha.
#[derive(Debug)]
pub struct EvalTransform {
    crop_pct: f64,
    size: [usize; 2],
    resample: Resample,
    normalise: Normalise,
}

impl EvalTransform {
    /// A transform to `size` `[H, W]`.
    pub fn new(preprocessing: Preprocessing, size: [usize; 2]) -> Self {
        Self {
            crop_pct: preprocessing.crop_pct,
            size,
            resample: Resample::new(preprocessing.interpolation),
            normalise: Normalise::new(preprocessing.mean, preprocessing.std),
        }
    }

    /// Appends the image at `path` as 3·H·W planar normalised values.
    ///
    /// # Errors
    /// [`DataError::Image`] when the file cannot be decoded; `out` is then unchanged.
    pub fn append(&mut self, path: &Path, out: &mut Vec<f32>) -> Result<(), DataError> {
        let bad = |reason: String| DataError::Image { path: path.display().to_string(), reason };
        let bytes = std::fs::read(path).map_err(|error| bad(error.to_string()))?;
        let picture = Picture::open(&bytes).map_err(bad)?;
        let (width, height) = picture.dimensions();
        let [crop_height, crop_width] = self.size;

        // torchvision resizes the short side to int(crop / crop_pct) and truncates the long one.
        let short = (crop_height.min(crop_width) as f64 / self.crop_pct) as u32;
        let (resized_width, resized_height) = match width <= height {
            true => (short, (u64::from(short) * u64::from(height) / u64::from(width.max(1))) as u32),
            false => ((u64::from(short) * u64::from(width) / u64::from(height.max(1))) as u32, short),
        };
        if (resized_width as usize) < crop_width || (resized_height as usize) < crop_height {
            return Err(bad(format!(
                "{width}×{height} resized to {resized_width}×{resized_height} is smaller than the crop {crop_width}×{crop_height}"
            )));
        }
        if u64::from(resized_width) * u64::from(resized_height) > MAX_RESIZED {
            return Err(bad(format!("{width}×{height} is too elongated to resize")));
        }
        let decoded = picture.decode_part(Crop::all(width, height), 1).map_err(bad)?;
        let resized = self.resample.resize(&decoded, resized_width, resized_height).map_err(bad)?;

        // torchvision's CenterCrop: int(round((size - crop) / 2)), Python's rounding (half to even).
        let offset = |full: u32, crop: usize| ((f64::from(full) - crop as f64) / 2.0).round_ties_even() as usize;
        let (top, left) = (offset(resized_height, crop_height), offset(resized_width, crop_width));
        let lines = resized.chunks_exact(resized_width as usize * 3).skip(top).take(crop_height);
        let cropped: Vec<u8> = lines.flat_map(|line| &line[left * 3..(left + crop_width) * 3]).copied().collect();
        let start = out.len();
        out.resize(start + 3 * crop_height * crop_width, 0.0);
        self.normalise.planes(&cropped, crop_width, false, &mut out[start..]);
        Ok(())
    }
}
