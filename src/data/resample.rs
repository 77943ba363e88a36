//! Resizing as Pillow does it (`ImagingResample`, Resample.c): antialiased, columns before rows, with 8-bit pixels in between
//! and coefficients of 22 bits, so that the result is Pillow's to the bit.

use super::decode::Part;
use crate::model::Interpolation;

/// Bits behind the point of a coefficient: 8 of a pixel and two of the sum's range are left of 32.
const PRECISION: u32 = 32 - 8 - 2;

/// Largest picture between the two passes, in pixels.
const MAX_BETWEEN: u64 = 1 << 28;

/// A resampling filter: its value, which is 0 from `support` on.
#[derive(Debug, Clone, Copy)]
struct Filter {
    support: f64,
    at: fn(f64) -> f64,
}

impl Filter {
    fn new(interpolation: Interpolation) -> Self {
        match interpolation {
            Interpolation::Bicubic => Self { support: 2.0, at: bicubic },
            Interpolation::Bilinear => Self { support: 1.0, at: |x| if x.abs() < 1.0 { 1.0 - x.abs() } else { 0.0 } },
        }
    }
}

/// Keys' cubic with a = -0.5, in Pillow's order of operations.
fn bicubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// What makes each pixel of a line, in one direction.
#[derive(Debug, Default)]
struct Taps {
    /// First pixel of the source, and how many.
    spans: Vec<[usize; 2]>,
    /// `most` for each pixel of the result, of which those of its span count.
    coefficients: Vec<i32>,
    most: usize,
    /// Coefficients of four pixels at a time as h · 2¹¹ + l: four h, four l. Only the vectors of columns want them.
    #[cfg(target_arch = "x86_64")]
    quads: Vec<[i16; 8]>,
}

impl Taps {
    /// For `size` pixels of the `len` that begin at `first`, of `all` in the source. As in Pillow, the box is in f32.
    fn fill(&mut self, filter: Filter, all: usize, [first, len]: [f64; 2], size: usize) {
        let (first, end) = (first as f32, (first + len) as f32);
        let scale = f64::from(end - first) / size as f64;
        let stretch = scale.max(1.0);
        let support = filter.support * stretch;
        self.most = support.ceil() as usize * 2 + 1;
        self.spans.clear();
        self.coefficients.clear();
        let mut weights = Vec::with_capacity(self.most);
        for at in 0..size {
            let center = f64::from(first) + (at as f64 + 0.5) * scale;
            // Conversion cuts off the fraction, and what is below 0, as C's and Pillow's next line do.
            let begin = (center - support + 0.5) as usize;
            let behind = ((center + support + 0.5) as usize).min(all);
            weights.clear();
            weights.extend((begin..behind).map(|pixel| (filter.at)((pixel as f64 - center + 0.5) * (1.0 / stretch))));
            let sum: f64 = weights.iter().sum();
            let unit = if sum == 0.0 { 1.0 } else { sum };
            let fixed = weights.iter().map(|weight| {
                let scaled = weight / unit * f64::from(1 << PRECISION);
                (scaled + 0.5_f64.copysign(scaled)) as i32
            });
            self.coefficients.extend(fixed);
            self.coefficients.resize((at + 1) * self.most, 0);
            self.spans.push([begin, weights.len()]);
        }
        #[cfg(target_arch = "x86_64")]
        {
            self.quads.clear();
            for line in self.coefficients.chunks_exact(self.most) {
                for four in line.chunks(4) {
                    let coefficient = |at: usize| four.get(at).copied().unwrap_or(0);
                    let (high, low) = (|at| (coefficient(at) >> 11) as i16, |at| (coefficient(at) & 0x7ff) as i16);
                    self.quads.push([high(0), high(1), high(2), high(3), low(0), low(1), low(2), low(3)]);
                }
            }
        }
    }

    fn iter(&self) -> impl Iterator<Item = (usize, &[i32])> {
        let lines = self.coefficients.chunks_exact(self.most);
        self.spans.iter().zip(lines).map(|(&[first, count], line)| (first, &line[..count]))
    }

    /// The pixels of the source that are needed: first, and behind the last.
    fn needed(&self) -> [usize; 2] {
        let [first, _] = self.spans.first().copied().unwrap_or_default();
        let [last, count] = self.spans.last().copied().unwrap_or_default();
        [first, last + count]
    }
}

/// Resizes 8-bit RGB, one picture after another in the same memory.
#[derive(Debug)]
pub(super) struct Resample {
    filter: Filter,
    columns: Taps,
    rows: Taps,
    /// A row with four bytes a pixel: what a vector register likes.
    wide: Vec<[u8; 4]>,
    /// The rows that are needed, resized.
    between: Vec<u8>,
    sums: Vec<i32>,
    resized: Vec<u8>,
}

impl Resample {
    pub(super) fn new(interpolation: Interpolation) -> Self {
        Self {
            filter: Filter::new(interpolation),
            columns: Taps::default(),
            rows: Taps::default(),
            wide: Vec::new(),
            between: Vec::new(),
            sums: Vec::new(),
            resized: Vec::new(),
        }
    }

    /// What was asked for of an image, with that many columns and rows, interleaved: Pillow's `image.resize(size, box=…)`.
    pub(super) fn resize(&mut self, part: &Part, width: u32, height: u32) -> Result<&[u8], String> {
        let [width, height] = [width, height].map(|side| side as usize);
        let image = &part.image;
        let [across, down] = [image.width, image.height].map(|side| side as usize);
        if across == 0 || down == 0 || width == 0 || height == 0 || image.pixels.len() != 3 * across * down {
            return Err(format!("{across}×{down} pixels cannot become {width}×{height}"));
        }
        if width as u64 * down as u64 > MAX_BETWEEN {
            return Err(format!("{across}×{down} is too elongated to resize to {width}×{height}"));
        }
        let whole = |[first, len]: [f64; 2], all: usize, size: usize| all == size && first == 0.0 && len == size as f64;
        let (columns, rows) = ([part.left, part.width], [part.top, part.height]);
        self.columns.fill(self.filter, across, columns, width);
        self.rows.fill(self.filter, down, rows, height);
        // A direction in which nothing changes is left alone, and only the rows that count are resized.
        let [first, behind] = self.rows.needed();
        let kept = &image.pixels[first * across * 3..behind * across * 3];
        self.between.clear();
        match whole(columns, across, width) {
            true => self.between.extend_from_slice(kept),
            false => {
                self.between.resize((behind - first) * width * 3, 0);
                fast::columns(&self.columns, kept, across, &mut self.wide, &mut self.between, width);
            }
        }
        if whole(rows, down, height) {
            return Ok(&self.between);
        }
        self.resized.clear();
        self.resized.resize(width * height * 3, 0);
        fast::rows(&self.rows, first, &self.between, width * 3, &mut self.sums, &mut self.resized);
        Ok(&self.resized)
    }
}

/// Half a grey level: what a sum begins with, so that cutting it off rounds.
const HALF: i32 = 1 << (PRECISION - 1);

fn clipped(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// Every row of `source` with other columns.
#[inline(always)]
fn columns(taps: &Taps, source: &[u8], across: usize, wide: &mut Vec<[u8; 4]>, out: &mut [u8], width: usize) {
    for (row, out) in source.chunks_exact(across * 3).zip(out.chunks_exact_mut(width * 3)) {
        wide.clear();
        wide.extend(row.as_chunks::<3>().0.iter().map(|&[red, green, blue]| [red, green, blue, 0]));
        for ((first, coefficients), out) in taps.iter().zip(out.as_chunks_mut::<3>().0) {
            let mut sums = [HALF; 4];
            for (pixel, &coefficient) in wide[first..first + coefficients.len()].iter().zip(coefficients) {
                for (sum, &level) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(level) * coefficient;
                }
            }
            *out = [sums[0], sums[1], sums[2]].map(clipped);
        }
    }
}

/// Other rows of `source`, whose rows have `line` values and begin with row `first` of the image.
#[inline(always)]
fn rows(taps: &Taps, first: usize, source: &[u8], line: usize, sums: &mut Vec<i32>, out: &mut [u8]) {
    for ((begin, coefficients), out) in taps.iter().zip(out.chunks_exact_mut(line)) {
        sums.clear();
        sums.resize(line, HALF);
        for (row, &coefficient) in source[(begin - first) * line..].chunks_exact(line).zip(coefficients) {
            for (sum, &level) in sums.iter_mut().zip(row) {
                *sum += i32::from(level) * coefficient;
            }
        }
        for (out, &sum) in out.iter_mut().zip(sums.iter()) {
            *out = clipped(sum);
        }
    }
}

/// The two passes, with AVX2's registers where the processor has them.
mod fast {
    use super::Taps;

    pub(super) fn columns(
        taps: &Taps,
        source: &[u8],
        across: usize,
        wide: &mut Vec<[u8; 4]>,
        out: &mut [u8],
        width: usize,
    ) {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2.
            return unsafe { avx2::columns(taps, source, across, wide, out, width) };
        }
        super::columns(taps, source, across, wide, out, width);
    }

    pub(super) fn rows(taps: &Taps, first: usize, source: &[u8], line: usize, sums: &mut Vec<i32>, out: &mut [u8]) {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2.
            return unsafe { avx2::rows(taps, first, source, line, sums, out) };
        }
        super::rows(taps, first, source, line, sums, out);
    }

    #[cfg(target_arch = "x86_64")]
    mod avx2 {
        use std::arch::x86_64::*;

        use super::super::{self as plain, HALF, PRECISION, Taps};

        /// Products of 16 bits, added in pairs: a coefficient is two of those, and sums are exact, if need be modulo 2³².
        #[target_feature(enable = "avx2")]
        pub(super) fn columns(
            taps: &Taps,
            source: &[u8],
            across: usize,
            wide: &mut Vec<[u8; 4]>,
            out: &mut [u8],
            width: usize,
        ) {
            // Of four pixels: the channels of the first two side by side, in the other half those of the last two.
            let pairs = _mm256_setr_epi8(
                0, -1, 4, -1, 1, -1, 5, -1, 2, -1, 6, -1, 3, -1, 7, -1, 8, -1, 12, -1, 9, -1, 13, -1, 10, -1, 14, -1,
                11, -1, 15, -1,
            );
            let [high, low] = [0, 2].map(|at| _mm256_setr_epi32(at, at, at, at, at + 1, at + 1, at + 1, at + 1));
            let each = taps.most.div_ceil(4);
            for (row, out) in source.chunks_exact(across * 3).zip(out.chunks_exact_mut(width * 3)) {
                wide.clear();
                wide.extend(row.as_chunks::<3>().0.iter().map(|&[red, green, blue]| [red, green, blue, 0]));
                // The last pixels of a quad may have no coefficients.
                wide.extend([[0; 4]; 3]);
                let lines = taps.spans.iter().zip(taps.quads.chunks_exact(each));
                for ((&[first, count], quads), out) in lines.zip(out.as_chunks_mut::<3>().0) {
                    let (mut highs, mut lows) = (_mm256_setzero_si256(), _mm256_setzero_si256());
                    let pixels = wide[first..first + count.next_multiple_of(4)].as_chunks::<4>().0;
                    for (four, quad) in pixels.iter().zip(quads) {
                        // SAFETY: both are 16 bytes.
                        let (four, quad) =
                            unsafe { (_mm_loadu_si128(four.as_ptr().cast()), _mm_loadu_si128(quad.as_ptr().cast())) };
                        let four = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(four), pairs);
                        let quad = _mm256_castsi128_si256(quad);
                        let high = _mm256_permutevar8x32_epi32(quad, high);
                        let low = _mm256_permutevar8x32_epi32(quad, low);
                        highs = _mm256_add_epi32(highs, _mm256_madd_epi16(four, high));
                        lows = _mm256_add_epi32(lows, _mm256_madd_epi16(four, low));
                    }
                    let both = _mm256_add_epi32(_mm256_slli_epi32::<11>(highs), lows);
                    let sum = _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256::<1>(both));
                    let level = _mm_srai_epi32::<{ PRECISION as i32 }>(_mm_add_epi32(sum, _mm_set1_epi32(HALF)));
                    let words = _mm_packs_epi32(level, level);
                    let [red, green, blue, _] = _mm_cvtsi128_si32(_mm_packus_epi16(words, words)).to_le_bytes();
                    *out = [red, green, blue];
                }
            }
        }

        #[target_feature(enable = "avx2")]
        pub(super) fn rows(taps: &Taps, first: usize, source: &[u8], line: usize, sums: &mut Vec<i32>, out: &mut [u8]) {
            plain::rows(taps, first, source, line, sums, out);
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test that cannot go on should stop where it stands")]
mod tests {
    use super::*;
    use crate::data::decode::Rgb;
    use crate::model::Weights;

    /// Noise whose filtered values overshoot everywhere: an intermediate that is not cut to 8 bits, the other order of passes or
    /// coefficients of fewer bits show.
    #[test]
    fn white_noise_is_resized_to_pillows_pixels_to_the_bit() {
        let file: std::path::PathBuf =
            [env!("CARGO_MANIFEST_DIR"), "fixtures", "images", "train", "resized.safetensors"].iter().collect();
        let file = Weights::open(&file).unwrap();
        let noise = file.get("noise").unwrap();
        let image = Rgb { width: 61, height: 47, pixels: noise.bytes.to_vec() };
        let mut cases = 0;
        for name in file.names() {
            let [filter, bounds, size] = name.split('@').collect::<Vec<_>>()[..] else { continue };
            let bounds: Vec<f64> = bounds.split(',').map(|bound| bound.parse().unwrap()).collect();
            let (width, height) = size.split_once('x').unwrap();
            let (width, height) = (width.parse().unwrap(), height.parse().unwrap());
            let part = Part {
                image: image.clone(),
                reduced: 1,
                left: bounds[0],
                top: bounds[1],
                width: bounds[2] - bounds[0],
                height: bounds[3] - bounds[1],
            };
            let interpolation = match filter {
                "bicubic" => Interpolation::Bicubic,
                _ => Interpolation::Bilinear,
            };
            let mut resample = Resample::new(interpolation);
            let ours = resample.resize(&part, width, height).unwrap();
            let theirs = file.get(name).unwrap();
            assert!(ours == theirs.bytes, "{name}");
            cases += 1;
        }
        assert_eq!(cases, 20);
    }
}
