//! Exporting a ViT-B of random weights: 343 MB of weights turned and streamed, beside a plain write of as many bytes.

use std::fs::File;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;

use divan::Bencher;
use divan::counter::BytesCount;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use tec_zoo::destination::Destination;
use tec_zoo::model::{Canonical, vit_parameters};
use tec_zoo::onnx::{ExportError, ExportOptions, ExportReport, ModelInfo, Target};

fn main() {
    divan::main();
}

/// With nobody listening.
fn export(
    model: &Canonical,
    out: impl Into<Destination>,
    options: &ExportOptions,
) -> Result<ExportReport, ExportError> {
    tec_zoo::onnx::export(model, out, options, &mut |_| ControlFlow::Continue(()))
}

const VIT_B: &str = r#"{"tec_zoo": {
    "format": 1, "family": "mae", "feature": "cls",
    "vit": {
        "image_size": [224, 224], "patch_size": 16, "width": 768, "depth": 12, "heads": 12, "mlp_width": 3072,
        "norm_eps": 1e-6, "activation": "gelu-erf", "final_norm": true,
        "position": {"kind": {"type": "learned"}, "resample": {"rule": "size"}}
    },
    "preprocessing": {
        "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "interpolation": "bicubic", "crop_pct": 0.875
    },
    "provenance": {
        "source_file": "random", "source_sha256": "", "source_bytes": 0, "container": "safetensors",
        "converter": "timm", "tool": "bench"
    },
    "licence": {"spdx": "unknown"}
}}"#;

/// A ViT-B whose weights are the same small pattern everywhere: values do not matter to a copy.
fn vit_b(dir: &Path) -> Canonical {
    std::fs::write(dir.join("config.json"), VIT_B).expect("config.json");
    let config = Canonical::read_config(dir).expect("a configuration");
    let specs = vit_parameters(&config.vit);
    let largest = specs.iter().map(tec_zoo::model::ParameterSpec::elements).max().unwrap_or(0);
    let bytes: Vec<u8> = (0..largest).flat_map(|i| ((i % 251) as f32 * 1e-3).to_le_bytes()).collect();
    let views = specs.iter().map(|spec| {
        let view = TensorView::new(Dtype::F32, spec.shape.clone(), &bytes[..spec.elements() * 4]);
        (spec.name.clone(), view.expect("a view"))
    });
    safetensors::serialize_to_file(views, None, &dir.join("model.safetensors")).expect("model.safetensors");
    Canonical::open(dir).expect("a model")
}

#[divan::bench(args = [Target::Portable, Target::Ort], sample_count = 10, sample_size = 1)]
fn export_vit_b(bencher: Bencher<'_, '_>, target: Target) {
    let dir = tempfile::tempdir().expect("a folder");
    let model = vit_b(dir.path());
    let path = dir.path().join("model.onnx");
    let options = ExportOptions { target, ..ExportOptions::default() };
    let bytes = export(&model, &path, &options).expect("an export").bytes;
    bencher
        .counter(BytesCount::new(bytes))
        .bench_local(|| export(&model, Destination::new(&path).overwrite(true), &options).expect("an export"));
}

#[divan::bench(sample_count = 10, sample_size = 1)]
fn plain_write_of_the_same_bytes(bencher: Bencher<'_, '_>) {
    let dir = tempfile::tempdir().expect("a folder");
    let model = vit_b(dir.path());
    let path = dir.path().join("model.onnx");
    export(&model, &path, &ExportOptions::default()).expect("an export");
    let bytes = std::fs::read(&path).expect("the file");
    let copy = dir.path().join("copy");
    bencher.counter(BytesCount::new(bytes.len())).bench_local(|| {
        File::create(&copy).and_then(|mut file| file.write_all(&bytes)).expect("a write");
    });
}

#[divan::bench(sample_count = 20)]
fn read_the_contract_of_vit_b(bencher: Bencher<'_, '_>) {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("model.onnx");
    export(&vit_b(dir.path()), &path, &ExportOptions::default()).expect("an export");
    bencher.bench_local(|| ModelInfo::open(&path).expect("a model"));
}
