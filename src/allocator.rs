//! The allocator of programs that train: one that hands freed memory out again instead of back to the system.
//!
//! A step frees and takes the same gigabyte of buffers each time; returning them costs a page fault and a cleared page for
//! every 4 KiB, a tenth of a ViT-S step's time.

use std::ffi::{c_int, c_long};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Keeps what was freed, for as long as the program runs.
pub(crate) fn keep_freed_memory() {
    unsafe extern "C" {
        fn mi_option_set(option: c_int, value: c_long);
    }
    /// `mi_option_purge_delay` of `mimalloc.h`, the same number in its versions 2 and 3: milliseconds, −1 for never.
    const PURGE_DELAY: c_int = 15;
    // SAFETY: mimalloc is linked (it is the allocator above), and its options may be set at any time.
    unsafe { mi_option_set(PURGE_DELAY, -1) };
}
