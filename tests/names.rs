//! Names: nobody's is taken, and none is had by a folder that is merely called so.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::cli::{Program, fixture};

/// The short form of a run on `photos`.
const SHORT: [&str; 8] = [
    "--data",
    "photos",
    "--set",
    "optimizer.epochs=2",
    "--set",
    "optimizer.warmup_epochs=1",
    "--set",
    "optimizer.batch=16",
];

fn photos(program: &Program) {
    fs::create_dir(program.dir().join("photos")).unwrap();
    for i in 0..16_u32 {
        let picture = image::RgbImage::from_fn(72, 64, |x, y| image::Rgb([x as u8 * 3, y as u8 * 3, i as u8 * 15]));
        picture.save(program.dir().join("photos").join(format!("{i}.png"))).unwrap();
    }
}

fn provenance(program: &Program, model: &str) -> Value {
    let text = fs::read_to_string(program.dir().join(model).join("config.json")).unwrap();
    serde_json::from_str::<Value>(&text).unwrap()["tec_zoo"]["provenance"].clone()
}

fn sha256(program: &Program, file: &str) -> String {
    use sha2::Digest as _;
    let digest = sha2::Sha256::digest(fs::read(program.dir().join(file)).unwrap());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_released_models_name_is_taken_only_on_request_and_given_back() {
    let program = Program::new().with_model();
    let register = ["register", "mae", "--name", "ibot-vitb"];
    let stderr = program.stderr(1, &register);
    assert!(stderr.contains("`ibot-vitb` is a released model's name") && stderr.contains("--overwrite"), "{stderr}");
    assert_eq!(program.json(&["info", "ibot-vitb", "--json"])["family"], "ibot");
    program.stdout(0, &[&register[..], &["--overwrite"]].concat());
    assert_eq!(program.json(&["info", "ibot-vitb", "--json"])["family"], "mae");
    let manifest = program.dir().join("home/zoo/ibot-vitb.toml");
    assert!(fs::read_to_string(&manifest).unwrap().contains("replaces = true"));
    program.stdout(0, &["register", "--remove", "ibot-vitb"]);
    assert_eq!(program.json(&["info", "ibot-vitb", "--json"])["family"], "ibot");
    assert!(!manifest.exists() && !program.dir().join("home/fingerprints/ibot-vitb.json").exists());
    assert!(program.dir().join("mae/model.safetensors").exists());
}

#[test]
fn another_registered_models_name_is_taken_only_on_request() {
    let program = Program::new().with_model();
    let file = fixture("ibot_checkpoint_teacher.pth");
    program.stdout(0, &["convert", &file, "--family", "ibot", "--heads", "4", "--out", "ibot"]);
    program.stdout(0, &["register", "mae", "--name", "mine"]);
    let stderr = program.stderr(1, &["register", "ibot", "--name", "mine"]);
    assert!(stderr.contains("another registered model's name") && stderr.contains("--overwrite"), "{stderr}");
    assert_eq!(program.json(&["info", "mine", "--json"])["family"], "mae");
    // The same once more takes nothing from anybody.
    program.stdout(0, &["register", "./mae", "--name", "mine"]);
    program.stdout(0, &["register", "ibot", "--name", "mine", "--overwrite"]);
    assert_eq!(program.json(&["info", "mine", "--json"])["family"], "ibot");
}

#[test]
fn only_what_was_registered_can_be_removed() {
    let program = Program::new().with_model();
    program.stdout(0, &["register", "mae", "--name", "mine"]);
    let stderr = program.stderr(1, &["register", "--remove", "mime"]);
    assert!(stderr.contains("did you mean `mine`"), "{stderr}");
    let stderr = program.stderr(1, &["register", "--remove", "ibot-vitb"]);
    assert!(stderr.contains("`ibot-vitb` is a released model, and nothing is registered"), "{stderr}");
    program.stdout(0, &["register", "--remove", "mine"]);
    program.stderr(1, &["info", "mine"]);
    program.stderr(1, &["register", "--remove", "mine"]);
    assert!(program.dir().join("mae/model.safetensors").exists());
    program.stderr(2, &["register", "mae", "--name", "mine", "--remove", "mine"]);
}

#[test]
fn an_overlay_file_of_a_released_models_name_is_ignored_with_a_warning() {
    let program = Program::new().with_model();
    program.stdout(0, &["register", "mae", "--name", "ibot-vitb", "--overwrite"]);
    let manifest = program.dir().join("home/zoo/ibot-vitb.toml");
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, text.replace("replaces = true\n", "")).unwrap();
    let output = program.run(&["info", "ibot-vitb", "--json"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(stderr.matches("warning:").count(), 1, "{stderr}");
    assert!(stderr.contains("ibot-vitb.toml") && stderr.contains("replaces = true"), "{stderr}");
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap()["family"], "ibot");
    program.stdout(0, &["register", "--remove", "ibot-vitb"]);
    assert_eq!(String::from_utf8_lossy(&program.run(&["list"]).stderr), "");
}

#[test]
fn a_run_is_refused_the_name_of_another_model_at_its_start_and_at_its_end() {
    let program = Program::new().with_model();
    photos(&program);
    let pretrain =
        [&["pretrain", "--out", "run", "--recipe", "nano-pixels", "--name", "mae-vitb"], &SHORT[..]].concat();
    let stderr = program.stderr(1, &pretrain);
    assert!(stderr.contains("`mae-vitb` is a released model's name"), "{stderr}");
    assert!(!program.dir().join("run").exists());

    // Taken while it runs.
    let mut long = [&["pretrain", "--out", "run", "--recipe", "nano-pixels", "--name", "mine"], &SHORT[..]].concat();
    let epochs = long.iter().position(|word| word.starts_with("optimizer.epochs")).unwrap();
    long[epochs] = "optimizer.epochs=60";
    let running = Command::new(env!("CARGO_BIN_EXE_tec-zoo"))
        .args(&long)
        .current_dir(program.dir())
        .env("TEC_ZOO_HOME", program.dir().join("home"))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (began, started) = (Instant::now(), program.dir().join("run/recipe.toml"));
    while !started.exists() && began.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(5));
    }
    program.stdout(0, &["register", "mae", "--name", "mine"]);
    let output = running.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("another registered model's name"), "{stderr}");
    // Nothing of the work is lost.
    program.stdout(0, &["info", "run/model"]);
    let directory = program.json(&["info", "mine", "--json"])["directory"].clone();
    assert!(directory.as_str().unwrap().ends_with("mae"), "{directory}");
}

#[test]
fn the_lineage_of_a_second_round_says_what_its_base_was() {
    let program = Program::new();
    photos(&program);
    program.stdout(0, &[&["pretrain", "--out", "first", "--recipe", "nano-pixels"], &SHORT[..]].concat());
    let round = |base: &str, out: &str| {
        program.stdout(0, &[&["pretrain", "--base", base, "--out", out, "--recipe", "nano"], &SHORT[..]].concat());
        provenance(&program, &format!("{out}/model"))
    };
    let first = sha256(&program, "first/model/model.safetensors");
    let second = round("first/model", "second");
    assert_eq!((&second["lineage"], &second["lineage_sha256"]), (&vec!["first"].into(), &vec![first.as_str()].into()));
    let licence = program.json(&["info", "./second/model", "--json"])["licence"].to_string();
    assert!(licence.contains("trained from `first`"), "{licence}");

    // Under the name it was registered by, with all that came before it.
    program.stdout(0, &["register", "second/model", "--name", "my-second"]);
    let sha = sha256(&program, "second/model/model.safetensors");
    let third = round("second/model", "third");
    assert_eq!(third["lineage"], Value::from(vec!["my-second", "first"]));
    assert_eq!(third["lineage_sha256"], Value::from(vec![sha, first]));
    let shown = program.stdout(0, &["info", "third/model"]);
    assert!(shown.contains("my-second") && shown.contains("lineage sha256"), "{shown}");

    // A name means the weights it meant: another model that has it later is nobody's base.
    program.stdout(0, &["register", "first/model", "--name", "my-second", "--overwrite"]);
    program.stdout(0, &["register", "third/model", "--name", "my-third"]);
    let lineage = program.json(&["info", "my-third", "--json"])["lineage"].clone();
    assert!(lineage[1]["model"].as_str().unwrap().starts_with("my-second, sha256 "), "{lineage}");
}

#[test]
fn a_folder_called_like_a_released_model_gets_none_of_its_settings() {
    let program = Program::new();
    photos(&program);
    let file = fixture("ibot_checkpoint_teacher.pth");
    fs::create_dir(program.dir().join("runs")).unwrap();
    program.stdout(0, &["convert", &file, "--family", "ibot", "--heads", "4", "--out", "runs/ibot-vitb"]);
    let stderr = program.stderr(2, &["pretrain", "--base", "runs/ibot-vitb", "--data", "photos", "--out", "run"]);
    assert!(stderr.contains("no recipe was published for `runs/ibot-vitb`"), "{stderr}");
    let base = ["pretrain", "--base", "runs/ibot-vitb", "--out", "run", "--recipe", "nano"];
    program.stdout(0, &[&base[..], &SHORT[..]].concat());
    assert_eq!(provenance(&program, "run/model")["lineage"][0], "runs/ibot-vitb");
    program.stdout(0, &["export", "runs/ibot-vitb", "--no-check", "--out", "x.onnx"]);
    assert_eq!(program.json(&["contract", "x.onnx", "--json"])["facts"]["model"], "runs/ibot-vitb");
}
