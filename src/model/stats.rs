//! Parameter and multiply-accumulate counts, from configurations alone.
