//! In which order an epoch shows the samples, and which of them are whose.

use super::random::{Draws, Purpose};

const ROUNDS: usize = 8;

/// A random permutation of the samples, one for each (seed, epoch), that needs no table.
///
/// A Feistel network over a few more bits than the number of samples needs permutes that many numbers; where it leads
/// outside, it is applied again until it does not (cycle walking). Any place of any epoch is found at once, so a run can
/// resume anywhere and a data set of any size costs no memory.
#[derive(Debug, Clone)]
pub struct EpochOrder {
    len: u64,
    half_bits: u32,
    keys: [u64; ROUNDS],
}

impl EpochOrder {
    /// The order of `len` samples in `epoch`.
    pub fn new(len: u64, seed: u64, epoch: u64) -> Self {
        let mut draws = Draws::new(seed, epoch, 0, Purpose::Order);
        // Halves of few bits would leave few permutations to choose from.
        let bits = (u64::BITS - len.saturating_sub(1).leading_zeros()).max(12);
        Self { len, half_bits: bits.div_ceil(2), keys: std::array::from_fn(|_| draws.word()) }
    }

    /// The sample at `place`; places beyond the end start over, so that every rank gets as many as the others.
    pub fn sample(&self, place: u64) -> u64 {
        if self.len == 0 {
            return 0;
        }
        let mut at = place % self.len;
        let mask = u64::MAX >> (u64::BITS - self.half_bits);
        loop {
            let (mut left, mut right) = (at >> self.half_bits, at & mask);
            for &key in &self.keys {
                (left, right) = (right, left ^ (mixed(right ^ key) & mask));
            }
            at = left << self.half_bits | right;
            if at < self.len {
                return at;
            }
        }
    }
}

/// The finaliser of SplitMix64: every bit of the result depends on every bit of `word`.
fn mixed(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// One process's part of every epoch, as PyTorch's `DistributedSampler` and a `DataLoader(drop_last=True)` cut it.
///
/// Rank r of w takes the places r, r + w, r + 2w, … of the epoch's order. Each rank has ⌈samples / w⌉ of them, for which the
/// order starts over at its end when w does not divide it; of those, the last incomplete batch is dropped. The batches of all
/// ranks together are the batch that one process with w times the batch size would see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// This process.
    pub rank: u64,
    /// How many there are.
    pub world: u64,
}

impl Share {
    /// Batches of `batch` samples that each rank takes from an epoch of `len`.
    pub fn batches(self, len: u64, batch: u64) -> u64 {
        len.div_ceil(self.world.max(1)).checked_div(batch).unwrap_or(0)
    }

    /// The place in the epoch's order of this rank's `at`-th sample.
    pub fn place(self, at: u64) -> u64 {
        at * self.world + self.rank
    }
}
