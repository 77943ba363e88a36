//! A run that begins from another one's checkpoint: what it takes over, what it begins afresh, and that it survives what any
//! run does.

use serde_json::Value;

use super::{Place, checkpoints};

impl Place {
    fn about(&self, run: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.path(run).join("run.json")).unwrap()).unwrap()
    }

    fn config(&self, run: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.path(run).join("model/config.json")).unwrap()).unwrap()
    }

    /// A branch's standard error.
    fn branch(&self, from: &str, out: &str, more: &[&str]) -> String {
        let arguments = [&["pretrain", "--branch-from", from, "--out", out][..], more].concat();
        let output = self.run(&arguments);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{stderr}");
        stderr
    }

    /// The losses of `run` after update `step`, to the bit.
    fn losses(&self, run: &str, step: u64) -> Vec<(u64, u64, u64)> {
        let after = self.records(run).into_iter().filter(|record| record.step > step);
        after.map(|record| (record.step, record.lr.to_bits(), record.loss.to_bits())).collect()
    }
}

#[test]
fn a_branch_with_the_same_settings_is_what_its_parent_would_have_been_bit_for_bit() {
    let place = Place::new();
    place.pretrain("parent", &["optimizer.epochs=6", "run.keep_last=9"]);
    let stderr = place.branch("parent@9", "same", &[]);
    assert!(stderr.contains("goes on from `parent` after its update 9, epoch 3.00"), "{stderr}");
    assert!(stderr.contains("updates 10 to 18"), "{stderr}");
    assert!(!stderr.contains("afresh"), "{stderr}");
    assert_eq!(place.losses("same", 0), place.losses("parent", 9));
    for file in ["model.safetensors", "adapters.safetensors", "decoder.safetensors"] {
        let [same, parent] =
            ["same", "parent"].map(|run| std::fs::read(place.path(run).join("model").join(file)).unwrap());
        assert!(same == parent, "{file}");
    }
    let branch = &place.about("same")["branch"];
    assert_eq!((&branch["run"], &branch["step"], &branch["start"]), (&"parent".into(), &9.into(), &9.into()));
    let sha256 = branch["sha256"].as_str().unwrap();
    let config = place.config("same");
    let expected = serde_json::json!([{ "run": "parent", "step": 9, "sha256": sha256 }]);
    assert_eq!(config["tec_zoo"]["provenance"]["branched_from"], expected);
    assert_eq!(config["tec_zoo"]["provenance"]["lineage"], serde_json::json!(["mae"]));
    assert_eq!(config["tec_zoo"]["licence"]["spdx"], "CC-BY-NC-4.0");

    // A branch of the branch has both behind it.
    place.branch("same/checkpoints/step-00000015", "third", &[]);
    let descent = &place.config("third")["tec_zoo"]["provenance"]["branched_from"];
    assert_eq!((&descent[0]["run"], &descent[1]["run"]), (&"same".into(), &"parent".into()));
    assert_eq!(place.losses("third", 0), place.losses("parent", 15));
}

#[test]
fn more_epochs_another_rate_batch_mask_precision_and_k_are_all_ways_on() {
    let place = Place::new();
    place.pretrain("parent", &["optimizer.epochs=4", "run.keep_last=9"]);
    let ended = place.fails(1, &["pretrain", "--branch-from", "parent", "--out", "ended"]);
    assert!(ended.contains("nothing is left to train: `parent` is at epoch 4 of 4"), "{ended}");
    assert!(ended.contains("`--set optimizer.epochs=8`") && ended.contains("`--start-epoch 0`"), "{ended}");

    place.branch("parent", "longer", &["--set", "optimizer.epochs=6"]);
    let steps = |run: &str| place.records(run).iter().map(|record| record.step).collect::<Vec<_>>();
    assert_eq!(steps("longer"), (13..=18).collect::<Vec<_>>());
    let last = |run: &str| place.records(run).pop().unwrap().loss;
    let first = |run: &str| place.records(run).remove(0).loss;
    let parent = last("parent");
    assert!((first("longer") - parent).abs() < 0.2 * parent, "the loss goes on: {parent}, {}", first("longer"));

    // Half the batch is twice the updates of an epoch: the epoch is what goes on.
    let smaller = ["--set", "optimizer.batch=4", "--set", "optimizer.base_lr=1e-4"];
    let stderr = place.branch("parent@6", "smaller", &smaller);
    assert!(stderr.contains("here it is epoch 2.00"), "{stderr}");
    assert_eq!(steps("smaller").first(), Some(&13));
    for (out, set) in [
        ("mask", "method.mask_ratio=0.5"),
        ("bf16", "run.precision=bf16"),
        ("k", "method.top_k=3"),
        ("tau", "method.tau=1.0"),
    ] {
        place.branch("parent@6", out, &["--set", set]);
        assert_eq!(steps(out), (7..=12).collect::<Vec<_>>(), "{set}");
        assert!((first(out) - parent).abs() < 0.3 * parent, "{set}: {parent}, {}", first(out));
    }
    let again = place.branch("parent@6", "again", &["--start-epoch", "0", "--set", "optimizer.warmup_epochs=1"]);
    assert!(again.contains("here it is epoch 0.00 of the schedule, learning rate 0"), "{again}");
    assert_eq!(steps("again"), (1..=12).collect::<Vec<_>>());
}

#[test]
fn what_a_branch_has_no_parent_of_begins_afresh_and_is_named() {
    let place = Place::new();
    place.pretrain("parent", &["optimizer.epochs=4", "run.keep_last=9"]);
    let stderr = place.branch("parent@6", "wider", &["--set", "method.decoder.width=24"]);
    assert!(stderr.contains("27 parameters begin afresh, weights and moments: of `encoder_adapter`"), "{stderr}");
    // Their moments have seen no update, and the others' six: what is resumed knows it.
    let record = std::fs::read(place.path("wider/checkpoints/step-00000012/checkpoint.json")).unwrap();
    let record: Value = serde_json::from_slice(&record).unwrap();
    let updates = |name: &str| {
        let layout = record["layout"].as_array().unwrap();
        layout.iter().find(|entry| entry["name"] == name).unwrap()["updates"].as_u64()
    };
    assert_eq!(updates("cls_token"), Some(12));
    assert_eq!(updates("forward_fea_decoder.mask_token"), Some(6));
    assert!(place.records("wider").iter().all(|record| record.loss.is_finite()));

    let stranger = ["--set", "student.width=64", "--set", "student.mlp_width=96", "--set", "method.decoder.width=24"];
    let arguments = [&["pretrain", "--branch-from", "parent", "--out", "stranger"][..], &stranger].concat();
    let arguments = [&arguments[..], &["--set", "optimizer.epochs=9"]].concat();
    let output = place.run(&arguments);
    // Whatever fits is taken; a head that predicts the same base may be all.
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("begin afresh") || stderr.contains("no parameter of "), "{stderr}");
}

#[test]
fn a_branch_killed_at_any_time_goes_on_without_its_parent() {
    let place = Place::new();
    place.pretrain("parent", &["optimizer.epochs=4", "run.keep_last=9"]);
    let set = ["--set", "optimizer.epochs=12", "--set", "method.decoder.width=24"];
    place.branch("parent@6", "alone", &set);
    let arguments = [&["pretrain", "--branch-from", "parent@6", "--out", "killed", "--resume"][..], &set].concat();
    // While it starts, and later.
    for pause in [0, 20, 60, 150] {
        let mut child = place.command(&arguments).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(pause));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let mut child = place.command(&arguments).spawn().unwrap();
    place.wait_for("killed", 3, &mut child);
    child.kill().unwrap();
    child.wait().unwrap();
    // With a checkpoint of its own, it needs the other no more.
    std::fs::remove_dir_all(place.path("parent")).unwrap();
    for steps in [8, 15] {
        let mut child = place.command(&["pretrain", "--out", "killed", "--resume"]).spawn().unwrap();
        place.wait_for("killed", steps, &mut child);
        child.kill().unwrap();
        child.wait().unwrap();
    }
    place.ok(&["pretrain", "--out", "killed", "--resume"]);
    place.outcome("killed").assert_is(&place.outcome("alone"), "killed seven times");
    assert_eq!(place.about("killed"), place.about("alone"));
}

#[test]
fn a_branch_killed_before_its_first_checkpoint_begins_from_its_parent_again_or_says_that_it_is_gone() {
    let place = Place::new();
    place.pretrain("parent", &["optimizer.epochs=4", "run.keep_last=9"]);
    place.branch("parent@6", "alone", &[]);
    place.branch("parent@6", "killed", &[]);
    for left in ["checkpoints", "model"] {
        std::fs::remove_dir_all(place.path("killed").join(left)).unwrap();
    }
    let other = place.fails(1, &["pretrain", "--branch-from", "parent@3", "--out", "killed", "--resume"]);
    assert!(other.contains("another parent: it was `parent` at update 6"), "{other}");
    assert!(other.contains("leave `--branch-from` out: a run that goes on knows where it began"), "{other}");
    place.ok(&["pretrain", "--out", "killed", "--resume"]);
    place.outcome("killed").assert_is(&place.outcome("alone"), "from its parent again");
    std::fs::remove_dir_all(place.path("killed/checkpoints")).unwrap();
    std::fs::remove_dir_all(place.path("parent")).unwrap();
    let gone = place.fails(1, &["pretrain", "--out", "killed", "--resume"]);
    assert!(gone.contains("parent/checkpoints/step-00000006"), "{gone}");
}

#[test]
fn after_a_loss_that_is_no_number_the_way_on_is_said_and_works() {
    let place = Place::new();
    let stderr = place.fails(1, &place.arguments("run", &["optimizer.base_lr=1e30", "optimizer.warmup_epochs=0"]));
    let way = "`tec-zoo pretrain --branch-from run/nonfinite-step-00000002 --out NEW --set optimizer.base_lr=X`";
    assert!(stderr.contains(way), "{stderr}");
    // The weights of the update before are no use here: one step of 1e30 was made with them. From a good one:
    place.pretrain("good", &["optimizer.epochs=4", "run.keep_last=9"]);
    let dump = place.path("run/nonfinite-step-00000002");
    let output = place.run(&[
        "pretrain",
        "--branch-from",
        dump.to_str().unwrap(),
        "--out",
        "on",
        "--set",
        "optimizer.base_lr=1e-4",
    ]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("goes on from `run` after its update 1"), "{stderr}");

    let refused = place.fails(1, &["pretrain", "--out", "good", "--resume", "--set", "optimizer.epochs=9"]);
    assert!(refused.contains("`tec-zoo pretrain --branch-from good --out NEW` begins a new run"), "{refused}");
    let none = place.fails(1, &["pretrain", "--branch-from", "good@5", "--out", "none"]);
    assert!(none.contains("the run `good` has no checkpoint of update 5"), "{none}");
    assert!(none.contains("it has those of updates 3, 6, 9, 12"), "{none}");
    let none = place.fails(1, &["pretrain", "--branch-from", "photos", "--out", "none"]);
    assert!(none.contains("`photos` is no run"), "{none}");
    assert!(!place.path("none").exists());
}

#[test]
fn a_run_says_what_disk_it_will_need_and_is_refused_where_that_is_not_there() {
    let place = Place::new();
    let output = place.run(&place.arguments("run", &["optimizer.epochs=2", "optimizer.warmup_epochs=1"]));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("disk: ") && stderr.contains(" free: the result and 2 checkpoints of "), "{stderr}");
    // More than any disk has, of checkpoints that are a few hundred kilobytes each.
    let set = ["optimizer.epochs=2000000000", "run.save_steps=1", "run.keep_last=1000000000"];
    let refused = place.fails(1, &place.arguments("large", &set));
    assert!(refused.contains("`large` has room for ") && refused.contains(" and the run needs "), "{refused}");
    assert!(refused.contains("1000000001 checkpoints of "), "{refused}");
    assert!(refused.contains("run.keep_last") && refused.contains("TB"), "{refused}");
    assert!(!place.path("large/run.json").exists());
    assert!(checkpoints(&place.path("large")).is_empty());
    place.pretrain("large", &["optimizer.epochs=1", "optimizer.warmup_epochs=0"]);
}
