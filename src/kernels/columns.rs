//! Sums over rows, in an order that does not depend on the number of threads.

use rayon::prelude::*;

use super::slices::Element;

/// Rows summed by one task. Fixed, so that the order of additions is.
pub(super) const ROWS: usize = 32;

/// Adds to (or, when `fresh`, puts in) `sums` the sum over rows of (R, C).
pub(super) fn add_rows<T: Element>(x: &[T], sums: &mut [f32], fresh: bool) {
    let c = sums.len();
    let partial: Vec<Vec<f32>> = x
        .par_chunks(ROWS * c)
        .map(|rows| {
            let mut partial = vec![0f32; c];
            for row in rows.chunks_exact(c) {
                for (sum, x) in partial.iter_mut().zip(row) {
                    *sum += x.wide();
                }
            }
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
