//! Every command that works on a model is told to stop while it reads, computes or writes.

use std::io::{Seek as _, SeekFrom, Write as _};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Map, json};
use tec_zoo::convert::{Request, convert};
use tec_zoo::fetch::{Store, bundle};
use tec_zoo::model::vit_parameters;
use tec_zoo::zoo::{Zoo, register};

use super::{Moment, Ready, hidden, interrupted};

/// An own manifest called `big`: the model `of` of the zoo, with one source.
pub(super) fn catalogue(folder: &Path, of: &str, place: &str, converter: &str, hash: Option<&str>) {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("zoo/{of}.toml"))).unwrap();
    let facts = text.split("[[source]]").next().unwrap().replace(&format!("name = \"{of}\""), "name = \"big\"");
    let hashes = hash.map(|hash| format!("\"sha256:{hash}\"")).unwrap_or_default();
    let source = format!(
        "[[source]]\nkind = \"official\"\n{place}\nconverter = \"{converter}\"\nhashes = [{hashes}]\nevidence = \"a test\"\n"
    );
    let overlay = folder.join("home/zoo");
    std::fs::create_dir_all(&overlay).unwrap();
    std::fs::write(overlay.join("big.toml"), format!("{facts}{source}")).unwrap();
}

/// Things large enough to be interrupted at, made once for a test.
struct Big {
    folder: tempfile::TempDir,
}

impl Big {
    /// A ViT-B/16 of zeros under timm's names: 343 MB, none of which the disk holds.
    fn new() -> Self {
        let big = Self { folder: tempfile::tempdir().unwrap() };
        let vit = Zoo::embedded().unwrap().get("dino-vitb16").unwrap().vit.clone();
        let (mut header, mut end) = (Map::new(), 0);
        for spec in vit_parameters(&vit) {
            let bytes = spec.shape.iter().product::<usize>() * 4;
            let entry = json!({ "dtype": "F32", "shape": spec.shape, "data_offsets": [end, end + bytes] });
            header.insert(spec.name, entry);
            end += bytes;
        }
        let header = serde_json::to_vec(&header).unwrap();
        let mut file = std::fs::File::create(big.file()).unwrap();
        file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
        file.write_all(&header).unwrap();
        let start = file.seek(SeekFrom::End(0)).unwrap();
        file.set_len(start + end as u64).unwrap();
        big
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("big.safetensors")
    }

    /// The same in the common format.
    fn model(self) -> Self {
        let request = Request { family: Some("timm".into()), heads: Some(12), ..Request::default() };
        convert(&self.file(), &self.dir(), &request, &mut |_| ControlFlow::Continue(())).unwrap();
        self
    }

    fn dir(&self) -> PathBuf {
        self.folder.path().join("model")
    }

    /// As a bundle.
    fn bundle(self) -> Self {
        let store = Store::open(&self.folder.path().join("store")).unwrap();
        let models = [("big".to_owned(), self.dir())];
        bundle(&store, &models, &self.folder.path().join("big.bundle"), &mut |_| ControlFlow::Continue(())).unwrap();
        self
    }

    /// Hands all of it to a command, as `big.safetensors`, `model` and `big.bundle`.
    fn give(&self, folder: &Path) {
        for name in ["big.safetensors", "big.bundle"] {
            let from = self.folder.path().join(name);
            if from.exists() {
                std::fs::hard_link(from, folder.join(name)).unwrap();
            }
        }
        if self.dir().exists() {
            std::os::unix::fs::symlink(self.dir(), folder.join("model")).unwrap();
        }
    }
}

const AT_ONCE: Ready<'static> = &|_, _| true;
/// Something that will appear under its name when it is whole is being made.
const WRITING: Ready<'static> = &|folder, _| hidden(folder);

/// Stops the command at each of the moments, given in milliseconds after `ready`; at least one must have found it at work.
fn stops(arguments: &[&str], ready: Ready<'_>, moments: &[u64], prepare: &dyn Fn(&Path)) -> Vec<String> {
    let mut told = Vec::new();
    for (number, later) in moments.iter().enumerate() {
        let moment = Moment { arguments, ready, later: Duration::from_millis(*later) };
        told.extend(interrupted(&moment, if number % 2 == 0 { "-INT" } else { "-TERM" }, prepare));
    }
    assert!(!told.is_empty(), "{arguments:?} was always over before it could be stopped");
    told
}

#[test]
fn a_fetch_from_a_file_stops_at_every_stage_and_leaves_nothing() {
    let big = Big::new();
    let prepare = |folder: &Path| {
        catalogue(folder, "dino-vitb16", "url = \"https://example.org/big.safetensors\"", "timm", None);
        big.give(folder);
    };
    let arguments = ["fetch", "big", "--from", "big.safetensors"];
    stops(&arguments, &|_, said| said.contains("reading"), &[0, 80], &prepare);
    stops(&arguments, &|_, said| said.contains("converting"), &[0, 150, 400], &prepare);
    stops(&arguments, &|_, said| said.contains("checked:"), &[0, 100], &prepare);
}

#[test]
fn bundles_and_the_store_stop_and_leave_nothing() {
    let big = Big::new().model().bundle();
    let named = |folder: &Path| {
        big.give(folder);
        register(&folder.join("home/zoo"), "big", &big.dir(), false).unwrap();
    };
    stops(&["bundle", "big", "--out", "out.bundle"], &|_, said| said.contains("reading"), &[0, 200], &named);
    stops(&["bundle", "big", "--out", "out.bundle"], WRITING, &[30], &named);
    let given = |folder: &Path| big.give(folder);
    let unpacking: Ready<'_> = &|folder, _| hidden(&folder.join("home/models"));
    stops(&["fetch", "--from", "big.bundle"], unpacking, &[0, 150, 400], &given);
    let stored = |folder: &Path| {
        std::fs::create_dir_all(folder.join("home/blobs")).unwrap();
        std::fs::hard_link(big.file(), folder.join("home/blobs").join("0".repeat(64))).unwrap();
    };
    stops(&["cache", "verify"], &|_, said| said.contains("reading"), &[0, 100], &stored);
}

#[test]
fn conversions_there_and_back_stop_and_leave_nothing() {
    let big = Big::new().model();
    let given = |folder: &Path| big.give(folder);
    let there = ["convert", "big.safetensors", "--family", "timm", "--heads", "12", "--out", "out"];
    stops(&there, WRITING, &[0, 70, 200], &given);
    for layout in ["timm", "hf", "mmseg", "mmdet", "mmpretrain", "detectron2", "ibot"] {
        let out = if matches!(layout, "timm" | "hf") { "out" } else { "out.pth" };
        stops(&["convert", "model", "--to", layout, "--out", out], WRITING, &[20], &given);
    }
    stops(&["identify", "big.safetensors"], AT_ONCE, &[0, 150], &given);
}

#[test]
fn what_computes_with_a_model_stops_and_leaves_nothing() {
    let big = Big::new().model();
    let given = |folder: &Path| {
        big.give(folder);
        let shape = [16, 3, 224, 224];
        let values = vec![0_u8; shape.iter().product::<usize>() * 4];
        let images = TensorView::new(Dtype::F32, shape.to_vec(), &values).unwrap();
        safetensors::serialize_to_file([("images", images)], None, &folder.join("images.safetensors")).unwrap();
    };
    stops(&["embed", "model", "images.safetensors", "--out", "out.safetensors"], AT_ONCE, &[50, 700], &given);
    stops(&["verify", "model", "--record"], AT_ONCE, &[50, 700], &given);
    stops(&["export", "model", "--out", "out.onnx", "--no-check"], WRITING, &[0, 50], &given);
    stops(&["export", "model", "--out", "out.onnx"], &|folder, _| folder.join("out.onnx").exists(), &[300], &given);
}

#[test]
fn a_picture_of_long_runs_stops_and_leaves_nothing() {
    let line = r#"{"step":1,"epoch":0.1,"lr":1e-4,"loss":1.0,"feature":1.0,"grad_norm":1.0,"images":1,"skipped":0,"images_per_second":1.0,"data_wait":0.0,"time":1.0}"#;
    let metrics = format!("{line}\n").repeat(600_000);
    let prepare = |folder: &Path| {
        std::fs::create_dir(folder.join("run")).unwrap();
        std::fs::write(folder.join("run/metrics.jsonl"), &metrics).unwrap();
    };
    stops(&["view", "curves", "run", "run", "run", "--out", "out.svg"], AT_ONCE, &[0, 200], &prepare);
}

#[test]
fn a_demo_stops_and_leaves_nothing() {
    stops(&["demo"], AT_ONCE, &[100, 900, 2500], &|_| {});
}
