//! The memory of this process: how much it has used, and giving it back.

/// The most it ever had at once, in bytes, mapped files included; where the system says.
#[cfg(feature = "train")]
pub(crate) fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kilobytes.checked_mul(1024)
}

/// Gives what C code has freed back to the system, which its allocator otherwise keeps.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(crate) fn trim() {
    unsafe extern "C" {
        fn malloc_trim(pad: usize) -> std::ffi::c_int;
    }
    // SAFETY: glibc's, which may be called at any time from any thread.
    unsafe { malloc_trim(0) };
}

/// Nothing, where the allocator is not known to keep much.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn trim() {}
