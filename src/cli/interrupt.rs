//! Ctrl-C and SIGTERM: the first asks the work to stop at its next step, so that temporary files are removed on the way
//! out; a second one ends the program at once.

use std::sync::atomic::{AtomicBool, Ordering};

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Starts listening. Where the system does not let us, the default stays: the program just ends.
pub(super) fn install() {
    let listening = ctrlc::set_handler(|| {
        if REQUESTED.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
    });
    drop(listening);
}

/// Whether the user asked to stop.
pub(super) fn requested() -> bool {
    REQUESTED.load(Ordering::SeqCst)
}

/// The error a step returns when [`requested`].
#[derive(Debug, thiserror::Error)]
#[error("interrupted; nothing was left half-written")]
pub(super) struct Interrupted;

/// Fails when the user asked to stop.
pub(super) fn check() -> Result<(), Interrupted> {
    if requested() { Err(Interrupted) } else { Ok(()) }
}
