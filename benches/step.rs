//! The whole TEC step of ViT-Ti and ViT-S at 224 px, f32 and bf16: images a second, best and median of ROUNDS.
//!
//! `cargo bench --bench step [-- ROUNDS]`
//!
//! `-- --serve MODEL BATCH PRECISION DEVICE` makes one step for every line on stdin and answers with its seconds:
//! `benches/peers/step.py` lets it take turns with PyTorch.

use std::io::BufRead;
use std::path::Path;
use std::time::Instant;

use candle_core::Device;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use tec_zoo::kernels::AdamW;
use tec_zoo::model::{Canonical, VitConfig, vit_parameters};
use tec_zoo::train::distributed::{Place, World};
use tec_zoo::train::{
    AttentionRows, ConditionalAdapters, DecoderShape, Initialise, Method, MicroBatch, Normalise, Precision, Step,
    StepSettings, Target,
};

#[path = "../src/allocator.rs"]
mod allocator;

/// (name, width, heads, decoder width: two thirds, as ViT-B's 512, batch).
const MODELS: [(&str, usize, usize, usize, usize); 3] =
    [("ti", 192, 3, 128, 16), ("s", 384, 6, 256, 8), ("b", 768, 12, 512, 8)];

const PATCHES: usize = 196;

/// Numbers in ±1 that depend on their place alone.
fn noise(seed: u64, len: usize) -> impl Iterator<Item = f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len).map(move |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    })
}

/// A base of random weights: speed does not depend on them.
fn base(dir: &Path, width: usize, heads: usize) -> Canonical {
    let config = serde_json::json!({"tec_zoo": {
        "format": 1, "family": "mae", "feature": "cls",
        "vit": {
            "image_size": [224, 224], "patch_size": 16, "width": width, "depth": 12, "heads": heads,
            "mlp_width": 4 * width, "norm_eps": 1e-6, "activation": "gelu-erf", "final_norm": true,
            "position": {"kind": {"type": "learned"}, "resample": {"rule": "size"}},
        },
        "preprocessing": {
            "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "interpolation": "bicubic", "crop_pct": 0.875
        },
        "provenance": {
            "source_file": "random", "source_sha256": "", "source_bytes": 0, "container": "safetensors",
            "converter": "timm", "tool": "bench"
        },
        "licence": {"spdx": "unknown"},
    }});
    std::fs::write(dir.join("config.json"), config.to_string()).expect("config.json");
    let vit = Canonical::read_config(dir).expect("a configuration").vit;
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = vit_parameters(&vit)
        .into_iter()
        .enumerate()
        .map(|(seed, spec)| {
            let one = if spec.name.contains("norm") && spec.name.ends_with("weight") { 1.0 } else { 0.0 };
            let values = noise(seed as u64 + 1, spec.elements()).map(|x| one + 0.05 * x);
            (spec.name, spec.shape, values.flat_map(f32::to_le_bytes).collect())
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).expect("a view"))
    });
    safetensors::serialize_to_file(views, None, &dir.join("model.safetensors")).expect("model.safetensors");
    Canonical::open(dir).expect("a model")
}

fn settings(decoder: usize, precision: Precision) -> StepSettings {
    let method = Method {
        target: Target::FeatureAndAttention,
        normalise: Normalise::Patch,
        last_blocks: 2,
        attention_rows: AttentionRows::Selected,
        top_k: Some(15),
        tau: Some(1.8),
        norm_pix: false,
        adapters: ConditionalAdapters::InputAndEncoder,
        blocks_per_group: 3,
        initialise: Initialise::Random,
        mask_ratio: 0.75,
        decoder: DecoderShape { width: decoder, depth: 2, heads: 16 },
    };
    let adamw = AdamW { betas: (0.9, 0.95), eps: 1e-8, weight_decay: 0.05 };
    StepSettings { method, precision, adamw, seed: 0, recompute: false }
}

fn batch(count: usize) -> MicroBatch {
    MicroBatch {
        count,
        images: noise(7, count * 3 * 224 * 224).collect(),
        noise: noise(8, count * PATCHES).map(|x| 0.5 + 0.5 * x).collect(),
    }
}

fn precision_of(name: &str) -> Precision {
    if name == "bf16" { Precision::Bf16 } else { Precision::F32 }
}

/// Calls `f` with a function that makes a step and says how many seconds it took.
fn with_step<R>(
    model: &str,
    count: usize,
    precision: &str,
    device: &Device,
    f: impl FnOnce(&mut dyn FnMut() -> f64) -> R,
) -> R {
    let (_, width, heads, decoder, _) = *MODELS.iter().find(|m| m.0 == model).expect("ti, s or b");
    let dir = tempfile::tempdir().expect("a folder");
    let base = base(dir.path(), width, heads);
    let vit: VitConfig = base.config().vit.clone();
    let mut step = Step::new(Some(&base), &vit, settings(decoder, precision_of(precision)), device).expect("a student");
    let batches = [batch(count)];
    let world = World::join(Place::alone(), device).expect("one process");
    f(&mut || {
        let start = Instant::now();
        step.run(&batches, 1e-4, &world).expect("a step");
        start.elapsed().as_secs_f64()
    })
}

fn main() {
    allocator::keep_freed_memory();
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    if let [serve, model, count, precision, device] = arguments.as_slice()
        && serve == "--serve"
    {
        let device = match device.as_str() {
            "cpu" => Device::Cpu,
            _ => Device::new_cuda_with_stream(0).expect("a GPU"),
        };
        with_step(model, count.parse().expect("a batch size"), precision, &device, |step| {
            println!("ready");
            for line in std::io::stdin().lock().lines() {
                line.expect("a line");
                println!("{}", step());
            }
        });
        return;
    }
    let rounds = arguments.iter().find_map(|a| a.parse().ok()).unwrap_or(10usize).max(1);
    for (model, .., count) in &MODELS[..2] {
        for precision in ["f32", "bf16"] {
            let mut seconds: Vec<f64> = with_step(model, *count, precision, &Device::Cpu, |step| {
                step();
                (0..rounds).map(|_| step()).collect()
            });
            seconds.sort_by(f64::total_cmp);
            let rate = |seconds: f64| *count as f64 / seconds;
            let (best, median) = (rate(seconds[0]), rate(seconds[rounds / 2]));
            println!("ViT-{model} batch {count} {precision}: best {best:.2}, median {median:.2} images/s");
        }
    }
}
