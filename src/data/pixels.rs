//! From 8-bit RGB of any size to normalised planes of one size.

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};

use super::decode::Part;
use crate::model::Interpolation;

/// Resamples by Pillow's algorithm: 8-bit intermediate, antialiased. The pixels equal torchvision's on the same decoded image
/// to three grey levels, a quarter of a level on average.
#[derive(Debug)]
pub(super) struct Resample {
    resizer: Resizer,
    options: ResizeOptions,
    resized: Vec<u8>,
}

impl Resample {
    pub(super) fn new(interpolation: Interpolation) -> Self {
        let filter = match interpolation {
            Interpolation::Bicubic => FilterType::CatmullRom,
            Interpolation::Bilinear => FilterType::Bilinear,
        };
        let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(filter));
        Self { resizer: Resizer::new(), options, resized: Vec::new() }
    }

    /// What was asked for of an image, with that many columns and rows, interleaved.
    pub(super) fn resize(&mut self, part: &Part, width: u32, height: u32) -> Result<&[u8], String> {
        let source = ImageRef::new(part.image.width, part.image.height, &part.image.pixels, PixelType::U8x3);
        let source = source.map_err(|error| error.to_string())?;
        self.resized.resize(width as usize * height as usize * 3, 0);
        let target = Image::from_slice_u8(width, height, &mut self.resized, PixelType::U8x3);
        let mut target = target.map_err(|error| error.to_string())?;
        let options = self.options.crop(part.left, part.top, part.width, part.height);
        self.resizer.resize(&source, &mut target, &options).map_err(|error| error.to_string())?;
        Ok(&self.resized)
    }
}

/// `ToTensor` and `Normalize`: (v / 255 - mean) / std in f32, looked up.
#[derive(Debug)]
pub(super) struct Normalise(Box<[[f32; 256]; 3]>);

impl Normalise {
    pub(super) fn new(mean: [f64; 3], std: [f64; 3]) -> Self {
        Self(Box::new(std::array::from_fn(|channel| {
            let (mean, std) = (mean[channel] as f32, std[channel] as f32);
            std::array::from_fn(|value| (value as f32 / 255.0 - mean) / std)
        })))
    }

    /// Writes the planes (3, H, W) of an interleaved picture of W columns, each row mirrored or not.
    pub(super) fn planes(&self, pixels: &[u8], width: usize, mirrored: bool, out: &mut [f32]) {
        let pixels = pixels.as_chunks::<3>().0;
        let plane = pixels.len();
        if plane == 0 {
            return;
        }
        for (channel, out) in out.chunks_exact_mut(plane).enumerate() {
            let table = &self.0[channel];
            for (row, out) in pixels.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
                let values = row.iter().map(|pixel| table[usize::from(pixel[channel])]);
                match mirrored {
                    false => out.iter_mut().zip(values).for_each(|(out, value)| *out = value),
                    true => out.iter_mut().rev().zip(values).for_each(|(out, value)| *out = value),
                }
            }
        }
    }
}
