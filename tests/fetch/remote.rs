//! Checkpoints read where they are: only what is needed comes here, and it is what a whole download would have given.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tec_zoo::checkpoint::Checkpoint;
use tec_zoo::convert::{Request, convert};
use tec_zoo::fetch::{Event, FetchError, Options, Remote, convert_remote};
use tec_zoo::model::Canonical;

use super::server::{Answer, Fault, Server};
use super::{Home, files, go_on, hear, options};
use crate::words::InFull;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/reference").join(name)
}

/// Serves a fixture; each third answer breaks off.
fn serving(name: &str) -> Server {
    let body = std::fs::read(fixture(name)).unwrap();
    let count = AtomicUsize::new(0);
    Server::start(move |ask| {
        let answer = Answer::file(ask, &body, "\"z\"");
        let broken = ask.wants_data() && count.fetch_add(1, Ordering::SeqCst) % 3 == 2;
        let half = answer.body.len() / 2;
        if broken { answer.fault(Fault::Drop(half)) } else { answer }
    })
}

#[test]
fn a_remote_file_is_listed_by_its_directory_and_pickle_alone() {
    for name in
        ["ibot_checkpoint_full.pth", "mae_full_checkpoint-799.pth", "tec_checkpoint-299.pth", "mocov3_vit_tiny.pth.tar"]
    {
        let (server, home, options) = (serving(name), Home::new(), options());
        let remote = Remote::open(&home.store, &server.url(name), &options, &mut go_on).unwrap();
        let (there, here) = (Checkpoint::open(remote.path()).unwrap(), Checkpoint::open(&fixture(name)).unwrap());
        let shown = |checkpoint: &Checkpoint| -> Vec<String> {
            let tensors = checkpoint.tensors().iter();
            tensors.map(|tensor| format!("{:?} {:?} {:?}", tensor.path, tensor.dtype, tensor.shape)).collect()
        };
        assert_eq!(shown(&there), shown(&here), "{name}");
        let (fetched, total) = remote.fetched();
        assert_eq!(total, std::fs::metadata(fixture(name)).unwrap().len());
        // The search for the directory alone takes 64 kB, much of these small files and nothing of real ones.
        assert!(fetched < total / 2, "{name}: {fetched} of {total}");
        drop(remote);
        assert_eq!(files(&home.path().join("partial")), Vec::<String>::new());
    }
}

#[test]
fn one_branch_of_a_remote_file_is_bit_for_bit_the_local_one() {
    for (name, family, branch) in [
        ("ibot_checkpoint_full.pth", "ibot", "teacher"),
        ("ibot_checkpoint_full.pth", "ibot", "student"),
        ("mocov3_vit_tiny.pth.tar", "moco-v3", "base"),
    ] {
        let (server, home) = (serving(name), Home::new());
        let request =
            Request { family: Some(family.into()), branch: Some(branch.into()), heads: Some(4), ..Request::default() };
        let (ours, theirs) = (home.path().join("remote"), home.path().join("local"));
        let made = convert_remote(&home.store, &server.url(name), &ours, &request, &options(), &mut go_on).unwrap();
        convert(&fixture(name), &theirs, &request, &mut |_| ControlFlow::Continue(())).unwrap();
        let weights = |dir: &Path| std::fs::read(dir.join("model.safetensors")).unwrap();
        assert!(weights(&ours) == weights(&theirs), "{name} {branch}");
        assert!(made.fetched < made.total * 2 / 3, "{name}: {} of {}", made.fetched, made.total);
        let config = Canonical::open(&ours).unwrap().config().clone();
        assert_eq!(config.provenance.source_sha256, "unknown: read in part");
        assert_eq!(config.provenance.source_file, name);
    }
}

#[test]
fn a_reading_in_part_tells_how_far_it_is_and_gives_a_drip_up() {
    let name = "ibot_checkpoint_full.pth";
    let (server, home, mut events) = (serving(name), Home::new(), Vec::new());
    let branch = Some("teacher".to_owned());
    let request = Request { branch, heads: Some(4), ..Request::default() };
    let out = home.path().join("out");
    let mut listen = |event| hear(&mut events, event);
    let made = convert_remote(&home.store, &server.url(name), &out, &request, &options(), &mut listen).unwrap();
    let progress = Event::Progress { have: made.fetched, total: Some(made.fetched) };
    assert!(events.contains(&progress), "{events:?}");
    assert!(events.contains(&Event::InPart { needed: made.fetched, total: made.total }), "{events:?}");
    assert!(events.iter().any(|event| matches!(event, Event::Retry { .. })), "{events:?}");

    let body = std::fs::read(fixture(name)).unwrap();
    let drip = Fault::Drip(10, Duration::from_millis(5));
    let server = Server::start(move |ask| {
        let answer = Answer::file(ask, &body, "\"d\"");
        if ask.wants_data() { answer.fault(drip) } else { answer }
    });
    let options = Options { retries: 1, ..options() };
    let error = Remote::open(&home.store, &server.url(name), &options, &mut go_on).err().unwrap();
    assert!(error.to_string().contains("stalled"), "{error}");
}

#[test]
fn a_position_row_that_goes_into_the_class_token_comes_along() {
    let name = "../dinov2/vit_reg4_tiny14_pretrain.pth";
    let (server, home) = (serving(name), Home::new());
    let request = Request { heads: Some(4), ..Request::default() };
    let [ours, theirs] = ["remote", "local"].map(|dir| home.path().join(dir));
    convert_remote(&home.store, &server.url("vit.pth"), &ours, &request, &options(), &mut go_on).unwrap();
    convert(&fixture(name), &theirs, &request, &mut |_| ControlFlow::Continue(())).unwrap();
    let [ours, theirs] = [ours, theirs].map(|dir| std::fs::read(dir.join("model.safetensors")).unwrap());
    assert!(ours == theirs);
}

#[test]
fn what_arrives_damaged_or_cannot_be_read_in_part_is_refused() {
    let name = "ibot_checkpoint_full.pth";
    let body = std::fs::read(fixture(name)).unwrap();
    let request =
        Request { family: Some("ibot".into()), branch: Some("teacher".into()), heads: Some(4), ..Request::default() };
    let refused = |server: &Server, options: &Options| -> FetchError {
        let home = Home::new();
        let out = home.path().join("out");
        let error = convert_remote(&home.store, &server.url(name), &out, &request, options, &mut go_on).unwrap_err();
        assert!(!out.exists() && files(&home.path().join("partial")).is_empty());
        error
    };
    // One bit in the middle of every longer part: some storage's, since the pickle and the directory are near the ends.
    let served = body.clone();
    let server = Server::start(move |ask| {
        let mut answer = Answer::file(ask, &served, "\"z\"");
        if ask.range.is_some_and(|(first, last)| first > 60_000 && last < served.len() as u64 - 70_000) {
            let middle = answer.body.len() / 2;
            answer.body[middle] ^= 1;
        }
        answer
    });
    let error = refused(&server, &options()).in_full();
    assert!(error.contains("its checksum differs"), "{error}");

    let (whole, torn) = (body.clone(), body[..body.len() / 2].to_vec());
    let error = refused(&Server::start(move |_| Answer::whole(&whole)), &options()).in_full();
    assert!(error.contains("does not give parts"), "{error}");
    let error = refused(&Server::start(move |ask| Answer::file(ask, &torn, "\"z\"")), &options()).in_full();
    assert!(error.contains("no end-of-directory record"), "{error}");
    let changing = body.clone();
    let server = Server::start(move |ask| Answer::file(ask, &changing, &format!("\"{}\"", ask.number)));
    let error = refused(&server, &options()).in_full();
    assert!(error.contains("changed on the server"), "{error}");
    let error = refused(&server, &Options { max_bytes: 1000, ..options() }).in_full();
    assert!(error.contains("more than the 1000 accepted"), "{error}");
    let error = refused(&server, &Options { offline: true, ..options() });
    assert!(matches!(error, FetchError::Offline { .. }), "{error}");
}

/// Any flipped bit ends in an error or in the listing there was: never in a panic, never in a request without end.
#[test]
fn a_hostile_archive_does_no_harm() {
    let body = std::fs::read(fixture("mocov3_vit_tiny.pth.tar")).unwrap();
    let home = Home::new();
    for seed in 0..200_usize {
        let mut spoilt = body.clone();
        // In the directory and the end record.
        let at = spoilt.len() - 1 - (seed * 131) % 14_000;
        spoilt[at] ^= 1 << (seed % 8);
        let server = Server::start(move |ask| Answer::file(ask, &spoilt, "\"h\""));
        let options = Options { retries: 0, ..options() };
        if let Ok(remote) = Remote::open(&home.store, &server.url("x"), &options, &mut go_on) {
            let _ = Checkpoint::open(remote.path());
        }
        assert!(server.requests() < 100);
    }
}

#[cfg(feature = "cli")]
#[test]
fn the_program_takes_addresses_where_it_takes_files() {
    let name = "ibot_checkpoint_full.pth";
    let (server, home) = (serving(name), Home::new());
    let url = server.url(name);
    let run = |arguments: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tec-zoo"));
        let output =
            command.args(arguments).env("TEC_ZOO_HOME", home.path()).current_dir(home.path()).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{stderr}");
        assert!(stderr.contains(" of "), "it says how much it fetched: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    };
    let found: serde_json::Value = serde_json::from_str(&run(&["inspect", &url, "--json"])).unwrap();
    let fits = |candidate: &&serde_json::Value| candidate["fits"] == true;
    let families: Vec<_> = found["candidates"].as_array().unwrap().iter().filter(fits).collect();
    assert_eq!((families.len(), &families[0]["family"]), (1, &"ibot".into()));
    run(&["convert", &url, "--branch", "teacher", "--heads", "4", "--out", "model"]);
    assert_eq!(Canonical::open(&home.path().join("model")).unwrap().config().vit.heads, 4);
}
