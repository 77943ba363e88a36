//! Bytes of a file to RGB, as PIL's `Image.open(…).convert("RGB")` does it: that is what torchvision's `ImageFolder` loads.
//!
//! So EXIF orientation is ignored, alpha is dropped rather than blended, 16-bit colours keep their high byte, and 16-bit
//! greys beyond 255 are white. The format is told from the content, not from the name; of an animation, the first picture.

use std::io::Cursor;

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader};

use super::Crop;

/// Largest decoded image, in bytes of RGB, that is accepted: 2^29 is 13,000 × 13,000 pixels, PIL's own limit.
const MAX_DECODED: u64 = 1 << 29;

/// No PNG or JPEG decodes to more bytes than this for each of its own: deflate reaches 1032, and a JPEG spends at least a
/// bit on each block. A small file that claims more is lying, and its claim is not allocated.
const MAX_EXPANSION: u64 = 2048;

/// 8-bit RGB, row by row.
#[derive(Debug, Default)]
pub(super) struct Rgb {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) pixels: Vec<u8>,
}

/// An image whose header was read.
pub(super) struct Picture<'a> {
    decoder: Box<dyn ImageDecoder + 'a>,
    sixteen_bit_grey: bool,
}

impl<'a> Picture<'a> {
    /// Reads the header.
    pub(super) fn open(bytes: &'a [u8]) -> Result<Self, String> {
        let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|error| error.to_string())?;
        let format = reader.format().ok_or("it is neither JPEG, PNG nor WebP")?;
        if format == ImageFormat::Jpeg && !has_end(bytes) {
            return Err("the JPEG is truncated".into());
        }
        let decoder = reader.into_decoder().map_err(|error| error.to_string())?;
        let (width, height) = decoder.dimensions();
        let decoded = decoder.total_bytes().max(u64::from(width) * u64::from(height) * 3);
        if width == 0 || height == 0 || decoded > MAX_DECODED {
            return Err(format!("{width}×{height} pixels are beyond what is decoded"));
        }
        let explained = (bytes.len() as u64).saturating_mul(MAX_EXPANSION);
        if format != ImageFormat::WebP && decoded > explained {
            return Err(format!("{} bytes cannot hold {width}×{height} pixels", bytes.len()));
        }
        let sixteen_bit_grey = decoder.color_type() == image::ColorType::L16;
        Ok(Self { decoder: Box::new(decoder), sixteen_bit_grey })
    }

    /// Columns and rows.
    pub(super) fn dimensions(&self) -> (u32, u32) {
        self.decoder.dimensions()
    }

    /// Decodes all of it.
    pub(super) fn decode(self) -> Result<Rgb, String> {
        let decoded = DynamicImage::from_decoder(self.decoder).map_err(|error| error.to_string())?;
        let (width, height) = (decoded.width(), decoded.height());
        let high = |word: u16| (word >> 8) as u8;
        let pixels = match decoded {
            DynamicImage::ImageLuma16(grey) if self.sixteen_bit_grey => {
                grey.iter().flat_map(|&word| [word.min(255) as u8; 3]).collect()
            }
            DynamicImage::ImageLumaA16(pixels) => {
                pixels.as_chunks::<2>().0.iter().flat_map(|[grey, _]| [high(*grey); 3]).collect()
            }
            DynamicImage::ImageRgb16(pixels) => pixels.iter().map(|&word| high(word)).collect(),
            DynamicImage::ImageRgba16(pixels) => pixels
                .as_chunks::<4>()
                .0
                .iter()
                .flat_map(|[red, green, blue, _]| [red, green, blue].map(|&word| high(word)))
                .collect(),
            eight_bit => eight_bit.into_rgb8().into_raw(),
        };
        Ok(Rgb { width, height, pixels })
    }

    /// Decodes what `crop` needs.
    pub(super) fn decode_crop(self, crop: Crop) -> Result<Rgb, String> {
        let mut all = self.decode()?;
        if (all.width, all.height) == (crop.width, crop.height) {
            return Ok(all);
        }
        let (line, kept) = (all.width as usize * 3, crop.width as usize * 3);
        for row in 0..crop.height as usize {
            let start = (crop.top as usize + row) * line + crop.left as usize * 3;
            all.pixels.copy_within(start..start + kept, row * kept);
        }
        all.pixels.truncate(crop.height as usize * kept);
        Ok(Rgb { width: crop.width, height: crop.height, pixels: all.pixels })
    }
}

/// Whether an end marker comes after the pixels of a JPEG: the decoder would fill up what is missing without a word, where
/// PIL refuses.
fn has_end(bytes: &[u8]) -> bool {
    bytes.windows(2).rev().any(|pair| pair == [0xff, 0xd9])
}
