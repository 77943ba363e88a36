//! Position tables: what kind one is, and how it is resampled to another grid.
