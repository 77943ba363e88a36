//! Pretraining around the step: recipes, schedule, what a run writes, and what it survives.

mod branch;
mod data;
mod interrupted;
mod metrics;
mod models;
#[cfg(feature = "mpi")]
mod processes;
mod recipe;
mod run;
mod schedule;
mod stalled;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tec_zoo::train::{Metrics, StepRecord};

/// A folder with a base (`mae`, the fixture's), images (`photos`) and the program in it.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/reference/mae_pretrain_vit_tiny.pth");
        place.ok(&["convert", fixture, "--heads", "4", "--out", "mae"]);
        place.photos("photos", 26);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `count` pictures of waves, no two alike.
    fn photos(&self, folder: &str, count: u32) {
        std::fs::create_dir(self.path(folder)).unwrap();
        for i in 0..count {
            let wave = |x: u32, y: u32, channel: u32| {
                let phase = f64::from(x * (1 + i % 3) + y * (1 + i % 5)) / 9.0 + f64::from(i + 2 * channel);
                (127.0 + 100.0 * phase.sin()) as u8
            };
            let picture = image::RgbImage::from_fn(72, 64 + i, |x, y| image::Rgb([0, 1, 2].map(|c| wave(x, y, c))));
            picture.save(self.path(folder).join(format!("{i:02}.png"))).unwrap();
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tec-zoo"));
        command.args(arguments).current_dir(self.dir.path()).env("TEC_ZOO_HOME", self.path("home"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Standard output of what must succeed.
    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}\n{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Standard error of what must end with `code`.
    fn fails(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}\n{stderr}");
        stderr
    }

    /// Arguments of a pretraining into `out`: a student of a few thousand weights, three updates of two micro-batches an
    /// epoch, of whose 26 images two are left over; with these `set`s on top.
    fn arguments<'a>(&self, out: &'a str, set: &[&'a str]) -> Vec<&'a str> {
        let mut arguments =
            vec!["pretrain", "--base", "mae", "--data", "photos", "--out", out, "--json", "--recipe", "nano"];
        let small = [
            "optimizer.batch=8",
            "optimizer.micro_batch=4",
            "optimizer.epochs=40",
            "data.workers=2",
            "run.save_steps=3",
            "student.width=32",
            "student.heads=2",
            "student.mlp_width=64",
            "method.decoder.width=16",
            "method.decoder.heads=2",
            "method.decoder.depth=1",
        ];
        for set in small.iter().chain(set) {
            arguments.extend(["--set", set]);
        }
        arguments
    }

    fn pretrain(&self, out: &str, set: &[&str]) -> String {
        self.ok(&self.arguments(out, set))
    }

    fn records(&self, run: &str) -> Vec<StepRecord> {
        Metrics::read(&self.path(run).join(Metrics::NAME)).unwrap()
    }

    /// What of a run is a function of recipe, base and data: its losses, to the bit, and its weights.
    fn outcome(&self, run: &str) -> Outcome {
        let records = self.records(run);
        let losses = records.iter().map(|record| {
            let values = [record.epoch, record.lr, record.loss, record.feature.unwrap(), record.attention.unwrap()];
            (record.step, record.images, values.map(f64::to_bits), record.grad_norm.to_bits())
        });
        let files = ["model.safetensors", "adapters.safetensors", "decoder.safetensors", "config.json"];
        let model = self.path(run).join("model");
        Outcome { losses: losses.collect(), model: files.map(|file| std::fs::read(model.join(file)).unwrap()).to_vec() }
    }
}

#[derive(PartialEq)]
struct Outcome {
    losses: Vec<(u64, u64, [u64; 5], u64)>,
    model: Vec<Vec<u8>>,
}

impl Outcome {
    fn assert_is(&self, other: &Self, what: &str) {
        let same = self.losses.iter().zip(&other.losses).take_while(|(a, b)| a == b).count();
        assert_eq!(self.losses.len(), other.losses.len(), "{what}");
        assert_eq!(same, self.losses.len(), "{what}: the losses differ from update {} on", same + 1);
        assert!(self.model == other.model, "{what}: the weights differ");
    }
}

/// Checkpoints of a run, oldest first.
fn checkpoints(run: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(run.join("checkpoints")).unwrap();
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
}
