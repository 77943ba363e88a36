//! Processes that are killed, and processes that compete.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tec_zoo::fetch::{Event, Options, Store, fetch_file};

use super::server::{Answer, Fault, Server};
use super::{Home, files, full, go_on, noise, options, sha256};

pub(crate) const SIZE: usize = 16 << 20;
const URL: &str = "TEC_ZOO_TEST_URL";
const HASH: &str = "TEC_ZOO_TEST_HASH";
const HOME: &str = "TEC_ZOO_TEST_FOLDER";

fn settings() -> Options {
    Options { chunk: 128 << 10, ..options() }
}

/// What the tests below run in a process of its own.
#[test]
#[ignore = "run by the tests of this module, with its arguments in the environment"]
fn child() {
    let argument = |name: &str| std::env::var(name).unwrap();
    let store = Store::open(argument(HOME).as_ref()).unwrap();
    let hashes = [format!("sha256:{}", argument(HASH)).parse().unwrap()];
    fetch_file(&store, &argument(URL), &hashes, None, &settings(), &mut go_on).unwrap();
}

fn start(home: &Home, server: &Server, body: &[u8]) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "fetch::kill::child", "--ignored", "--quiet"])
        .env(URL, server.url("weights.pth"))
        .env(HASH, sha256(body))
        .env(HOME, home.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// About 30 MB/s in all, so that there is time to kill.
fn slow(body: &Arc<Vec<u8>>) -> Server {
    let body = Arc::clone(body);
    Server::start(move |ask| Answer::file(ask, &body, "\"k\"").fault(Fault::Drip(10_007, Duration::from_millis(1))))
}

/// Kills a fetch when the server has sent `at` bytes, then fetches again. Bytes that were there and are fetched again:
/// what the part held when its writer died, less what the next run began with.
pub(crate) fn killed_at(at: u64, body: &Arc<Vec<u8>>) -> u64 {
    let server = slow(body);
    let home = Home::new();
    let mut child = start(&home, &server, body);
    let deadline = Instant::now() + Duration::from_secs(20);
    while server.sent() < at && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let part = files(&home.path().join("partial")).into_iter().find(|name| name.ends_with(".part"));
    let part = part.map_or_else(Vec::new, |name| std::fs::read(home.path().join("partial").join(name)).unwrap());
    let pairs = part.chunks(512).zip(body.chunks(512));
    let written: usize = pairs.filter(|(there, right)| there == right).map(|(there, _)| there.len()).sum();
    let mut resumed = 0;
    let mut events = |event| {
        match &event {
            Event::Resumed { have, .. } => resumed = *have,
            Event::Waiting { holder } => panic!("the dead process's lock was not broken at once: {holder}"),
            _ => {}
        }
        go_on(event)
    };
    let blob =
        fetch_file(&home.store, &server.url("weights.pth"), &full(body), None, &settings(), &mut events).unwrap();
    home.holds(&blob, body);
    // A block that was half written when the process died counts as not there.
    (written as u64).saturating_sub(resumed)
}

#[test]
fn a_killed_fetch_goes_on_where_it_stopped() {
    let body = Arc::new(noise(SIZE, 20));
    let again = killed_at(SIZE as u64 / 2, &body);
    println!("{again} bytes were fetched again");
    assert!(again < SIZE as u64 / 50, "{again} bytes were fetched again");
}

#[test]
fn processes_at_once_fetch_a_file_once() {
    let body = Arc::new(noise(SIZE, 21));
    let server = slow(&body);
    let home = Home::new();
    let children: Vec<Child> = (0..3).map(|_| start(&home, &server, &body)).collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    home.holds(&home.get(&server.url("weights.pth"), &full(&body)).unwrap(), &body);
    assert_eq!(server.sent(), SIZE as u64 + 1);
}
