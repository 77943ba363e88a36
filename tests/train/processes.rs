//! Several processes train as one does. Needs a build with `mpi`, and `mpirun`; started by `tests/distributed/run`.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use tec_zoo::model::Weights;

use super::{Place, checkpoints};

impl Place {
    fn mpirun(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("mpirun");
        command.args(["--allow-run-as-root", "--oversubscribe", "-n", "2", env!("CARGO_BIN_EXE_tec-zoo")]);
        command.args(arguments).current_dir(self.path(".")).env("TEC_ZOO_HOME", self.path("home"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn values(&self, run: &str, name: &str) -> Vec<f32> {
        let weights = Weights::open(&self.path(run).join("model/model.safetensors")).unwrap();
        let bytes = weights.get(name).unwrap().bytes;
        bytes.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect()
    }
}

fn succeeded(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Sums of a batch in another order: 1e-5 of a loss; 1e-3 of the largest weight after twelve updates, as AdamW's first ones
/// are all of the learning rate's size, however small the gradient.
#[test]
#[ignore = "needs mpirun"]
fn two_processes_train_as_one_with_twice_the_batch() {
    let place = Place::new();
    let set = ["optimizer.epochs=4", "optimizer.micro_batch=8"];
    place.pretrain("one", &set);
    succeeded(&place.mpirun(&place.arguments("two", &set)).output().unwrap());
    let (one, two) = (place.records("one"), place.records("two"));
    assert_eq!((one.len(), two.len()), (12, 12));
    for (one, two) in one.iter().zip(&two) {
        assert_eq!((one.step, one.images, one.lr.to_bits()), (two.step, two.images, two.lr.to_bits()));
        assert!((one.loss - two.loss).abs() < 1e-5 * one.loss, "update {}: {} and {}", one.step, one.loss, two.loss);
    }
    for name in ["cls_token", "patch_embed.proj.weight", "blocks.2.mlp.fc2.weight", "norm.weight"] {
        let (one, two) = (place.values("one", name), place.values("two", name));
        let largest = one.iter().fold(0_f32, |largest, value| largest.max(value.abs()));
        let worst = one.iter().zip(&two).fold(0_f32, |worst, (a, b)| worst.max((a - b).abs()));
        assert!(worst < 1e-3 * largest, "{name}: {worst} of {largest}");
    }
}

/// The process of rank 1 that trains in `place`.
fn second(place: &Place) -> Option<PathBuf> {
    let here = std::fs::canonicalize(place.path(".")).unwrap();
    std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path()).find(|process| {
        let environment = std::fs::read(process.join("environ")).unwrap_or_default();
        let is_second = environment.split(|byte| *byte == 0).any(|variable| variable == b"OMPI_COMM_WORLD_RANK=1");
        is_second && std::fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd == here)
    })
}

#[test]
#[ignore = "needs mpirun"]
fn one_process_that_dies_ends_both_and_the_run_goes_on_from_its_checkpoint() {
    let place = Place::new();
    let set = ["optimizer.epochs=40", "optimizer.micro_batch=8"];
    let mut child = place.mpirun(&place.arguments("run", &set)).spawn().unwrap();
    place.wait_for("run", 7, &mut child);
    let second = second(&place).unwrap();
    let killed = Command::new("kill").arg("-KILL").arg(second.file_name().unwrap()).status().unwrap();
    assert!(killed.success());
    let start = Instant::now();
    let output = child.wait_with_output().unwrap();
    assert!(!output.status.success() && start.elapsed() < Duration::from_secs(60));
    assert!(!checkpoints(&place.path("run")).is_empty());
    let mut arguments = place.arguments("run", &set);
    arguments.push("--resume");
    succeeded(&place.mpirun(&arguments).output().unwrap());
    assert_eq!(place.records("run").len(), 120);
}
