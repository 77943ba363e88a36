//! The processes of a run find one another over TCP, agree on a few bytes, and notice when one of them is gone.
//!
//! NCCL needs an identifier from rank 0 before it can join anybody, and waits without end for a process that died. So
//! rank 0 hands out the identifier here, and the connections stay: each end says every few seconds that it is there,
//! and goodbye when it is done. Nothing received is trusted: a stranger who connects to the port is turned away.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{DistributedError, Place};

/// What a member says first; the digit is the version of what follows.
const GREETING: &[u8; 16] = b"tec-zoo meeting1";

/// Size of the bytes that rank 0 hands out.
pub const SHARED: usize = 128;

/// A stranger is given this long to say what it wants.
const PATIENCE: Duration = Duration::from_secs(5);

/// A sign of life goes out this often …
const BEAT: Duration = Duration::from_secs(2);

/// … and one that is missing this long means that the process is gone.
const SILENCE: Duration = Duration::from_secs(60);

const ALIVE: u8 = b'.';
const GOODBYE: u8 = b'!';
const REFUSED: u8 = b'?';

/// No rank is lost.
const NONE: u64 = u64::MAX;

/// A world whose processes have met.
#[derive(Debug)]
pub struct Meeting {
    shared: [u8; SHARED],
    state: Arc<State>,
    /// A line to each member at rank 0, to rank 0 at a member.
    lines: Vec<(usize, TcpStream)>,
    watches: Vec<JoinHandle<()>>,
}

struct State {
    lost: AtomicU64,
    leaving: AtomicBool,
    on_loss: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("lost", &self.lost).field("leaving", &self.leaving).finish_non_exhaustive()
    }
}

impl Meeting {
    /// Meets the other processes of `place`'s world within `limit`; rank 0's `shared` becomes everyone's.
    ///
    /// # Errors
    /// No meeting point is known, its port is taken, or somebody does not come in time.
    pub fn join(place: &Place, shared: [u8; SHARED], limit: Duration) -> Result<Self, DistributedError> {
        let address = place.meeting.as_deref().ok_or(DistributedError::NoMeetingPoint { size: place.size })?;
        let until = Instant::now() + limit;
        let fail = |reason: String| DistributedError::Meeting { rank: place.rank, address: address.into(), reason };
        let (shared, lines) = match place.rank {
            0 => (shared, gather(place, address, &shared, until).map_err(fail)?),
            _ => arrive(place, address, until).map(|(shared, line)| (shared, vec![(0, line)])).map_err(fail)?,
        };
        let state =
            Arc::new(State { lost: AtomicU64::new(NONE), leaving: AtomicBool::new(false), on_loss: Mutex::new(None) });
        let mut meeting = Self { shared, state, lines, watches: Vec::new() };
        meeting.watch().map_err(|error| fail(error.to_string()))?;
        Ok(meeting)
    }

    /// Rank 0's bytes.
    pub fn shared(&self) -> &[u8; SHARED] {
        &self.shared
    }

    /// Calls `f` when a process is lost; at once if one was already.
    pub fn on_loss(&self, f: impl FnOnce() + Send + 'static) {
        *self.state.on_loss.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(f));
        if self.lost().is_some() {
            self.state.call();
        }
    }

    /// The rank known to be gone: a member's own, or at a member rank 0, which leaves when anyone is lost.
    pub fn lost(&self) -> Option<usize> {
        Some(self.state.lost.load(Ordering::Acquire)).filter(|rank| *rank != NONE).map(|rank| rank as usize)
    }

    /// Says goodbye. The others go on.
    pub fn leave(mut self) {
        self.state.leaving.store(true, Ordering::Release);
        for (_, line) in &self.lines {
            let mut line = line;
            let _ = line.write_all(&[GOODBYE]);
        }
        for watch in self.watches.drain(..) {
            let _ = watch.join();
        }
    }

    fn watch(&mut self) -> std::io::Result<()> {
        for (rank, line) in &self.lines {
            let (rank, line, state) = (*rank, line.try_clone()?, Arc::clone(&self.state));
            let all = self.lines.iter().map(|(_, line)| line.try_clone()).collect::<Result<Vec<_>, _>>()?;
            let watch = std::thread::Builder::new().name(format!("rank {rank}")).spawn(move || {
                if !stays(&line, &state) {
                    let _ = state.lost.compare_exchange(NONE, rank as u64, Ordering::AcqRel, Ordering::Acquire);
                    state.call();
                    // Members only know rank 0: hanging up on all of them is how they hear of it.
                    for line in all {
                        let _ = line.shutdown(Shutdown::Both);
                    }
                }
            })?;
            self.watches.push(watch);
        }
        Ok(())
    }
}

impl Drop for Meeting {
    /// Without a goodbye: the others take this process for lost.
    fn drop(&mut self) {
        if !self.state.leaving.swap(true, Ordering::AcqRel) {
            for (_, line) in &self.lines {
                let _ = line.shutdown(Shutdown::Both);
            }
        }
    }
}

impl State {
    fn call(&self) {
        let f = self.on_loss.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(f) = f {
            f();
        }
    }
}

/// Listens to a process until it says goodbye, or this one leaves; false when it falls silent.
fn stays(mut line: &TcpStream, state: &State) -> bool {
    let mut heard = Instant::now();
    let mut bytes = [0u8; 64];
    loop {
        if state.leaving.load(Ordering::Acquire) {
            return true;
        }
        match line.read(&mut bytes) {
            Ok(0) => return state.leaving.load(Ordering::Acquire),
            Ok(n) if bytes[..n].contains(&GOODBYE) => return true,
            Ok(_) => heard = Instant::now(),
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                if heard.elapsed() > SILENCE {
                    return false;
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return state.leaving.load(Ordering::Acquire),
        }
        if line.write_all(&[ALIVE]).is_err() && !state.leaving.load(Ordering::Acquire) {
            // A goodbye may still lie unread before the end of the stream.
            return matches!(line.read(&mut bytes), Ok(n) if bytes[..n].contains(&GOODBYE));
        }
    }
}

/// Rank 0: waits for everyone else.
fn gather(
    place: &Place,
    address: &str,
    shared: &[u8; SHARED],
    until: Instant,
) -> Result<Vec<(usize, TcpStream)>, String> {
    // The address is what the others call; behind it, this machine may know itself by another.
    let port = address.rsplit(':').next().unwrap_or_default();
    let port: u16 = port.parse().map_err(|_| format!("`{port}` is no port"))?;
    let listener = TcpListener::bind(("::", port)).or_else(|_| TcpListener::bind(("0.0.0.0", port)));
    let listener = listener.map_err(|error| format!("cannot listen on port {port}: {error}"))?;
    listener.set_nonblocking(true).map_err(|error| error.to_string())?;
    let mut lines: Vec<(usize, TcpStream)> = Vec::new();
    while lines.len() + 1 < place.size {
        let mut line = match listener.accept() {
            Ok((line, _)) => line,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                if Instant::now() > until {
                    let here: Vec<usize> = lines.iter().map(|(rank, _)| *rank).collect();
                    let missing: Vec<usize> = (1..place.size).filter(|rank| !here.contains(rank)).take(16).collect();
                    return Err(format!("ranks {missing:?} of {} did not come", place.size));
                }
                std::thread::sleep(Duration::from_millis(20));
                continue;
            }
            Err(error) => return Err(error.to_string()),
        };
        let Ok((rank, size)) = greeted(&mut line) else { continue };
        if size != place.size || rank == 0 || rank >= size || lines.iter().any(|(known, _)| *known == rank) {
            let _ = line.write_all(&[REFUSED]);
            return Err(format!(
                "`rank {rank} of {size}` came to a world of {} that it is no new member of",
                place.size
            ));
        }
        line.write_all(&[ALIVE]).and_then(|()| line.write_all(shared)).map_err(|error| error.to_string())?;
        line.set_read_timeout(Some(BEAT)).map_err(|error| error.to_string())?;
        lines.push((rank, line));
    }
    Ok(lines)
}

/// What a caller says of itself.
fn greeted(line: &mut TcpStream) -> std::io::Result<(usize, usize)> {
    line.set_nonblocking(false)?;
    line.set_nodelay(true)?;
    line.set_read_timeout(Some(PATIENCE))?;
    line.set_write_timeout(Some(PATIENCE))?;
    let mut hello = [0u8; GREETING.len() + 8];
    line.read_exact(&mut hello)?;
    if !hello.starts_with(GREETING) {
        return Err(std::io::ErrorKind::InvalidData.into());
    }
    let number = |at: usize| u32::from_le_bytes([hello[at], hello[at + 1], hello[at + 2], hello[at + 3]]) as usize;
    Ok((number(GREETING.len()), number(GREETING.len() + 4)))
}

/// Another rank: calls rank 0 until it answers.
fn arrive(place: &Place, address: &str, until: Instant) -> Result<([u8; SHARED], TcpStream), String> {
    let mut hello = GREETING.to_vec();
    hello.extend((place.rank as u32).to_le_bytes());
    hello.extend((place.size as u32).to_le_bytes());
    loop {
        match call(address, &hello) {
            Ok((ALIVE, shared, line)) => return Ok((shared, line)),
            Ok(_) => return Err(format!("rank 0 knows no `rank {} of {}`", place.rank, place.size)),
            Err(error) if Instant::now() > until => return Err(error.to_string()),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

fn call(address: &str, hello: &[u8]) -> std::io::Result<(u8, [u8; SHARED], TcpStream)> {
    let mut last = std::io::Error::from(std::io::ErrorKind::NotFound);
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(mut line) => {
                line.set_nodelay(true)?;
                line.set_read_timeout(Some(PATIENCE))?;
                line.set_write_timeout(Some(PATIENCE))?;
                line.write_all(hello)?;
                let (mut answer, mut shared) = ([0u8], [0u8; SHARED]);
                line.read_exact(&mut answer)?;
                if answer[0] == ALIVE {
                    line.read_exact(&mut shared)?;
                }
                line.set_read_timeout(Some(BEAT))?;
                return Ok((answer[0], shared, line));
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}
