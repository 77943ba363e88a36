//! A 1.2 GB file from loopback into the store, verified, against `curl` to the same disk, alone and with `sha256sum`; and what a second fetch costs.
//!
//! `cargo bench --bench fetch [-- MEGABYTES]`; they take turns, each a few times, and the fastest of each counts.

#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark that cannot go on should stop where it stands")]

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::ControlFlow;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};
use tec_zoo::fetch::{Options, Store, fetch_file};
use tec_zoo::zoo::Digest;

const ROUNDS: usize = 5;

fn main() {
    let megabytes = std::env::args().filter_map(|argument| argument.parse().ok()).next().unwrap_or(1200_u64);
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let served = dir.path().join("served");
    let sha256 = write(&served, megabytes);
    let address = serve(&served);
    let url = format!("http://{address}/weights.pth");
    let hashes = [Digest::Sha256(sha256)];
    let (mut ours, mut curls, mut verified, mut cached) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let target = dir.path().join("curl");
        let run = |command: &mut Command| command.output().is_ok_and(|output| output.status.success());
        let curl = || run(Command::new("curl").args(["-s", "-o"]).arg(&target).arg(&url));
        curls.extend(timed(curl));
        let _ = std::fs::remove_file(&target);
        verified.extend(timed(|| curl() && run(Command::new("sha256sum").arg(&target))));
        let _ = std::fs::remove_file(&target);

        let home = dir.path().join("home");
        let store = Store::open(&home).unwrap();
        let fetch =
            || fetch_file(&store, &url, &hashes, None, &Options::default(), &mut |_| ControlFlow::Continue(())).is_ok();
        ours.extend(timed(fetch));
        cached.extend(timed(fetch));
        std::fs::remove_dir_all(&home).unwrap();
    }
    let best = |times: &[Duration]| times.iter().min().map_or(f64::NAN, Duration::as_secs_f64);
    println!("{megabytes} MB, fastest of {ROUNDS}");
    println!("fetch and verify  {:7.3} s", best(&ours));
    println!("curl              {:7.3} s   (NaN: not installed)", best(&curls));
    println!("curl; sha256sum   {:7.3} s", best(&verified));
    println!("rate against curl {:7.2}, verified {:.2}", best(&curls) / best(&ours), best(&verified) / best(&ours));
    println!("fetched before    {:7.4} s", best(&cached));
}

fn timed(run: impl FnOnce() -> bool) -> Option<Duration> {
    let start = Instant::now();
    run().then(|| start.elapsed())
}

/// Random values; their sha256.
fn write(path: &Path, megabytes: u64) -> String {
    let (mut file, mut hash, mut state) = (File::create(path).unwrap(), Sha256::new(), 1_u64);
    let mut block = vec![0; 1_000_000];
    for _ in 0..megabytes {
        for word in block.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        hash.update(&block);
        file.write_all(&block).unwrap();
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A server of that one file, with ranges.
fn serve(path: &Path) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let path = path.to_owned();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let path = path.clone();
            // A client that has what it wants hangs up.
            std::thread::spawn(move || drop(stream.and_then(|stream| answer(stream, &path))));
        }
    });
    address
}

fn answer(mut stream: TcpStream, path: &Path) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut file = File::open(path)?;
    let total = file.metadata()?.len();
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    loop {
        let mut range = None;
        loop {
            let Some(line) = lines.next().transpose()? else { return Ok(()) };
            if line.is_empty() {
                break;
            }
            if let Some((first, last)) =
                line.to_ascii_lowercase().strip_prefix("range: bytes=").and_then(|r| r.split_once('-'))
            {
                range = first.parse::<u64>().ok().zip(last.parse::<u64>().ok());
            }
        }
        let (first, last) = range.unwrap_or((0, total - 1));
        let status = match range {
            Some(_) => format!("206 .\r\nContent-Range: bytes {first}-{last}/{total}"),
            None => "200 .".to_owned(),
        };
        let length = last + 1 - first;
        write!(stream, "HTTP/1.1 {status}\r\nETag: \"b\"\r\nContent-Length: {length}\r\n\r\n")?;
        file.seek(SeekFrom::Start(first))?;
        // On Linux this is a sendfile: the server costs next to nothing.
        std::io::copy(&mut (&mut file).take(length), &mut stream)?;
    }
}
