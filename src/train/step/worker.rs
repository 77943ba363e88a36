//! Where an update runs.

use candle_core::Device;

/// Runs `update` on one of rayon's workers: its thousand kernels, one after the other, then begin where their threads are,
/// instead of waking one each.
///
/// The other workers sleep whenever there is nothing to do. To keep them awake, each with a task that looks for work until the
/// update ends, saves them the waking, but must not be: a worker that waits for its half of a kernel takes up whatever task it
/// finds, that one too, and then two wait for each other for ever.
pub(super) fn on_a_worker<T: Send>(device: &Device, update: impl FnOnce() -> T + Send) -> T {
    if device.is_cpu() { rayon::scope(|_| update()) } else { update() }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop where it stands")]

    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::{Duration, Instant};

    use rayon::prelude::*;

    use super::*;

    /// Four kernels of a few microseconds, as an update has them.
    fn update() {
        for _ in 0..4 {
            (0..64).into_par_iter().for_each(|i| {
                let x = (0..20).fold(f64::from(i), |x, _| x.sin() + 1.0);
                std::hint::black_box(x);
            });
        }
    }

    /// Four at a time: a task that one update leaves in the way of another is then met within the first thousand, on however
    /// few processors.
    #[test]
    fn updates_on_sixteen_threads_never_wait_for_one_another() {
        let made = Arc::new(AtomicU64::new(0));
        let pool = Arc::new(rayon::ThreadPoolBuilder::new().num_threads(16).build().unwrap());
        let updates = (0..4).map(|_| {
            let (pool, made, start) = (Arc::clone(&pool), Arc::clone(&made), Instant::now());
            // Not joined unless it ends: when it hangs, this thread must still be able to say so.
            std::thread::spawn(move || {
                while start.elapsed() < Duration::from_secs(10) {
                    pool.install(|| on_a_worker(&Device::Cpu, update));
                    made.fetch_add(1, Ordering::Relaxed);
                }
            })
        });
        let updates: Vec<_> = updates.collect();
        let (mut seen, mut moved) = (0, Instant::now());
        while updates.iter().any(|thread| !thread.is_finished()) {
            std::thread::sleep(Duration::from_millis(50));
            let now = made.load(Ordering::Relaxed);
            if now > seen {
                (seen, moved) = (now, Instant::now());
            }
            // An update takes well under a millisecond; the busiest machine has made one by then.
            assert!(moved.elapsed() < Duration::from_secs(30), "it hangs after {seen} updates");
        }
        updates.into_iter().for_each(|thread| thread.join().unwrap());
        assert!(seen > 0);
    }
}
