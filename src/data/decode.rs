//! Bytes of a file to RGB, as PIL's `Image.open(…).convert("RGB")` does it: that is what torchvision's `ImageFolder` loads.
//!
//! So EXIF orientation is ignored, alpha is dropped rather than blended, 16-bit colours keep their high byte, and 16-bit
//! greys beyond 255 are white. The format is told from the content, not from the name; of an animation, the first picture.
//! Most JPEGs are decoded by [`super::jpeg`], everything else by the `image` crate.

use std::fmt;
use std::io::Cursor;

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader};

use super::Crop;
use super::jpeg::{Jpeg, Region, Trouble};

/// Largest decoded image, in bytes of RGB, that is accepted: 2^29 is 13,000 × 13,000 pixels, PIL's own limit.
const MAX_DECODED: u64 = 1 << 29;

/// No file decodes to more bytes than this for each of its own: deflate reaches 1032, run lengths of BMP 383, and a JPEG spends at
/// least a bit on each block. A small file that claims more is lying, and its claim is not allocated.
const MAX_EXPANSION: u64 = 2048;

/// LZW, in GIF, reaches 4,400.
const MAX_GIF_EXPANSION: u64 = 8192;

/// 8-bit RGB, row by row.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rgb {
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// 3 · columns · rows values.
    pub pixels: Vec<u8>,
}

/// What was decoded of an image, and where what was asked for lies in it: reduced, its borders may fall between pixels.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// The pixels.
    pub image: Rgb,
    /// By how much they are reduced.
    pub reduced: u32,
    /// First column of what was asked for.
    pub left: f64,
    /// Its first row.
    pub top: f64,
    /// Its columns.
    pub width: f64,
    /// Its rows.
    pub height: f64,
}

/// An encoded image whose header was read.
///
/// ```
/// use tec_zoo::data::{Crop, Picture};
///
/// # let mut encoded = std::io::Cursor::new(Vec::new());
/// # image::RgbImage::from_pixel(64, 48, image::Rgb([200, 100, 50])).write_to(&mut encoded, image::ImageFormat::Jpeg).unwrap();
/// # let encoded = encoded.into_inner();
/// let picture = Picture::open(&encoded)?;
/// assert_eq!(picture.dimensions(), (64, 48));
/// let half = picture.decode_part(Crop { left: 0, top: 0, width: 64, height: 24 }, 2)?;
/// assert_eq!((half.image.width, half.image.height), (32, 12));
/// # Ok::<(), String>(())
/// ```
pub struct Picture<'a> {
    bytes: &'a [u8],
    decoder: Decoder<'a>,
}

enum Decoder<'a> {
    Own(Box<Jpeg<'a>>),
    Other(Box<dyn ImageDecoder + 'a>),
}

impl fmt::Debug for Picture<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (width, height) = self.dimensions();
        write!(out, "{width}×{height} in {} bytes", self.bytes.len())
    }
}

impl<'a> Picture<'a> {
    /// Reads the header.
    ///
    /// # Errors
    /// Why this is not an image, or not one that is decoded.
    pub fn open(bytes: &'a [u8]) -> Result<Self, String> {
        let Some(jpeg) = Jpeg::open(bytes) else { return Self::open_other(bytes) };
        let (width, height) = jpeg.dimensions();
        bounded(bytes, ImageFormat::Jpeg, (width, height), 0)?;
        Ok(Self { bytes, decoder: Decoder::Own(Box::new(jpeg)) })
    }

    fn open_other(bytes: &'a [u8]) -> Result<Self, String> {
        let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|error| error.to_string())?;
        let format = reader.format().ok_or("it is no image that is read (jpeg, png, webp, bmp, tiff, gif, pnm)")?;
        // The decoder would fill up what is missing without a word, where PIL refuses.
        if format == ImageFormat::Jpeg && !bytes.windows(2).rev().any(|pair| pair == [0xff, 0xd9]) {
            return Err(TRUNCATED.into());
        }
        let decoder = reader.into_decoder().map_err(|error| error.to_string())?;
        bounded(bytes, format, decoder.dimensions(), decoder.total_bytes())?;
        Ok(Self { bytes, decoder: Decoder::Other(Box::new(decoder)) })
    }

    /// Columns and rows.
    pub fn dimensions(&self) -> (u32, u32) {
        match &self.decoder {
            Decoder::Own(jpeg) => jpeg.dimensions(),
            Decoder::Other(decoder) => decoder.dimensions(),
        }
    }

    /// Decodes all of it.
    ///
    /// # Errors
    /// Why that is not possible.
    pub fn decode(self) -> Result<Rgb, String> {
        let (width, height) = self.dimensions();
        self.decode_part(Crop::all(width, height), 1).map(|part| part.image)
    }

    /// Decodes what `crop` needs, reduced by `reduce` (1, 2, 4 or 8) where the format can do that: a baseline JPEG.
    ///
    /// # Errors
    /// Why that is not possible, a crop beyond the image among it.
    pub fn decode_part(self, crop: Crop, reduce: u32) -> Result<Part, String> {
        let (width, height) = self.dimensions();
        let within = |first: u32, len: u32, all: u32| len > 0 && first.checked_add(len).is_some_and(|end| end <= all);
        if !within(crop.left, crop.width, width) || !within(crop.top, crop.height, height) {
            return Err(format!("there is no {crop:?} in {width}×{height} pixels"));
        }
        let jpeg = match self.decoder {
            Decoder::Own(jpeg) => jpeg,
            Decoder::Other(decoder) => return Ok(cut(decode_other(decoder)?, crop)),
        };
        let reduced = match reduce {
            0..=1 => 1,
            2..=3 => 2,
            4..=7 => 4,
            _ => 8,
        };
        let (left, top) = (crop.left / reduced, crop.top / reduced);
        let region = Region {
            left: left as usize,
            top: top as usize,
            width: ((crop.left + crop.width).div_ceil(reduced) - left) as usize,
            height: ((crop.top + crop.height).div_ceil(reduced) - top) as usize,
        };
        match jpeg.decode(region, reduced) {
            Ok(image) => {
                let scaled = |pixels: u32| f64::from(pixels) / f64::from(reduced);
                let (left, top) = (scaled(crop.left) - f64::from(left), scaled(crop.top) - f64::from(top));
                // The last pixel of a reduced image can stand for fewer than the others.
                let width = scaled(crop.width).min(f64::from(image.width) - left);
                let height = scaled(crop.height).min(f64::from(image.height) - top);
                Ok(Part { image, reduced, left, top, width, height })
            }
            Err(Trouble::Truncated) => Err(TRUNCATED.into()),
            // libjpeg shows what can be shown of a damaged image, and so does this decoder.
            Err(Trouble::Corrupt) => Self::open_other(self.bytes)?.decode_part(crop, 1),
        }
    }
}

const TRUNCATED: &str = "the JPEG is truncated";

fn bounded(bytes: &[u8], format: ImageFormat, (width, height): (u32, u32), total: u64) -> Result<(), String> {
    let decoded = total.max(u64::from(width) * u64::from(height) * 3);
    if width == 0 || height == 0 || decoded > MAX_DECODED {
        return Err(format!("{width}×{height} pixels are beyond what is decoded"));
    }
    let most = match format {
        // A single colour costs WebP nothing, and fax codes a bit for each row.
        ImageFormat::WebP | ImageFormat::Tiff => u64::MAX,
        ImageFormat::Gif => MAX_GIF_EXPANSION,
        _ => MAX_EXPANSION,
    };
    if decoded > (bytes.len() as u64).saturating_mul(most) {
        return Err(format!("{} bytes cannot hold {width}×{height} pixels", bytes.len()));
    }
    Ok(())
}

fn decode_other(decoder: Box<dyn ImageDecoder + '_>) -> Result<Rgb, String> {
    let decoded = DynamicImage::from_decoder(decoder).map_err(|error| error.to_string())?;
    let (width, height) = (decoded.width(), decoded.height());
    let high = |word: u16| (word >> 8) as u8;
    let pixels = match decoded {
        DynamicImage::ImageLuma16(grey) => grey.iter().flat_map(|&word| [word.min(255) as u8; 3]).collect(),
        DynamicImage::ImageLumaA16(pixels) => {
            pixels.as_chunks::<2>().0.iter().flat_map(|&[grey, _]| [high(grey); 3]).collect()
        }
        DynamicImage::ImageRgb16(pixels) => pixels.iter().map(|&word| high(word)).collect(),
        DynamicImage::ImageRgba16(pixels) => {
            pixels.as_chunks::<4>().0.iter().flat_map(|&[red, green, blue, _]| [red, green, blue].map(high)).collect()
        }
        eight_bit => eight_bit.into_rgb8().into_raw(),
    };
    Ok(Rgb { width, height, pixels })
}

/// Keeps the crop.
fn cut(mut all: Rgb, crop: Crop) -> Part {
    let (line, kept) = (all.width as usize * 3, crop.width as usize * 3);
    if kept < line {
        for row in 0..crop.height as usize {
            let start = (crop.top as usize + row) * line + crop.left as usize * 3;
            all.pixels.copy_within(start..start + kept, row * kept);
        }
    } else {
        all.pixels.copy_within(crop.top as usize * line.., 0);
    }
    all.pixels.truncate(crop.height as usize * kept);
    let image = Rgb { width: crop.width, height: crop.height, pixels: all.pixels };
    let (width, height) = (f64::from(crop.width), f64::from(crop.height));
    Part { image, reduced: 1, left: 0.0, top: 0.0, width, height }
}
