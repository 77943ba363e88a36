//! What is compared: a tensor's values without its name, its container and, as far as possible, its type.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};

use half::{bf16, f16};
use safetensors::Dtype;
use serde::{Deserialize, Serialize};

/// Values kept of each unit.
pub const SAMPLES: usize = 128;
/// Elements converted at once.
const STEP: usize = 4096;

/// A tensor, or a third of one, by its values.
///
/// The canonical form: sides of length 1 are dropped from the shape; values are f32 in row-major order, every NaN the
/// same one. A matrix three times as tall as wide is taken as three, and so is a vector as long as such a matrix of the
/// same file is tall, so that a fused q, k, v is what the three apart are. `exact` is BLAKE3, its first 16 bytes, of the number of sides, the sides (both as 64-bit little-endian numbers)
/// and the values; `half` and `brain` are the same of the values rounded to f16 and bf16 (16 bits each), by which a copy
/// in those types is recognised.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unit {
    /// Sides longer than 1.
    pub shape: Vec<usize>,
    /// Hash of the values as f32.
    pub exact: String,
    /// Hash of the values rounded to f16.
    pub half: String,
    /// Hash of the values rounded to bf16.
    pub brain: String,
    /// Up to [`SAMPLES`] values at even distances, as bf16 bits, four hex digits each.
    pub samples: String,
    /// Whether rounding to f16 changes nothing.
    #[serde(skip)]
    pub(super) is_half: bool,
    /// Whether rounding to bf16 changes nothing.
    #[serde(skip)]
    pub(super) is_brain: bool,
}

/// Whether a type's values can be taken as f32.
pub(super) fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16)
}

fn sides(shape: &[usize]) -> Vec<usize> {
    shape.iter().copied().filter(|&side| side != 1).collect()
}

/// Height of a matrix three times as tall as wide.
pub(super) fn fused(shape: &[usize]) -> Option<usize> {
    match sides(shape)[..] {
        [rows, columns] if columns > 0 && columns.checked_mul(3) == Some(rows) => Some(rows),
        _ => None,
    }
}

impl Unit {
    /// The units of a float tensor's row-major little-endian bytes; `tall` are the heights of the file's fused matrices. A
    /// tensor whose values are all the same tells nothing (fresh biases are 0, fresh norms 1 everywhere) and has none; nor
    /// has one during which `stop` was set.
    pub(super) fn all(
        bytes: &[u8],
        dtype: Dtype,
        shape: &[usize],
        tall: &HashSet<usize>,
        stop: &AtomicBool,
    ) -> Vec<Self> {
        let sides = sides(shape);
        let part = match sides[..] {
            _ if fused(shape).is_some() => vec![sides[1]; 2],
            [length] if tall.contains(&length) => vec![length / 3],
            _ => return Self::of(bytes, dtype, &sides, stop).into_iter().collect(),
        };
        let parts = bytes.chunks_exact((bytes.len() / 3).max(1));
        parts.filter_map(|bytes| Self::of(bytes, dtype, &part, stop)).collect()
    }

    fn of(bytes: &[u8], dtype: Dtype, shape: &[usize], stop: &AtomicBool) -> Option<Self> {
        let size = dtype.bitsize() / 8;
        let count = bytes.len() / size;
        let first = value(dtype, bytes.get(..size)?);
        let mut hashers = [(); 3].map(|()| blake3::Hasher::new());
        for hasher in &mut hashers {
            hasher.update(&(shape.len() as u64).to_le_bytes());
            for &side in shape {
                hasher.update(&(side as u64).to_le_bytes());
            }
        }
        let (mut constant, mut is_half, mut is_brain) = (true, true, true);
        let (mut single, mut half, mut brain) =
            (Vec::with_capacity(STEP * 4), Vec::with_capacity(STEP * 2), Vec::with_capacity(STEP * 2));
        for piece in bytes.chunks(STEP * size) {
            if stop.load(Ordering::Relaxed) {
                return None;
            }
            single.clear();
            half.clear();
            brain.clear();
            for element in piece.chunks_exact(size) {
                let value = value(dtype, element);
                constant &= value.to_bits() == first.to_bits();
                let (h, b) = (f16::from_f32(value), bf16::from_f32(value));
                is_half &= h.to_f32().to_bits() == value.to_bits();
                is_brain &= b.to_f32().to_bits() == value.to_bits();
                single.extend_from_slice(&value.to_le_bytes());
                half.extend_from_slice(&h.to_le_bytes());
                brain.extend_from_slice(&b.to_le_bytes());
            }
            hashers[0].update(&single);
            hashers[1].update(&half);
            hashers[2].update(&brain);
        }
        if constant {
            return None;
        }
        let [exact, half, brain] = hashers.map(|hasher| short(&hasher.finalize()));
        let kept = count.min(SAMPLES);
        let samples = (0..kept).map(|index| {
            // Both below 2^64 / 128: no file has that many elements.
            let at = index * count / kept * size;
            format!("{:04x}", bf16::from_f32(value(dtype, &bytes[at..at + size])).to_bits())
        });
        Some(Self { shape: shape.to_vec(), exact, half, brain, samples: samples.collect(), is_half, is_brain })
    }

    /// Number of values.
    pub fn elements(&self) -> u64 {
        self.shape.iter().fold(1_u64, |product, &side| product.saturating_mul(side as u64))
    }

    /// Whether it is more than a vector: what a network has learned lies there.
    pub(super) fn is_matrix(&self) -> bool {
        self.shape.len() >= 2
    }

    /// Whether what was read from a file can be one of these.
    pub(super) fn is_sound(&self) -> bool {
        let hex = |text: &str, len: usize| text.len() == len && text.bytes().all(|b| b.is_ascii_hexdigit());
        let kept = self.elements().min(SAMPLES as u64) as usize;
        self.shape.len() <= 16
            && [&self.exact, &self.half, &self.brain].into_iter().all(|hash| hex(hash, 32))
            && hex(&self.samples, 4 * kept)
    }

    /// The samples, less their mean, as a vector of length 1; `None` where they are all the same or not finite.
    pub(super) fn direction(&self) -> Option<Vec<f64>> {
        let bits = self.samples.as_bytes().chunks_exact(4);
        let values: Vec<f64> = bits
            .filter_map(|digits| u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok())
            .map(|bits| f64::from(bf16::from_bits(bits)))
            .collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let length = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>().sqrt();
        (length > 0.0 && length.is_finite()).then(|| values.iter().map(|value| (value - mean) / length).collect())
    }
}

fn value(dtype: Dtype, bytes: &[u8]) -> f32 {
    let value = match (dtype, bytes) {
        (Dtype::F64, &[a, b, c, d, e, f, g, h]) => f64::from_le_bytes([a, b, c, d, e, f, g, h]) as f32,
        (Dtype::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
        (Dtype::F16, &[a, b]) => f16::from_le_bytes([a, b]).to_f32(),
        (_, &[a, b]) => bf16::from_le_bytes([a, b]).to_f32(),
        // The other types are no floats, and are not asked for.
        _ => f32::NAN,
    };
    if value.is_nan() { f32::NAN } else { value }
}

fn short(hash: &blake3::Hash) -> String {
    hash.to_hex()[..32].to_owned()
}
