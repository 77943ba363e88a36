//! The inverse transform of a block, in the integers of libjpeg's `jidctint` and `jidctred`, so that results agree to the bit.
//!
//! One dimension at a time, after Loeffler, Ligtenberg and Moschytz, with constants of 13 bits and two extra bits between the
//! dimensions. The reduced transforms give the exact means of 2 × 2, 4 × 4 and 8 × 8 pixels, before rounding.

use std::ops::{Add, Mul, Sub};

const BITS: i32 = 13;
const BETWEEN: i32 = 2;

/// The same number of eight rows or columns. Wrapping: what a hostile file overflows is its own picture.
#[derive(Clone, Copy)]
struct Lanes([i32; 8]);

/// Loops over arrays, not iterators: that is what the compiler turns into one instruction each.
impl Lanes {
    #[inline(always)]
    fn zip(self, other: Self, each: impl Fn(i32, i32) -> i32) -> Self {
        let mut out = self;
        for lane in 0..8 {
            out.0[lane] = each(self.0[lane], other.0[lane]);
        }
        out
    }

    #[inline(always)]
    fn map(self, each: impl Fn(i32) -> i32) -> Self {
        self.zip(self, |lane, _| each(lane))
    }

    #[inline(always)]
    fn up(self, bits: i32) -> Self {
        self.map(|lane| lane << bits)
    }

    /// Divided by 2^bits and rounded.
    #[inline(always)]
    fn down(self, bits: i32) -> Self {
        self.map(|lane| lane.wrapping_add(1 << (bits - 1)) >> bits)
    }
}

impl Add for Lanes {
    type Output = Self;
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, i32::wrapping_add)
    }
}

impl Sub for Lanes {
    type Output = Self;
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.zip(other, i32::wrapping_sub)
    }
}

impl Mul<i32> for Lanes {
    type Output = Self;
    #[inline(always)]
    fn mul(self, factor: i32) -> Self {
        self.map(|lane| lane.wrapping_mul(factor))
    }
}

#[inline(always)]
fn transposed(rows: [Lanes; 8]) -> [Lanes; 8] {
    let mut out = rows;
    for (i, row) in rows.iter().enumerate() {
        for (j, &lane) in row.0.iter().enumerate() {
            out[j].0[i] = lane;
        }
    }
    out
}

/// The same in registers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
#[inline]
fn transposed_wide(rows: [Lanes; 8]) -> [Lanes; 8] {
    use std::arch::x86_64::{
        __m256i, _mm256_permute2x128_si256, _mm256_unpackhi_epi32, _mm256_unpackhi_epi64, _mm256_unpacklo_epi32,
        _mm256_unpacklo_epi64,
    };
    // SAFETY: both are 256 bytes without any forbidden value.
    let r: [__m256i; 8] = unsafe { std::mem::transmute(rows) };
    let pair = |a, b| [_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b)];
    let [[a0, a1], [b0, b1], [c0, c1], [d0, d1]] =
        [pair(r[0], r[1]), pair(r[2], r[3]), pair(r[4], r[5]), pair(r[6], r[7])];
    let quad = |a, b| [_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b)];
    let [[e0, e1], [e2, e3]] = [quad(a0, b0), quad(a1, b1)];
    let [[f0, f1], [f2, f3]] = [quad(c0, d0), quad(c1, d1)];
    let low = |a, b| _mm256_permute2x128_si256::<0x20>(a, b);
    let high = |a, b| _mm256_permute2x128_si256::<0x31>(a, b);
    let out =
        [low(e0, f0), low(e1, f1), low(e2, f2), low(e3, f3), high(e0, f0), high(e1, f1), high(e2, f2), high(e3, f3)];
    // SAFETY: as above.
    unsafe { std::mem::transmute(out) }
}

/// Eight samples from eight coefficients, scaled by 2^BITS · √8.
#[inline(always)]
fn eight(x: [Lanes; 8], down: i32) -> [Lanes; 8] {
    let z = (x[2] + x[6]) * 4433;
    let (low, high) = (z - x[6] * 15137, z + x[2] * 6270);
    let (sum, difference) = ((x[0] + x[4]).up(BITS), (x[0] - x[4]).up(BITS));
    let even = [sum + high, difference + low, difference - low, sum - high];

    let z5 = (x[7] + x[3] + x[5] + x[1]) * 9633;
    let (z1, z2) = ((x[7] + x[1]) * -7373, (x[5] + x[3]) * -20995);
    let (z3, z4) = ((x[7] + x[3]) * -16069 + z5, (x[5] + x[1]) * -3196 + z5);
    let odd = [x[1] * 12299 + z1 + z4, x[3] * 25172 + z2 + z3, x[5] * 16819 + z2 + z4, x[7] * 2446 + z1 + z3];
    let mut out = x;
    for i in 0..4 {
        out[i] = (even[i] + odd[i]).down(down);
        out[7 - i] = (even[i] - odd[i]).down(down);
    }
    out
}

/// The means of two neighbours each of the eight.
#[inline(always)]
fn four(x: [Lanes; 8], down: i32) -> [Lanes; 4] {
    let even = x[2] * 15137 - x[6] * 6270;
    let (sum, difference) = (x[0].up(BITS + 1) + even, x[0].up(BITS + 1) - even);
    let inner = x[1] * 8697 - x[3] * 17799 + x[5] * 11893 - x[7] * 1730;
    let outer = x[1] * 20995 + x[3] * 7373 - x[5] * 4926 - x[7] * 4176;
    let down = down + 1;
    [
        (sum + outer).down(down),
        (difference + inner).down(down),
        (difference - inner).down(down),
        (sum - outer).down(down),
    ]
}

/// The means of four neighbours each of the eight.
#[inline(always)]
fn two(x: [Lanes; 8], down: i32) -> [Lanes; 2] {
    let odd = x[1] * 29692 - x[3] * 10426 + x[5] * 6967 - x[7] * 5906;
    let even = x[0].up(BITS + 2);
    [(even + odd).down(down + 2), (even - odd).down(down + 2)]
}

/// Both dimensions of any of the above: `N` × `N` samples.
#[inline(always)]
fn both<const N: usize>(
    block: &[i16; 64],
    quant: &[i32; 64],
    one: impl Fn([Lanes; 8], i32) -> [Lanes; N],
    transpose: impl Fn([Lanes; 8]) -> [Lanes; 8],
    out: &mut [u8],
    stride: usize,
) {
    let mut rows = [Lanes([0; 8]); 8];
    for ((row, block), quant) in rows.iter_mut().zip(block.as_chunks::<8>().0).zip(quant.as_chunks::<8>().0) {
        for ((lane, &value), &factor) in row.0.iter_mut().zip(block).zip(quant) {
            *lane = i32::from(value).wrapping_mul(factor);
        }
    }
    let mut columns = [Lanes([0; 8]); 8];
    columns[..N].copy_from_slice(&one(rows, BITS - BETWEEN));
    let mut samples = [Lanes([0; 8]); 8];
    samples[..N].copy_from_slice(&one(transpose(columns), BITS + BETWEEN + 3));
    let samples = transpose(samples);
    for (row, out) in samples[..N].iter().zip(out.chunks_mut(stride)) {
        for (out, value) in out[..N].iter_mut().zip(row.0) {
            *out = value.wrapping_add(128).clamp(0, 255) as u8;
        }
    }
}

#[inline(always)]
fn any(
    block: &[i16; 64],
    quant: &[i32; 64],
    side: usize,
    transpose: impl Fn([Lanes; 8]) -> [Lanes; 8],
    out: &mut [u8],
    stride: usize,
) {
    match side {
        8 => both(block, quant, eight, transpose, out, stride),
        4 => both(block, quant, four, transpose, out, stride),
        2 => both(block, quant, two, transpose, out, stride),
        _ => flat(block[0], quant[0], 1, out, stride),
    }
}

/// A block of nothing but its mean.
pub(super) fn flat(dc: i16, quant: i32, side: usize, out: &mut [u8], stride: usize) {
    let value = (i32::from(dc).wrapping_mul(quant).wrapping_add(4) >> 3).wrapping_add(128).clamp(0, 255) as u8;
    out.chunks_mut(stride).take(side).for_each(|row| row[..side].fill(value));
}

/// Eight lanes are one register of AVX2, where the processor has it.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn wide(block: &[i16; 64], quant: &[i32; 64], side: usize, out: &mut [u8], stride: usize) {
    any(block, quant, side, |rows| transposed_wide(rows), out, stride);
}

/// Samples of a block, `side` × `side` (8, 4, 2 or 1), in rows of `stride`.
pub(super) fn samples(block: &[i16; 64], quant: &[i32; 64], side: usize, out: &mut [u8], stride: usize) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        return unsafe { wide(block, quant, side, out, stride) };
    }
    any(block, quant, side, transposed, out, stride);
}
