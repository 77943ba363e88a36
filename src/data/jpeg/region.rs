//! From blocks to the RGB of a region.

use super::Trouble;
use super::bits::Bits;
use super::header::{Colour, Component, Header};
use super::idct;
use crate::data::decode::Rgb;

/// A rectangle of the image as it is shown, reduced or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::data) struct Region {
    pub(in crate::data) left: usize,
    pub(in crate::data) top: usize,
    pub(in crate::data) width: usize,
    pub(in crate::data) height: usize,
}

/// The samples of a component that a region needs: whole blocks.
struct Plane {
    samples: Vec<u8>,
    /// Samples of a block's side.
    side: usize,
    /// Pixels per sample, across and down.
    across: usize,
    down: usize,
    /// First block and the one behind the last, across and down.
    columns: [usize; 2],
    rows: [usize; 2],
    /// Samples that are part of the image, not of its padding.
    width: usize,
    height: usize,
}

impl Plane {
    /// The plane of `component` in an image whose blocks are shown `shown` pixels wide.
    fn new(header: &Header, component: &Component, region: Region, shown: usize) -> Self {
        let (across, down) = (header.components[0].across, header.components[0].down);
        // Colours at half the resolution need no enlarging where their blocks can be shown twice as large.
        let mut side = shown;
        while side < 8
            && (across * shown).is_multiple_of(component.across * side * 2)
            && (down * shown).is_multiple_of(component.down * side * 2)
        {
            side *= 2;
        }
        let size = |pixels: u32, own: usize, most: usize| (pixels as usize * own * side).div_ceil(most * 8);
        let width = size(header.width, component.across, across);
        let height = size(header.height, component.down, down);
        let (across, down) = (across * shown / (component.across * side), down * shown / (component.down * side));
        // Enlarging looks at the neighbours.
        let span = |first: usize, len: usize, factor: usize, most: usize| {
            let behind = ((first + len).div_ceil(factor) + factor - 1).min(most);
            [(first / factor).saturating_sub(factor - 1) / side, behind.div_ceil(side)]
        };
        let columns = span(region.left, region.width, across, width);
        let rows = span(region.top, region.height, down, height);
        let samples = vec![0; (columns[1] - columns[0]) * (rows[1] - rows[0]) * side * side];
        Self { samples, side, across, down, columns, rows, width, height }
    }

    fn stride(&self) -> usize {
        (self.columns[1] - self.columns[0]) * self.side
    }

    /// Where a block's samples go, if they are needed.
    #[inline(always)]
    fn block(&mut self, column: usize, row: usize) -> Option<(&mut [u8], usize)> {
        let ([left, right], [top, bottom]) = (self.columns, self.rows);
        if !(left..right).contains(&column) || !(top..bottom).contains(&row) {
            return None;
        }
        let stride = self.stride();
        let start = (row - top) * self.side * stride + (column - left) * self.side;
        Some((&mut self.samples[start..], stride))
    }

    /// A row of samples, or the nearest there is.
    fn row(&self, row: usize) -> &[u8] {
        let stride = self.stride();
        let at = row.min(self.height - 1) - self.rows[0] * self.side;
        &self.samples[at * stride..][..stride]
    }

    /// Row `row` of the region's pixels, from column `left` on.
    #[inline(always)]
    fn enlarge(&self, row: usize, left: usize, fancy: bool, scratch: &mut Scratch, out: &mut [u8]) {
        let first = self.columns[0] * self.side;
        let near = self.row(row / self.down);
        if self.across == 1 {
            out.copy_from_slice(&near[left - first..][..out.len()]);
            return;
        }
        // libjpeg repeats the samples of images so narrow that most columns have no neighbours.
        if !fancy || self.width <= 2 {
            for (at, out) in out.iter_mut().enumerate() {
                *out = near[(left + at) / 2 - first];
            }
            return;
        }
        // The samples these pixels lie in, with a neighbour on both sides.
        let (begin, end) = (left / 2, (left + out.len()).div_ceil(2));
        let span = |row: &'_ [u8], sums: &mut Vec<u16>, add: fn(u16, u16) -> u16| {
            let last = self.width - 1;
            let edges = [begin.saturating_sub(1), end.min(last)].map(|at| u16::from(row[at - first]));
            let middle = row[begin - first..end - first].iter().map(|&sample| u16::from(sample));
            let all = std::iter::once(edges[0]).chain(middle).chain(std::iter::once(edges[1]));
            sums.iter_mut().zip(all).for_each(|(sum, sample)| *sum = add(*sum, sample));
        };
        scratch.sums.clear();
        scratch.sums.resize(end - begin + 2, 0);
        scratch.doubled.resize(2 * (end - begin), 0);
        if self.down == 1 {
            span(near, &mut scratch.sums, |_, sample| sample);
            doubled::<2>(&scratch.sums, [1, 2], &mut scratch.doubled);
        } else {
            let here = row / 2;
            let far = self.row(if row.is_multiple_of(2) { here.saturating_sub(1) } else { here + 1 });
            span(near, &mut scratch.sums, |_, sample| 3 * sample);
            span(far, &mut scratch.sums, |sum, sample| sum + sample);
            doubled::<4>(&scratch.sums, [8, 7], &mut scratch.doubled);
        }
        out.copy_from_slice(&scratch.doubled[left % 2..][..out.len()]);
    }
}

/// Memory of a row.
#[derive(Default)]
struct Scratch {
    sums: Vec<u16>,
    doubled: Vec<u8>,
}

/// Twice as many pixels: each is three parts the sample it lies in, one part the nearer neighbour.
#[inline(always)]
fn doubled<const SHIFT: u32>(sums: &[u16], round: [u16; 2], out: &mut [u8]) {
    let (before, here, behind) = (sums, &sums[1..], &sums[2..]);
    for (((out, &before), &here), &behind) in out.as_chunks_mut::<2>().0.iter_mut().zip(before).zip(here).zip(behind) {
        *out =
            [(3 * here + before + round[0]) >> SHIFT, (3 * here + behind + round[1]) >> SHIFT].map(|value| value as u8);
    }
}

/// Decodes `region` of the image whose blocks are shown `shown` pixels wide.
pub(super) fn decode(header: &Header, mut bits: Bits<'_>, region: Region, shown: usize) -> Result<Rgb, Trouble> {
    let components = &header.components;
    let mut planes: Vec<Plane> =
        components.iter().map(|component| Plane::new(header, component, region, shown)).collect();
    let mcu = |pixels: u32, blocks: usize| (pixels as usize).div_ceil(8 * blocks);
    let (across, down) = (mcu(header.width, components[0].across), mcu(header.height, components[0].down));
    let needed = planes.iter().zip(components).map(|(plane, component)| plane.rows[1].div_ceil(component.down)).max();

    let mut dcs = [0; 3];
    let mut block = [0; 64];
    let mut until_restart = header.restart;
    for mcu_row in 0..needed.unwrap_or(0).min(down) {
        for mcu_column in 0..across {
            if header.restart > 0 {
                if until_restart == 0 {
                    bits.restart()?;
                    (dcs, until_restart) = ([0; 3], header.restart);
                }
                until_restart -= 1;
            }
            for ((component, plane), dc) in components.iter().zip(&mut planes).zip(&mut dcs) {
                for down in 0..component.down {
                    for across in 0..component.across {
                        let (column, row) = (mcu_column * component.across + across, mcu_row * component.down + down);
                        let side = plane.side;
                        let Some((out, stride)) = plane.block(column, row) else {
                            bits.block::<false>(&component.dc, &component.ac, dc, &mut block)?;
                            continue;
                        };
                        match bits.block::<true>(&component.dc, &component.ac, dc, &mut block)? {
                            true => {
                                idct::samples(&block, &component.quant, side, out, stride);
                                block = [0; 64];
                            }
                            false => idct::flat(block[0], component.quant[0], side, out, stride),
                        }
                    }
                }
            }
        }
        bits.check()?;
    }
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        return Ok(unsafe { wide_colours(header.colour, &planes, region, shown > 1) });
    }
    Ok(colours(header.colour, &planes, region, shown > 1))
}

/// [`colours`] with the wide registers of AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn wide_colours(colour: Colour, planes: &[Plane], region: Region, fancy: bool) -> Rgb {
    colours(colour, planes, region, fancy)
}

/// Puts the planes together.
#[inline(always)]
fn colours(colour: Colour, planes: &[Plane], region: Region, fancy: bool) -> Rgb {
    let Region { left, top, width, height } = region;
    let mut pixels = vec![0; 3 * width * height];
    let mut rows = [vec![0; width], vec![0; width], vec![0; width]];
    let mut scratch = Scratch::default();
    for (row, out) in pixels.chunks_exact_mut(3 * width).enumerate() {
        for (plane, samples) in planes.iter().zip(&mut rows) {
            plane.enlarge(top + row, left, fancy, &mut scratch, samples);
        }
        if colour == Colour::YCbCr {
            to_rgb(&mut rows);
        }
        let out = out.as_chunks_mut::<3>().0.iter_mut();
        let [red, green, blue] = &rows;
        match colour {
            Colour::Grey => out.zip(red).for_each(|(out, &grey)| *out = [grey; 3]),
            Colour::Rgb | Colour::YCbCr => {
                for (((out, &red), &green), &blue) in out.zip(red).zip(green).zip(blue) {
                    *out = [red, green, blue];
                }
            }
        }
    }
    Rgb { width: width as u32, height: height as u32, pixels }
}

/// JFIF's colours, with factors of 16 bits as in libjpeg.
#[inline(always)]
fn to_rgb([first, second, third]: &mut [Vec<u8>; 3]) {
    const HALF: i32 = 1 << 15;
    let byte = |value: i32| value.clamp(0, 255) as u8;
    for ((first, second), third) in first.iter_mut().zip(second).zip(third) {
        let (y, cb, cr) = (i32::from(*first), i32::from(*second) - 128, i32::from(*third) - 128);
        *first = byte(y + ((91881 * cr + HALF) >> 16));
        *second = byte(y + ((-22554 * cb - 46802 * cr + HALF) >> 16));
        *third = byte(y + ((116_130 * cb + HALF) >> 16));
    }
}
