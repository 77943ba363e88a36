//! Fetching, against a server on loopback that fails in every way servers do: each run ends with the right bytes or with
//! an error that names what happened, and never with the wrong bytes.

mod bundle;
mod disk;
mod kill;
mod model;
mod random;
mod remote;
pub(crate) mod server;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};
use tec_zoo::fetch::{Blob, Event, FetchError, Kind, Options, Secret, Store, cache, fetch_file};
use tec_zoo::zoo::{Digest, Zoo};

use crate::words::InFull;

use server::{Answer, Ask, Fault, Server};

/// Bytes that look random, the same for the same seed.
pub(crate) fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(&mut next).flatten().take(bytes).collect()
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn full(bytes: &[u8]) -> Vec<Digest> {
    vec![Digest::Sha256(sha256(bytes))]
}

/// Impatient, so that tests are quick.
pub(crate) fn options() -> Options {
    Options {
        stall: Duration::from_millis(400),
        slowest: 50_000,
        retries: 3,
        backoff: Duration::from_millis(5),
        longest_wait: Duration::from_secs(2),
        keep_free: 0,
        keep_source: true,
        stale_lock: Duration::from_secs(10),
        chunk: 64 << 10,
        ..Options::default()
    }
}

/// Hears nothing and never says stop.
pub(crate) fn go_on(_: Event) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Notes what happened, of what is more than a look at the clock.
pub(crate) fn hear(events: &mut Vec<Event>, event: Event) -> ControlFlow<()> {
    events.extend(Some(event).filter(|event| *event != Event::Idle));
    ControlFlow::Continue(())
}

pub(crate) struct Home {
    dir: tempfile::TempDir,
    pub(crate) store: Store,
}

impl Home {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        Self { dir, store }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    fn get(&self, url: &str, hashes: &[Digest]) -> Result<Blob, FetchError> {
        fetch_file(&self.store, url, hashes, None, &options(), &mut go_on)
    }

    fn holds(&self, blob: &Blob, body: &[u8]) {
        assert_eq!(blob.sha256, sha256(body));
        assert!(std::fs::read(&blob.path).unwrap() == body, "the store holds other bytes");
        assert_eq!(files(&self.path().join("partial")), Vec::<String>::new(), "something was left behind");
        assert_eq!(files(&self.path().join("locks")), Vec::<String>::new(), "a lock was left behind");
    }

    fn is_empty(&self) {
        assert_eq!(files(&self.path().join("blobs")), Vec::<String>::new(), "something was kept");
        assert_eq!(files(&self.path().join("locks")), Vec::<String>::new(), "a lock was left behind");
    }
}

pub(crate) fn files(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

const SIZE: usize = 1 << 20;

/// Serves `body`, the first answers with data as `fault` says.
fn failing(body: &Arc<Vec<u8>>, times: usize, fault: impl Fn(Answer) -> Answer + Send + Sync + 'static) -> Server {
    let body = Arc::clone(body);
    let left = AtomicUsize::new(times);
    Server::start(move |ask| {
        let answer = Answer::file(ask, &body, "\"one\"");
        let hit =
            ask.wants_data() && left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok();
        if hit { fault(answer) } else { answer }
    })
}

/// However the first answers fail, the file arrives whole, and not much more than once.
fn heals(name: &str, times: usize, fault: impl Fn(Answer) -> Answer + Send + Sync + 'static) {
    let body = Arc::new(noise(SIZE, 1));
    let server = failing(&body, times, fault);
    let home = Home::new();
    let blob = home.get(&server.url("weights.pth"), &full(&body)).unwrap_or_else(|error| panic!("{name}: {error}"));
    home.holds(&blob, &body);
    assert!(server.sent() < 2 * SIZE as u64, "{name}: {} bytes were sent", server.sent());
}

/// The error of a source whose every answer fails.
fn ends(fault: impl Fn(Answer) -> Answer + Send + Sync + 'static) -> FetchError {
    let body = Arc::new(noise(SIZE, 2));
    let server = failing(&body, usize::MAX, fault);
    let home = Home::new();
    let error = home.get(&server.url("weights.pth"), &full(&body)).unwrap_err();
    assert!(server.requests() < 60, "{} requests", server.requests());
    home.is_empty();
    error
}

#[test]
fn a_file_arrives_in_parts_and_is_not_fetched_twice() {
    let body = Arc::new(noise(SIZE + 77, 3));
    let server = failing(&body, 0, |answer| answer);
    let home = Home::new();
    let mut events = Vec::new();
    let url = server.url("weights.pth");
    let blob =
        fetch_file(&home.store, &url, &full(&body), None, &options(), &mut |event| hear(&mut events, event)).unwrap();
    home.holds(&blob, &body);
    assert_eq!(server.sent(), body.len() as u64 + 1, "the probe's byte and the file");
    assert!(server.requests() > 4, "it came in parts");
    let total = body.len() as u64;
    assert!(events.contains(&Event::Verified { sha256: sha256(&body), bytes: total }));
    assert!(events.iter().any(|event| matches!(event, Event::Progress { have, .. } if *have == total)));
    let before = server.requests();
    let hashes = full(&body);
    let start = Instant::now();
    assert_eq!(home.get(&url, &hashes).unwrap(), blob);
    assert!(start.elapsed() < Duration::from_millis(50));
    assert_eq!(server.requests(), before);
}

#[test]
fn broken_connections_are_taken_up_where_they_broke() {
    heals("drop at once", 3, |answer| answer.fault(Fault::Drop(0)));
    heals("drop mid-part", 8, |answer| answer.fault(Fault::Drop(40_000)));
    heals("stall", 3, |answer| answer.fault(Fault::Stall(30_000)));
    heals("slow drip", 3, |answer| answer.fault(Fault::Drip(10, Duration::from_millis(10))));
    heals("length that is too long", 3, |mut answer| {
        answer.claims = Some(Some(answer.body.len() as u64 + 1000));
        answer.body.truncate(20_000);
        answer
    });
    heals("length that is too short", 3, |mut answer| {
        answer.claims = Some(Some(1000));
        answer
    });
}

#[test]
fn servers_that_are_busy_are_asked_again() {
    heals("500", 3, |_| Answer::status(500));
    heals("503", 2, |_| Answer::status(503).header("Retry-After", "0"));
    heals("403 after a while", 2, |_| Answer::status(403));
    heals("a part that is another part", 2, |answer| answer.header("Content-Range", "bytes 5-9/10"));
    let start = Instant::now();
    heals("429", 1, |_| Answer::status(429).header("Retry-After", "1"));
    assert!(start.elapsed() >= Duration::from_secs(1), "the server's wish was not obeyed");
}

#[test]
fn a_source_that_never_recovers_ends_in_an_error_that_says_how() {
    type Case = (&'static str, fn(Answer) -> Answer);
    let cases: [Case; 6] = [
        ("500", |_| Answer::status(500)),
        ("stalled", |answer| answer.fault(Fault::Drip(1, Duration::from_millis(30)))),
        ("early", |mut answer| {
            // Whole for the protocol, but nothing in it.
            answer.headers[0].1 = "bytes 0-0/1048576".into();
            answer.body.truncate(1);
            answer
        }),
        ("come back in 3600 s", |_| Answer::status(429).header("Retry-After", "3600")),
        ("403", |_| Answer::status(403)),
        ("timed out", |answer| answer.fault(Fault::Stall(0))),
    ];
    for (says, fault) in cases {
        let error = ends(fault);
        assert_eq!(error.kind(), Kind::Network, "{error}");
        let text = error.in_full();
        let about_range = says == "early" && text.contains("asked for bytes");
        assert!(text.contains(says) || about_range, "{says}: {text}");
        assert!(text.contains("http://127.0.0.1"), "{text}");
    }
}

/// The first worker has nothing left to do when the second gives up.
#[test]
fn the_last_chunk_may_fail_alone() {
    let body = Arc::new(noise(2 * (64 << 10), 15));
    let served = Arc::clone(&body);
    let server = Server::start(move |ask| match ask.range {
        Some((first, _)) if first > 0 => Answer::status(500),
        _ => Answer::file(ask, &served, "\"l\""),
    });
    let home = Home::new();
    let error = home.get(&server.url("weights.pth"), &full(&body)).unwrap_err();
    assert_eq!(error.kind(), Kind::Network);
    home.is_empty();
}

#[test]
fn wrong_bytes_are_never_used_and_the_error_shows_both_hashes() {
    let body = Arc::new(noise(SIZE, 4));
    let server = failing(&body, usize::MAX, |mut answer| {
        answer.body[17] ^= 4;
        answer
    });
    let home = Home::new();
    let error = home.get(&server.url("weights.pth"), &full(&body)).unwrap_err();
    assert_eq!(error.kind(), Kind::Verification);
    let text = error.in_full();
    assert!(text.contains(&format!("expected sha256:{}", sha256(&body))), "{text}");
    assert!(text.contains("computed sha256:") && text.contains("hint:") && text.contains("weights.pth"), "{text}");
    assert!(server.requests() < 20, "it was not silently tried again: {} requests", server.requests());
    home.is_empty();
    assert_eq!(files(&home.path().join("partial")), Vec::<String>::new());
}

#[test]
fn hashes_known_in_part_are_checked_as_far_as_they_go() {
    let body = Arc::new(noise(SIZE, 5));
    let server = failing(&body, 0, |answer| answer);
    let url = server.url("weights.pth");
    let md5 = |bytes: &[u8]| {
        use md5::Digest as _;
        md5::Md5::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let right = [Digest::Sha256Prefix(sha256(&body)[..8].into()), Digest::Md5Prefix(md5(&body)[..6].into())];
    for digest in &right {
        let home = Home::new();
        home.holds(&home.get(&url, std::slice::from_ref(digest)).unwrap(), &body);
    }
    for digest in [Digest::Sha256Prefix("00000000".into()), Digest::Md5Prefix("000000".into())] {
        let home = Home::new();
        let error = home.get(&url, &[right[0].clone(), digest.clone()]).unwrap_err();
        assert!(error.in_full().contains(&digest.to_string()), "{error}");
        home.is_empty();
    }
}

#[test]
fn servers_without_ranges_or_with_an_encoding_serve_too() {
    let body = noise(SIZE, 6);
    let gzip = {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut encoder, &body).unwrap();
        encoder.finish().unwrap()
    };
    let (plain, zipped) = (body.clone(), gzip.clone());
    let cases: Vec<(&str, Server)> = vec![
        ("no ranges", Server::start(move |_| Answer::whole(&plain))),
        ("gzip", Server::start(move |_| Answer::whole(&zipped).header("Content-Encoding", "gzip"))),
        ("gzip and ranges", {
            let gzip = gzip.clone();
            Server::start(move |ask| Answer::file(ask, &gzip, "\"z\"").header("Content-Encoding", "gzip"))
        }),
        ("no length", {
            let body = body.clone();
            Server::start(move |_| Answer { claims: Some(None), ..Answer::whole(&body) })
        }),
        ("416 to the probe", {
            let body = body.clone();
            Server::start(move |ask| if ask.range.is_some() { Answer::status(416) } else { Answer::whole(&body) })
        }),
        ("breaks twice", {
            let body = body.clone();
            Server::start(move |ask| {
                let fault = if ask.number < 2 { Fault::Drop(100_000) } else { Fault::None };
                Answer::whole(&body).fault(fault)
            })
        }),
    ];
    for (name, server) in cases {
        let home = Home::new();
        let blob = home.get(&server.url("weights.pth"), &full(&body)).unwrap_or_else(|error| panic!("{name}: {error}"));
        home.holds(&blob, &body);
    }
    // A part is not the whole, even where no hash is known to tell.
    let server = {
        let body = body.clone();
        Server::start(move |_| Answer::whole(&body[..9]).header("Content-Range", "bytes 0-8/1000").into_part())
    };
    let error = Home::new().get(&server.url("weights.pth"), &[]).unwrap_err();
    assert!(error.in_full().contains("asked for the whole file"), "{error}");
    // Nothing tells a whole file from a broken one here.
    let server = Server::start(move |_| Answer { claims: Some(None), ..Answer::whole(&body) });
    let error = Home::new().get(&server.url("weights.pth"), &[]).unwrap_err();
    assert!(error.in_full().contains("does not say how long"), "{error}");
}

#[test]
fn a_file_that_changes_while_it_is_fetched_is_begun_anew() {
    let (old, new) = (noise(SIZE, 7), noise(SIZE, 8));
    for tagged in [true, false] {
        let (old, new) = (old.clone(), new.clone());
        let expected = new.clone();
        let server = Server::start(move |ask| {
            let (body, tag) = if ask.number < 3 { (&old, "\"old\"") } else { (&new, "\"new\"") };
            Answer::file(ask, body, if tagged { tag } else { "" })
        });
        let home = Home::new();
        // Without a hash only the tags tell; without tags either, it must come in one piece.
        let blob = home.get(&server.url("weights.pth"), &[]).unwrap();
        let whole = std::fs::read(&blob.path).unwrap();
        assert!(whole == expected || (!tagged && server.requests() == 2), "a mixture of both");
    }
    let bodies = [old, new];
    let server =
        Server::start(move |ask| Answer::file(ask, &bodies[ask.number % 2], &format!("\"{}\"", ask.number % 2)));
    let home = Home::new();
    let error = home.get(&server.url("weights.pth"), &[]).unwrap_err();
    assert_eq!(error.kind(), Kind::Network);
    home.is_empty();
}

#[test]
fn redirects_are_followed_but_not_in_circles_nor_off_https() {
    let body = Arc::new(noise(SIZE, 9));
    let target = failing(&body, 0, |answer| answer);
    let to = target.url("real.pth");
    let server = Server::start(move |ask| match ask.path.as_str() {
        "good" => Answer::status(302).header("Location", &to),
        "loop" => Answer::status(302).header("Location", "/loop"),
        _ => Answer::status(302).header("Location", "http://example.invalid/weights.pth"),
    });
    let home = Home::new();
    home.holds(&home.get(&server.url("good"), &full(&body)).unwrap(), &body);
    let error = Home::new().get(&server.url("loop"), &full(&body)).unwrap_err().in_full();
    assert!(error.contains("redirected more than 10 times"), "{error}");
    let error = Home::new().get(&server.url("plain"), &full(&body)).unwrap_err().in_full();
    assert!(error.contains("away from https"), "{error}");
    let error = Home::new().get("http://example.invalid/weights.pth", &[]).unwrap_err().in_full();
    assert!(error.contains("only https"), "{error}");
    let error = Home::new().get("file:///etc/passwd", &[]).unwrap_err().in_full();
    assert!(error.contains("only https"), "{error}");
}

#[test]
fn a_token_goes_to_its_own_host_only_and_is_never_printed() {
    let body = Arc::new(noise(SIZE, 10));
    let other = Arc::clone(&body);
    let carrying = |ask: &Ask| ask.header("Authorization").is_some_and(|value| value == "Bearer hf_secret");
    let elsewhere = Server::start(move |ask| match ask.header("Authorization") {
        None => Answer::file(ask, &other, "\"e\""),
        Some(_) => Answer::status(400),
    });
    let to = elsewhere.url("signed?signature=hush");
    let hub = Server::start(move |ask| {
        if !carrying(ask) {
            return Answer::status(401);
        }
        Answer::status(302).header("Location", &to)
    });
    let mut options = options();
    options.hub = Some(hub.url(""));
    options.token = Some(Secret::new("hf_secret"));
    let home = Home::new();
    let get = |url: &str| fetch_file(&home.store, url, &full(&body), None, &options, &mut go_on);
    assert!(get(&hub.url("weights.pth")).is_ok());
    let home = Home::new();
    let get = |url: &str| fetch_file(&home.store, url, &full(&body), None, &options, &mut go_on);
    assert!(get(&elsewhere.url("weights.pth")).is_ok());
    assert!(!format!("{options:?}").contains("hf_secret"));
    let refused = Home::new().get(&hub.url("weights.pth?token=hush"), &full(&body)).unwrap_err().in_full();
    assert!(refused.contains("HF_TOKEN") && !refused.contains("hush"), "{refused}");
}

#[test]
fn a_server_that_does_not_speak_tls_is_named() {
    let server = Server::start(|_| Answer::status(200));
    let error = Home::new().get(&format!("https://127.0.0.1:{}/weights.pth", server.port()), &[]).unwrap_err();
    assert_eq!(error.kind(), Kind::Network);
    assert!(error.in_full().contains("gave up after 4 attempts"), "{error}");
}

#[cfg(feature = "cli")]
#[test]
fn a_proxy_is_asked_for_other_hosts_and_never_for_this_one() {
    let asked = Arc::new(std::sync::Mutex::new(Vec::new()));
    let log = Arc::clone(&asked);
    let proxy = Server::start(move |ask| {
        log.lock().unwrap().push(ask.path.clone());
        Answer::status(404)
    });
    let direct = Server::start(|_| Answer::status(404));
    let home = Home::new();
    let run = |url: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tec-zoo"));
        for name in ["NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy", "HTTP_PROXY"] {
            command.env_remove(name);
        }
        command.args(["fetch", "mae-vitb", "--allow-http", "--from", url]);
        let output = command.env("TEC_ZOO_HOME", home.path()).env("http_proxy", proxy.url("")).output().unwrap();
        assert_eq!(output.status.code(), Some(4), "{output:?}");
    };
    run(&direct.url("x.pth"));
    assert_eq!((asked.lock().unwrap().len(), direct.requests()), (0, 1));
    run("http://example.invalid/x.pth");
    assert_eq!(*asked.lock().unwrap(), ["http://example.invalid/x.pth"]);
}

/// Not trusted is not unreachable: asked once, told nothing, and named. The same server is good where its authority is
/// trusted, so it is the certificate that is refused.
#[test]
fn a_certificate_nobody_vouches_for_is_refused_before_anything_is_said() {
    let server = Server::start_tls(|ask| Answer::file(ask, &noise(SIZE, 22), "\"t\""));
    let url = format!("https://localhost:{}/weights.pth", server.port());
    let home = Home::new();
    let error = home.get(&url, &[]).unwrap_err();
    assert_eq!((error.kind(), server.requests()), (Kind::Network, 0));
    let text = error.in_full();
    assert!(text.contains("certificate") && !text.contains("attempts"), "{text}");
    home.is_empty();
}

#[cfg(all(feature = "cli", target_os = "linux"))]
#[test]
fn a_certificate_of_a_trusted_authority_is_accepted() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let body = std::fs::read(fixtures.join("reference/mae_pretrain_vit_tiny.pth")).unwrap();
    let server = Server::start_tls(move |ask| Answer::file(ask, &body, "\"t\""));
    let url = format!("https://localhost:{}/weights.pth", server.port());
    let home = Home::new();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tec-zoo"));
    command.args(["inspect", &url]).env("TEC_ZOO_HOME", home.path());
    let refused = command.env_remove("SSL_CERT_FILE").output().unwrap();
    assert_eq!((refused.status.code(), server.requests()), (Some(4), 0), "{refused:?}");
    let accepted = command.env("SSL_CERT_FILE", fixtures.join("tls/authority.pem")).output().unwrap();
    assert!(accepted.status.success() && server.requests() > 0, "{}", String::from_utf8_lossy(&accepted.stderr));
}

#[test]
fn sizes_are_bounded_before_anything_is_written() {
    let body = Arc::new(noise(SIZE, 11));
    let server = failing(&body, 0, |answer| answer);
    let url = server.url("weights.pth");
    let home = Home::new();
    let get = |bytes, options: &Options| fetch_file(&home.store, &url, &[], bytes, options, &mut go_on).unwrap_err();
    let error = get(Some(5), &options());
    assert!(error.in_full().contains("the published file has 5"), "{error}");
    let error = get(None, &Options { max_bytes: 1000, ..options() });
    assert!(error.in_full().contains("more than the 1000 accepted"), "{error}");
    let error = get(None, &Options { keep_free: u64::MAX / 2, ..options() });
    assert!(matches!(error, FetchError::NoSpace { .. }), "{error}");
    assert!(error.in_full().contains("are needed") && error.kind() == Kind::Refused, "{error}");
    assert_eq!(server.sent(), 3, "one probe each");
    let endless = Server::start(|_| Answer { claims: Some(None), ..Answer::whole(&vec![0; SIZE]) });
    let options = Options { max_bytes: 1000, ..options() };
    let error = fetch_file(&home.store, &endless.url("x"), &full(&body), None, &options, &mut go_on).unwrap_err();
    assert!(error.in_full().contains("sends more than 1000"), "{error}");
    home.is_empty();
}

#[test]
fn a_damaged_file_is_noticed_and_only_the_damage_is_fetched() {
    let body = Arc::new(noise(SIZE, 12));
    let server = failing(&body, 0, |answer| answer);
    let url = server.url("weights.pth");
    let home = Home::new();
    let blob = home.get(&url, &full(&body)).unwrap();
    let healthy =
        |home: &Home| cache::verify(&home.store, &mut go_on).unwrap().iter().all(|health| health.damage.is_empty());
    assert!(healthy(&home));

    // Two bits, in the third chunk and in the last.
    let mut bytes = body.to_vec();
    bytes[150_000] ^= 1;
    bytes[SIZE - 1] ^= 128;
    std::fs::write(&blob.path, &bytes).unwrap();
    let health = cache::verify(&home.store, &mut go_on).unwrap();
    assert_eq!(health[0].damage, ["bytes 131072-196607", "bytes 983040-1048575"]);
    let before = server.sent();
    assert_eq!(home.store.blob(&blob.sha256).unwrap(), None, "it must not be used");
    let again = home.get(&url, &full(&body)).unwrap();
    home.holds(&again, &body);
    assert_eq!(server.sent() - before, 2 * (64 << 10) + 1, "the two chunks and the probe's byte");
    assert!(healthy(&home));

    // Cut short, and too long.
    for length in [SIZE as u64 / 2, SIZE as u64 + 5] {
        std::fs::OpenOptions::new().write(true).open(&blob.path).unwrap().set_len(length).unwrap();
        assert_eq!(home.store.blob(&blob.sha256).unwrap(), None);
        let before = server.sent();
        home.holds(&home.get(&url, &full(&body)).unwrap(), &body);
        assert!(server.sent() - before <= SIZE as u64 / 2 + 1, "{}", server.sent() - before);
    }

    // Touched is not damaged.
    let before = server.requests();
    std::fs::write(&blob.path, &body[..]).unwrap();
    home.holds(&home.get(&url, &full(&body)).unwrap(), &body);
    // Nor is a file whose chunk hashes were lost.
    std::fs::remove_dir_all(home.path().join("trees")).unwrap();
    std::fs::create_dir(home.path().join("trees")).unwrap();
    home.holds(&home.get(&url, &full(&body)).unwrap(), &body);
    assert_eq!(server.requests(), before);

    let zoo = Zoo::default();
    std::fs::write(&blob.path, &bytes).unwrap();
    let error = cache::repair(&home.store, &zoo, &blob.sha256, &options(), &mut go_on).unwrap_err();
    assert!(matches!(error, FetchError::Unrepairable { .. }), "{error}");
    let removed = cache::prune(&home.store).unwrap();
    assert_eq!(removed.len(), 1);
    assert!(cache::ls(&home.store).unwrap().is_empty());
}

#[test]
fn a_lock_is_waited_for_and_a_dead_one_is_broken() {
    let body = Arc::new(noise(SIZE, 13));
    let server = failing(&body, 4, |answer| answer.fault(Fault::Drip(4096, Duration::from_millis(3))));
    let home = Home::new();
    let url = server.url("weights.pth");
    let waited = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut events = |event| {
                    if matches!(event, Event::Waiting { .. }) {
                        waited.fetch_add(1, Ordering::SeqCst);
                    }
                    go_on(event)
                };
                fetch_file(&home.store, &url, &full(&body), None, &options(), &mut events).unwrap();
            });
        }
    });
    assert!(waited.load(Ordering::SeqCst) >= 2);
    assert_eq!(server.sent(), SIZE as u64 + 1, "fetched once");

    // A lock whose owner nobody knows is broken when its heart stands still.
    let home = Home::new();
    let lock = home.path().join("locks").join(format!("{}.lock", &sha256(sha256(&body).as_bytes())[..32]));
    std::fs::write(&lock, "1234 00000000000000000007 elsewhere 1 1\n").unwrap();
    let options = Options { stale_lock: Duration::from_millis(300), ..options() };
    let start = Instant::now();
    let blob = fetch_file(&home.store, &url, &full(&body), None, &options, &mut go_on).unwrap();
    assert!(start.elapsed() >= Duration::from_millis(300));
    home.holds(&blob, &body);
}

#[test]
fn another_source_goes_on_where_the_first_one_failed() {
    let body = Arc::new(noise(SIZE, 14));
    let served = Arc::clone(&body);
    // Gives half of the file, then nothing more.
    let half = Server::start(move |ask| match ask.range {
        Some((first, _)) if first >= SIZE as u64 / 2 => Answer::status(403),
        _ => Answer::file(ask, &served, "\"half\""),
    });
    let whole = failing(&body, 0, |answer| answer);
    let home = Home::new();
    assert_eq!(home.get(&half.url("weights.pth"), &full(&body)).unwrap_err().kind(), Kind::Network);
    let blob = home.get(&whole.url("elsewhere.pth"), &full(&body)).unwrap();
    home.holds(&blob, &body);
    assert!(whole.sent() <= SIZE as u64 / 2 + (64 << 10) + 1, "{}", whole.sent());
}
