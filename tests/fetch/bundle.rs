//! Models in one archive: what comes out is what went in, or nothing.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use tec_zoo::convert::{Request, convert};
use tec_zoo::destination::Destination;
use tec_zoo::fetch::{Bundled, Checked, FetchError, Fetched, Kind, Options, bundle, is_bundle, unbundle};
use tec_zoo::model::Canonical;
use tec_zoo::zoo::Zoo;

use super::{Home, files, go_on, options, sha256};
use crate::words::InFull;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/reference").join(name)
}

/// Two models in the common format, under names no catalogue has.
fn models(dir: &Path) -> Vec<(String, PathBuf)> {
    [("my-mae", "mae_pretrain_vit_tiny.pth", "mae"), ("my-tec", "tec_checkpoint-299.pth", "tec")]
        .map(|(name, file, family)| {
            let request = Request { family: Some(family.into()), heads: Some(4), ..Request::default() };
            let out = dir.join(name);
            convert(&fixture(file), &out, &request, &mut |_| ControlFlow::Continue(())).unwrap();
            (name.to_owned(), out)
        })
        .into()
}

fn pack(models: &[(String, PathBuf)], out: &Path) -> Bundled {
    bundle(&Home::new().store, models, Destination::new(out).overwrite(true), &mut go_on).unwrap()
}

fn unpack(home: &Home, path: &Path, names: &[&str]) -> Result<Vec<(String, Fetched)>, FetchError> {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let zoo = Zoo::with_overlay(&home.store.overlay()).unwrap();
    unbundle(&home.store, &zoo, path, &names, &options(), &mut go_on)
}

#[test]
fn what_comes_out_of_a_bundle_is_what_went_in() {
    let dir = tempfile::tempdir().unwrap();
    let packed = models(dir.path());
    let path = dir.path().join("models.bundle");
    let made = pack(&packed, &path);
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!((made.bytes, made.sha256), (bytes.len() as u64, sha256(&bytes)));
    assert_eq!(made.models, ["my-mae", "my-tec"]);
    assert!(is_bundle(&path).unwrap() && !is_bundle(&fixture("mae_pretrain_vit_tiny.pth")).unwrap());
    let home = Home::new();
    let done = unpack(&home, &path, &[]).unwrap();
    assert_eq!(done.len(), 2);
    for ((name, from), (unpacked, fetched)) in packed.iter().zip(&done) {
        assert_eq!(name, unpacked);
        for file in files(from) {
            assert!(std::fs::read(from.join(&file)).unwrap() == std::fs::read(fetched.dir.join(&file)).unwrap());
        }
        // Registered, known to `identify`, and guarded by chunk hashes like any other.
        let zoo = Zoo::with_overlay(&home.store.overlay()).unwrap();
        assert_eq!(zoo.get(name).unwrap().directory.as_ref(), Some(&fetched.dir));
        assert!(home.store.fingerprints().join(format!("{name}.json")).exists());
        assert_eq!(home.store.model(name).as_ref(), Some(&fetched.dir));
    }
    // Once more changes nothing; by name, only that one comes.
    assert_eq!(unpack(&home, &path, &[]).unwrap().len(), 2);
    let home = Home::new();
    let done = unpack(&home, &path, &["my-tec"]).unwrap();
    assert_eq!((done.len(), files(&home.path().join("models"))), (1, vec!["my-tec".to_owned()]));
    let error = unpack(&home, &path, &["mae-vitb"]).unwrap_err();
    assert!(error.in_full().contains("it has `my-mae`, `my-tec`"), "{error}");
}

#[test]
fn a_bundle_is_the_same_bytes_whenever_it_is_made_and_other_tools_can_read_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut packed = models(dir.path());
    let [one, two] = ["one", "two"].map(|name| dir.path().join(name));
    pack(&packed, &one);
    for (_, from) in &packed {
        let config = from.join("config.json");
        std::fs::write(&config, std::fs::read(&config).unwrap()).unwrap();
    }
    packed.reverse();
    packed.push(packed[0].clone());
    pack(&packed, &two);
    assert!(std::fs::read(&one).unwrap() == std::fs::read(&two).unwrap());
    let mut archive = tar::Archive::new(std::fs::File::open(&one).unwrap());
    let names: Vec<String> =
        archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect();
    assert_eq!(names[..3], ["tec-zoo-bundle.json", "my-mae/config.json", "my-mae/model.safetensors"]);
    let error = bundle(&Home::new().store, &packed, &one, &mut go_on).unwrap_err();
    assert!(error.in_full().contains("exists") && is_bundle(&one).unwrap(), "{error}");
    // Broken off, it leaves what was there.
    let before = files(dir.path());
    let three = dir.path().join("three");
    bundle(&Home::new().store, &packed, &three, &mut |_| ControlFlow::Break(())).unwrap_err();
    assert_eq!(files(dir.path()), before);
}

/// Every byte counts: damage anywhere but in padding ends in an error that names the bundle, and no model.
#[test]
fn damage_anywhere_is_found_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("models.bundle");
    pack(&models(dir.path())[..1], &path);
    let good = std::fs::read(&path).unwrap();
    let spoilt = dir.path().join("spoilt.bundle");
    let (mut refused, step) = (0, good.len() / 97);
    for at in (0..good.len() - 1024).step_by(step).chain(0..600) {
        let mut bytes = good.clone();
        bytes[at] ^= 4;
        std::fs::write(&spoilt, &bytes).unwrap();
        let home = Home::new();
        match unpack(&home, &spoilt, &[]) {
            Err(error) => {
                refused += 1;
                assert!(files(&home.path().join("models")).is_empty(), "at {at}: {error}");
            }
            Ok(done) => {
                // The last byte of a header's checksum field says nothing.
                assert!(bytes[at] & !4 == 0 || at == 155, "at {at}, which is no padding");
                Canonical::open(&done[0].1.dir).unwrap();
            }
        }
    }
    assert!(refused > 150, "{refused}");
    for length in [0, 100, 512, 700, good.len() / 2, good.len() - 1600] {
        std::fs::write(&spoilt, &good[..length]).unwrap();
        let home = Home::new();
        assert!(unpack(&home, &spoilt, &[]).is_err(), "{length}");
        assert!(files(&home.path().join("models")).is_empty());
    }
}

/// A bundle made to do harm, checksums and all.
#[test]
fn no_name_in_a_bundle_leads_out_of_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("evil.bundle");
    let make = |index: &str, name: &str, kind: tar::EntryType| {
        let mut tar = tar::Builder::new(std::fs::File::create(&path).unwrap());
        let mut add = |name: &str, data: &[u8], kind: tar::EntryType| {
            let mut header = tar::Header::new_ustar();
            // What `set_path` would refuse.
            header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
            header.set_size(data.len() as u64);
            header.set_mode(0o644);
            header.set_entry_type(kind);
            header.set_cksum();
            tar.append(&header, data).unwrap();
        };
        add("tec-zoo-bundle.json", index.as_bytes(), tar::EntryType::Regular);
        add(name, b"evil", kind);
        tar.finish().unwrap();
    };
    let file = |name: &str| format!(r#"{{"name":"{name}","bytes":4,"sha256":"{}"}}"#, sha256(b"evil"));
    let index = |model: &str, file: &str| format!(r#"{{"format":1,"models":[{{"name":"{model}","files":[{file}]}}]}}"#);
    let both = format!("{},{}", file("config.json"), file("model.safetensors"));
    let regular = tar::EntryType::Regular;
    for (index, name, kind, says) in [
        (index("../out", &both), "../out/config.json", regular, "a name no model can have"),
        (index("x", &file("../../out")), "x/../../out", regular, "files no model has"),
        (index("x", &file("/tmp/out")), "x//tmp/out", regular, "files no model has"),
        (index("x", &file("config.json")), "x/config.json", regular, "lacks its weights"),
        (index("x", &both), "x/config.json", tar::EntryType::Symlink, "something else"),
        (index("x", &both), "../x/config.json", regular, "something else"),
        (index("x", &both).replace("\"bytes\":4", "\"bytes\":18446744073709551615"), "x", regular, "absurd"),
        (index("x", &both).replace("format\":1", "format\":9"), "x", regular, "its format is 9"),
        (index("x", &both).replace("{\"format", "{\"run\":1,\"format"), "x", regular, "unknown field `run`"),
        (index("x", &both), "x/config.json", regular, "it is damaged before `x/model.safetensors`"),
    ] {
        make(&index, name, kind);
        let home = Home::new();
        let error = unpack(&home, &path, &[]).unwrap_err();
        assert!(matches!(error, FetchError::Bundle { .. }) && error.kind() == Kind::Verification, "{says}: {error}");
        assert!(error.in_full().contains(says), "{says}: {error}");
        assert!(files(&home.path().join("models")).is_empty() && !home.path().join("out").exists());
    }
}

/// The catalogue knows what a model of it must be; a bundle that says otherwise is not believed.
#[test]
fn a_bundled_model_of_the_catalogue_must_be_that_model() {
    let dir = tempfile::tempdir().unwrap();
    let mut packed = models(dir.path());
    packed.truncate(1);
    packed[0].0 = "mae-vitb".into();
    let path = dir.path().join("models.bundle");
    pack(&packed, &path);
    let home = Home::new();
    let error = unpack(&home, &path, &[]).unwrap_err();
    assert!(matches!(error, FetchError::Structure { .. }) && error.in_full().contains("its width is 16"), "{error}");
    assert!(files(&home.path().join("models")).is_empty());
    // The disk is asked first.
    let zoo = Zoo::embedded().unwrap();
    let full = Options { keep_free: u64::MAX / 2, ..options() };
    let error = unbundle(&home.store, &zoo, &path, &[], &full, &mut go_on).unwrap_err();
    assert!(matches!(error, FetchError::NoSpace { .. }), "{error}");
}

#[test]
fn a_damaged_model_is_not_packed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("models.bundle");
    pack(&models(dir.path()), &path);
    let home = Home::new();
    let done = unpack(&home, &path, &["my-mae"]).unwrap();
    assert!(matches!(done[0].1.checked, None | Some(Checked::Structure { .. })));
    let weights = done[0].1.dir.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    let models = [("my-mae".to_owned(), done[0].1.dir.clone())];
    let out = dir.path().join("again.bundle");
    let error = bundle(&home.store, &models, &out, &mut go_on).unwrap_err();
    assert!(error.in_full().contains("model.safetensors damaged") && !out.exists(), "{error}");
}

#[cfg(feature = "cli")]
#[test]
fn the_program_carries_models_from_one_machine_to_another() {
    let dir = tempfile::tempdir().unwrap();
    models(dir.path());
    let run = |home: &str, code: i32, arguments: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tec-zoo"));
        command.args(arguments).env("TEC_ZOO_HOME", dir.path().join(home)).env("TEC_ZOO_OFFLINE", "1");
        let output = command.current_dir(dir.path()).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{stderr}");
        (String::from_utf8(output.stdout).unwrap(), stderr)
    };
    run("here", 0, &["register", "my-mae", "--name", "my-mae"]);
    let (stdout, _) = run("here", 0, &["bundle", "my-mae", "--out", "b"]);
    assert_eq!(stdout, format!("{}  b\n", sha256(&std::fs::read(dir.path().join("b")).unwrap())));
    let (_, stderr) = run("here", 1, &["bundle", "ibot-vitb", "--out", "c"]);
    assert!(stderr.contains("tec-zoo fetch ibot-vitb"), "{stderr}");
    let (stdout, _) = run("there", 0, &["fetch", "--from", "b"]);
    let placed = tec_zoo::fetch::Store::open(&dir.path().join("there")).unwrap().model("my-mae").unwrap();
    assert_eq!(stdout, format!("{}\n", placed.display()));
    run("there", 0, &["info", "my-mae"]);
    run("there", 2, &["fetch", "--from", "my-mae/model.safetensors"]);
    let (_, stderr) = run("there", 1, &["fetch", "--from", "b", "other"]);
    assert!(stderr.contains("the bundle holds no `other`"), "{stderr}");
}
