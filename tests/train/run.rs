//! A run from the command line: what it makes, what it refuses, and what it leaves when a loss is no number.

use serde_json::Value;

use super::{Place, checkpoints};

#[test]
fn a_run_makes_a_registered_model_of_its_bases_licence_that_exports_and_is_a_base_again() {
    let place = Place::new();
    let mut arguments = place.arguments("first", &[]);
    arguments.extend(["--name", "first-round"]);
    let summary: Value = serde_json::from_str(&place.ok(&arguments)).unwrap();
    assert_eq!((summary["steps"].as_u64(), summary["images"].as_u64()), (Some(120), Some(960)));
    let records = place.records("first");
    assert_eq!(records.iter().map(|record| record.step).collect::<Vec<_>>(), (1..=120).collect::<Vec<_>>());
    let mean = |part: &[tec_zoo::train::StepRecord]| part.iter().map(|r| r.loss).sum::<f64>() / part.len() as f64;
    assert!(mean(&records[110..]) < 0.9 * mean(&records[..10]), "it does not learn");
    // The JSON reader may round the last digit.
    assert!((summary["loss"].as_f64().unwrap() - mean(&records[117..])).abs() < 1e-12);
    let left: Vec<_> =
        checkpoints(&place.path("first")).iter().map(|path| path.file_name().unwrap().to_owned()).collect();
    assert_eq!(left, ["step-00000117", "step-00000120"], "keep_last is 2");

    let info: Value = serde_json::from_str(&place.ok(&["info", "first-round", "--json"])).unwrap();
    assert_eq!(info["family"], "tec");
    let config = std::fs::read_to_string(place.path("first/model/config.json")).unwrap();
    let config: Value = serde_json::from_str(&config).unwrap();
    let base = std::fs::read_to_string(place.path("mae/config.json")).unwrap();
    let base: Value = serde_json::from_str(&base).unwrap();
    assert_eq!(base["tec_zoo"]["licence"]["spdx"], "CC-BY-NC-4.0");
    assert_eq!(config["tec_zoo"]["licence"]["spdx"], "CC-BY-NC-4.0");
    assert_eq!(config["pretrained_cfg"]["license"], "CC-BY-NC-4.0");
    assert_eq!(config["tec_zoo"]["provenance"]["lineage"], serde_json::json!(["mae"]));
    assert_eq!(config["tec_zoo"]["vit"]["adapters"]["groups"], 1);

    for adapters in ["drop", "keep"] {
        let file = format!("{adapters}.onnx");
        let export = place.ok(&["export", "first-round", "--adapters", adapters, "--out", &file, "--json"]);
        let export: Value = serde_json::from_str(&export).unwrap();
        let ran = export["check"]["runtimes"].as_array().unwrap().iter();
        assert!(ran.filter(|runtime| runtime.to_string().contains("max_abs_diff")).count() >= 2, "{export}");
    }

    // The paper's Table 7: its own result as the next base.
    let mut arguments = place.arguments("second", &["optimizer.epochs=2", "optimizer.warmup_epochs=1"]);
    arguments[2] = "first-round";
    place.ok(&arguments);
    let config = std::fs::read_to_string(place.path("second/model/config.json")).unwrap();
    let config: Value = serde_json::from_str(&config).unwrap();
    assert_eq!(config["tec_zoo"]["provenance"]["lineage"], serde_json::json!(["first-round", "mae"]));
    assert_eq!(config["tec_zoo"]["licence"]["spdx"], "CC-BY-NC-4.0");

    place.ok(&["view", "curves", "first", "second", "--out", "curves.svg"]);
    assert!(std::fs::read_to_string(place.path("curves.svg")).unwrap().contains("attention loss"));
}

#[test]
fn what_a_run_was_started_with_is_written_beside_it() {
    let place = Place::new();
    place.pretrain("run", &["optimizer.epochs=2", "run.seed=11"]);
    let recipe = tec_zoo::train::Recipe::load(place.path("run/recipe.toml").to_str().unwrap(), &[]).unwrap();
    assert_eq!((recipe.run.seed, recipe.optimizer.epochs, recipe.method.top_k), (11, 2, Some(5)));
    let about: Value = serde_json::from_slice(&std::fs::read(place.path("run/run.json")).unwrap()).unwrap();
    let keys: Vec<&String> = about.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["tool", "revision", "seed", "base", "data", "images", "digest"]);
    let digest = about["digest"].as_object().unwrap();
    assert_eq!(digest.keys().collect::<Vec<_>>(), ["version", "images", "bytes", "names", "sizes", "contents"]);
    assert_eq!((about["seed"].as_u64(), about["images"].as_u64()), (Some(11), Some(26)));
    assert_eq!(about["base"]["sha256"].as_str().unwrap().len(), 64);
    let summary: Value = serde_json::from_slice(&std::fs::read(place.path("run/summary.json")).unwrap()).unwrap();
    assert_eq!(summary["steps"], 6);
}

#[test]
fn neither_threads_nor_saving_change_a_bit_of_the_result() {
    let place = Place::new();
    place.pretrain("a", &["optimizer.epochs=4"]);
    place.pretrain("b", &["optimizer.epochs=4", "data.workers=1", "run.save_steps=5", "run.keep_steps=5"]);
    let (a, b) = (place.outcome("a"), place.outcome("b"));
    // The one difference is which folder the last checkpoint's numbers came from: none.
    a.assert_is(&b, "one decoding thread");
    let kept: Vec<_> = checkpoints(&place.path("b")).iter().map(|path| path.file_name().unwrap().to_owned()).collect();
    assert_eq!(kept, ["step-00000005", "step-00000010", "step-00000012"]);
}

#[test]
fn every_ablation_trains_and_its_result_is_a_model() {
    let place = Place::new();
    for (at, set) in [
        "method.target=feature",
        "method.target=attention",
        "method.target=pixels",
        "method.normalise=channel",
        "method.attention_rows=class",
        "method.attention_rows=all",
        "method.adapters=none",
        "method.adapters=input",
        "method.adapters=encoder",
        "method.last_blocks=1",
        "run.precision=bf16",
    ]
    .iter()
    .enumerate()
    {
        let out = format!("run{at}");
        place.pretrain(&out, &["optimizer.epochs=1", "optimizer.warmup_epochs=0", set]);
        let record = place.records(&out).pop().unwrap();
        let terms = [record.feature, record.attention, record.pixels].map(|term| term.is_some());
        let expected = match *set {
            "method.target=feature" => [true, false, false],
            "method.target=attention" => [false, true, false],
            "method.target=pixels" => [false, false, true],
            _ => [true, true, false],
        };
        assert_eq!(terms, expected, "{set}");
        place.ok(&["info", &format!("{out}/model")]);
    }
}

#[test]
fn pixels_need_no_base_and_anything_else_says_what_it_needs() {
    let place = Place::new();
    let small = ["--set", "optimizer.batch=8", "--set", "optimizer.epochs=1", "--set", "optimizer.warmup_epochs=0"];
    let run = |recipe: &'static str, out: &'static str| {
        let arguments = ["pretrain", "--data", "photos", "--out", out, "--recipe", recipe];
        [&arguments[..], &small].concat()
    };
    place.ok(&run("nano-pixels", "pixels"));
    let config: Value =
        serde_json::from_slice(&std::fs::read(place.path("pixels/model/config.json")).unwrap()).unwrap();
    assert_eq!(
        (&config["tec_zoo"]["family"], &config["tec_zoo"]["licence"]["spdx"]),
        (&"mae".into(), &"unknown".into())
    );
    let stderr = place.fails(1, &run("nano", "feature"));
    assert!(stderr.contains("hint: `--base MODEL`, or `--set method.target=pixels`"), "{stderr}");
    assert!(!place.path("feature").exists());
    let stderr = place.fails(1, &with_recipe("tec-mae-vitb-300ep", &place.arguments("tec", &[])));
    assert!(stderr.contains("nobody published k and τ for this base"), "{stderr}");
}

/// The same arguments with another recipe than `nano`.
fn with_recipe<'a>(recipe: &'a str, arguments: &[&'a str]) -> Vec<&'a str> {
    arguments.iter().map(|argument| if *argument == "nano" { recipe } else { argument }).collect()
}

#[test]
fn what_cannot_be_run_is_refused_before_anything_is_made() {
    let place = Place::new();
    std::fs::create_dir(place.path("taken")).unwrap();
    std::fs::write(place.path("taken/thesis.tex"), "years").unwrap();
    let refused = |out: &'static str, set: &[&'static str], more: &[&'static str], expected: &str| {
        let mut arguments = place.arguments(out, set);
        arguments.extend(more);
        let stderr = place.fails(1, &arguments);
        assert!(stderr.contains(expected), "{stderr}");
    };
    refused("new", &["optimizer.epoch=3"], &[], "did you mean `optimizer.epochs`?");
    refused("new", &["optimizer.epochs=0"], &[], "`optimizer.epochs` is 0; it must be above 0");
    refused("new", &["optimizer.batch=32", "optimizer.micro_batch=32"], &[], "`--set optimizer.batch=26`, or less");
    let stderr = place.fails(1, &with_recipe("nanno", &place.arguments("new", &[])));
    assert!(stderr.contains("did you mean `nano`"), "{stderr}");
    // Without a recipe it is the one published for the base; nobody published one for somebody's own.
    let stderr = place.fails(2, &["pretrain", "--base", "mae", "--data", "photos", "--out", "new"]);
    assert!(stderr.contains("no recipe was published for `mae` as a base"), "{stderr}");
    refused("new", &[], &["--name", "No Name"], "`No Name` cannot be a model's name");
    refused("taken", &[], &[], "`taken` is not empty");
    refused("taken", &[], &["--resume"], "`taken` holds no run to resume");
    assert_eq!(std::fs::read_dir(place.path("taken")).unwrap().count(), 1);
    let stderr = place.fails(2, &["pretrain", "--out", "absent", "--resume"]);
    assert!(stderr.contains("name the images with --data"), "{stderr}");
    let mut arguments = place.arguments("new", &[]);
    arguments.extend(["--device", "gpu"]);
    assert!(place.fails(2, &arguments).contains("`gpu` is no device"));
}

#[test]
fn a_broken_image_is_named_skipped_and_counted() {
    let place = Place::new();
    std::fs::write(place.path("photos/07.png"), b"not a picture").unwrap();
    let output = place.run(&place.arguments("run", &["optimizer.epochs=3"]));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert_eq!(stderr.matches("07.png").count(), 1, "{stderr}");
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap()["skipped"], 1);
    let stderr = place.fails(1, &place.arguments("strict", &["data.broken=0"]));
    assert!(stderr.contains("07.png"), "{stderr}");
}

#[test]
fn a_loss_that_is_no_number_stops_the_run_and_can_be_seen_again() {
    let place = Place::new();
    let arguments = place.arguments("run", &["optimizer.base_lr=1e30", "optimizer.warmup_epochs=0"]);
    let stderr = place.fails(1, &arguments);
    assert!(stderr.contains(" in update 2, of the images `photos/"), "{stderr}");
    assert!(stderr.contains(" and 4 more"), "{stderr}");
    assert!(stderr.contains("`tec-zoo pretrain --replay run/nonfinite-step-00000002` repeats it"), "{stderr}");
    assert_eq!(place.records("run").len(), 1);
    let replay = place.ok(&["pretrain", "--replay", "run/nonfinite-step-00000002"]);
    assert!(replay.starts_with("update 2: "), "{replay}");

    let about = place.path("run/nonfinite-step-00000002/dump.json");
    let mut json: Value = serde_json::from_slice(&std::fs::read(&about).unwrap()).unwrap();
    assert_eq!(json["names"].as_array().unwrap().iter().map(|names| names.as_array().unwrap().len()).sum::<usize>(), 8);
    json["term"] = "something else".into();
    std::fs::write(&about, json.to_string()).unwrap();
    place.fails(3, &["pretrain", "--replay", "run/nonfinite-step-00000002"]);
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/reference/ibot_checkpoint_teacher.pth");
    place.ok(&["convert", fixture, "--heads", "4", "--out", "other"]);
    let replay = ["pretrain", "--replay", "run/nonfinite-step-00000002", "--base", "other"];
    assert!(place.fails(1, &replay).contains("was started with another base"));
}

#[test]
fn a_student_can_have_its_bases_shape() {
    let place = Place::new();
    let set =
        ["optimizer.epochs=1", "optimizer.warmup_epochs=0", "student=base", "method.blocks_per_group=2"].as_slice();
    place.pretrain("run", set);
    let config: Value = serde_json::from_slice(&std::fs::read(place.path("run/model/config.json")).unwrap()).unwrap();
    let vit = &config["tec_zoo"]["vit"];
    for (key, value) in [("width", 16), ("depth", 4), ("heads", 4), ("patch_size", 16)] {
        assert_eq!(vit[key], value, "{key}");
    }
    assert_eq!(vit["position"]["kind"]["type"], "sin-cos");
    // The recipe beside it says the shape, whatever becomes of the base.
    let recipe = std::fs::read_to_string(place.path("run/recipe.toml")).unwrap();
    assert!(recipe.contains("[student]\n") && recipe.contains("width = 16\n"), "{recipe}");
    let mut arguments = place.arguments("run", set);
    arguments.push("--resume");
    place.ok(&arguments);

    // It is checked like any other.
    let stderr = place.fails(1, &place.arguments("new", &["student=base"]));
    assert!(stderr.contains("`method.blocks_per_group` 3 does not divide `student.depth` 4"), "{stderr}");
    let arguments =
        ["pretrain", "--data", "photos", "--out", "new", "--recipe", "nano-pixels", "--set", "student=base"];
    let stderr = place.fails(1, &arguments);
    assert!(stderr.contains("there is no base"), "{stderr}");
}

#[test]
fn everything_that_keeps_a_run_from_starting_is_said_at_once() {
    let place = Place::new();
    let arguments = ["pretrain", "--base", "mae", "--data", "photos", "--out", "new", "--recipe", "tec-mae-vitb-300ep"];
    let stderr = place.fails(1, &arguments);
    assert!(stderr.contains("nobody published k and τ for this base"), "{stderr}");
    assert!(stderr.contains("`photos` has 26 images; one update needs 4096"), "{stderr}");
    for set in ["--set method.top_k=15", "--set method.tau=1.8", "--set optimizer.batch=26"] {
        assert!(stderr.contains(set), "{set}: {stderr}");
    }
}

#[test]
fn metrics_that_lost_lines_are_noticed_when_a_run_goes_on() {
    let place = Place::new();
    let set = ["optimizer.epochs=2", "optimizer.warmup_epochs=1"];
    place.pretrain("run", &set);
    let path = place.path("run/metrics.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    let kept: Vec<&str> = text.lines().enumerate().filter(|(at, _)| *at != 1).map(|(_, line)| line).collect();
    std::fs::write(&path, kept.join("\n") + "\n").unwrap();
    let mut arguments = place.arguments("run", &set);
    arguments.push("--resume");
    let output = place.run(&arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert!(stderr.contains("metrics.jsonl has lost updates 2; the weights are whole"), "{stderr}");
}
