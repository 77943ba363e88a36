//! Whole models: from a manifest's sources to a directory in the common format.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tec_zoo::fetch::{Checked, Event, FetchError, Kind, Options, Origin, Parts, cache, fetch, fetch_from};
use tec_zoo::model::{AxisOrder, Canonical, PositionKind, Resample};
use tec_zoo::zoo::{Digest, Manifest, Source, SourceKind, Status, Zoo};

use super::server::{Answer, Server};
use super::{Home, files, full, go_on, hear, options};
use crate::words::InFull;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/reference").join(name)
}

fn bytes(name: &str) -> Vec<u8> {
    std::fs::read(fixture(name)).unwrap()
}

/// A manifest of the zoo, shrunk to the fixtures' size.
fn manifest(of: &str, sources: Vec<Source>) -> Manifest {
    let mut manifest = Zoo::embedded().unwrap().get(of).unwrap().clone();
    manifest.vit.image_size = [64, 64];
    (manifest.vit.width, manifest.vit.depth, manifest.vit.heads, manifest.vit.mlp_width) = (16, 4, 4, 64);
    manifest.sources = sources;
    manifest.validate().unwrap();
    manifest
}

fn source(url: String, converter: &str, hashes: Vec<Digest>) -> Source {
    Source {
        kind: SourceKind::Official,
        url: Some(url),
        hub: None,
        file: None,
        converter: Some(converter.into()),
        branch: None,
        bytes: None,
        hashes,
        evidence: "a test".into(),
    }
}

fn serving(body: Vec<u8>) -> Server {
    Server::start(move |ask| Answer::file(ask, &body, "\"m\""))
}

fn get(home: &Home, manifest: &Manifest, options: &Options) -> Result<tec_zoo::fetch::Fetched, FetchError> {
    fetch(&home.store, manifest, options, &mut go_on)
}

const MAE: &str = "mae_pretrain_vit_tiny.pth";

/// Whatever the caller was told last, the work ends there, and what is left can be taken up.
#[test]
fn a_caller_may_stop_at_any_news() {
    let body = bytes(MAE);
    let server = serving(body.clone());
    for hashes in [full(&body), Vec::new()] {
        let manifest = manifest("mae-vitb", vec![source(server.url(MAE), "mae", hashes.clone())]);
        let mut stops = 0;
        loop {
            let home = Home::new();
            let (mut heard, mut last) = (0, None);
            let result = fetch(&home.store, &manifest, &options(), &mut |event| {
                // Nothing is asked once it was answered with a stop.
                assert!(heard <= stops, "{event:?} after a stop");
                heard += usize::from(event != Event::Idle);
                last = Some(event);
                if heard > stops { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            let Err(error) = result else { break };
            let FetchError::Interrupted { resumes } = error else { panic!("after {last:?}: {error}") };
            assert_eq!(error.kind(), Kind::Interrupted);
            assert_eq!(files(&home.path().join("models")), [] as [&str; 0], "after {last:?}");
            assert_eq!(files(&home.path().join("locks")), [] as [&str; 0], "after {last:?}");
            let kept = files(&home.path().join("blobs"));
            assert!(resumes || kept.is_empty(), "after {last:?}: {kept:?} is kept, and nobody finds it again");
            let (before, again) = (server.sent(), get(&home, &manifest, &options()).unwrap());
            assert!(!again.cached);
            let asked = server.sent() - before;
            // Every question whether the server does ranges is a byte.
            assert!(!resumes || asked <= body.len() as u64 + 1, "after {last:?}: {asked} bytes were fetched again");
            stops += 1;
        }
        assert!(stops >= 4, "only {stops} moments");
    }
}

#[test]
fn a_model_is_fetched_converted_and_then_there() {
    let body = bytes(MAE);
    let server = serving(body.clone());
    let manifest = manifest("mae-vitb", vec![source(server.url(MAE), "mae", full(&body))]);
    let home = Home::new();
    let mut events = Vec::new();
    let fetched = fetch(&home.store, &manifest, &options(), &mut |event| hear(&mut events, event)).unwrap();
    assert!(!fetched.cached && events.contains(&Event::Converting));
    let model = Canonical::open(&fetched.dir).unwrap();
    let config = model.config();
    assert_eq!(config.provenance.source_file, MAE);
    assert_eq!(config.provenance.source_sha256, super::sha256(&body));
    assert_eq!((config.vit.heads, config.licence.spdx.as_str()), (4, "CC-BY-NC-4.0"));

    let (requests, start) = (server.requests(), std::time::Instant::now());
    let again = get(&home, &manifest, &options()).unwrap();
    assert!(again.cached && again.dir == fetched.dir);
    assert!(start.elapsed().as_millis() < 50);
    // Offline is no hindrance to what is there, and neither is losing the model but not its source.
    let offline = Options { offline: true, ..options() };
    assert!(get(&home, &manifest, &offline).unwrap().cached);
    std::fs::remove_dir_all(&fetched.dir).unwrap();
    assert!(!get(&home, &manifest, &offline).unwrap().cached);
    // A flipped bit in the model is noticed, and mended from the source.
    let weights = fetched.dir.join("model.safetensors");
    let mut damaged = std::fs::read(&weights).unwrap();
    *damaged.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, &damaged).unwrap();
    assert_eq!(home.store.model("mae-vitb"), None);
    let health = cache::verify(&home.store, &mut go_on).unwrap();
    assert!(health.iter().any(|health| health.damage == ["model.safetensors"]));
    assert!(!get(&home, &manifest, &offline).unwrap().cached);
    assert!(std::fs::read(&weights).unwrap() != damaged);
    assert_eq!(server.requests(), requests);
}

/// The manifests of DINOv2, each with the tiny checkpoint of its kind; and those of the other kinds, which are refused.
#[test]
fn dinov2_is_fetched_as_its_manifest_describes_it_and_not_as_another_kind() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/dinov2");
    let kinds = [
        ("dinov2-vits14", "vit_tiny14_pretrain.pth", 96),
        ("dinov2-vits14-reg", "vit_reg4_tiny14_pretrain.pth", 96),
        ("dinov2-vitg14-reg", "vitg_reg4_tiny14_pretrain.pth", 64),
    ];
    for (of, _, mlp_width) in kinds {
        for (other, file, _) in kinds {
            let body = std::fs::read(folder.join(file)).unwrap();
            let server = serving(body.clone());
            let mut manifest = Zoo::embedded().unwrap().get(of).unwrap().clone();
            manifest.sources = vec![source(server.url(file), "dinov2", full(&body))];
            manifest.vit.image_size = [42, 42];
            let vit = &mut manifest.vit;
            (vit.width, vit.depth, vit.heads, vit.mlp_width) = (24, 2, 4, mlp_width);
            let home = Home::new();
            match get(&home, &manifest, &options()) {
                Ok(fetched) => {
                    assert_eq!(of, other);
                    let model = Canonical::open(&fetched.dir).unwrap();
                    assert_eq!(model.config().vit, manifest.vit);
                    assert_eq!(model.config().family, "dinov2");
                }
                Err(error) => assert!(of != other && error.in_full().contains("does not hold"), "{of}: {error}"),
            }
        }
    }
}

#[test]
fn a_source_is_dropped_after_conversion_unless_it_is_kept() {
    let body = bytes(MAE);
    let server = serving(body.clone());
    let manifest = manifest("mae-vitb", vec![source(server.url(MAE), "mae", full(&body))]);
    let home = Home::new();
    get(&home, &manifest, &Options { keep_source: false, ..options() }).unwrap();
    assert_eq!(files(&home.path().join("blobs")), Vec::<String>::new());
    let entries = cache::ls(&home.store).unwrap();
    assert_eq!((entries.len(), entries[0].sort, entries[0].name.as_str()), (1, cache::Sort::Model, "mae-vitb"));
    assert!(cache::prune(&home.store).unwrap().is_empty(), "models stay");
}

#[test]
fn offline_touches_no_network_at_all() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let url = format!("http://{}/{MAE}", listener.local_addr().unwrap());
    let manifest = manifest("mae-vitb", vec![source(url.clone(), "mae", vec![])]);
    let home = Home::new();
    let offline = Options { offline: true, mirror: Some(url.clone()), ..options() };
    let error = get(&home, &manifest, &offline).unwrap_err();
    assert!(matches!(error, FetchError::Offline { .. }), "{error}");
    assert!(error.in_full().contains("`from`: FILE"), "{error}");
    assert!(fetch_from(&home.store, &manifest, &Origin::Url(url), &offline, &mut go_on).is_err());
    assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "somebody called");
}

#[test]
fn the_next_source_serves_when_one_is_gone_or_wrong() {
    let body = bytes(MAE);
    let mut spoilt = body.clone();
    spoilt[60_000] ^= 1;
    let (wrong, right) = (serving(spoilt), serving(body.clone()));
    let gone = Server::start(|_| Answer::status(404));
    let sources =
        |last: &Server| [&gone, &wrong, last].map(|server| source(server.url(MAE), "mae", full(&body))).to_vec();
    let home = Home::new();
    let mut failed = Vec::new();
    let manifest_right = manifest("mae-vitb", sources(&right));
    let mut events = |event| {
        if let Event::Failed { reason, .. } = event {
            failed.push(reason);
        }
        ControlFlow::Continue(())
    };
    let fetched = fetch(&home.store, &manifest_right, &options(), &mut events).unwrap();
    assert_eq!(fetched.address, Some(right.url(MAE)));
    assert!(failed[0].contains("404") && failed[1].contains("not the file that was published"), "{failed:?}");

    let home = Home::new();
    let error = get(&home, &manifest("mae-vitb", sources(&gone)), &options()).unwrap_err();
    assert_eq!(error.kind(), Kind::Verification);
    let text = error.in_full();
    assert!(text.contains("404") && text.contains("computed sha256:"), "{text}");
    assert!(files(&home.path().join("models")).is_empty() && files(&home.path().join("blobs")).is_empty());
}

#[test]
fn a_file_without_a_published_hash_is_checked_by_structure_then_pinned() {
    let current = Arc::new(Mutex::new(bytes("tec_converted.pth")));
    let shared = Arc::clone(&current);
    let server = Server::start(move |ask| {
        let body = shared.lock().unwrap();
        Answer::file(ask, &body, &format!("\"{}\"", super::sha256(&body)))
    });
    let manifest = manifest("tec-mae-vitb-300ep", vec![source(server.url("tec.pth"), "tec", vec![])]);
    let home = Home::new();

    // Another family's file, a file with a final norm, a torn file: none is believed, none is pinned.
    for wrong in ["mae_pretrain_vit_tiny.pth", "ibot_checkpoint_teacher.pth"] {
        *current.lock().unwrap() = bytes(wrong);
        assert!(get(&home, &manifest, &options()).is_err(), "{wrong}");
    }
    *current.lock().unwrap() = bytes("tec_converted.pth")[..100_000].to_vec();
    assert!(get(&home, &manifest, &options()).is_err());
    assert!(files(&home.path().join("pins")).is_empty() && files(&home.path().join("blobs")).is_empty());

    *current.lock().unwrap() = bytes("tec_converted.pth");
    let fetched = get(&home, &manifest, &options()).unwrap();
    let config = Canonical::open(&fetched.dir).unwrap().config().clone();
    assert_eq!(config.provenance.lineage, ["mae-vitb"]);
    let pins = std::fs::read_to_string(home.path().join("pins/tec-mae-vitb-300ep.toml")).unwrap();
    assert!(pins.contains(&fetched.source_sha256.unwrap()) && pins.contains(&server.url("tec.pth")), "{pins}");

    // From now on it is that file or none.
    std::fs::remove_dir_all(home.path().join("models")).unwrap();
    std::fs::create_dir(home.path().join("models")).unwrap();
    cache::prune(&home.store).unwrap();
    let mut other = bytes("tec_converted.pth");
    let last = other.len() / 2;
    other[last] ^= 1;
    *current.lock().unwrap() = other;
    let error = get(&home, &manifest, &options()).unwrap_err();
    assert_eq!(error.kind(), Kind::Verification);
    let text = error.in_full();
    assert!(text.contains("pinned   sha256:") && text.contains("tec-mae-vitb-300ep.toml"), "{text}");
    *current.lock().unwrap() = bytes("tec_converted.pth");
    assert!(get(&home, &manifest, &options()).is_ok());
}

#[test]
fn a_file_at_hand_must_be_one_of_the_models() {
    let body = bytes(MAE);
    let server = serving(body.clone());
    let url = "https://example.invalid/mae_pretrain_vit_base.pth".to_owned();
    let manifest = manifest("mae-vitb", vec![source(url, "mae", full(&body))]);
    let from = |home: &Home, origin: Origin| fetch_from(&home.store, &manifest, &origin, &options(), &mut go_on);
    for origin in [Origin::File(fixture(MAE)), Origin::Url(server.url("renamed.bin"))] {
        let home = Home::new();
        let fetched = from(&home, origin).unwrap();
        assert_eq!(fetched.source_sha256, Some(super::sha256(&body)));
        Canonical::open(&fetched.dir).unwrap();
    }
    let other = serving(bytes("ibot_checkpoint_teacher.pth"));
    for origin in [Origin::File(fixture("ibot_checkpoint_teacher.pth")), Origin::Url(other.url(MAE))] {
        let home = Home::new();
        let error = from(&home, origin).unwrap_err();
        assert!(matches!(error, FetchError::Foreign { .. }) && error.kind() == Kind::Verification, "{error}");
        assert!(error.in_full().contains(&format!("expected sha256:{}", super::sha256(&body))), "{error}");
        assert!(files(&home.path().join("blobs")).is_empty() && files(&home.path().join("models")).is_empty());
    }
}

#[test]
fn mirrors_and_endpoints_take_the_place_of_hosts() {
    let body = bytes("ibot_checkpoint_full.pth");
    let asked = Arc::new(Mutex::new(Vec::new()));
    let (log, served) = (Arc::clone(&asked), body.clone());
    let server = Server::start(move |ask| {
        log.lock().unwrap().push(ask.path.clone());
        Answer::file(ask, &served, "\"m\"")
    });
    let mut hub = source(String::new(), "ibot", full(&body));
    (hub.url, hub.hub, hub.file) = (None, Some("someone/ibot".into()), Some("checkpoint.pth".into()));
    hub.branch = Some("teacher".into());
    let manifest = manifest("ibot-vitb", vec![hub]);
    let with_hub = Options { hub: Some(server.url("")), ..options() };
    let fetched = get(&Home::new(), &manifest, &with_hub).unwrap();
    assert!(asked.lock().unwrap().iter().all(|path| path == "someone/ibot/resolve/main/checkpoint.pth"));
    drop(fetched);
    asked.lock().unwrap().clear();
    let with_mirror = Options { mirror: Some(server.url("mirror/")), ..options() };
    let home = Home::new();
    let fetched = get(&home, &manifest, &with_mirror).unwrap();
    let path = "mirror/huggingface.co/someone/ibot/resolve/main/checkpoint.pth";
    assert!(asked.lock().unwrap().iter().all(|asked| asked == path), "{:?}", asked.lock().unwrap());
    let config = Canonical::open(&fetched.dir).unwrap().config().clone();
    assert_eq!(config.provenance.branch.as_deref(), Some("teacher"));
    assert_eq!(config.vit.position.resample, Resample::ScaleOffset { offset: 0.1 });
}

#[test]
fn what_other_tools_have_downloaded_is_not_downloaded_again() {
    let (body, other) = (bytes(MAE), bytes("ibot_checkpoint_teacher.pth"));
    let dir = tempfile::tempdir().unwrap();
    let snapshot = dir.path().join("models--someone--mae/snapshots/abc");
    std::fs::create_dir_all(&snapshot).unwrap();
    let mut hub = source(String::new(), "mae", full(&body));
    (hub.url, hub.hub, hub.file) = (None, Some("someone/mae".into()), Some(MAE.into()));
    let offline = Options { offline: true, ..options() };
    let with_torch = Options { torch_hub: Some(dir.path().into()), ..offline.clone() };
    let with_hub = Options { hugging_face: Some(dir.path().into()), ..offline };
    for (options, source, folder) in [
        (with_torch, source(format!("https://example.invalid/{MAE}"), "mae", full(&body)), dir.path()),
        (with_hub, hub, snapshot.as_path()),
    ] {
        let manifest = manifest("mae-vitb", vec![source]);
        std::fs::write(folder.join(MAE), &other).unwrap();
        let error = get(&Home::new(), &manifest, &options).unwrap_err();
        assert!(matches!(error, FetchError::Offline { .. }), "a wrong file was taken: {error}");
        std::fs::write(folder.join(MAE), &body).unwrap();
        let fetched = get(&Home::new(), &manifest, &options).unwrap();
        assert_eq!(fetched.source_sha256, Some(super::sha256(&body)));
        std::fs::remove_file(folder.join(MAE)).unwrap();
    }
}

#[test]
fn a_listed_model_is_refused_before_anything_is_asked() {
    let mut manifest = Zoo::embedded().unwrap().get("mae-vitb").unwrap().clone();
    (manifest.status, manifest.reason) = (Status::Listed, Some("its patches are hexagons".into()));
    let error = get(&Home::new(), &manifest, &options()).unwrap_err();
    assert!(matches!(error, FetchError::Listed { .. }) && error.in_full().contains("hexagons"), "{error}");
}

#[test]
fn threads_that_want_the_same_model_share_one_download() {
    let body = bytes(MAE);
    let server = serving(body.clone());
    // Without a hash, nothing but the lock on the model tells the second that the first has it.
    let manifest = manifest("mae-vitb", vec![source(server.url(MAE), "mae", vec![])]);
    let home = Home::new();
    let cached = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| cached.fetch_or(get(&home, &manifest, &options()).unwrap().cached, Ordering::SeqCst));
        }
    });
    assert!(cached.load(Ordering::SeqCst));
    assert_eq!(server.sent(), body.len() as u64 + 1);
}

/// The same for a file somebody names, which has no download of a known hash to wait for.
#[test]
fn threads_that_are_given_the_same_file_convert_it_once() {
    let body = bytes(MAE);
    let server = serving(body.clone());
    let manifest = manifest("mae-vitb", vec![source("https://example.invalid/x.pth".into(), "mae", full(&body))]);
    let home = Home::new();
    let origin = Origin::Url(server.url(MAE));
    let made = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let options = Options { keep_source: false, ..options() };
                let fetched = fetch_from(&home.store, &manifest, &origin, &options, &mut go_on).unwrap();
                made.fetch_add(usize::from(!fetched.cached), Ordering::SeqCst);
            });
        }
    });
    assert_eq!((made.into_inner(), server.sent()), (1, body.len() as u64 + 1));
}

/// Without a record the tensors are counted; with one, it is replayed before the model gets its name.
#[test]
fn a_model_is_checked_before_it_gets_its_name() {
    let body = bytes(MAE);
    let server = serving(body.clone());
    let manifest = manifest("mae-vitb", vec![source(server.url(MAE), "mae", full(&body))]);
    let home = Home::new();
    let Some(Checked::Structure { tensors, parameters, bytes: size, position }) =
        get(&home, &manifest, &options()).unwrap().checked
    else {
        panic!("there is no record to replay")
    };
    assert_eq!((tensors, parameters, size), (4 + 4 * 12 + 2, manifest.parameters(), manifest.parameters() * 4));
    assert_eq!(position, PositionKind::SinCos { axis_order: AxisOrder::ColumnFirst });
    assert!(home.store.fingerprints().join("mae-vitb.json").exists());

    if cfg!(not(feature = "candle")) {
        // Nothing to replay with.
        return;
    }
    let golden = home.store.overlay().join("mae-vitb.golden.safetensors");
    std::fs::create_dir_all(home.store.overlay()).unwrap();
    let dir = home.path().join("models/mae-vitb");
    for (record, right) in [("mocov3_expected.safetensors", false), ("mae_expected.safetensors", true)] {
        std::fs::remove_dir_all(&dir).unwrap_or_default();
        std::fs::copy(fixture(record), &golden).unwrap();
        match get(&home, &manifest, &options()) {
            Ok(fetched) => {
                assert!(right, "{record}");
                let Some(Checked::Golden { stages, worst, upstream }) = fetched.checked else { panic!("not replayed") };
                assert!(stages > 4 && worst < 1e-5 && upstream, "{stages} {worst}");
                assert!(fetched.dir.join("golden.safetensors").exists(), "`verify` must find it");
            }
            Err(error) => {
                assert!(!right, "{error}");
                assert_eq!(error.kind(), Kind::Verification, "{error}");
                assert!(error.in_full().contains("does not pass its golden check"), "{error}");
                assert!(files(&home.path().join("models")).is_empty());
            }
        }
    }
}

/// MoCo v3's files hold two encoders, heads and a predictor; only one encoder is wanted, and nobody published a hash.
#[test]
fn only_the_wanted_network_of_a_large_file_is_fetched() {
    let name = "mocov3_vit_tiny.pth.tar";
    let body = bytes(name);
    let ranges = Arc::new(AtomicBool::new(true));
    let (served, does) = (body.clone(), Arc::clone(&ranges));
    let server = Server::start(move |ask| match does.load(Ordering::SeqCst) {
        true => Answer::file(ask, &served, "\"p\""),
        false => Answer::whole(&served),
    });
    let mut only = source(server.url(name), "moco-v3", vec![]);
    only.branch = Some("base".into());
    let manifest = manifest("mocov3-vits", vec![only]);
    let whole = Home::new();
    let complete = get(&whole, &manifest, &Options { parts: Parts::Never, ..options() }).unwrap();
    assert_eq!((complete.in_part, complete.source_sha256), (None, Some(super::sha256(&body))));

    let before = server.sent();
    let home = Home::new();
    let mut events = Vec::new();
    let fetched = fetch(&home.store, &manifest, &options(), &mut |event| hear(&mut events, event)).unwrap();
    let (some, all) = fetched.in_part.unwrap();
    assert_eq!((all, some), (body.len() as u64, server.sent() - before), "what is stated is what was sent");
    assert!(some < all * 2 / 3, "{some} of {all}");
    assert!(events.contains(&Event::InPart { needed: some, total: all }), "{events:?}");
    let weights = |dir: &Path| std::fs::read(dir.join("model.safetensors")).unwrap();
    assert!(weights(&fetched.dir) == weights(&complete.dir));
    let config = Canonical::open(&fetched.dir).unwrap().config().clone();
    assert_eq!((config.provenance.source_sha256.as_str(), fetched.source_sha256), ("unknown: read in part", None));
    assert!(get(&home, &manifest, &options()).unwrap().cached);

    // Pinned by its tensors: also the whole file must have those from now on, and so must every later part.
    let pins = home.path().join("pins/mocov3-vits.toml");
    let text = std::fs::read_to_string(&pins).unwrap();
    assert!(text.contains("tensors = ") && !text.contains("sha256 = "), "{text}");
    let again = |ranged: bool| {
        ranges.store(ranged, Ordering::SeqCst);
        std::fs::remove_dir_all(&fetched.dir).unwrap_or_default();
        let mut said = Vec::new();
        let result = fetch(&home.store, &manifest, &options(), &mut |event| hear(&mut said, event));
        (result, said)
    };
    assert!(again(true).0.unwrap().in_part.is_some());
    let digits = text.split("tensors = \"").nth(1).unwrap()[..64].to_owned();
    std::fs::write(&pins, text.replace(&digits, &"0".repeat(64))).unwrap();
    for ranged in [true, false] {
        let error = again(ranged).0.unwrap_err();
        assert_eq!(error.kind(), Kind::Verification, "{error}");
        assert!(error.in_full().contains(&digits) && error.in_full().contains("mocov3-vits.toml"), "{error}");
        assert!(files(&home.path().join("models")).is_empty());
    }
    std::fs::write(&pins, &text).unwrap();
    let (result, said) = again(false);
    assert_eq!(result.unwrap().in_part, None);
    let why = said.iter().find_map(|event| match event {
        Event::NotInPart { reason } => Some(reason),
        _ => None,
    });
    assert!(why.unwrap().contains("does not give parts"), "{said:?}");
    assert!(std::fs::read_to_string(&pins).unwrap().contains(&super::sha256(&body)));
}
