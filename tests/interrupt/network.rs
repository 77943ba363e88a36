//! A fetch is told to stop wherever it waits for somebody else: a silent server, a slow one, one that asks for patience,
//! another process.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::{Moment, interrupted, lock_of};
use crate::fetch::server::{Answer, Ask, Fault, Server};
use crate::fetch::{noise, sha256};

const SIZE: usize = 24 << 20;

/// A catalogue of one model, whose only file is at `url`.
fn catalogue(folder: &Path, url: &str, hash: Option<&str>) {
    super::models::catalogue(folder, "dino-vitb16", &format!("url = \"{url}\""), "timm", hash);
}

/// Stops a fetch from `server` once it has said `said` and a little later, with either signal; what it said at the end.
fn stopped(url: &str, hash: Option<&str>, arguments: &[&str], said: &str) -> Vec<String> {
    let mut told = Vec::new();
    for (signal, later) in [("-INT", 30), ("-TERM", 400)] {
        let ready = |_: &Path, stderr: &str| stderr.contains(said);
        let moment = Moment { arguments, ready: &ready, later: Duration::from_millis(later) };
        told.extend(interrupted(&moment, signal, &|folder| catalogue(folder, url, hash)));
    }
    assert_eq!(told.len(), 2, "{arguments:?} was over before it could be stopped");
    told
}

fn serving(body: &Arc<Vec<u8>>, fault: impl Fn(&Ask, Answer) -> Answer + Send + Sync + 'static) -> Server {
    let body = Arc::clone(body);
    Server::start(move |ask| fault(ask, Answer::file(ask, &body, "\"i\"")))
}

#[test]
fn a_server_that_takes_a_connection_and_says_nothing_holds_nobody() {
    // The system accepts for it.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/x.safetensors", silent.local_addr().unwrap());
    let told = stopped(&url, None, &["fetch", "big"], "from http");
    assert!(told.iter().all(|told| !told.contains("goes on from here")), "{told:?}");
    stopped(&url, None, &["inspect", &url], "from http");
    stopped(&url, None, &["convert", &url, "--out", "out"], "from http");
    stopped(&url, None, &["fetch", "big", "--from", &url], "from http");
}

#[test]
fn a_body_that_stalls_or_drips_holds_nobody() {
    let body = Arc::new(noise(SIZE, 40));
    let hash = sha256(&body);
    for fault in [Fault::Stall(1 << 20), Fault::Drip(20_000, Duration::from_millis(20))] {
        // In parts: what came is kept.
        let server = serving(&body, move |ask, answer| if ask.wants_data() { answer.fault(fault) } else { answer });
        let url = server.url("x.safetensors");
        let ready = |folder: &Path, _: &str| {
            super::everything(&folder.join("home/partial"))
                .iter()
                .any(|path| path.extension().is_some_and(|e| e == "part"))
        };
        let moment = Moment { arguments: &["fetch", "big"], ready: &ready, later: Duration::from_millis(500) };
        let told = interrupted(&moment, "-INT", &|folder| catalogue(folder, &url, Some(&hash))).unwrap();
        assert!(told.contains("the next fetch goes on from here"), "{told}");
        // In one piece: nothing is kept, and nothing else is said.
        let whole = Arc::clone(&body);
        let server = Server::start(move |_| Answer::whole(&whole).fault(fault));
        let url = server.url("x.safetensors");
        let told = interrupted(&moment, "-TERM", &|folder| catalogue(folder, &url, Some(&hash))).unwrap();
        assert!(told.contains("nothing was left half-written") && !told.contains("goes on from here"), "{told}");
    }
}

#[test]
fn pauses_between_attempts_hold_nobody() {
    let failing = Server::start(|_| Answer::status(503));
    stopped(&failing.url("x.safetensors"), None, &["fetch", "big"], "trying again in");
    let busy = Server::start(|_| Answer::status(429).header("Retry-After", "40"));
    let told = stopped(&busy.url("x.safetensors"), None, &["fetch", "big"], "trying again in 40 s");
    assert!(told.iter().all(|told| told.contains("429")), "{told:?}");
    stopped(&busy.url("x.safetensors"), None, &["inspect", &busy.url("x.pth")], "trying again in 40 s");
}

#[test]
fn another_processs_lock_holds_nobody() {
    for signal in ["-INT", "-TERM"] {
        let ready = |_: &Path, stderr: &str| stderr.contains("waiting for another process");
        let moment = Moment { arguments: &["fetch", "big"], ready: &ready, later: Duration::from_millis(100) };
        let prepare = |folder: &Path| {
            catalogue(folder, "http://127.0.0.1:9/x.safetensors", None);
            let locks = folder.join("home/locks");
            std::fs::create_dir_all(&locks).unwrap();
            // Somebody on another machine, of whom nothing is known but that the lock is held.
            std::fs::write(locks.join(lock_of("model big")), "0123456789abcdef 00000000000000000007\n").unwrap();
        };
        interrupted(&moment, signal, &prepare).unwrap();
    }
}

#[test]
fn a_reading_in_part_is_shown_stops_and_promises_nothing() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/reference/mocov3_vit_tiny.pth.tar");
    let body = Arc::new(std::fs::read(file).unwrap());
    // The size and the directory come at once, what is asked for then does not come at all.
    let server = serving(&body, |ask, answer| if ask.number >= 2 { answer.fault(Fault::Stall(100)) } else { answer });
    let url = server.url("x.pth.tar");
    for arguments in
        [&["convert", &url, "--branch", "momentum", "--heads", "4", "--out", "out"][..], &["inspect", &url]]
    {
        let ready = |folder: &Path, _: &str| super::hidden(&folder.join("home/partial"));
        let moment = Moment { arguments, ready: &ready, later: Duration::from_millis(400) };
        let told = interrupted(&moment, "-INT", &|folder| catalogue(folder, &url, None));
        let told = told.unwrap_or_else(|| panic!("{arguments:?} was over before it could be stopped"));
        assert!(!told.contains("goes on from here"), "{told}");
    }
}
