//! Worker threads that do not fall asleep during an update.
//!
//! An update is a thousand kernels, one after the other. A worker of rayon's that finds nothing to do for some ten
//! microseconds goes to sleep, and being woken costs it more than many of them take.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use candle_core::Device;

/// How long a worker looks for work without a pause: longer than it takes to get from one kernel to the next.
const PATIENCE: Duration = Duration::from_micros(100);

/// The pause between two looks after that. A worker that never slept would be the last to run where others want the cores too: a
/// run beside a compiler was seen to take ten times as long.
const NAP: Duration = Duration::from_micros(50);

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
            if home != Some(context.index()) {
                look_for_work(done);
            }
        });
        update()
    })
}

/// Takes part in what there is to do until `done`.
fn look_for_work(done: &AtomicBool) {
    let mut idle_since = None;
    while !done.load(Ordering::Acquire) {
        if rayon::yield_now() == Some(rayon::Yield::Executed) {
            idle_since = None;
        } else if idle_since.get_or_insert_with(Instant::now).elapsed() < PATIENCE {
            std::hint::spin_loop();
        } else {
            std::thread::sleep(NAP);
        }
    }
}

/// Lets the workers go, also when the update panics.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}
