//! Sums over rows, in an order that does not depend on the number of threads.

use rayon::prelude::*;

use super::simd::{Isa, Lane, Task, dispatch, vectors};

/// Rows summed by one task. Fixed, so that the order of additions is.
pub(super) const ROWS: usize = 32;

/// Adds to (or, when `fresh`, puts in) `sums` the sum over rows of (R, C).
pub(super) fn add_rows(x: &[f32], sums: &mut [f32], fresh: bool) {
    let c = sums.len();
    let partial: Vec<Vec<f32>> = x
        .par_chunks(ROWS * c)
        .map(|rows| {
            let mut partial = vec![0f32; c];
            dispatch(AddRows { rows, sums: &mut partial });
            partial
        })
        .collect();
    merge(&partial, sums, fresh);
}

/// Adds up what tasks summed, first task first.
pub(super) fn merge(partial: &[Vec<f32>], sums: &mut [f32], fresh: bool) {
    if fresh {
        sums.fill(0.0);
    }
    for partial in partial {
        for (sum, x) in sums.iter_mut().zip(partial) {
            *sum += x;
        }
    }
}

struct AddRows<'a> {
    rows: &'a [f32],
    sums: &'a mut [f32],
}

impl Task for AddRows<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Isa>(self) {
        let (c, sums) = (self.sums.len(), self.sums.as_mut_ptr());
        for row in self.rows.chunks_exact(c) {
            let row = row.as_ptr();
            // SAFETY: the instructions are there, and both hold `c` values.
            unsafe {
                vectors!(S, c, |i, n| {
                    let sum = S::add(f32::load::<S>(sums.add(i), n), f32::load::<S>(row.add(i), n));
                    f32::store::<S>(sums.add(i), n, sum);
                });
            }
        }
    }
}
