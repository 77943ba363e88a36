//! The parallel download of one part: workers take runs of missing chunks, a follower hashes the file in order behind
//! them, the calling thread reports.

use std::fs::File;
use std::io::Read as _;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use sha2::{Digest as _, Sha256};

use super::caller::{Caller, TICK};
use super::http::{Http, Validator, read_some};
use super::part::{Chunk, Part};
use super::retry::{Failure, Patience};
use super::tree::{Leaf, chunk_len};
use super::{Event, FetchError, Options, positioned};

const BUFFER: usize = 128 << 10;
/// Chunks asked for in one request at most: a broken connection is cheap, a request has its price.
const LONGEST_RUN: usize = 16;

/// Hashes of a whole file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hashes {
    pub sha256: String,
    pub md5: Option<String>,
    pub leaves: Vec<Leaf>,
}

/// sha256, and md5 where somebody published one.
pub(super) struct Hasher {
    sha256: Sha256,
    md5: Option<md5::Md5>,
}

impl Hasher {
    pub(super) fn new(md5: bool) -> Self {
        Self { sha256: Sha256::new(), md5: md5.then(md5::Md5::default) }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        if let Some(md5) = &mut self.md5 {
            md5::Digest::update(md5, bytes);
        }
    }

    pub(super) fn finish(self, leaves: Vec<Leaf>) -> Hashes {
        let md5 = self.md5.map(|md5| md5::Digest::finalize(md5).iter().map(|byte| format!("{byte:02x}")).collect());
        Hashes { sha256: super::tree::hex(&self.sha256.finalize().into()), md5, leaves }
    }
}

/// What every part of one download has in common.
pub(super) struct Job<'a> {
    pub http: &'a Http<'a>,
    pub options: &'a Options,
    pub address: &'a str,
    pub validator: &'a Validator,
    pub md5: bool,
}

struct Board<'a> {
    job: &'a Job<'a>,
    caller: &'a Caller,
    path: &'a Path,
    file: &'a File,
    journal: &'a File,
    total: u64,
    chunk: u64,
    have: AtomicU64,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    chunks: Vec<Chunk>,
    workers: usize,
    verdict: Option<Failure>,
    /// The follower has come to its end.
    followed: bool,
    /// The server asked for peace until then.
    quiet: Option<Instant>,
}

/// Downloads what is missing of `part` and hashes the whole.
///
/// # Errors
/// Why it could not be finished; what was fetched stays in the part.
pub(super) fn download(job: &Job<'_>, part: &mut Part, caller: &Caller) -> Result<Hashes, Failure> {
    let missing = part.chunks.iter().filter(|chunk| matches!(chunk, Chunk::Missing(_))).count();
    let workers = job.options.jobs.clamp(1, 64).min(missing);
    let board = Board {
        job,
        caller,
        path: &part.path,
        file: &part.file,
        journal: part.journal(),
        total: part.head.total,
        chunk: part.head.chunk,
        have: AtomicU64::new(part.have()),
        state: Mutex::new(State { chunks: part.chunks.clone(), workers, verdict: None, followed: false, quiet: None }),
        changed: Condvar::new(),
    };
    let hashes = std::thread::scope(|scope| {
        let follower = scope.spawn(|| {
            let _alarm = Alarm(&board);
            let hashes = board.follow();
            board.lock().followed = true;
            board.changed.notify_all();
            hashes
        });
        for _ in 0..workers {
            scope.spawn(|| {
                let _alarm = Alarm(&board);
                board.work();
            });
        }
        let mut followed = false;
        while !followed && !follower.is_finished() {
            let mut state = board.lock();
            if !state.followed {
                state = board.changed.wait_timeout(state, TICK).unwrap_or_else(PoisonError::into_inner).0;
            }
            followed = state.followed;
            drop(state);
            let have = board.have.load(Ordering::Relaxed);
            caller.progress(have, Some(board.total));
            if let Err(interrupted) = caller.check() {
                board.judge(Failure::Local(interrupted));
            }
        }
        follower.join()
    });
    let have = board.have.load(Ordering::Relaxed);
    let mut state = board.state.into_inner().unwrap_or_else(PoisonError::into_inner);
    match state.verdict.take() {
        Some(Failure::Local(error)) if have > 0 => return Err(Failure::Local(error.resuming())),
        Some(failure) => return Err(failure),
        None => {}
    }
    part.chunks = state.chunks;
    match hashes {
        Ok(Ok(hashes)) => Ok(hashes),
        Ok(Err(error)) => Err(Failure::Local(FetchError::io("read", &part.path)(error))),
        Err(_) => Err(Failure::Refused("the download stopped unexpectedly".into())),
    }
}

/// Ends the download when a thread of it panics: the others would wait for what it had taken.
struct Alarm<'a>(&'a Board<'a>);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.judge(Failure::Refused("the download stopped unexpectedly".into()));
        }
    }
}

impl Board<'_> {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn judge(&self, failure: Failure) {
        let mut state = self.lock();
        state.verdict.get_or_insert(failure);
        drop(state);
        self.changed.notify_all();
    }

    /// Hashes the file from its beginning, as far as it is there, until it is whole.
    fn follow(&self) -> std::io::Result<Hashes> {
        let mut hasher = Hasher::new(self.job.md5);
        let mut leaves = Vec::new();
        let mut buffer = vec![0; BUFFER];
        for index in 0..self.total.div_ceil(self.chunk) as usize {
            let mut state = self.lock();
            let leaf = loop {
                match state.chunks[index] {
                    Chunk::Done(leaf) => break leaf,
                    // The caller looks at the verdict first.
                    _ if state.verdict.is_some() => return Ok(hasher.finish(leaves)),
                    _ => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                }
            };
            drop(state);
            leaves.push(leaf);
            let (mut offset, end) = (self.chunk * index as u64, self.chunk * index as u64 + self.len(index));
            while offset < end && !self.caller.stopped() {
                // As much as stays in the processor's cache between being read and being hashed.
                let piece = &mut buffer[..(end - offset).min(BUFFER as u64) as usize];
                positioned::read_at(self.file, piece, offset)?;
                hasher.update(piece);
                offset += piece.len() as u64;
            }
        }
        Ok(hasher.finish(leaves))
    }

    fn len(&self, index: usize) -> u64 {
        chunk_len(self.total, self.chunk, index)
    }

    /// Takes runs of chunks until none is left, or the source's patience ends.
    fn work(&self) {
        let mut patience = Patience::new(self.job.options);
        while let Some((run, filled)) = self.take() {
            let mut got = 0;
            let failure = match self.fetch(run.clone(), filled, &mut got) {
                Ok(()) => continue,
                Err(failure) => failure,
            };
            // Fewer bytes than this between two failures are no progress.
            if got >= (self.chunk / 64).max(1) {
                patience.progressed();
            }
            let (reason, wait) = match failure {
                Failure::Transient { reason, wait } => (reason, wait),
                // It worked a moment ago, so perhaps a link has expired: the original address may give a new one.
                Failure::Refused(reason) => (reason, None),
                failure => return self.judge(failure),
            };
            match patience.failed(&reason, wait) {
                Ok(pause) => {
                    let until = Instant::now() + pause;
                    self.caller.tell(Event::Retry { reason, pause });
                    let mut state = self.lock();
                    if wait.is_some() {
                        state.quiet = state.quiet.max(Some(until));
                    }
                    drop(state);
                    self.pause(until);
                }
                Err(failure) => {
                    // The server may serve fewer connections than were asked for: leave it to the others, if any.
                    let mut state = self.lock();
                    state.workers -= 1;
                    let last = state.workers == 0;
                    drop(state);
                    if last {
                        self.judge(failure);
                    }
                    return;
                }
            }
        }
    }

    /// The next run of missing chunks, and how much of its first is there.
    fn take(&self) -> Option<(Range<usize>, u64)> {
        let quiet = self.lock().quiet;
        quiet.into_iter().for_each(|until| self.pause(until));
        let mut state = self.lock();
        let start = loop {
            if state.verdict.is_some() || state.chunks.iter().all(|chunk| matches!(chunk, Chunk::Done(_))) {
                return None;
            }
            if let Some(start) = state.chunks.iter().position(|chunk| matches!(chunk, Chunk::Missing(_))) {
                break start;
            }
            // All are taken; whoever has them may yet give them back.
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        };
        let missing = state.chunks.iter().filter(|chunk| matches!(chunk, Chunk::Missing(_))).count();
        let share = |chunks: usize| chunks / (2 * state.workers.max(1));
        // Short at the end, so that nobody waits for the last; and at the beginning, so that the follower need not either.
        let longest = share(missing).min(share(start)).clamp(1, LONGEST_RUN);
        let Chunk::Missing(filled) = state.chunks[start] else { return None };
        let mut end = start + 1;
        while end - start < longest && state.chunks.get(end) == Some(&Chunk::Missing(0)) {
            end += 1;
        }
        state.chunks[start..end].fill(Chunk::Taken);
        Some((start..end, filled))
    }

    /// Fetches one run; `got` counts its bytes. What was not finished is given back.
    fn fetch(&self, run: Range<usize>, filled: u64, got: &mut u64) -> Result<(), Failure> {
        let mut at = Position { index: run.start, filled };
        let result = self.stream(&run, &mut at, got);
        let mut state = self.lock();
        for index in at.index..run.end {
            let filled = if index == at.index { at.filled } else { 0 };
            state.chunks[index] = Chunk::Missing(filled);
        }
        drop(state);
        self.changed.notify_all();
        result
    }

    fn stream(&self, run: &Range<usize>, at: &mut Position, got: &mut u64) -> Result<(), Failure> {
        let local = |error| {
            let missing = self.total.saturating_sub(self.have.load(Ordering::Relaxed));
            Failure::Local(FetchError::write(self.path, missing)(error))
        };
        let begin = self.chunk * run.start as u64 + at.filled;
        let end = self.chunk * (run.end as u64 - 1) + self.len(run.end - 1);
        let unread = |error| Failure::Local(FetchError::io("read", self.path)(error));
        let mut hasher = self.reread(at).map_err(unread)?;
        let job = self.job;
        let mut reply = job.http.get(job.address, Some((begin, end - 1)), Some(job.validator), self.caller)?;
        let Some((first, last, total)) = reply.range else {
            return Err(Failure::Changed("the server sent the whole file where a part was asked for".into()));
        };
        if total != self.total || reply.validator.contradicts(job.validator) {
            return Err(Failure::Changed("the file changed on the server while it was fetched".into()));
        }
        if first != begin || last >= end || reply.encoding.is_some() {
            return Err(Failure::transient(format!(
                "asked for bytes {begin}-{}, the server sent {first}-{last}",
                end - 1
            )));
        }
        let mut body = (&mut reply.body).take(last + 1 - first);
        let mut buffer = vec![0; BUFFER];
        let step = (self.chunk / 8).clamp(1, BUFFER as u64);
        let mut window = (Instant::now(), 0);
        while at.index < run.end {
            let len = self.len(at.index);
            let want = (len - at.filled).min(BUFFER as u64) as usize;
            let read = read_some(&mut body, &mut buffer[..want], self.caller)?;
            if read == 0 {
                return Err(Failure::transient(format!("the connection ended {} bytes early", end - begin - *got)));
            }
            let bytes = &buffer[..read];
            positioned::write_at(self.file, bytes, self.chunk * at.index as u64 + at.filled).map_err(local)?;
            hasher.update(bytes);
            let noted = at.filled / step;
            at.filled += read as u64;
            *got += read as u64;
            self.have.fetch_add(read as u64, Ordering::Relaxed);
            if at.filled == len {
                let leaf: Leaf = hasher.finalize().into();
                hasher.reset();
                Part::note(self.journal, at.index, Chunk::Done(leaf)).map_err(local)?;
                let mut state = self.lock();
                state.chunks[at.index] = Chunk::Done(leaf);
                if state.verdict.is_some() {
                    *at = Position { index: at.index + 1, filled: 0 };
                    return Ok(());
                }
                drop(state);
                self.changed.notify_all();
                *at = Position { index: at.index + 1, filled: 0 };
            } else if at.filled / step > noted {
                Part::note(self.journal, at.index, Chunk::Missing(at.filled)).map_err(local)?;
            }
            window.1 += read as u64;
            stalled(&mut window, job.options)?;
        }
        Ok(())
    }

    /// The hash of the beginning of a chunk that is there already.
    fn reread(&self, at: &Position) -> std::io::Result<blake3::Hasher> {
        let mut bytes = vec![0; at.filled as usize];
        positioned::read_at(self.file, &mut bytes, self.chunk * at.index as u64)?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&bytes);
        Ok(hasher)
    }

    /// Sleeps, unless all is over before.
    fn pause(&self, until: Instant) {
        let mut state = self.lock();
        while state.verdict.is_none() && state.chunks.iter().any(|chunk| !matches!(chunk, Chunk::Done(_))) {
            let Some(left) = until.checked_duration_since(Instant::now()) else { return };
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// The chunk being filled.
#[derive(Clone, Copy)]
struct Position {
    index: usize,
    filled: u64,
}

/// Fails when a window of the stall time brought too little; begins the next window when it is over.
pub(super) fn stalled(window: &mut (Instant, u64), options: &Options) -> Result<(), Failure> {
    let elapsed = window.0.elapsed();
    if elapsed < options.stall {
        return Ok(());
    }
    let bytes = std::mem::replace(window, (Instant::now(), 0)).1;
    if (bytes as f64) < options.slowest as f64 * elapsed.as_secs_f64() {
        return Err(Failure::transient(format!("stalled: {bytes} bytes in {:.1} s", elapsed.as_secs_f64())));
    }
    Ok(())
}
