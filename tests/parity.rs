//! The forward passes against the authors' numbers.
