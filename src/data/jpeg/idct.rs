//! The inverse transform of a block, in the integers of libjpeg's `jidctint` and `jidctred`, so that results agree to the bit.
//!
//! One dimension at a time, after Loeffler, Ligtenberg and Moschytz, with constants of 13 bits and two extra bits between the
//! dimensions. The reduced transforms give the exact means of 2 × 2, 4 × 4 and 8 × 8 pixels, before rounding.

use std::array::from_fn;
use std::ops::{Add, Mul, Sub};

const BITS: i32 = 13;
const BETWEEN: i32 = 2;

/// The same number of eight rows or columns. Wrapping: what a hostile file overflows is its own picture.
#[derive(Clone, Copy)]
struct Lanes([i32; 8]);

impl Add for Lanes {
    type Output = Self;
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self(from_fn(|i| self.0[i].wrapping_add(other.0[i])))
    }
}

impl Sub for Lanes {
    type Output = Self;
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Self(from_fn(|i| self.0[i].wrapping_sub(other.0[i])))
    }
}

impl Mul<i32> for Lanes {
    type Output = Self;
    #[inline(always)]
    fn mul(self, factor: i32) -> Self {
        Self(from_fn(|i| self.0[i].wrapping_mul(factor)))
    }
}

impl Lanes {
    #[inline(always)]
    fn up(self, bits: i32) -> Self {
        Self(from_fn(|i| self.0[i] << bits))
    }

    /// Divided by 2^bits and rounded.
    #[inline(always)]
    fn down(self, bits: i32) -> Self {
        Self(from_fn(|i| self.0[i].wrapping_add(1 << (bits - 1)) >> bits))
    }
}

#[inline(always)]
fn transposed(rows: [Lanes; 8]) -> [Lanes; 8] {
    from_fn(|i| Lanes(from_fn(|j| rows[j].0[i])))
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
    from_fn(|i| if i < 4 { even[i] + odd[i] } else { even[7 - i] - odd[7 - i] }.down(down))
}

/// The means of two neighbours each of the eight.
#[inline(always)]
fn four(x: [Lanes; 8], down: i32) -> [Lanes; 4] {
    let even = x[2] * 15137 - x[6] * 6270;
    let (sum, difference) = (x[0].up(BITS + 1) + even, x[0].up(BITS + 1) - even);
    let inner = x[1] * 8697 - x[3] * 17799 + x[5] * 11893 - x[7] * 1730;
    let outer = x[1] * 20995 + x[3] * 7373 - x[5] * 4926 - x[7] * 4176;
    [sum + outer, difference + inner, difference - inner, sum - outer].map(|lanes| lanes.down(down + 1))
}

/// The means of four neighbours each of the eight.
#[inline(always)]
fn two(x: [Lanes; 8], down: i32) -> [Lanes; 2] {
    let odd = x[1] * 29692 - x[3] * 10426 + x[5] * 6967 - x[7] * 5906;
    let even = x[0].up(BITS + 2);
    [even + odd, even - odd].map(|lanes| lanes.down(down + 2))
}

/// Both dimensions of any of the above: `N` × `N` samples.
#[inline(always)]
fn both<const N: usize>(
    block: &[i16; 64],
    quant: &[i32; 64],
    one: impl Fn([Lanes; 8], i32) -> [Lanes; N],
    out: &mut [u8],
    stride: usize,
) {
    let rows = from_fn(|row| {
        Lanes(from_fn(|column| i32::from(block[row * 8 + column]).wrapping_mul(quant[row * 8 + column])))
    });
    let zero = Lanes([0; 8]);
    let columns = one(rows, BITS - BETWEEN);
    let columns = transposed(from_fn(|i| columns.get(i).copied().unwrap_or(zero)));
    let samples = one(columns, BITS + BETWEEN + 3);
    let samples = transposed(from_fn(|i| samples.get(i).copied().unwrap_or(zero)));
    for (row, out) in samples[..N].iter().zip(out.chunks_mut(stride)) {
        for (out, value) in out[..N].iter_mut().zip(row.0) {
            *out = value.wrapping_add(128).clamp(0, 255) as u8;
        }
    }
}

#[inline(always)]
fn plain(block: &[i16; 64], quant: &[i32; 64], side: usize, out: &mut [u8], stride: usize) {
    match side {
        8 => both(block, quant, eight, out, stride),
        4 => both(block, quant, four, out, stride),
        2 => both(block, quant, two, out, stride),
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
    plain(block, quant, side, out, stride);
}

/// Samples of a block, `side` × `side` (8, 4, 2 or 1), in rows of `stride`.
pub(super) fn samples(block: &[i16; 64], quant: &[i32; 64], side: usize, out: &mut [u8], stride: usize) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        return unsafe { wide(block, quant, side, out, stride) };
    }
    plain(block, quant, side, out, stride);
}
