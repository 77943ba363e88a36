//! The program as a user meets it: what it prints, where, and how it exits.

mod checks;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// A run of the program with its own home and no colours; nothing of the machine's environment shows through.
pub(crate) struct Program {
    home: tempfile::TempDir,
}

impl Program {
    pub(crate) fn new() -> Self {
        Self { home: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn dir(&self) -> &Path {
        self.home.path()
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_tec-zoo"))
            .args(arguments)
            .current_dir(self.dir())
            .env("TEC_ZOO_HOME", self.dir().join("home"))
            .env_remove("NO_COLOR")
            .output()
            .unwrap()
    }

    /// Standard output of a run that must end with `code`.
    pub(crate) fn stdout(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}\n{stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Standard error of a run that must end with `code` and print no data.
    pub(crate) fn stderr(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}\n{stderr}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "", "{arguments:?}");
        stderr
    }

    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.stdout(0, arguments)).unwrap()
    }

    /// The MAE fixture, converted to `mae`.
    pub(crate) fn with_model(self) -> Self {
        self.stdout(0, &["convert", &fixture("mae_pretrain_vit_tiny.pth"), "--heads", "4", "--out", "mae"]);
        self
    }

    /// Names of everything in the working folder, hidden files included.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir()).unwrap();
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

pub(crate) fn fixture(name: &str) -> String {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "fixtures", "reference", name].iter().collect();
    path.to_str().unwrap().to_owned()
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn list_names_every_model_once_and_filters_by_family() {
    let program = Program::new();
    let all = program.json(&["list", "--json"]);
    let names: Vec<&str> = all.as_array().unwrap().iter().map(|model| model["name"].as_str().unwrap()).collect();
    for expected in ["ibot-vitb", "mae-vitb", "mocov3-vits", "tec-ibot-vitb-800ep"] {
        assert_eq!(names.iter().filter(|name| **name == expected).count(), 1, "{expected}");
    }
    insta::assert_json_snapshot!(keys(&all[0]), @r#"
    [
      "name",
      "family",
      "architecture",
      "parameters",
      "licence",
      "terms",
      "source",
      "sources",
      "status",
      "cached",
      "metrics"
    ]
    "#);
    let tec = program.json(&["list", "--family", "tec", "--json"]);
    assert_eq!(tec.as_array().unwrap().len(), 6);
    assert!(program.stderr(2, &["list", "--family", "tecc"]).contains("there are dino, "));
    assert_eq!(program.json(&["list", "--cached", "--json"]), Value::Array(vec![]));
}

#[test]
fn an_unknown_model_gets_the_name_it_resembles() {
    let stderr = Program::new().stderr(1, &["info", "ibot-vit-b"]);
    assert!(stderr.contains("did you mean `ibot-vitb`"), "{stderr}");
}

#[test]
fn info_shows_the_licence_along_the_lineage() {
    let info = Program::new().json(&["info", "tec-mae-vitb-800ep", "--json"]);
    assert_eq!(info["lineage"][1]["model"], "mae-vitb");
    assert_eq!(info["lineage"][1]["licence"]["spdx"], "CC-BY-NC-4.0");
    assert_eq!(info["terms_with_lineage"], "non-commercial");
}

#[test]
fn a_converted_model_can_be_registered_and_used_by_name() {
    let program = Program::new().with_model();
    program.stdout(0, &["register", "mae", "--name", "my-mae"]);
    assert_eq!(program.json(&["info", "my-mae", "--json"])["family"], "mae");
    let cached = program.json(&["list", "--cached", "--json"]);
    assert_eq!(cached[0]["name"], "my-mae");
    program.stdout(0, &["export", "my-mae", "--out", "my.onnx", "--no-check"]);
}

#[test]
fn converting_says_who_said_what_no_tensor_says() {
    let program = Program::new();
    let output = program.run(&["convert", &fixture("mae_pretrain_vit_tiny.pth"), "--heads", "4", "--out", "mae"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("heads        4 (flag)"), "{stderr}");
    assert!(stderr.contains("norm_eps     1e-6 (published)"), "{stderr}");
    let quiet =
        program.run(&["--quiet", "convert", &fixture("mae_pretrain_vit_tiny.pth"), "--heads", "4", "--out", "b"]);
    assert_eq!(String::from_utf8_lossy(&quiet.stderr), "");
}

#[test]
fn what_tensors_cannot_say_is_asked_for_by_the_flags_name() {
    let program = Program::new();
    let heads = program.stderr(1, &["convert", &fixture("mae_pretrain_vit_tiny.pth"), "--out", "x"]);
    assert!(heads.contains("hint: add `--heads N`"), "{heads}");
    let branch = program.stderr(1, &["convert", &fixture("ibot_checkpoint_full.pth"), "--heads", "4", "--out", "x"]);
    assert!(branch.contains("`--branch student` or `--branch teacher`"), "{branch}");
    assert_eq!(program.names(), [] as [&str; 0]);
}

#[test]
fn a_dry_run_decides_every_key_and_writes_nothing() {
    let program = Program::new();
    let file = fixture("mocov3_vit_tiny.pth.tar");
    let plan =
        program.json(&["convert", &file, "--heads", "4", "--branch", "momentum", "--out", "x", "--dry-run", "--json"]);
    assert_eq!(plan["branch"], "momentum");
    assert_eq!(plan["tensors"].as_array().unwrap().len(), 309);
    assert_eq!(program.names(), [] as [&str; 0]);
}

#[test]
fn a_turned_bit_in_a_weight_ends_in_an_error_and_no_model() {
    let program = Program::new();
    let file = fixture("mae_pretrain_vit_tiny.pth");
    let checkpoint = tec_zoo::checkpoint::Checkpoint::open(Path::new(&file)).unwrap();
    let weight = checkpoint.tensors().iter().find(|tensor| tensor.path[1] == "blocks.1.mlp.fc1.weight").unwrap();
    let at = checkpoint.span(weight).unwrap().offset as usize;
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[at + 17] ^= 0x10;
    std::fs::write(program.dir().join("damaged.pth"), bytes).unwrap();
    let stderr = program.stderr(1, &["--quiet", "convert", "damaged.pth", "--heads", "4", "--out", "mae"]);
    assert!(stderr.contains("tensor `model.blocks.1.mlp.fc1.weight`") && stderr.contains("damaged"), "{stderr}");
    assert_eq!(program.names(), ["damaged.pth"]);
}

#[test]
fn nothing_is_overwritten_unasked() {
    let program = Program::new().with_model();
    let file = fixture("ibot_checkpoint_teacher.pth");
    let arguments = ["convert", file.as_str(), "--family", "ibot", "--heads", "4", "--out", "mae"];
    assert!(program.stderr(1, &arguments).contains("--overwrite"));
    assert_eq!(program.json(&["info", "./mae", "--json"])["family"], "mae");
    program.stdout(0, &[&arguments[..], &["--overwrite"]].concat());
    assert_eq!(program.json(&["info", "./mae", "--json"])["family"], "ibot");
}

#[test]
fn a_directory_that_is_no_model_says_what_is_missing() {
    let program = Program::new();
    std::fs::create_dir(program.dir().join("empty")).unwrap();
    let stderr = program.stderr(1, &["info", "./empty"]);
    assert!(stderr.contains("it has no config.json"), "{stderr}");
}

#[test]
fn a_size_that_is_no_multiple_of_the_patch_is_refused_with_one_that_is() {
    let program = Program::new().with_model();
    let calibrated = ["export", "mae", "--out", "x.onnx", "--calibrate", "."];
    assert!(program.stderr(2, &calibrated).contains("--calibrate means nothing with --dtype f32"));
    let calibrated = ["export", "mae", "--out", "x.onnx", "--dtype", "int8", "--calibrate", "mae"];
    assert!(program.stderr(1, &calibrated).contains("names no images"));
    let stderr = program.stderr(2, &["export", "mae", "--out", "x.onnx", "--size", "100x128"]);
    assert!(stderr.contains("--size 96x128"), "{stderr}");
    assert!(program.stderr(2, &["export", "mae", "--out", "x.onnx", "--size", "0x8"]).contains("not a size"));
    assert_eq!(program.names(), ["mae"]);
}

#[test]
fn an_export_in_eight_bits_is_calibrated_on_a_folder_past_its_broken_images() {
    let program = Program::new().with_model();
    let photos = program.dir().join("photos");
    std::fs::create_dir(&photos).unwrap();
    for (from, to) in [("0.png", "a.png"), ("1.png", "b.png")] {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/images").join(from);
        std::fs::copy(from, photos.join(to)).unwrap();
    }
    std::fs::write(photos.join("c.jpg"), "no image").unwrap();
    let run = program.run(&["export", "mae", "--out", "x.onnx", "--dtype", "int8", "--calibrate", "photos"]);
    let stderr = String::from_utf8_lossy(&run.stderr);
    assert!(stderr.contains("c.jpg"), "{stderr}");
    assert_eq!(run.status.code(), Some(0), "{stderr}");
    let contract = program.json(&["contract", "x.onnx", "--json"]);
    assert_eq!((&contract["facts"]["dtype"], &contract["facts"]["calibration"]), (&"int8".into(), &"2 images".into()));
}

#[test]
fn export_checks_what_it_wrote_and_reports_it() {
    let program = Program::new().with_model();
    let report = program.json(&["export", "mae", "--out", "mae.onnx", "--json"]);
    let tract =
        report["check"]["runtimes"].as_array().unwrap().iter().find(|check| check["runtime"] == "tract").unwrap();
    assert_eq!(tract["verdict"], "ran");
    assert_eq!(tract["outputs"][0]["passed"], true);
    // Another model's graph is told apart.
    program.stdout(
        0,
        &["convert", &fixture("ibot_checkpoint_teacher.pth"), "--family", "ibot", "--heads", "4", "--out", "ibot"],
    );
    program.stdout(3, &["check", "mae.onnx", "--against", "ibot", "--runtimes", "tract"]);
}

#[test]
fn embed_gives_the_same_features_in_both_embedded_engines() {
    let program = Program::new().with_model();
    let images = fixture("mae_expected.safetensors");
    for runtime in ["candle", "tract"] {
        let out = format!("{runtime}.safetensors");
        program.stdout(
            0,
            &[
                "embed",
                "mae",
                &images,
                "--out",
                &out,
                "--outputs",
                "cls,block2,norm",
                "--runtime",
                runtime,
                "--batch",
                "1",
            ],
        );
    }
    let load = |name: &str| std::fs::read(program.dir().join(name)).unwrap();
    let (candle, tract) = (load("candle.safetensors"), load("tract.safetensors"));
    let expected = std::fs::read(&images).unwrap();
    let read = |bytes: &[u8], name: &str| -> Vec<f32> {
        let file = safetensors::SafeTensors::deserialize(bytes).unwrap();
        let view = file.tensor(name).unwrap();
        view.data().as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect()
    };
    for name in ["block2", "norm"] {
        for features in [&candle, &tract] {
            // Values are of order 1; f32 sums over 64 products in another order stay below 1e-5.
            let (ours, theirs) = (read(features, name), read(&expected, name));
            let largest = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(largest < 2e-5, "{name}: {largest}");
        }
    }
}

#[test]
fn outputs_a_model_does_not_have_are_refused_by_name() {
    let program = Program::new().with_model();
    let images = fixture("mae_expected.safetensors");
    let refuse = |outputs: &str| program.stderr(2, &["embed", "mae", &images, "--out", "x", "--outputs", outputs]);
    assert!(refuse("adapted").contains("only TEC training checkpoints"));
    assert!(refuse("block4").contains("the last block is block3"));
    assert!(refuse("clss").contains("there are cls, mean"));
    assert_eq!(program.names(), ["mae"]);
}

#[test]
fn features_that_cannot_be_written_say_so() {
    let program = Program::new().with_model();
    let images = fixture("mae_expected.safetensors");
    let stderr = program.stderr(1, &["embed", "mae", &images, "--out", "nowhere/f.safetensors"]);
    assert!(stderr.contains("cannot write `nowhere/f.safetensors`"), "{stderr}");
}

#[test]
fn broken_images_are_named_and_skipped_only_on_request() {
    let program = Program::new().with_model();
    let folder = program.dir().join("images");
    std::fs::create_dir(&folder).unwrap();
    for name in ["a.png", "c.png"] {
        image::RgbImage::from_fn(80, 70, |x, y| image::Rgb([x as u8, y as u8, 9])).save(folder.join(name)).unwrap();
    }
    std::fs::write(folder.join("b.png"), b"no image").unwrap();
    let arguments = ["embed", "mae", "images", "--out", "f.safetensors"];
    let stderr = program.stderr(1, &arguments);
    assert!(stderr.contains("b.png"), "{stderr}");
    assert_eq!(program.names(), ["images", "mae"]);
    let output = program.run(&[&arguments[..], &["--skip-broken"]].concat());
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("b.png"));
    let bytes = std::fs::read(program.dir().join("f.safetensors")).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(header.info("cls").unwrap().shape, [2, 16]);
    let paths: Vec<String> = serde_json::from_str(&header.metadata().as_ref().unwrap()["paths"]).unwrap();
    assert!(paths[0].ends_with("a.png") && paths[1].ends_with("c.png"), "{paths:?}");
}

#[test]
fn fetch_shows_its_plan_and_touches_no_network_when_offline() {
    let program = Program::new();
    let plan = program.json(&["fetch", "ibot-vitb", "--dry-run", "--json"]);
    assert!(plan[0]["address"].as_str().unwrap().ends_with("vitb_16/checkpoint_teacher.pth"));
    assert!(plan[0]["hashes"].as_str().unwrap().starts_with("sha256:734b9c49"));
    assert_eq!(program.names(), [] as [&str; 0]);
    let stderr = program.stderr(4, &["fetch", "ibot-vitb", "--offline"]);
    assert!(stderr.contains("offline"), "{stderr}");
}

#[test]
fn a_file_that_is_not_the_models_is_not_taken_for_it() {
    let program = Program::new();
    let stderr = program.stderr(3, &["fetch", "mae-vitb", "--from", &fixture("mae_pretrain_vit_tiny.pth")]);
    assert!(stderr.contains("mae-vitb"), "{stderr}");
    assert_eq!(program.stdout(0, &["cache", "ls"]).lines().count(), 1, "only the table's head");
}

#[test]
fn an_interrupt_leaves_nothing_and_exits_130() {
    let program = Program::new().with_model();
    let folder = program.dir().join("images");
    std::fs::create_dir(&folder).unwrap();
    for i in 0..400 {
        image::RgbImage::from_pixel(800, 800, image::Rgb([i as u8, 7, 9]))
            .save(folder.join(format!("{i}.png")))
            .unwrap();
    }
    let mut child = Command::new(env!("CARGO_BIN_EXE_tec-zoo"))
        .args(["embed", "mae", "images", "--out", "f.safetensors", "--batch", "1"])
        .current_dir(program.dir())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(std::time::Duration::from_millis(300));
    let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(130));
    assert_eq!(program.names(), ["images", "mae"]);
}

#[test]
fn a_reader_that_had_enough_is_no_error() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tec-zoo"))
        .args(["inspect", "--all", &fixture("tec_checkpoint-299.pth")])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn colour_is_for_terminals_or_on_request() {
    let program = Program::new();
    assert!(!program.stdout(0, &["list"]).contains('\x1b'));
    assert!(program.stdout(0, &["list", "--color", "always"]).contains('\x1b'));
}

#[test]
fn stats_reproduce_the_papers_table_8() {
    let program = Program::new();
    let stats = program.json(&["stats", "--recipe", "tec-mae-vitb-300ep", "--json"]);
    assert_eq!((stats["parameters"].as_u64(), stats["trainable"].as_u64()), (Some(118_594_304), Some(118_342_144)));
    assert_eq!(stats["macs_with_grad"].as_u64().unwrap() / 1_000_000, 8_308);
    let stats = program.json(&["stats", "--recipe", "tec-mae-vitl-300ep", "--json"]);
    assert_eq!((stats["parameters"].as_u64(), stats["trainable"].as_u64()), (Some(405_553_408), Some(405_200_384)));
}

#[test]
fn verify_holds_or_exits_3_with_the_block_and_the_cause() {
    let program = Program::new();
    let file = fixture("ibot_checkpoint_full.pth");
    let golden = fixture("ibot_expected.safetensors");
    for (out, heads, branch) in [("good", "4", "teacher"), ("heads", "2", "teacher"), ("student", "4", "student")] {
        program.stdout(0, &["convert", &file, "--heads", heads, "--branch", branch, "--out", out]);
    }
    program.stdout(0, &["verify", "good", "--golden", &golden]);
    let heads = program.stdout(3, &["verify", "heads", "--golden", &golden]);
    assert!(heads.contains("`block0` is the first") && heads.contains("--heads 4"), "{heads}");
    let student = program.stdout(3, &["verify", "student", "--golden", &golden, "--alternative", "good"]);
    assert!(student.contains("--branch teacher"), "{student}");
    assert!(program.stderr(1, &["verify", "good"]).contains("--record"));
    program.stdout(0, &["verify", "good", "--record"]);
    program.stdout(0, &["verify", "good"]);
}

#[test]
fn demo_goes_the_whole_way() {
    let program = Program::new();
    let table = program.stdout(0, &["demo", "--out", "kept"]);
    assert!(table.contains("everything holds"), "{table}");
    assert_eq!(program.names(), ["kept"]);
    // What it left is replaced on request, and nothing else with it.
    let stderr = program.stderr(1, &["demo", "--out", "kept"]);
    assert!(stderr.contains("`kept` exists") && stderr.contains("--overwrite"), "{stderr}");
    std::fs::write(program.dir().join("kept/notes.txt"), "mine").unwrap();
    let stderr = program.stderr(1, &["demo", "--out", "kept", "--overwrite"]);
    assert!(stderr.contains("`notes.txt`") && program.dir().join("kept/model").exists(), "{stderr}");
    assert!(program.stderr(1, &["demo", "--out", "-"]).contains("`-` is standard output"));
    assert!(program.stderr(1, &["demo", "--out", "none/kept"]).contains("the folder `none` does not exist"));
}

#[test]
fn completions_know_every_verb() {
    let script = Program::new().stdout(0, &["completions", "bash"]);
    for verb in
        ["list", "info", "inspect", "convert", "verify", "embed", "export", "check", "stats", "demo", "register"]
    {
        assert!(script.contains(verb), "{verb}");
    }
}
