//! Lock files that work on network file systems: made with create-new, kept alive by a heartbeat.
//!
//! No flock (broken or absent on many clusters) and no clock comparison between machines: a waiter watches, with its
//! own clock, whether the heartbeat moves. A lock whose process has died on this machine is broken at once. Whoever waits
//! is told for whom, and may stop waiting.

use std::fs::{File, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::boot::{self, Process};
use super::caller::Caller;
use super::{Event, FetchError};

const POLL: Duration = Duration::from_millis(40);
/// A lock file is one short line; whatever is longer is none of ours.
const MAX_LOCK_BYTES: u64 = 4096;

/// A held lock; released on drop.
#[derive(Debug)]
pub(super) struct Lock {
    path: PathBuf,
    nonce: String,
    done: Arc<(Mutex<bool>, Condvar)>,
    heart: Option<JoinHandle<()>>,
}

/// `nonce beat space pid started`
#[derive(Debug, Clone, PartialEq, Eq)]
struct Content {
    nonce: String,
    beat: u64,
    process: Option<Process>,
}

impl Content {
    fn read(path: &Path) -> io::Result<Option<Self>> {
        let metadata = std::fs::symlink_metadata(path)?;
        if !metadata.is_file() {
            // A link to nothing can be neither made nor read, a pipe would be read for ever: nobody's work to wait for.
            let sort = if metadata.is_symlink() { "a symbolic link" } else { "no file" };
            return Err(io::Error::other(format!("it is {sort}, and no lock of this program; remove it")));
        }
        if metadata.len() > MAX_LOCK_BYTES {
            return Ok(None);
        }
        let text = std::fs::read_to_string(path)?;
        let words: Vec<&str> = text.split_whitespace().collect();
        let [nonce, beat, rest @ ..] = words.as_slice() else { return Ok(None) };
        let process = match rest {
            [space, pid, started] => pid.parse().ok().zip(started.parse().ok()).map(|(pid, started)| Process {
                space: (*space).to_owned(),
                pid,
                started,
            }),
            _ => None,
        };
        Ok(beat.parse().ok().map(|beat| Self { nonce: (*nonce).to_owned(), beat, process }))
    }

    fn line(&self) -> String {
        let Self { nonce, beat, process } = self;
        match process {
            // Fixed width, so that rewriting in place never leaves a longer line's tail.
            Some(Process { space, pid, started }) => format!("{nonce} {beat:020} {space} {pid} {started}\n"),
            None => format!("{nonce} {beat:020}\n"),
        }
    }
}

impl Lock {
    /// Waits for the lock at `path`; the caller hears who holds it, each time that changes.
    pub(super) fn acquire(path: &Path, stale: Duration, caller: &Caller) -> Result<Self, FetchError> {
        let io = || FetchError::io("lock", path);
        let nonce = nonce();
        let content = Content { nonce: nonce.clone(), beat: 0, process: boot::process() };
        let mut seen: Option<(Option<Content>, Instant)> = None;
        let mut told = None;
        loop {
            match OpenOptions::new().write(true).create_new(true).open(path) {
                Ok(mut file) => {
                    file.write_all(content.line().as_bytes()).map_err(io())?;
                    return Ok(Self::keep(path, content, stale / 4));
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(io()(error)),
            }
            let now = match Content::read(path) {
                Ok(now) => now,
                // Released a moment ago.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    caller.sleep(POLL)?;
                    continue;
                }
                Err(error) => return Err(io()(error)),
            };
            let process = now.as_ref().and_then(|content| content.process.clone());
            let unmoved = match &seen {
                Some((before, since)) if *before == now => since.elapsed(),
                _ => {
                    seen = Some((now.clone(), Instant::now()));
                    Duration::ZERO
                }
            };
            if unmoved > stale || process.as_ref().is_some_and(Process::is_dead) {
                break_lock(path, now.as_ref(), &nonce).map_err(io())?;
                seen = None;
                continue;
            }
            let holder = now.map(|content| content.nonce);
            if told != holder {
                let who = process.map_or_else(|| "another process".to_owned(), |p| format!("process {}", p.pid));
                caller.tell(Event::Waiting { holder: who });
                told = holder;
            }
            caller.sleep(POLL)?;
        }
    }

    fn keep(path: &Path, mut content: Content, every: Duration) -> Self {
        let done = Arc::new((Mutex::new(false), Condvar::new()));
        let nonce = content.nonce.clone();
        let heart = {
            let (done, path) = (Arc::clone(&done), path.to_path_buf());
            std::thread::spawn(move || {
                loop {
                    let guard = done.0.lock().unwrap_or_else(PoisonError::into_inner);
                    // Looks before it waits: a lock released at once has told so before anybody listened.
                    let (guard, _) =
                        done.1.wait_timeout_while(guard, every, |done| !*done).unwrap_or_else(PoisonError::into_inner);
                    if *guard {
                        return;
                    }
                    drop(guard);
                    content.beat += 1;
                    // A lock that was taken from us stays with the one who has it.
                    if !matches!(Content::read(&path), Ok(Some(now)) if now.nonce == content.nonce) {
                        return;
                    }
                    let beat = |mut file: File| file.write_all(content.line().as_bytes());
                    // A missed beat is harmless; the next one may succeed.
                    let _ = OpenOptions::new().write(true).open(&path).and_then(beat);
                }
            })
        };
        Self { path: path.to_path_buf(), nonce, done, heart: Some(heart) }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        *self.done.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.done.1.notify_all();
        if let Some(heart) = self.heart.take() {
            let _ = heart.join();
        }
        if matches!(Content::read(&self.path), Ok(Some(now)) if now.nonce == self.nonce) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Moves the lock away, and removes it if it is still the one that was judged.
fn break_lock(path: &Path, judged: Option<&Content>, nonce: &str) -> io::Result<()> {
    let aside = path.with_extension(format!("broken-{nonce}"));
    match std::fs::rename(path, &aside) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    let moved = Content::read(&aside)?;
    let same = moved.as_ref().map(|content| &content.nonce) == judged.map(|content| &content.nonce);
    if !same && !path.exists() {
        // Another waiter broke it first and made its own: give that one back.
        return std::fs::rename(&aside, path);
    }
    std::fs::remove_file(&aside)
}

/// A word no other process has; not for secrets.
pub(super) fn nonce() -> String {
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format!("{:016x}", RandomState::new().hash_one((std::process::id(), time)))
}
