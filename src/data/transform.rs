//! The evaluation transform: torchvision's `Resize(short side) → CenterCrop → ToTensor → Normalize` on 8-bit RGB.

use std::path::Path;

use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer, images::Image};
use image::ImageReader;

use super::DataError;
use crate::model::{Interpolation, Preprocessing};

/// Largest decoded image, in bytes of RGB, that is accepted: 2^29 is 13,000 × 13,000 pixels.
const MAX_DECODED: u64 = 1 << 29;

/// Decodes, resizes, crops and normalises one image at a time to `[H, W]`.
///
/// The resampling filter is Pillow's algorithm (8-bit intermediate, antialiased), so that the pixels equal
/// torchvision's on the same decoded image to one grey level. Like torchvision's `ImageFolder`, it ignores EXIF
/// orientation and drops alpha.
#[derive(Debug)]
pub struct EvalTransform {
    preprocessing: Preprocessing,
    size: [usize; 2],
    resizer: Resizer,
}

impl EvalTransform {
    /// A transform to `size` `[H, W]`.
    pub fn new(preprocessing: Preprocessing, size: [usize; 2]) -> Self {
        Self { preprocessing, size, resizer: Resizer::new() }
    }

    /// Appends the image at `path` as 3·H·W planar normalised values.
    ///
    /// # Errors
    /// [`DataError::Image`] when the file cannot be decoded; `out` is then unchanged.
    pub fn append(&mut self, path: &Path, out: &mut Vec<f32>) -> Result<(), DataError> {
        let bad = |reason: String| DataError::Image { path: path.display().to_string(), reason };
        let mut reader = ImageReader::open(path)
            .and_then(ImageReader::with_guessed_format)
            .map_err(|error| bad(error.to_string()))?;
        let mut limits = image::Limits::default();
        limits.max_alloc = Some(MAX_DECODED);
        reader.limits(limits);
        let decoded = reader.decode().map_err(|error| bad(error.to_string()))?.into_rgb8();
        let (width, height) = decoded.dimensions();
        let [crop_height, crop_width] = self.size;

        // torchvision resizes the short side to int(crop / crop_pct) and truncates the long one.
        let short = (crop_height.min(crop_width) as f64 / self.preprocessing.crop_pct) as u32;
        let (resized_width, resized_height) = match width <= height {
            true => (short, (u64::from(short) * u64::from(height) / u64::from(width.max(1))) as u32),
            false => ((u64::from(short) * u64::from(width) / u64::from(height.max(1))) as u32, short),
        };
        if (resized_width as usize) < crop_width || (resized_height as usize) < crop_height {
            return Err(bad(format!(
                "{width}×{height} resized to {resized_width}×{resized_height} is smaller than the crop {crop_width}×{crop_height}"
            )));
        }
        if u64::from(resized_width) * u64::from(resized_height) * 3 > MAX_DECODED {
            return Err(bad(format!("{width}×{height} is too elongated to resize")));
        }
        let source = Image::from_vec_u8(width, height, decoded.into_raw(), PixelType::U8x3)
            .map_err(|error| bad(error.to_string()))?;
        let mut resized = Image::new(resized_width, resized_height, PixelType::U8x3);
        let filter = match self.preprocessing.interpolation {
            Interpolation::Bicubic => FilterType::CatmullRom,
            Interpolation::Bilinear => FilterType::Bilinear,
        };
        self.resizer
            .resize(&source, &mut resized, &ResizeOptions::new().resize_alg(ResizeAlg::Convolution(filter)))
            .map_err(|error| bad(error.to_string()))?;

        // torchvision's CenterCrop: int(round((size - crop) / 2)), Python's rounding (half to even).
        let offset = |full: u32, crop: usize| ((f64::from(full) - crop as f64) / 2.0).round_ties_even() as usize;
        let (top, left) = (offset(resized_height, crop_height), offset(resized_width, crop_width));
        let pixels = resized.buffer();
        out.reserve(3 * crop_height * crop_width);
        for channel in 0..3 {
            let mean = self.preprocessing.mean[channel] as f32;
            let std = self.preprocessing.std[channel] as f32;
            for row in top..top + crop_height {
                let start = (row * resized_width as usize + left) * 3 + channel;
                let line = pixels[start..].iter().step_by(3).take(crop_width);
                out.extend(line.map(|&value| (f32::from(value) / 255.0 - mean) / std));
            }
        }
        Ok(())
    }
}
