//! Ctrl-C and SIGTERM: the first is answered at once and asks the work to stop at its next step, so that temporary files
//! are removed on the way out; a second one ends the program at once.

use std::io::{IsTerminal as _, Write as _, stderr};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

/// How long a stop goes unnoticed at most where it is waited for.
const TICK: Duration = Duration::from_millis(50);

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Starts listening. Where the system does not let us, the default stays: the program just ends.
pub(super) fn install() {
    let listening = ctrlc::set_handler(|| {
        if REQUESTED.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        // From the listening thread, so that the answer waits for no work; over the line a bar may be drawing.
        let mut stderr = stderr();
        let line = if stderr.is_terminal() { "\r\x1b[2K" } else { "" };
        // Nobody may be reading any more, which is no reason not to stop.
        drop(writeln!(stderr, "{line}stopping … (again to end at once)"));
    });
    drop(listening);
}

/// Whether the user asked to stop.
pub(super) fn requested() -> bool {
    REQUESTED.load(Ordering::SeqCst)
}

/// What a library's question whether to go on is answered with.
pub(super) fn flow() -> ControlFlow<()> {
    if requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}

/// The error a step returns when [`requested`].
#[derive(Debug, thiserror::Error)]
#[error("interrupted; nothing was left half-written")]
pub(super) struct Interrupted;

/// Fails when the user asked to stop.
pub(super) fn check() -> Result<(), Interrupted> {
    if requested() { Err(Interrupted) } else { Ok(()) }
}

/// Runs `work` on a thread of its own, and waits for it or for the user, who leaves it behind to end with the program: for
/// reading that asks nobody whether to go on. What it makes must not have to be cleaned up.
pub(super) fn leaving<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Interrupted> {
    let (done, ended) = mpsc::channel();
    let worker = std::thread::spawn(move || drop(done.send(work())));
    loop {
        match ended.recv_timeout(TICK) {
            Ok(value) => return Ok(value),
            Err(RecvTimeoutError::Timeout) => check()?,
            // It panicked, and said why.
            Err(RecvTimeoutError::Disconnected) => match worker.join() {
                Err(panic) => std::panic::resume_unwind(panic),
                Ok(()) => return Err(Interrupted),
            },
        }
    }
}
