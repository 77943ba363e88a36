//! A JPEG decoder for training: just the part that is asked for, at the scale that is asked for.
//!
//! A random crop shows half of an image on average, so half of the inverse transforms, of the enlarging of colour planes and of
//! the colour conversion would be for nothing; what lies below the crop is not even read. Every pixel is what libjpeg-turbo
//! makes of it with its default settings (accurate integer transform, triangular enlarging), which is what PIL and so
//! torchvision show; at 1/2, 1/4 and 1/8, what PIL's `draft` mode shows.
//!
//! It refuses everything but what nearly all photographs are: 8-bit Huffman-coded baseline in one scan, grey or three
//! components with the colours at full or half resolution (4:4:4, 4:2:2, 4:2:0). The rest is left to the `image` crate.

mod bits;
mod header;
mod idct;
mod region;

use self::bits::Bits;
use self::header::Header;
pub(super) use self::region::Region;
use super::decode::Rgb;

/// Why a scan could not be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The file ends too early.
    Truncated,
    /// The bits make no sense.
    Corrupt,
}

/// A JPEG whose header was read.
pub(super) struct Jpeg<'a> {
    bytes: &'a [u8],
    header: Header,
}

impl<'a> Jpeg<'a> {
    /// Reads the header; none for whatever is not decoded here.
    pub(super) fn open(bytes: &'a [u8]) -> Option<Self> {
        Some(Self { bytes, header: Header::read(bytes)? })
    }

    /// Columns and rows.
    pub(super) fn dimensions(&self) -> (u32, u32) {
        (self.header.width, self.header.height)
    }

    /// Decodes a region of the image reduced by `factor` (1, 2, 4 or 8) in both directions.
    pub(super) fn decode(&self, region: Region, factor: u32) -> Result<Rgb, Trouble> {
        let scan = Bits::new(&self.bytes[self.header.scan..]);
        region::decode(&self.header, scan, region, 8 / factor.clamp(1, 8) as usize)
    }
}
