//! A disk that fills up while a file is being written: a real one, of a few megabytes, in a mount namespace of its own.

#![cfg(target_os = "linux")]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tec_zoo::fetch::{Event, FetchError, Kind, Options, Store, fetch_file};

use super::server::{Answer, Fault, Server};
use super::{full, go_on, noise, options, sha256};
use crate::words::InFull;

const SIZE: usize = 6 << 20;
const DISK: &str = "TEC_ZOO_TEST_DISK";
const LIMITED: &str = "TEC_ZOO_TEST_LIMITED";
/// What the shell below exits with where no disk can be mounted.
const NO_MOUNT: i32 = 77;

fn settings() -> Options {
    Options { stall: Duration::from_secs(5), ..options() }
}

fn slow(body: &Arc<Vec<u8>>) -> Server {
    let body = Arc::clone(body);
    Server::start(move |ask| Answer::file(ask, &body, "\"d\"").fault(Fault::Drip(10_007, Duration::from_millis(2))))
}

/// What the test runs in a process of its own: on a disk of 8 MB, which somebody else fills when a part has arrived.
#[test]
#[ignore = "run by the test of this module, with its arguments in the environment"]
fn child() {
    let disk = PathBuf::from(std::env::var(DISK).unwrap());
    let body = Arc::new(noise(SIZE, 30));
    let server = slow(&body);
    let url = server.url("weights.pth");
    let store = Store::open(&disk.join("home")).unwrap();
    let limited = std::env::var_os(LIMITED).is_some();
    let filler = disk.join("filler");
    let mut events = |event| {
        if let Event::Progress { have, .. } = event
            && have > SIZE as u64 / 3
            && !limited
            && !filler.exists()
        {
            fill(&filler);
        }
        go_on(event)
    };
    let error = fetch_file(&store, &url, &full(&body), None, &settings(), &mut events).unwrap_err();
    assert!(matches!(error, FetchError::NoSpace { .. }), "{error}");
    assert_eq!(error.kind(), Kind::Refused);
    let text = error.in_full();
    assert!(text.contains("are needed") && text.contains("run the same command again"), "{text}");
    assert_eq!(std::fs::read_dir(disk.join("home/blobs")).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(disk.join("home/locks")).unwrap().count(), 0);
    if limited {
        return;
    }
    std::fs::remove_file(&filler).unwrap();
    let (mut resumed, before) = (0, server.sent());
    let mut events = |event| {
        if let Event::Resumed { have, .. } = event {
            resumed = have;
        }
        go_on(event)
    };
    let blob = fetch_file(&store, &url, &full(&body), None, &settings(), &mut events).unwrap();
    assert!(std::fs::read(&blob.path).unwrap() == *body && blob.sha256 == sha256(&body));
    assert!(resumed > SIZE as u64 / 5, "only {resumed} bytes were kept");
    // What was on its way when the first one gave up is counted too.
    assert!(server.sent() - before <= SIZE as u64 - resumed + (1 << 18), "what was kept was fetched again");
}

fn fill(path: &Path) {
    let mut file = std::fs::File::create(path).unwrap();
    // To the last page.
    while file.write_all(&[1; 4096]).is_ok() {}
}

#[test]
fn a_disk_that_fills_up_is_named_and_the_rest_is_fetched_when_there_is_room() {
    let disk = tempfile::tempdir().unwrap();
    let run = |script: &str, program: &[&str], limited: bool| {
        let mut command = Command::new(program[0]);
        command.args(&program[1..]).args(["sh", "-c", script, "sh"]).arg(disk.path());
        command.arg(std::env::current_exe().unwrap()).env(DISK, disk.path()).stdout(Stdio::piped());
        if limited {
            command.env(LIMITED, "1");
        }
        command.output()
    };
    let test = "exec \"$2\" --exact fetch::disk::child --ignored --quiet";
    let mounted = format!("mount -t tmpfs -o size=8m none \"$1\" || exit {NO_MOUNT}; {test}");
    let output = match run(&mounted, &["unshare", "-rm"], false) {
        Ok(output) if output.status.success() || output.status.code() == Some(101) => output,
        // Where nobody may mount, a limit on the size of files does what can be done.
        _ => run(&format!("trap '' XFSZ; ulimit -f 4096; {test}"), &["env"], true).unwrap(),
    };
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).join("\n");
    assert!(output.status.success(), "{said}");
    assert!(said.contains("1 passed"), "{said}");
}
