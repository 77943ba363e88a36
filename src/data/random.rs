//! Random numbers that are looked up, not drawn in turn.
//!
//! What happens to sample `i` in epoch `e` depends on the seed, `e`, `i` and what the number is for, and on nothing else:
//! not on how many threads or processes there are, nor on where a run was resumed.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// What numbers are for: each purpose has a sequence of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
#[non_exhaustive]
pub enum Purpose {
    /// The order of an epoch (its sample is 0).
    Order = 0,
    /// Where a sample is cropped.
    Crop = 1,
    /// Whether it is mirrored.
    Flip = 2,
    /// Which of its patches are hidden.
    Mask = 3,
    /// What a new student's parameters start from (the sample is the parameter's number).
    Initialise = 4,
}

/// Where numbers between 0 and 1 come from; the second implementation is a test's list.
pub trait Uniform {
    /// The next number of [0, 1), a multiple of 2⁻²⁴ as PyTorch's f32 ones are.
    fn unit(&mut self) -> f32;
    /// The next whole number below `bound`, which must not be 0.
    fn below(&mut self, bound: u32) -> u32;
}

/// One sequence of random numbers.
#[derive(Debug, Clone)]
pub struct Draws(ChaCha8Rng);

impl Draws {
    /// The sequence of (`seed`, `epoch`, `sample`, `purpose`): ChaCha8 whose key is those four, little-endian.
    ///
    /// ```
    /// use tec_zoo::data::{Draws, Purpose, Uniform};
    ///
    /// let mut mask = Draws::new(7, 0, 42, Purpose::Mask);
    /// let noise: Vec<f32> = (0..196).map(|_| mask.unit()).collect();
    /// assert_eq!(noise[0], Draws::new(7, 0, 42, Purpose::Mask).unit());
    /// assert_ne!(noise[0], Draws::new(7, 1, 42, Purpose::Mask).unit());
    /// ```
    pub fn new(seed: u64, epoch: u64, sample: u64, purpose: Purpose) -> Self {
        let mut key = [0; 32];
        for (bytes, word) in key.chunks_exact_mut(8).zip([seed, epoch, sample, purpose as u64]) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        Self(ChaCha8Rng::from_seed(key))
    }

    /// The next 64 bits.
    pub fn word(&mut self) -> u64 {
        self.0.next_u64()
    }
}

impl Uniform for Draws {
    fn unit(&mut self) -> f32 {
        (self.0.next_u32() >> 8) as f32 * (1.0 / (1 << 24) as f32)
    }

    /// Lemire's method, without bias.
    fn below(&mut self, bound: u32) -> u32 {
        let threshold = bound.wrapping_neg().checked_rem(bound).unwrap_or(0);
        loop {
            let product = u64::from(self.0.next_u32()) * u64::from(bound);
            if product as u32 >= threshold {
                return (product >> 32) as u32;
            }
        }
    }
}
