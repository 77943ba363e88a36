//! A check is a proof or it is red: what `check`, `export`, `verify` and `matrix` say, and how they stop.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Program, fixture};

/// A run that knows of ONNX Runtime by what `environment` says alone.
fn command(program: &Program, environment: &[(&str, &str)], arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tec-zoo"));
    command.args(arguments).current_dir(program.dir()).env("TEC_ZOO_HOME", program.dir().join("home"));
    for name in ["ORT_DYLIB_PATH", "VIRTUAL_ENV", "CONDA_PREFIX", "NO_COLOR"] {
        command.env_remove(name);
    }
    command.envs(environment.iter().copied());
    command
}

fn run(program: &Program, environment: &[(&str, &str)], arguments: &[&str]) -> Output {
    command(program, environment, arguments).output().unwrap()
}

/// The object that a run which ends with `code` prints.
fn json(program: &Program, environment: &[(&str, &str)], code: i32, arguments: &[&str]) -> Value {
    let output = run(program, environment, arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}\n{stderr}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {arguments:?}\n{stderr}"))
}

/// The entry of a report for `runtime`.
fn of<'a>(report: &'a Value, runtime: &str) -> &'a Value {
    report["runtimes"].as_array().unwrap().iter().find(|entry| entry["runtime"] == runtime).unwrap()
}

/// A program with `mae` and its graph `mae.onnx`.
fn with_graph() -> Program {
    let program = Program::new().with_model();
    program.stdout(0, &["export", "mae", "--out", "mae.onnx", "--no-check"]);
    program
}

const MISSING: (&str, &str) = ("ORT_DYLIB_PATH", "/no/such/libonnxruntime.so");

#[test]
fn a_runtime_that_was_named_and_did_not_run_is_no_proof() {
    let program = with_graph();
    let asked = ["check", "mae.onnx", "--against", "mae", "--runtimes", "ort,tract", "--json"];
    let report = json(&program, &[MISSING], 3, &asked);
    assert_eq!(report["holds"], false);
    let ort = of(&report, "ort");
    assert_eq!(ort["ran"], false);
    assert!(ort["why_not"].as_str().unwrap().contains("/no/such/"), "{ort}");
    let tract = of(&report, "tract");
    assert_eq!((&tract["ran"], &tract["why_not"]), (&Value::Bool(true), &Value::Null));
    let told = String::from_utf8(run(&program, &[MISSING], &asked[..6]).stdout).unwrap();
    assert!(told.trim_end().ends_with("ort did not run it: does not hold"), "{told}");
    // The same of a runtime that is there and refuses the graph: candle-onnx has no fused operators.
    let exported = ["export", "mae", "--out", "fused.onnx", "--target", "ort", "--runtimes", "tract,candle", "--json"];
    let report = json(&program, &[], 3, &exported);
    assert_eq!((&report["holds"], &report["check"]["holds"]), (&Value::Bool(false), &Value::Bool(false)));
    assert_eq!(of(&report["check"], "candle")["ran"], false);
}

#[test]
fn a_library_that_was_named_and_does_not_load_is_an_error_of_its_runtime() {
    let program = with_graph();
    let report = json(&program, &[MISSING], 3, &["check", "mae.onnx", "--against", "mae", "--json"]);
    assert_eq!(report["holds"], false);
    let report = json(&program, &[MISSING], 3, &["export", "mae", "--out", "again.onnx", "--json"]);
    assert_eq!(report["holds"], false);
    assert!(of(&report["check"], "ort")["why_not"].as_str().unwrap().contains("/no/such/"), "{report}");
    let matrix = run(&program, &[MISSING], &["matrix", "mae", "--json", "--runtimes", "ort,tract"]);
    assert_eq!(matrix.status.code(), Some(3));
    assert_eq!(serde_json::from_slice::<Value>(&matrix.stdout).unwrap()["holds"], false);
    // Nor is another runtime taken silently in its place.
    let images = fixture("mae_expected.safetensors");
    let calibrated = ["export", "mae", "--out", "x.onnx", "--dtype", "int8", "--calibrate", &images];
    let refused = run(&program, &[MISSING], &calibrated);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("/no/such/"), "{refused:?}");
    let embedded = ["embed", "mae", &images, "--out", "f.safetensors", "--runtime", "ort"];
    assert_eq!(run(&program, &[MISSING], &embedded).status.code(), Some(1));
    assert_eq!(program.names(), ["again.onnx", "mae", "mae.onnx"]);
}

#[test]
fn a_file_is_never_compared_with_itself() {
    let program = with_graph();
    for runtimes in ["tract", "tract,tract"] {
        let report = json(&program, &[], 3, &["check", "mae.onnx", "--runtimes", runtimes, "--json"]);
        assert_eq!(report["holds"], Value::Null, "{runtimes}");
        assert!(report["problem"].as_str().unwrap().contains("not compared with itself"), "{report}");
    }
    let both = ["check", "mae.onnx", "--runtimes", "tract,candle"];
    let report = json(&program, &[], 0, &[&both[..], &["--json"]].concat());
    assert_eq!((&report["holds"], &report["reference"]), (&Value::Bool(true), &"tract".into()));
    let told = String::from_utf8(run(&program, &[], &both).stdout).unwrap();
    assert!(told.contains("the reference"), "{told}");
    assert!(told.trim_end().ends_with("in tract, candle: holds"), "{told}");
}

#[test]
fn a_graph_that_no_runtime_runs_neither_holds_nor_fails_unless_one_was_named() {
    let program = with_graph();
    let path = program.dir().join("mae.onnx");
    let mut bytes = std::fs::read(&path).unwrap();
    // An operator nobody has; names of the same length keep every field in its place.
    for at in 0..bytes.len() - 7 {
        if &bytes[at..at + 7] == b"Softmax" {
            bytes[at..at + 7].copy_from_slice(b"Sofimax");
        }
    }
    std::fs::write(&path, bytes).unwrap();
    let asked = ["check", "mae.onnx", "--against", "mae", "--json"];
    let report = json(&program, &[], 3, &asked);
    assert_eq!(report["holds"], Value::Null, "{report}");
    assert!(of(&report, "tract")["why_not"].as_str().is_some(), "{report}");
    let report = json(&program, &[], 3, &[&asked[..], &["--runtimes", "tract"]].concat());
    assert_eq!(report["holds"], false, "{report}");
}

#[test]
fn every_runtime_that_is_found_runs_and_the_last_line_says_which() {
    let program = with_graph();
    let told = run(&program, &[], &["check", "mae.onnx", "--against", "mae"]);
    assert_eq!(told.status.code(), Some(0));
    let told = String::from_utf8(told.stdout).unwrap();
    let last = told.trim_end().lines().last().unwrap();
    assert!(last.starts_with("compared with eager at |Δ| ≤ 1e-4 in ") && last.ends_with(": holds"), "{told}");
    assert!(last.contains("tract, candle"), "{told}");
    let fused = run(&program, &[], &["export", "mae", "--out", "fused.onnx", "--target", "ort"]);
    assert_eq!(fused.status.code(), Some(0));
    let told = String::from_utf8(fused.stdout).unwrap();
    let verdict = told.lines().find(|line| line.ends_with(": holds")).unwrap();
    assert!(verdict.contains("tract; did not run: ") && verdict.contains("candle"), "{told}");
    assert!(told.trim_end().lines().last().unwrap().starts_with("peak memory: "), "{told}");
}

#[test]
fn an_export_says_what_it_proved_and_what_that_took() {
    let program = Program::new().with_model();
    let report = json(&program, &[], 0, &["export", "mae", "--out", "mae.onnx", "--runtimes", "tract", "--json"]);
    assert_eq!(report["holds"], true);
    assert_eq!(report["check"]["runtimes"].as_array().unwrap().len(), 1);
    if cfg!(target_os = "linux") {
        assert!(report["peak_memory"].as_u64().unwrap() > 1 << 20, "{report}");
    }
    let report = json(&program, &[], 0, &["export", "mae", "--out", "other.onnx", "--no-check", "--json"]);
    assert_eq!((&report["holds"], &report["check"]), (&Value::Null, &Value::Null));
    program.stderr(2, &["export", "mae", "--out", "third.onnx", "--no-check", "--runtimes", "tract"]);
}

#[test]
fn a_record_of_nothing_this_model_makes_verifies_nothing() {
    let program = Program::new().with_model();
    let report = program.json(&["verify", "mae", "--golden", &fixture("mae_expected.safetensors"), "--json"]);
    assert_eq!(report["holds"], true);
    // Images, and the adapted feature of a TEC model.
    let images = vec![0_u8; 3 * 64 * 64 * 4];
    let config: Value = serde_json::from_slice(&std::fs::read(program.dir().join("mae/config.json")).unwrap()).unwrap();
    let vit = &config["tec_zoo"]["vit"];
    let [height, width] = [0, 1].map(|i| vit["image_size"][i].as_u64().unwrap() as usize);
    let patch = vit["patch_size"].as_u64().unwrap() as usize;
    let tokens = 1 + height / patch * (width / patch);
    let channels = vit["width"].as_u64().unwrap() as usize;
    let images = images.into_iter().cycle().take(3 * height * width * 4).collect::<Vec<_>>();
    let adapted = vec![0_u8; tokens * channels * 4];
    let view =
        |shape: Vec<usize>, bytes| safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape, bytes).unwrap();
    let tensors =
        [("images", view(vec![1, 3, height, width], &images)), ("adapted", view(vec![1, tokens, channels], &adapted))];
    safetensors::serialize_to_file(tensors, None, &program.dir().join("odd.safetensors")).unwrap();
    let report = json(&program, &[], 3, &["verify", "mae", "--golden", "odd.safetensors", "--json"]);
    assert_eq!(report["holds"], Value::Null, "{report}");
}

/// Puts a file that is no library where a wheel under `environment` has it.
fn fake_wheel(environment: &Path) -> String {
    let capi = environment.join("lib/python3.12/site-packages/onnxruntime/capi");
    fake(&capi, "libonnxruntime.so.1.99.0")
}

fn fake(folder: &Path, name: &str) -> String {
    std::fs::create_dir_all(folder).unwrap();
    let library = folder.join(name);
    std::fs::write(&library, "no library").unwrap();
    library.to_str().unwrap().to_owned()
}

#[cfg(target_os = "linux")]
#[test]
fn no_library_is_loaded_from_the_folder_one_works_in_unless_told() {
    let program = with_graph();
    let here = program.dir();
    for environment in [".venv", "venv", "target/interop/venv", "", ".local"] {
        fake_wheel(&here.join(environment));
    }
    let fakes = "1.99.0";
    let asked = ["check", "mae.onnx", "--against", "mae", "--json"];
    // An empty variable names nothing, least of all this folder.
    for environment in [&[][..], &[("VIRTUAL_ENV", ""), ("CONDA_PREFIX", ""), ("HOME", "")]] {
        let report = json(&program, environment, 0, &asked);
        assert!(!report.to_string().contains(fakes), "{report}");
    }
    let elsewhere = tempfile::tempdir().unwrap();
    let wheel = fake_wheel(&elsewhere.path().join("env"));
    let conda = fake(&elsewhere.path().join("conda/lib"), "libonnxruntime.so");
    let [env, prefix] = ["env", "conda"].map(|name| elsewhere.path().join(name).to_str().unwrap().to_owned());
    for (variable, value, library) in [("VIRTUAL_ENV", &env, &wheel), ("CONDA_PREFIX", &prefix, &conda)] {
        let report = json(&program, &[(variable, value)], 0, &asked);
        assert!(of(&report, "ort")["why_not"].as_str().unwrap().contains(library.as_str()), "{report}");
    }
    let help = program.stdout(0, &["check", "--help"]) + &program.stdout(0, &["export", "--help"]);
    assert_eq!(help.matches("ORT_DYLIB_PATH").count(), 2);
}

/// Starts a run, interrupts it after `delay`, and returns how long it went on.
#[cfg(unix)]
fn interrupted(
    program: &Program,
    environment: &[(&str, &str)],
    delay: Duration,
    arguments: &[&str],
) -> (Duration, Output) {
    let mut command = command(program, environment, arguments);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(delay);
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let started = Instant::now();
    let output = child.wait_with_output().unwrap();
    (started.elapsed(), output)
}

#[cfg(unix)]
#[test]
fn an_interrupted_check_answers_at_once_and_leaves_no_trace() {
    let program = Program::new().with_model();
    program.stdout(0, &["export", "mae", "--out", "any.onnx", "--dynamic", "--no-check"]);
    let names = program.names();
    // Long work: thousands of tokens, again and again.
    let sizes = ["1024x1024"; 12].join(",");
    let library = std::env::var("ORT_DYLIB_PATH").unwrap_or_default();
    let environment = [("ORT_DYLIB_PATH", library.as_str())];
    let runtimes = if library.is_empty() { &["tract", "candle"][..] } else { &["ort", "tract", "candle"] };
    for runtime in runtimes {
        for delay in [300, 1500] {
            let asked = ["check", "any.onnx", "--size", &sizes, "--runtimes", runtime];
            let (took, output) = interrupted(&program, &environment, Duration::from_millis(delay), &asked);
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(130), "{runtime}: {stderr}");
            assert!(stderr.contains("interrupted"), "{stderr}");
            // A second where the machine is free.
            assert!(took < Duration::from_secs(10), "{runtime}: {took:?}");
            assert_eq!(program.names(), names);
        }
    }
}

#[cfg(unix)]
#[test]
fn an_interrupted_export_leaves_a_whole_file_or_none() {
    let program = Program::new().with_model();
    for delay in [0, 20, 60, 200, 600, 1500] {
        let asked = ["export", "mae", "--out", "x.onnx", "--dynamic", "--for", "levels", "--levels", "0,1,2,3"];
        let (took, output) = interrupted(&program, &[], Duration::from_millis(delay), &asked);
        assert!(took < Duration::from_secs(10), "{took:?}");
        // Whoever is quicker; a signal before it listens ends the process by itself.
        assert!(matches!(output.status.code(), Some(0 | 130) | None), "{output:?}");
        let names = program.names();
        assert!(names.iter().all(|name| name == "mae" || name == "x.onnx"), "{names:?}");
        let path = program.dir().join("x.onnx");
        if path.exists() {
            tec_zoo::onnx::ModelInfo::open(&path).unwrap();
            std::fs::remove_file(path).unwrap();
        }
    }
}

#[test]
fn a_file_of_another_kind_is_called_what_it_is() {
    let program = with_graph();
    std::fs::write(program.dir().join("000.jpg"), b"\xff\xd8\xff\xe0\0\x10JFIF\0\x01").unwrap();
    let stderr = program.stderr(1, &["check", "000.jpg"]);
    assert!(stderr.contains("`000.jpg` is not an ONNX model: it looks like a JPEG image"), "{stderr}");
    let stderr = program.stderr(1, &["convert", "mae.onnx", "--out", "x"]);
    assert!(stderr.contains("an ONNX file"), "{stderr}");
    let checkpoint = fixture("mae_pretrain_vit_tiny.pth");
    std::fs::copy(&checkpoint, program.dir().join("checkpoint.pth")).unwrap();
    for model in ["checkpoint.pth", checkpoint.as_str()] {
        let stderr = program.stderr(1, &["export", model, "--out", "x.onnx"]);
        assert!(stderr.contains("is a file, not a model") && stderr.contains("convert it first"), "{stderr}");
    }
    std::fs::rename(program.dir().join("mae"), program.dir().join("mymae")).unwrap();
    let stderr = program.stderr(1, &["export", "mymea", "--out", "x.onnx"]);
    assert!(stderr.contains("did you mean the folder `mymae`"), "{stderr}");
}

#[test]
fn what_cannot_be_meant_is_usage_and_says_how_it_is_spelled_here() {
    let program = Program::new().with_model();
    let images = fixture("mae_expected.safetensors");
    let refuse = |arguments: &[&str], hint: &str| {
        let stderr = program.stderr(2, arguments);
        assert!(stderr.contains(hint), "{arguments:?}: {stderr}");
    };
    refuse(&["export", "mae", "--out", "x.onnx", "--fp16"], "--dtype f16");
    refuse(&["export", "mae", "--out", "x.onnx", "--int8"], "--dtype int8");
    refuse(&["export", "mae", "--out", "x.onnx", "--size", "100x128"], "--size 96x128");
    refuse(&["export", "mae", "--out", "x.onnx", "--opset", "9"], "hint: ");
    refuse(&["embed", "mae", &images, "--out", "x", "--size", "100x128"], "--size 96x128");
    refuse(&["embed", "mae", &images, "--out", "x", "--device", "cuda"], "processor");
    assert_eq!(program.names(), ["mae"]);
}
