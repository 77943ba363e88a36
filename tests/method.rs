//! TEC's method against the authors' numbers: targets, masks, predictions, losses, every gradient, and three updates.
//!
//! Agreement is `max |Δ| / max |reference|` per tensor: 1e-5 for activations (f32 sums in another order than PyTorch's),
//! 1e-4 for gradients and stepped parameters (two passes of such sums; AdamW divides small gradients by their own size).

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use tec_zoo::kernels::AdamW;
use tec_zoo::model::{Canonical, VitConfig};
use tec_zoo::train::distributed::{Place, World};
use tec_zoo::train::{
    AttentionRows, ConditionalAdapters, DecoderShape, Initialise, Intermediates, Method, MicroBatch, Normalise, Phase,
    Precision, Step, StepError, StepReport, StepSettings, Target,
};

use crate::words::InFull;

const ACTIVATIONS: f64 = 1e-5;
const GRADIENTS: f64 = 1e-4;

/// A file of `fixtures/reference`, or of the folder `TEC_ZOO_REFERENCE_DIR` names, that records pretraining steps.
struct Reference {
    name: String,
    bytes: Vec<u8>,
    settings: Value,
}

impl Reference {
    fn all() -> Vec<Self> {
        let own = PathBuf::from("fixtures/reference");
        let dirs = std::iter::once(own).chain(std::env::var_os("TEC_ZOO_REFERENCE_DIR").map(PathBuf::from));
        let mut found = Vec::new();
        for dir in dirs {
            let mut paths: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
            paths.sort();
            found.extend(paths.iter().filter_map(|path| Self::open(path)));
        }
        assert!(found.len() >= 3, "the reference steps are missing");
        found
    }

    /// Both targets, both adapters, and a base of the student's own shape.
    fn full() -> Self {
        Self::all().into_iter().find(|reference| reference.name == "tec_full.safetensors").unwrap()
    }

    fn open(path: &Path) -> Option<Self> {
        if path.extension()? != "safetensors" {
            return None;
        }
        let bytes = std::fs::read(path).ok()?;
        let (_, metadata) = SafeTensors::read_metadata(&bytes).ok()?;
        metadata.info("step0.noise")?;
        let settings = serde_json::from_str(metadata.metadata().as_ref()?.get("reference")?).ok()?;
        Some(Self { name: path.file_name()?.to_string_lossy().into_owned(), bytes, settings })
    }

    fn view(&self, name: &str) -> Option<(Vec<usize>, Vec<f32>)> {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let view = file.tensor(name).ok()?;
        let values = match view.dtype() {
            safetensors::Dtype::I64 => {
                view.data().as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b) as f32).collect()
            }
            _ => view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        };
        Some((view.shape().to_vec(), values))
    }

    fn get(&self, name: &str) -> Vec<f32> {
        self.view(name).unwrap_or_else(|| panic!("{} has no {name}", self.name)).1
    }

    fn number(&self, key: &str) -> usize {
        self.settings[key].as_u64().unwrap() as usize
    }

    fn flag(&self, key: &str) -> bool {
        self.settings[key].as_bool().unwrap()
    }

    fn real(&self, key: &str) -> f64 {
        self.settings[key].as_f64().unwrap()
    }

    fn agrees(&self, name: &str, ours: &[f32], tolerance: f64) {
        let theirs = self.get(name);
        close(&format!("{}: {name}", self.name), ours, &theirs, tolerance);
    }

    fn vit(&self, prefix: &str) -> VitConfig {
        let width = self.number(&format!("{prefix}dim"));
        serde_json::from_value(json!({
            "image_size": [self.number("img"), self.number("img")], "patch_size": self.number("patch"),
            "width": width, "depth": self.number(&format!("{prefix}depth")),
            "heads": self.number(&format!("{prefix}heads")), "mlp_width": 4 * width, "norm_eps": 1e-6,
            "activation": "gelu-erf", "final_norm": true,
            "position": {"kind": {"type": "sin-cos", "axis_order": "column-first"}, "resample": {"rule": "size"}},
        }))
        .unwrap()
    }

    /// The reference's base model, in the common format.
    fn base(&self, dir: &Path) -> Canonical {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let names = file.names();
        let targets = ["base.feature_target_raw", "base.attention_target_logits", "base.attention_topk_idx"];
        let views: Vec<(String, TensorView<'_>)> = names
            .iter()
            .filter(|name| name.starts_with("base.") && !targets.contains(name))
            .map(|name| (name["base.".len()..].to_owned(), file.tensor(name).unwrap()))
            .collect();
        std::fs::write(dir.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
        let config = json!({"tec_zoo": {
            "format": 1, "family": "mae", "vit": self.vit("base_"), "feature": "cls",
            "preprocessing": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic", "crop_pct": 0.875},
            "provenance": {"source_file": "none", "source_sha256": "", "source_bytes": 0, "container": "none",
                "converter": "none", "tool": "test"},
            "licence": {"spdx": "unknown"},
        }});
        std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
        Canonical::open(dir).unwrap()
    }

    fn settings(&self) -> StepSettings {
        let attention = self.flag("attention_target");
        StepSettings {
            method: Method {
                target: if attention { Target::FeatureAndAttention } else { Target::Feature },
                top_k: attention.then(|| self.number("top_k")),
                tau: attention.then(|| self.real("tau")),
                last_blocks: self.number("last_layers"),
                mask_ratio: self.real("mask_ratio"),
                adapters: match self.flag("input_adapter") {
                    true => ConditionalAdapters::InputAndEncoder,
                    false => ConditionalAdapters::Encoder,
                },
                decoder: DecoderShape {
                    width: self.number("decoder_dim"),
                    depth: self.number("decoder_depth"),
                    heads: self.number("decoder_heads"),
                },
                ..method()
            },
            precision: Precision::F32,
            adamw: AdamW {
                betas: (self.settings["betas"][0].as_f64().unwrap(), self.settings["betas"][1].as_f64().unwrap()),
                eps: 1e-8,
                weight_decay: self.real("weight_decay"),
            },
            seed: 0,
            recompute: false,
        }
    }

    fn batch(&self, step: usize) -> MicroBatch {
        let noise = self.get(&format!("step{step}.noise"));
        MicroBatch { count: self.number("batch"), images: self.get("images"), noise }
    }
}

fn method() -> Method {
    Method {
        target: Target::FeatureAndAttention,
        normalise: Normalise::Patch,
        last_blocks: 2,
        attention_rows: AttentionRows::Selected,
        top_k: Some(3),
        tau: Some(1.8),
        norm_pix: true,
        adapters: ConditionalAdapters::InputAndEncoder,
        blocks_per_group: 3,
        initialise: Initialise::Random,
        mask_ratio: 0.75,
        decoder: DecoderShape { width: 16, depth: 2, heads: 4 },
    }
}

fn alone() -> World {
    World::join(Place::alone(), &Device::Cpu).unwrap()
}

fn go_on(_: Phase) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// The gradients of an update from `batches`, left in the step's parameters.
fn gradients(step: &mut Step, batches: &[MicroBatch]) -> Result<(StepReport, Option<Intermediates>), StepError> {
    let world = alone();
    let mut update = step.update(batches.len(), &world)?;
    for batch in batches {
        update.add(batch, &mut go_on)?;
    }
    update.gradients()
}

/// Upstream's name of one of our parameters.
fn upstream(name: &str) -> String {
    let name = name.replace("input_adapter.", "cls_token_mlp.");
    let name = name.replace("encoder_adapter.norm_in", "encoder_adaptor.adap_before");
    let name = name.replace("encoder_adapter.norm_out", "encoder_adaptor.adap_after");
    let Some(rest) = name.strip_prefix("encoder_adapter.groups.") else { return name };
    let (group, part) = rest.split_once('.').unwrap();
    match part.strip_prefix("fuse.") {
        Some(leaf) => format!("encoder_adaptor.fuse_fcs.{group}.{leaf}"),
        None => format!("encoder_adaptor.adap_mlps.{group}.{}", &part["mlp.".len()..]),
    }
}

fn close(what: &str, ours: &[f32], theirs: &[f32], tolerance: f64) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    assert!(ours.iter().all(|x| x.is_finite()), "{what} is not finite");
    let worst = ours.iter().zip(theirs).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max);
    let scale = theirs.iter().map(|b| f64::from(b.abs())).fold(0.0, f64::max);
    assert!(worst <= tolerance * scale, "{what}: {:e} relative", worst / scale);
}

/// The CPU, or what `TEC_ZOO_TEST_DEVICE=cuda` asks for in a build with that feature.
fn device() -> Device {
    match std::env::var("TEC_ZOO_TEST_DEVICE").as_deref() {
        Ok(name) => tec_zoo::kernels::open_device(name, 0).unwrap(),
        Err(_) => Device::Cpu,
    }
}

fn flat(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

/// A step whose student holds the reference's weights.
fn step<'b>(reference: &Reference, base: &'b Canonical, precision: Precision) -> Step<'b> {
    let settings = StepSettings { precision, ..reference.settings() };
    let mut step = Step::new(Some(base), &reference.vit(""), settings, &device()).unwrap();
    let mut state = step.state().unwrap();
    for slot in &state.slots {
        let value = reference.get(&format!("student.{}", upstream(&slot.spec.name)));
        state.values[slot.range.clone()].copy_from_slice(&value);
    }
    step.restore(state).unwrap();
    step
}

#[test]
fn targets_predictions_losses_and_every_gradient_agree_with_the_authors_code() {
    for reference in Reference::all() {
        let dir = tempfile::tempdir().unwrap();
        let base = reference.base(dir.path());
        let mut step = step(&reference, &base, Precision::F32);
        for (spec, values) in step.tables().unwrap() {
            reference.agrees(&format!("student.{}", spec.name), &values, 1e-6);
        }
        let (report, seen) = gradients(&mut step, &[reference.batch(0)]).unwrap();
        let seen = seen.unwrap();

        let patches = (reference.number("img") / reference.number("patch")).pow(2);
        let visible = (patches as f64 * (1.0 - reference.real("mask_ratio"))) as u32;
        let hidden: Vec<bool> = seen.restore.iter().map(|place| *place >= visible).collect();
        let mask: Vec<f32> = hidden.iter().map(|hidden| f32::from(*hidden)).collect();
        reference.agrees("step0.mask", &mask, 0.0);
        let restore: Vec<f32> = seen.restore.iter().map(|place| *place as f32).collect();
        reference.agrees("step0.ids_restore", &restore, 0.0);
        let raw = reference.get("base.feature_target_raw");
        let width = reference.number("base_dim");
        let expected = patch_normalised(&raw, patches, width);
        close("normalised features", &flat(&seen.feature_target.unwrap()), &expected, ACTIVATIONS);
        if let Some((logits, rows)) = &seen.attention_target {
            reference.agrees("base.attention_target_logits", &flat(logits), ACTIVATIONS);
            // Row 0 is the class token; token numbers are patch numbers plus one.
            let rows: Vec<Vec<u32>> = rows.to_vec2().unwrap();
            let picked: Vec<f32> =
                rows.iter().flat_map(|row| row[1..].iter().map(|token| (token - 1) as f32)).collect();
            assert!(rows.iter().all(|row| row[0] == 0));
            reference.agrees("base.attention_topk_idx", &picked, 0.0);
            reference.agrees("step0.attention_pred_logits", &flat(&seen.attention_prediction.unwrap()), ACTIVATIONS);
        }
        reference.agrees("step0.adapter_out", &flat(&seen.latent), ACTIVATIONS);
        // The loss looks at the hidden patches alone.
        let theirs = reference.get("step0.feature_pred");
        let rows = theirs.chunks_exact(width).zip(&hidden).filter(|(_, hidden)| **hidden);
        let theirs: Vec<f32> = rows.flat_map(|(row, _)| row.to_vec()).collect();
        close("feature predictions", &flat(&seen.feature_prediction.unwrap()), &theirs, ACTIVATIONS);

        let history = &reference.settings["history"][0];
        close("loss", &[report.loss as f32], &[history["loss"].as_f64().unwrap() as f32], ACTIVATIONS);
        close("norm", &[report.grad_norm as f32], &[history["grad_norm"].as_f64().unwrap() as f32], GRADIENTS);
        let gradients: Vec<f32> = step.parameters().gradients().to_vec1().unwrap();
        for slot in step.parameters().slots() {
            let name = format!("step0.grad.{}", upstream(&slot.spec.name));
            reference.agrees(&name, &gradients[slot.range.clone()], GRADIENTS);
        }
        let theirs = SafeTensors::deserialize(&reference.bytes).unwrap();
        let theirs = theirs.names().iter().filter(|name| name.starts_with("step0.grad.")).count();
        assert_eq!(theirs, step.parameters().slots().len(), "{}: a gradient nobody asked for", reference.name);
    }
}

/// (y − μ)/√(σ² + 1e-6) per image and channel over the patches, σ² unbiased, in f64: the definition.
fn patch_normalised(raw: &[f32], patches: usize, width: usize) -> Vec<f32> {
    let mut out = vec![0f32; raw.len()];
    for (out, raw) in out.chunks_exact_mut(patches * width).zip(raw.chunks_exact(patches * width)) {
        for c in 0..width {
            let column: Vec<f64> = (0..patches).map(|l| f64::from(raw[l * width + c])).collect();
            let mean = column.iter().sum::<f64>() / patches as f64;
            let variance = column.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (patches as f64 - 1.0);
            for (l, x) in column.iter().enumerate() {
                out[l * width + c] = ((x - mean) / (variance + 1e-6).sqrt()) as f32;
            }
        }
    }
    out
}

#[test]
fn losses_and_parameters_agree_after_every_update() {
    for reference in Reference::all() {
        let dir = tempfile::tempdir().unwrap();
        let base = reference.base(dir.path());
        let mut step = step(&reference, &base, Precision::F32);
        for (at, history) in reference.settings["history"].as_array().unwrap().iter().enumerate() {
            let report = step.run(&[reference.batch(at)], reference.real("lr"), &alone()).unwrap();
            let number = |key: &str| history.get(key).and_then(Value::as_f64);
            close("loss", &[report.loss as f32], &[number("loss").unwrap() as f32], GRADIENTS);
            assert_eq!(report.feature.is_some(), number("loss_fea").is_some());
            assert_eq!(report.attention.is_some(), number("loss_att").is_some());
            for (ours, theirs) in [(report.feature, number("loss_fea")), (report.attention, number("loss_att"))] {
                if let (Some(ours), Some(theirs)) = (ours, theirs) {
                    close("term", &[ours as f32], &[theirs as f32], GRADIENTS);
                }
            }
            let state = step.state().unwrap();
            for slot in &state.slots {
                let name = format!("after{}.{}", at + 1, upstream(&slot.spec.name));
                if reference.view(&name).is_none() {
                    continue;
                }
                // AdamW divides a gradient by its own size. Where that is rounding noise (a bias of keys shifts a whole
                // row of logits, which softmax does not see; a few weights by chance) the value moves by up to lr an
                // update whichever way the noise points, in the authors' code too. Everything else agrees.
                let gradient = reference.get(&format!("step0.grad.{}", upstream(&slot.spec.name)));
                let noise = 1e-6 * gradient.iter().fold(0f32, |most, g| most.max(g.abs()));
                let (ours, theirs) = (&state.values[slot.range.clone()], reference.get(&name));
                let drift = 2.0 * (at + 1) as f32 * reference.real("lr") as f32;
                let (mut kept_ours, mut kept_theirs) = (Vec::new(), Vec::new());
                for ((ours, theirs), gradient) in ours.iter().zip(&theirs).zip(&gradient) {
                    if gradient.abs() > noise {
                        kept_ours.push(*ours);
                        kept_theirs.push(*theirs);
                    } else {
                        assert!((ours - theirs).abs() <= drift, "{}: {name}", reference.name);
                    }
                }
                assert!(2 * kept_ours.len() >= theirs.len(), "{}: {name} is mostly noise", reference.name);
                close(&format!("{}: {name}", reference.name), &kept_ours, &kept_theirs, GRADIENTS);
            }
        }
        assert!(reference.view(&format!("after{}.norm.bias", reference.number("steps"))).is_some());
    }
}

#[test]
fn accumulated_micro_batches_give_the_gradient_of_the_whole_batch() {
    let reference = &Reference::full();
    let dir = tempfile::tempdir().unwrap();
    let base = reference.base(dir.path());
    let whole = reference.batch(0);
    let (each_image, each_noise) = (whole.images.len() / whole.count, whole.noise.len() / whole.count);
    let parts: Vec<MicroBatch> = (0..whole.count)
        .map(|i| MicroBatch {
            count: 1,
            images: whole.images[i * each_image..][..each_image].to_vec(),
            noise: whole.noise[i * each_noise..][..each_noise].to_vec(),
        })
        .collect();
    let gradient = |batches: &[MicroBatch]| {
        let mut step = step(reference, &base, Precision::F32);
        let (report, _) = gradients(&mut step, batches).unwrap();
        (report.loss as f32, step.parameters().gradients().to_vec1::<f32>().unwrap())
    };
    let (one, several) = (gradient(&[whole]), gradient(&parts));
    close("loss", &[several.0], &[one.0], 1e-5);
    // Every image hides as many patches, so the mean of the parts is the mean of the whole.
    close("gradients", &several.1, &one.1, 1e-5);
}

#[test]
fn several_updates_of_micro_batches_move_as_those_of_whole_batches() {
    let reference = &Reference::full();
    let dir = tempfile::tempdir().unwrap();
    let base = reference.base(dir.path());
    let losses = |parts: usize| {
        let mut step = step(reference, &base, Precision::F32);
        let losses = (0..8).map(|at| {
            let MicroBatch { count, images, noise } = reference.batch(at % 3);
            let size = count / parts;
            let parts: Vec<MicroBatch> = images
                .chunks_exact(images.len() / parts)
                .zip(noise.chunks_exact(noise.len() / parts))
                .map(|(images, noise)| MicroBatch { count: size, images: images.to_vec(), noise: noise.to_vec() })
                .collect();
            step.run(&parts, reference.real("lr"), &alone()).unwrap().loss as f32
        });
        losses.collect::<Vec<f32>>()
    };
    let whole = reference.batch(0).count;
    // What one update leaves behind would show in the next ones. Weights whose gradient is rounding noise go their own way.
    close("losses", &losses(whole), &losses(1), GRADIENTS);
}

#[test]
fn an_update_of_too_few_or_too_many_micro_batches_is_refused_and_changes_nothing() {
    let reference = &Reference::full();
    let dir = tempfile::tempdir().unwrap();
    let base = reference.base(dir.path());
    let (batch, world) = (reference.batch(0), alone());
    let mut step = step(reference, &base, Precision::F32);
    let before = step.state().unwrap();
    let mut short = step.update(2, &world).unwrap();
    short.add(&batch, &mut go_on).unwrap();
    let refused = short.finish(1e-3, &mut go_on).unwrap_err().in_full();
    assert!(refused.contains("an update of 2 micro-batches was given 1"), "{refused}");
    let mut long = step.update(1, &world).unwrap();
    long.add(&batch, &mut go_on).unwrap();
    let refused = long.add(&batch, &mut go_on).unwrap_err().in_full();
    assert!(refused.contains("an update of 1 micro-batches was given 2"), "{refused}");
    drop(long);
    assert!(step.state().unwrap() == before, "the weights moved");
}

#[test]
fn an_update_can_be_stopped_at_every_block_and_leaves_the_weights_as_they_were() {
    let reference = &Reference::full();
    let dir = tempfile::tempdir().unwrap();
    let base = reference.base(dir.path());
    let (batch, world) = (reference.batch(0), alone());
    for recompute in [false, true] {
        let settings = StepSettings { recompute, ..reference.settings() };
        let mut step = Step::new(Some(&base), &reference.vit(""), settings, &device()).unwrap();
        let before = step.state().unwrap();
        let mut heard = Vec::new();
        let mut hear = |phase| {
            heard.push(phase);
            ControlFlow::Continue(())
        };
        step.update(1, &world).unwrap().add(&batch, &mut hear).unwrap();
        let depth = reference.vit("").depth;
        for block in 0..depth {
            assert!(heard.contains(&Phase::Student { block, of: depth }), "{heard:?}");
        }
        let count = |is: fn(&Phase) -> bool| heard.iter().filter(|phase| is(phase)).count();
        assert_eq!(count(|phase| matches!(phase, Phase::Base { .. })), base.config().vit.depth);
        assert!(count(|phase| matches!(phase, Phase::Decoder { .. })) >= 2);
        assert!(count(|phase| matches!(phase, Phase::Backward { .. })) > 3 * depth, "{heard:?}");
        for (at, phase) in heard.iter().enumerate() {
            let mut left = at;
            let mut hear = |_| {
                left = left.wrapping_sub(1);
                if left == usize::MAX { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            let ended = step.update(1, &world).unwrap().add(&batch, &mut hear);
            assert!(matches!(ended, Err(StepError::Interrupted)), "{phase:?}");
            assert_eq!(left, usize::MAX, "it went on after {phase:?}");
        }
        assert!(step.state().unwrap() == before, "the weights moved");
    }
}

#[test]
fn a_new_student_starts_as_upstreams_does() {
    let reference = &Reference::full();
    let dir = tempfile::tempdir().unwrap();
    let base = reference.base(dir.path());
    let step = Step::new(Some(&base), &reference.vit(""), reference.settings(), &device()).unwrap();
    let vit = step.vit().clone();
    let state = step.state().unwrap();
    let values = |name: &str| {
        let slot = state.slots.iter().find(|slot| slot.spec.name == name).unwrap();
        &state.values[slot.range.clone()]
    };
    let most = |name: &str| values(name).iter().fold(0_f32, |most, value| most.max(value.abs()));
    // `nn.Conv2d`'s own, which `initialize_weights` leaves alone: U(±1/√fan_in).
    let bound = 1.0 / ((3 * vit.patch_size * vit.patch_size) as f32).sqrt();
    let largest = most("patch_embed.proj.bias");
    assert!(0.5 * bound < largest && largest <= bound, "{largest} of {bound}");
    assert!(values("patch_embed.proj.bias").iter().any(|value| *value < 0.0));
    for name in ["blocks.0.attn.qkv.bias", "blocks.0.mlp.fc1.bias", "norm.bias"] {
        assert_eq!(most(name), 0.0, "{name}");
    }
    assert!(values("blocks.0.norm1.weight").iter().all(|value| *value == 1.0));
    let bound = (6.0 / (4 * vit.width) as f32).sqrt();
    assert!(most("blocks.0.attn.qkv.weight") <= bound && most("blocks.0.attn.qkv.weight") > 0.9 * bound);
}

#[test]
fn recomputed_blocks_give_the_same_gradients() {
    for reference in Reference::all() {
        let dir = tempfile::tempdir().unwrap();
        let base = reference.base(dir.path());
        let run = |recompute| {
            let settings = StepSettings { recompute, ..reference.settings() };
            let mut step = Step::new(Some(&base), &reference.vit(""), settings, &device()).unwrap();
            gradients(&mut step, &[reference.batch(0)]).unwrap();
            step.parameters().gradients().to_vec1::<f32>().unwrap()
        };
        // Where a block's input has several uses, their gradients are added in another order.
        close(&reference.name, &run(true), &run(false), 1e-6);
    }
}

#[test]
fn bf16_products_stay_near_the_f32_step() {
    // bf16 keeps 8 bits: half a unit is 2⁻⁹ ≈ 2e-3 relative for each rounded operand, and some dozens of them follow one
    // another through six blocks. 6e-2 of the gradient's norm is what that leaves in tensors as small as these; a wrong term shows as a multiple.
    for reference in Reference::all() {
        let dir = tempfile::tempdir().unwrap();
        let base = reference.base(dir.path());
        let run = |precision| {
            let mut step = step(&reference, &base, precision);
            let (report, _) = gradients(&mut step, &[reference.batch(0)]).unwrap();
            (report.loss, step.parameters().gradients().to_vec1::<f32>().unwrap())
        };
        let (wide, narrow) = (run(Precision::F32), run(Precision::Bf16));
        assert!((narrow.0 - wide.0).abs() < 1e-2 * wide.0, "{}: loss {} against {}", reference.name, narrow.0, wide.0);
        let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        let apart = norm(&mut narrow.1.iter().zip(&wide.1).map(|(a, b)| a - b)) / norm(&mut wide.1.iter().copied());
        assert!(apart < 6e-2, "{}: {apart:e}", reference.name);
        assert!(apart > 0.0, "bf16 was not used");
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let reference = &Reference::full();
    let dir = tempfile::tempdir().unwrap();
    let base = reference.base(dir.path());
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut step = step(reference, &base, Precision::F32);
            for at in 0..2 {
                step.run(&[reference.batch(at)], 1e-3, &alone()).unwrap();
            }
            step.state().unwrap().values
        })
    };
    let one = run(1);
    for threads in [2, 3] {
        assert!(run(threads) == one, "{threads} threads");
    }
}

#[test]
fn every_ablation_trains_and_moves_every_parameter() {
    let reference = &Reference::full();
    let dir = tempfile::tempdir().unwrap();
    let base = reference.base(dir.path());
    let mut variants = Vec::new();
    for target in [Target::Feature, Target::Attention, Target::FeatureAndAttention, Target::Pixels] {
        variants.push(Method { target, ..method() });
    }
    for adapters in [
        ConditionalAdapters::None,
        ConditionalAdapters::Input,
        ConditionalAdapters::Encoder,
        ConditionalAdapters::InputAndEncoder,
    ] {
        variants.push(Method { adapters, ..method() });
    }
    for normalise in [Normalise::None, Normalise::Channel] {
        variants.push(Method { normalise, ..method() });
    }
    for attention_rows in [AttentionRows::Class, AttentionRows::All] {
        variants.push(Method { attention_rows, top_k: None, ..method() });
    }
    variants.push(Method { initialise: Initialise::Base, ..method() });
    variants.push(Method { last_blocks: 6, ..method() });
    variants.push(Method { target: Target::Pixels, norm_pix: false, ..method() });
    for method in variants {
        let settings = StepSettings { method: method.clone(), ..reference.settings() };
        let mut step = Step::new(Some(&base), &reference.vit(""), settings, &device()).unwrap();
        let before = step.state().unwrap();
        let first = step.run(&[reference.batch(0)], 1e-3, &alone()).unwrap();
        let after = step.state().unwrap();
        for slot in &before.slots {
            let range = slot.range.clone();
            assert_ne!(before.values[range.clone()], after.values[range], "{method:?}: {}", slot.spec.name);
        }
        let mut last = first;
        for _ in 0..12 {
            last = step.run(&[reference.batch(0)], 1e-3, &alone()).unwrap();
        }
        assert!(last.loss < first.loss, "{method:?}: {} after {}", last.loss, first.loss);
    }
}

#[test]
fn a_student_of_another_patch_size_learns_from_the_base_run_at_its_own_grid() {
    let reference = &Reference::full();
    let dir = tempfile::tempdir().unwrap();
    let base = reference.base(dir.path());
    // 64 px in 8-pixel patches: a grid of 8×8, which the base of 16-pixel patches has at 128 px.
    let vit = VitConfig { patch_size: 8, ..reference.vit("") };
    let mut step = Step::new(Some(&base), &vit, reference.settings(), &device()).unwrap();
    let batch = MicroBatch { noise: (0..3 * 64).map(|i| (i as f32 * 0.37).sin()).collect(), ..reference.batch(0) };
    let (report, seen) = gradients(&mut step, &[batch]).unwrap();
    assert!(report.loss.is_finite());
    assert_eq!(seen.unwrap().feature_target.unwrap().dims(), [3, 64, 24]);
}

#[test]
fn a_loss_that_is_no_number_stops_the_run_and_changes_nothing() {
    let reference = &Reference::full();
    let dir = tempfile::tempdir().unwrap();
    let base = reference.base(dir.path());
    let mut step = step(reference, &base, Precision::F32);
    step.run(&[reference.batch(0)], 1e-3, &alone()).unwrap();
    let before = step.state().unwrap();
    let mut batch = reference.batch(1);
    batch.images[5] = f32::NAN;
    let refused = step.run(&[batch], 1e-3, &alone()).unwrap_err();
    assert!(matches!(&refused, StepError::NonFinite { step: 2, .. }), "{refused}");
    assert!(refused.in_full().contains("loss"), "{refused}");
    assert!(step.state().unwrap() == before);
}

#[test]
fn what_does_not_fit_together_is_refused_with_a_reason() {
    let reference = &Reference::full();
    let dir = tempfile::tempdir().unwrap();
    let base = reference.base(dir.path());
    let refused = |method: Method, base: Option<&Canonical>, vit: &VitConfig| {
        let settings = StepSettings { method, ..reference.settings() };
        match Step::new(base, vit, settings, &device()) {
            Ok(_) => panic!("accepted"),
            Err(error) => error.in_full(),
        }
    };
    let vit = reference.vit("");
    let wider = VitConfig { width: 48, mlp_width: 192, ..vit.clone() };
    for (method, base, vit, word) in [
        (method(), None, &vit, "base"),
        (Method { top_k: Some(17), ..method() }, Some(&base), &vit, "top_k"),
        (Method { top_k: None, ..method() }, Some(&base), &vit, "top_k"),
        (Method { last_blocks: 7, ..method() }, Some(&base), &vit, "last_blocks"),
        (Method { last_blocks: 0, ..method() }, Some(&base), &vit, "last_blocks"),
        (Method { blocks_per_group: 4, ..method() }, Some(&base), &vit, "blocks_per_group"),
        (Method { mask_ratio: 1.0, ..method() }, Some(&base), &vit, "mask_ratio"),
        (Method { mask_ratio: f64::NAN, ..method() }, Some(&base), &vit, "mask_ratio"),
        (Method { mask_ratio: 0.0, ..method() }, Some(&base), &vit, "hides no patch"),
        (Method { initialise: Initialise::Base, ..method() }, Some(&base), &wider, "cls_token"),
        (Method { decoder: DecoderShape { width: 16, depth: 2, heads: 3 }, ..method() }, Some(&base), &vit, "heads"),
    ] {
        let message = refused(method, base, vit);
        assert!(message.contains(word), "{message}");
    }
    let mut step = step(reference, &base, Precision::F32);
    let mut short = reference.batch(0);
    short.noise.pop();
    assert!(matches!(step.run(&[short], 1e-3, &alone()), Err(StepError::Batch { .. })));
    let mut state = step.state().unwrap();
    state.slots.pop();
    assert!(matches!(step.restore(state), Err(StepError::State { .. })));
}
