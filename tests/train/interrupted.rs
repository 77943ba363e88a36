//! What a run survives: being killed, torn checkpoints, signals, a full disk, vanished images, a changed mind.

use std::io::{Read, Write};
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use super::{Place, checkpoints};

impl Place {
    fn resume<'a>(&self, out: &'a str, set: &[&'a str]) -> Vec<&'a str> {
        let mut arguments = self.arguments(out, set);
        arguments.push("--resume");
        arguments
    }

    /// Lines of the metrics so far.
    fn steps(&self, run: &str) -> usize {
        let text = std::fs::read(self.path(run).join("metrics.jsonl")).unwrap_or_default();
        text.iter().filter(|byte| **byte == b'\n').count()
    }

    /// Waits until `child` has made `steps` updates.
    pub(super) fn wait_for(&self, run: &str, steps: usize, child: &mut Child) {
        let start = Instant::now();
        while self.steps(run) < steps {
            if let Some(status) = child.try_wait().unwrap() {
                let mut stderr = String::new();
                child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
                panic!("ended with {status} before update {steps}\n{stderr}");
            }
            assert!(start.elapsed() < Duration::from_secs(120), "no update {steps}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// A generator of the moments to kill at; any other numbers would do.
struct Moments(u64);

impl Moments {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

#[test]
fn killed_twenty_times_at_random_moments_a_run_ends_as_if_left_alone() {
    let place = Place::new();
    place.pretrain("alone", &[]);
    let mut moments = Moments(20_240_607);
    for kill in 0..20 {
        let mut child = place.command(&place.resume("killed", &[])).spawn().unwrap();
        if kill % 4 == 3 {
            // While it starts: reading the base, the images, the checkpoint.
            std::thread::sleep(Duration::from_millis(moments.below(60)));
        } else {
            // A few updates further than it was; three updates are from checkpoint to checkpoint.
            let at = (place.steps("killed") as u64 + moments.below(7)).min(3 * (kill + 1));
            place.wait_for("killed", at as usize, &mut child);
            std::thread::sleep(Duration::from_micros(moments.below(8000)));
        }
        child.kill().unwrap();
        let status = child.wait().unwrap();
        assert!(!status.success() && status.code().is_none(), "kill {kill}: it had ended with {status}");
    }
    assert!(place.steps("killed") < 120);
    place.ok(&place.resume("killed", &[]));
    place.outcome("killed").assert_is(&place.outcome("alone"), "killed 20 times");
    assert_eq!(checkpoints(&place.path("killed")).len(), 2, "nothing unfinished is left");
}

#[test]
fn a_torn_checkpoint_is_noticed_and_the_one_before_it_taken() {
    let place = Place::new();
    place.pretrain("alone", &["optimizer.epochs=4"]);
    let alone = place.outcome("alone");
    type Tear = fn(&Path);
    let tears: [(&str, Tear); 4] = [
        ("its checksum does not hold", |checkpoint| {
            let file = checkpoint.join("state.safetensors");
            let length = std::fs::metadata(&file).unwrap().len();
            std::fs::OpenOptions::new().write(true).open(file).unwrap().set_len(length - 1000).unwrap();
        }),
        ("its checksum does not hold", |checkpoint| {
            let file = checkpoint.join("state.safetensors");
            let mut bytes = std::fs::read(&file).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            std::fs::write(file, bytes).unwrap();
        }),
        ("`checkpoint.json` is torn", |checkpoint| {
            let file = checkpoint.join("checkpoint.json");
            let text = std::fs::read(&file).unwrap();
            std::fs::write(file, &text[..text.len() / 2]).unwrap();
        }),
        ("`state.safetensors`: ", |checkpoint| std::fs::remove_file(checkpoint.join("state.safetensors")).unwrap()),
    ];
    for (at, (expected, tear)) in tears.into_iter().enumerate() {
        let run = format!("torn{at}");
        place.pretrain(&run, &["optimizer.epochs=4"]);
        let all = checkpoints(&place.path(&run));
        tear(all.last().unwrap());
        let output = place.run(&place.resume(&run, &["optimizer.epochs=4"]));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}");
        assert!(stderr.contains("step-00000012` cannot be used: ") && stderr.contains(expected), "{stderr}");
        assert!(stderr.contains("updates 10 to 12, from "), "{stderr}");
        place.outcome(&run).assert_is(&alone, expected);
    }
    for checkpoint in checkpoints(&place.path("torn0")) {
        std::fs::write(checkpoint.join("state.safetensors"), b"").unwrap();
    }
    let stderr = place.fails(1, &place.resume("torn0", &["optimizer.epochs=4"]));
    assert!(stderr.contains("no checkpoint in `torn0/checkpoints` is whole"), "{stderr}");
}

#[test]
#[cfg(unix)]
fn ctrl_c_and_sigterm_save_first_and_the_run_goes_on_from_there() {
    let place = Place::new();
    place.pretrain("alone", &[]);
    // Checkpoints only when asked to stop.
    let set = ["run.save_steps=1000"];
    for (signal, at) in [("-INT", 5), ("-TERM", 20), ("-INT", 50)] {
        let mut child = place.command(&place.resume("stopped", &set)).spawn().unwrap();
        place.wait_for("stopped", at, &mut child);
        let sent = std::process::Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
        assert!(sent.success());
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(130), "{stderr}");
        let steps = place.steps("stopped");
        assert!(stderr.contains(&format!("stopped after update {steps} of 120, saved")), "{stderr}");
        let newest = checkpoints(&place.path("stopped")).pop().unwrap();
        assert!(newest.ends_with(format!("step-{steps:08}")), "{}", newest.display());
    }
    place.ok(&["pretrain", "--out", "stopped", "--resume"]);
    place.outcome("stopped").assert_is(&place.outcome("alone"), "stopped three times");
}

/// A limit on the size of files stands in for a full disk: the same write fails in the same place.
#[test]
#[cfg(unix)]
fn a_full_disk_ends_the_run_with_a_reason_and_the_last_checkpoint_whole() {
    let place = Place::new();
    place.pretrain("alone", &[]);
    let mut child = place.command(&place.arguments("full", &[])).spawn().unwrap();
    place.wait_for("full", 10, &mut child);
    child.kill().unwrap();
    child.wait().unwrap();
    let before = checkpoints(&place.path("full"));
    let before: Vec<_> = before.iter().filter(|path| !path.to_string_lossy().contains(".tec-zoo-")).collect();
    let size = std::fs::metadata(before[before.len() - 1].join("state.safetensors")).unwrap().len();
    let metrics = std::fs::metadata(place.path("full/metrics.jsonl")).unwrap().len();
    assert!(metrics * 2 < size, "the limit must let metrics pass and stop the checkpoint");

    let program = env!("CARGO_BIN_EXE_tec-zoo");
    let limited = format!("trap '' XFSZ; ulimit -f {}; exec \"$0\" \"$@\"", size / 512 - 8);
    let output = std::process::Command::new("sh")
        .args(["-c", &limited, program])
        .args(place.resume("full", &[]))
        .current_dir(place.dir.path())
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("cannot write `full/checkpoints/step-"), "{stderr}");
    assert!(stderr.contains("make room, then go on with `--resume`"), "{stderr}");
    let after = checkpoints(&place.path("full"));
    assert_eq!(after.iter().collect::<Vec<_>>(), before, "nothing came, nothing went");
    place.ok(&place.resume("full", &[]));
    place.outcome("full").assert_is(&place.outcome("alone"), "after a full disk");
}

#[test]
fn images_that_vanish_end_the_run_with_their_name_and_a_checkpoint() {
    let place = Place::new();
    place.pretrain("alone", &[]);
    let set = ["run.save_steps=1000"];
    let mut child = place.command(&place.arguments("run", &set)).spawn().unwrap();
    place.wait_for("run", 7, &mut child);
    std::fs::rename(place.path("photos"), place.path("gone")).unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("`photos`"), "{stderr}");
    let newest = checkpoints(&place.path("run")).pop().unwrap();
    assert!(newest.ends_with(format!("step-{:08}", place.steps("run"))), "{}", newest.display());
    std::fs::rename(place.path("gone"), place.path("photos")).unwrap();
    place.ok(&place.resume("run", &set));
    place.outcome("run").assert_is(&place.outcome("alone"), "after the images came back");
}

#[test]
fn a_run_goes_on_as_it_was_started_or_not_at_all() {
    let place = Place::new();
    place.pretrain("run", &["optimizer.epochs=2"]);
    let again = place.fails(1, &place.arguments("run", &["optimizer.epochs=2"]));
    assert!(again.contains("`run` holds a run") && again.contains("`--resume` continues it"), "{again}");
    let recipe = place.fails(1, &place.resume("run", &["optimizer.epochs=3", "method.tau=1.5"]));
    assert!(recipe.contains("`run` was started with another recipe:"), "{recipe}");
    for difference in ["  `method.tau` was 1.8 and is 1.5", "  `optimizer.epochs` was 2 and is 3"] {
        assert!(recipe.contains(difference), "{recipe}");
    }
    assert!(recipe.contains("`tec-zoo pretrain --branch-from run --out NEW`"), "{recipe}");

    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/reference/ibot_checkpoint_teacher.pth");
    place.ok(&["convert", fixture, "--heads", "4", "--out", "other"]);
    let mut arguments = place.resume("run", &["optimizer.epochs=2"]);
    arguments[2] = "other";
    let base = place.fails(1, &arguments);
    assert!(base.contains("`run` was started with another base: it was sha256 "), "{base}");

    place.photos("fewer", 20);
    let mut arguments = place.resume("run", &["optimizer.epochs=2"]);
    arguments[4] = "fewer";
    let data = place.fails(1, &arguments);
    assert!(data.contains("other data: the number of images differ in "), "{data}");
    assert!(data.contains("it was 26 images, ") && data.contains(" and is 20 images, "), "{data}");

    // The recipe file edited in place is caught by what the checkpoint remembers.
    let path = place.path("run/recipe.toml");
    let text = std::fs::read_to_string(&path).unwrap().replace("epochs = 2\n", "epochs = 5\n");
    std::fs::write(&path, text).unwrap();
    let edited = place.fails(1, &["pretrain", "--out", "run", "--resume"]);
    assert!(edited.contains("`optimizer.epochs` was 2 and is 5"), "{edited}");
}

#[test]
fn two_processes_cannot_train_in_one_folder() {
    let place = Place::new();
    let mut first = place.command(&place.arguments("run", &["optimizer.epochs=4000"])).spawn().unwrap();
    place.wait_for("run", 1, &mut first);
    let second = place.fails(1, &place.resume("run", &["optimizer.epochs=4000"]));
    first.kill().unwrap();
    first.wait().unwrap();
    assert!(second.contains("another process is training in `run`"), "{second}");
}

#[test]
fn a_finished_run_resumed_has_nothing_to_do_but_to_write_a_lost_model_again() {
    let place = Place::new();
    place.pretrain("run", &["optimizer.epochs=2"]);
    let outcome = place.outcome("run");
    std::fs::remove_dir_all(place.path("run/model")).unwrap();
    let mut metrics = std::fs::OpenOptions::new().append(true).open(place.path("run/metrics.jsonl")).unwrap();
    metrics.write_all(b"{\"step\":").unwrap();
    place.ok(&["pretrain", "--out", "run", "--resume"]);
    place.outcome("run").assert_is(&outcome, "resumed after its end");
}
