//! Worker threads that do not fall asleep during an update.
//!
//! An update is a thousand kernels, one after the other. A worker of rayon's that finds nothing to do for some ten
//! microseconds goes to sleep, and being woken costs it more than many of them take.

use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::Device;

/// Runs `update` on one of rayon's workers and keeps the others looking for work until it is done.
pub(super) fn awake<T: Send>(device: &Device, update: impl FnOnce() -> T + Send) -> T {
    if !device.is_cpu() {
        return update();
    }
    let done = AtomicBool::new(false);
    rayon::scope(|scope| {
        let _end = End(&done);
        let home = rayon::current_thread_index();
        let done = &done;
        scope.spawn_broadcast(move |_, context| {
            // The update's own worker meets this task while it waits for others: it has better to do.
            while home != Some(context.index()) && !done.load(Ordering::Acquire) {
                if rayon::yield_now() != Some(rayon::Yield::Executed) {
                    std::thread::yield_now();
                }
            }
        });
        update()
    })
}

/// Lets the workers go, also when the update panics.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}
