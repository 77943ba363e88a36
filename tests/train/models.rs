//! The model of a run before the run ends: every command takes it, and it is the one the run would write.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Place, checkpoints};

/// The model files of a directory, by name.
fn files(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut found: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(&path).unwrap()))
        .collect();
    found.sort();
    found
}

impl Place {
    /// A run of two epochs without its result: what one is before its end.
    fn unfinished(&self, out: &str) {
        self.pretrain(out, &["optimizer.epochs=2", "optimizer.warmup_epochs=1"]);
        std::fs::remove_dir_all(self.path(out).join("model")).unwrap();
    }
}

#[test]
fn the_last_checkpoint_becomes_the_model_the_run_wrote_bit_for_bit() {
    let place = Place::new();
    for (at, set) in [
        &["method.adapters=input-and-encoder"][..],
        &["method.adapters=input"],
        &["method.adapters=none", "run.precision=bf16"],
        &["method.target=pixels"],
        &["run.precision=bf16"],
    ]
    .into_iter()
    .enumerate()
    {
        let (run, out) = (format!("run{at}"), format!("out{at}"));
        place.pretrain(&run, &[&["optimizer.epochs=1", "optimizer.warmup_epochs=0"], set].concat());
        let written = files(&place.path(&format!("{run}/model")));
        assert!(written.len() >= 3, "{set:?}");
        place.ok(&["convert", &format!("{run}/checkpoints/step-00000003"), "--out", &out]);
        assert!(files(&place.path(&out)) == written, "{set:?}: of the checkpoint");
        place.ok(&["convert", &run, "--out", &out, "--overwrite"]);
        assert!(files(&place.path(&out)) == written, "{set:?}: of the run that has ended");
        std::fs::remove_dir_all(place.path(&format!("{run}/model"))).unwrap();
        place.ok(&["convert", &run, "--out", &out, "--overwrite"]);
        assert!(files(&place.path(&out)) == written, "{set:?}: of the run that has not");
    }
}

#[test]
fn a_checkpoint_is_a_model_when_base_and_images_are_gone() {
    let place = Place::new();
    place.pretrain("run", &["optimizer.epochs=2", "optimizer.warmup_epochs=1"]);
    let config: Value = serde_json::from_slice(&std::fs::read(place.path("run/model/config.json")).unwrap()).unwrap();
    std::fs::remove_dir_all(place.path("run/model")).unwrap();
    for gone in ["mae", "photos"] {
        std::fs::remove_dir_all(place.path(gone)).unwrap();
    }
    std::fs::rename(place.path("run"), place.path("elsewhere")).unwrap();
    let info: Value = serde_json::from_str(&place.ok(&["info", "elsewhere", "--json"])).unwrap();
    assert_eq!(info, config["tec_zoo"]);
    assert_eq!(info["provenance"]["source_file"], "step-00000006/state.safetensors");
    assert_eq!(info["provenance"]["lineage"], serde_json::json!(["mae"]));
    assert_eq!(info["licence"]["spdx"], "CC-BY-NC-4.0");
    let older: Value =
        serde_json::from_str(&place.ok(&["info", "elsewhere/checkpoints/step-00000003", "--json"])).unwrap();
    assert_eq!(older["provenance"]["source_file"], "step-00000003/state.safetensors");
    assert_ne!(older["provenance"]["source_sha256"], info["provenance"]["source_sha256"]);
}

#[test]
fn every_command_that_takes_a_model_takes_a_run_and_its_checkpoints_before_the_run_ends() {
    let place = Place::new();
    place.unfinished("run");
    place.ok(&["convert", "run", "--out", "model"]);
    place.ok(&["verify", "model", "--record"]);
    place.ok(&["convert", "model", "--to", "timm", "--out", "timm"]);
    for (at, model) in ["run", "run/", "run/checkpoints/step-00000006"].into_iter().enumerate() {
        let stderr = String::from_utf8(place.run(&["info", model]).stderr).unwrap();
        assert!(stderr.contains("step-00000006`: the model after update 6 of 6"), "{stderr}");
        assert_eq!(place.ok(&["stats", model, "--json"]), place.ok(&["stats", "model", "--json"]));
        place.ok(&["verify", model, "--golden", "model/golden.safetensors", "--alternative", model]);
        let [features, graph, timm] = [".safetensors", ".onnx", "-timm"].map(|end| format!("out{at}{end}"));
        place.ok(&["embed", model, "photos", "--out", &features, "--outputs", "mean,adapted"]);
        place.ok(&["export", model, "--out", &graph, "--no-check"]);
        place.ok(&["check", &graph, "--against", model, "--runtimes", "tract,candle"]);
        place.ok(&["contract", model]);
        place.ok(&["convert", model, "--to", "timm", "--out", &timm]);
        assert!(files(&place.path(&timm)) == files(&place.path("timm")), "{model}");
    }
    // Made known, the model is found again in the checkpoint.
    place.ok(&["register", "model", "--name", "known"]);
    let found: Value = serde_json::from_str(&place.ok(&["identify", "run", "--json"])).unwrap();
    assert!(found["networks"].to_string().contains("known"), "{found}");

    let refused = place.fails(1, &["register", "run", "--name", "unlasting"]);
    assert!(refused.contains("is a checkpoint, which its run may remove"), "{refused}");
    assert!(refused.contains("`tec-zoo convert run --out DIR` makes a model of it to register"), "{refused}");
    let refused = place.fails(1, &["verify", "run/checkpoints/step-00000006", "--record"]);
    assert!(refused.contains("makes a model of it that does"), "{refused}");
    let refused = place.fails(2, &["convert", "run", "--out", "new", "--heads", "2"]);
    assert!(refused.contains("a run says itself what its model is"), "{refused}");
    let names: Vec<_> = checkpoints(&place.path("run")).iter().map(|path| files(path).len()).collect();
    assert_eq!(names, [2, 2], "nothing was written into the run");
}

#[test]
fn a_torn_checkpoint_is_named_and_the_one_before_it_used_unless_it_was_asked_for() {
    let place = Place::new();
    place.unfinished("run");
    let torn = place.path("run/checkpoints/step-00000006/state.safetensors");
    let length = std::fs::metadata(&torn).unwrap().len();
    std::fs::OpenOptions::new().write(true).open(&torn).unwrap().set_len(length - 100).unwrap();
    let output = place.run(&["convert", "run", "--out", "model"]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    assert!(stderr.contains("step-00000006` cannot be used: `state.safetensors` is torn"), "{stderr}");
    assert!(stderr.contains("step-00000003`: the model after update 3 of 6"), "{stderr}");
    let refused = place.fails(1, &["info", "run/checkpoints/step-00000006"]);
    assert!(refused.contains("`run/checkpoints/step-00000006`: `state.safetensors` is torn"), "{refused}");
    assert!(torn.exists(), "reading removes nothing");

    std::fs::remove_dir_all(place.path("run/checkpoints")).unwrap();
    std::fs::create_dir(place.path("run/checkpoints")).unwrap();
    let young = place.fails(1, &["info", "run"]);
    assert!(young.contains("the run `run` has no checkpoint yet"), "{young}");
}

#[test]
fn a_run_can_be_read_all_the_while_it_writes_and_removes_checkpoints() {
    let place = Place::new();
    let set = ["optimizer.epochs=4000", "run.save_steps=1", "run.keep_last=1"];
    let mut child = place.command(&place.arguments("run", &set)).spawn().unwrap();
    place.wait_for("run", 2, &mut child);
    let started = Instant::now();
    let (mut reads, mut seen) = (0, std::collections::BTreeSet::new());
    while reads < 12 || (seen.len() < 2 && started.elapsed() < Duration::from_secs(60)) {
        let output = place.run(&["embed", "run", "photos/00.png", "--out", &format!("{reads}.safetensors")]);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{stderr}");
        assert!(!stderr.contains("cannot be used"), "{stderr}");
        seen.insert(stderr.lines().find(|line| line.contains("the model after")).unwrap().to_owned());
        reads += 1;
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(seen.len() > 1, "the run went on meanwhile: {seen:?}");
}

#[test]
fn a_base_that_is_a_checkpoint_is_kept_in_the_run_and_found_again() {
    let place = Place::new();
    place.unfinished("first");
    let arguments = |out: &'static str| {
        let mut arguments = place.arguments(out, &["optimizer.epochs=4"]);
        arguments[2] = "first/checkpoints/step-00000006";
        arguments
    };
    place.ok(&arguments("alone"));
    let about: Value = serde_json::from_slice(&std::fs::read(place.path("alone/run.json")).unwrap()).unwrap();
    assert_eq!((about["base"]["name"].as_str(), about["base"]["directory"].as_str()), (Some("first@6"), Some("base")));
    let mut child = place.command(&arguments("killed")).spawn().unwrap();
    place.wait_for("killed", 4, &mut child);
    child.kill().unwrap();
    child.wait().unwrap();
    // Its base's run is gone, and it was moved itself.
    std::fs::remove_dir_all(place.path("first")).unwrap();
    std::fs::rename(place.path("killed"), place.path("moved")).unwrap();
    place.ok(&["pretrain", "--out", "moved", "--resume"]);
    place.outcome("moved").assert_is(&place.outcome("alone"), "from the base it kept");
}

#[test]
fn a_run_of_a_version_whose_checkpoints_were_no_models_goes_on_and_gets_its_model() {
    let place = Place::new();
    place.pretrain("run", &["optimizer.epochs=2", "optimizer.warmup_epochs=1"]);
    let expected = place.outcome("run");
    std::fs::remove_dir_all(place.path("run/model")).unwrap();
    for checkpoint in checkpoints(&place.path("run")) {
        let path = checkpoint.join("checkpoint.json");
        let mut record: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        record["format"] = 1.into();
        record["belongs"].as_object_mut().unwrap().remove("model");
        for entry in record["layout"].as_array_mut().unwrap() {
            entry.as_object_mut().unwrap().remove("updates");
        }
        std::fs::write(path, record.to_string()).unwrap();
    }
    let refused = place.fails(1, &["info", "run"]);
    assert!(
        refused.contains("an older version wrote it") && refused.contains("the run can go on from it"),
        "{refused}"
    );
    place.ok(&["pretrain", "--out", "run", "--resume"]);
    place.outcome("run").assert_is(&expected, "of an older version");
}
