//! Exported graphs against the eager forward.

mod contract;
mod dtype;
mod dynamic;
mod maps;
mod stopping;

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use tec_zoo::destination::DestinationError;
use tec_zoo::model::{
    Activation, AdapterConfig, Canonical, ClassifierConfig, Feature, Interpolation, Licence, Mlp, ModelConfig,
    ParameterSpec, PositionConfig, PositionKind, Preprocessing, Provenance, Resample, VitConfig, adapter_parameters,
    vit_parameters,
};
use tec_zoo::onnx::runtime::{Images, Runtime, RuntimeError, RuntimeOptions, find_ort_library};
use tec_zoo::onnx::{
    Adapters, AttributeValue, CheckOptions, DimInfo, ExportError, ExportOptions, ModelInfo, Purpose, Reference,
    RuntimeVerdict, Size, Target, Tolerance,
};

use crate::quiet::{check, export, open, run};
use crate::words::InFull;

/// Values around zero, the same everywhere.
fn noise(count: usize, seed: &mut u32) -> Vec<f32> {
    let mut next = || {
        *seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (*seed >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..count).map(|_| next()).collect()
}

/// Writes what `values` makes of each parameter's name and size as an f32 model.
fn write_tensors(path: &Path, vit: &VitConfig, mut values: impl FnMut(&str, usize) -> Vec<f32>) {
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = vit_parameters(vit)
        .iter()
        .map(|spec| {
            let bytes = values(&spec.name, spec.elements()).into_iter().flat_map(f32::to_le_bytes).collect();
            (spec.name.clone(), spec.shape.clone(), bytes)
        })
        .collect();
    let views =
        tensors.iter().map(|(name, shape, bytes)| (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, path).unwrap();
}

fn write_weights(path: &Path, specs: &[ParameterSpec], dtype: Dtype, seed: &mut u32) {
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = specs
        .iter()
        .map(|spec| {
            let norm = spec.name.contains("norm") && (spec.name.ends_with("weight") || spec.name.ends_with("_var"));
            let values =
                noise(spec.elements(), seed).into_iter().map(|value| if norm { 1.0 + value } else { value * 0.5 });
            let bytes = match dtype {
                Dtype::F32 => values.flat_map(f32::to_le_bytes).collect(),
                Dtype::F64 => values.map(f64::from).flat_map(f64::to_le_bytes).collect(),
                Dtype::F16 => values.map(half::f16::from_f32).flat_map(half::f16::to_le_bytes).collect(),
                Dtype::BF16 => values.map(half::bf16::from_f32).flat_map(half::bf16::to_le_bytes).collect(),
                other => panic!("no generator for {other}"),
            };
            (spec.name.clone(), spec.shape.clone(), bytes)
        })
        .collect();
    let views =
        tensors.iter().map(|(name, shape, bytes)| (name, TensorView::new(dtype, shape.clone(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// What a test varies of the nano model.
struct Nano {
    adapters: bool,
    classifier: Option<ClassifierConfig>,
    final_norm: bool,
    activation: Activation,
    mlp: Mlp,
    layer_scale: bool,
    registers: usize,
    dtype: Dtype,
    image_size: [usize; 2],
    patch: usize,
    depth: usize,
    resample: Resample,
}

impl Default for Nano {
    fn default() -> Self {
        Self {
            adapters: true,
            classifier: None,
            final_norm: true,
            activation: Activation::GeluErf,
            mlp: Mlp::Plain,
            layer_scale: false,
            registers: 0,
            dtype: Dtype::F32,
            image_size: [32, 24],
            patch: 8,
            depth: 6,
            resample: Resample::ScaleOffset { offset: 0.1 },
        }
    }
}

impl Nano {
    /// All that DINOv2's ViT-g has and a plain ViT has not.
    fn dinov2() -> Self {
        Self { adapters: false, mlp: Mlp::SwiGlu, layer_scale: true, registers: 3, ..Self::default() }
    }

    /// A model 16 wide with 4 heads, of 6 blocks and 8-pixel patches of 32×24 images unless told otherwise, in `dir`.
    fn write(self, dir: &Path) -> Canonical {
        let adapters =
            AdapterConfig { groups: 2, blocks_per_group: 3, mlp_width: 24, norm_eps: 1e-5, input_mlp_width: Some(64) };
        let vit = VitConfig {
            image_size: self.image_size,
            patch_size: self.patch,
            width: 16,
            depth: self.depth,
            heads: 4,
            mlp_width: 40,
            mlp: self.mlp,
            layer_scale: self.layer_scale,
            registers: self.registers,
            class_token: true,
            window: None,
            relative_position: None,
            neck: None,
            norm_eps: 1e-6,
            activation: self.activation,
            final_norm: self.final_norm,
            position: PositionConfig { kind: PositionKind::Learned, resample: self.resample },
            classifier: self.classifier,
            adapters: self.adapters.then_some(adapters),
            decoder: None,
        };
        let config = ModelConfig {
            format: ModelConfig::FORMAT,
            family: "tec".into(),
            feature: if self.classifier.is_some() { Feature::Mean } else { Feature::Cls },
            preprocessing: Preprocessing {
                mean: [0.485, 0.456, 0.406],
                std: [0.229, 0.224, 0.225],
                interpolation: Interpolation::Bicubic,
                crop_pct: 0.875,
            },
            provenance: Provenance {
                source_file: "nano.pth".into(),
                source_sha256: "0".repeat(64),
                source_bytes: 1,
                container: "torch-zip".into(),
                converter: "tec".into(),
                branch: Some("teacher".into()),
                other_branches: vec![],
                tool: "test".into(),
                branched_from: Vec::new(),
                lineage: vec!["mae-nano".into()],
                lineage_sha256: Vec::new(),
            },
            licence: Licence { spdx: "CC-BY-NC-4.0".into(), evidence: String::new() },
            vit,
        };
        std::fs::create_dir_all(dir).unwrap();
        let mut seed = 7;
        write_weights(&dir.join("model.safetensors"), &vit_parameters(&config.vit), self.dtype, &mut seed);
        if let Some(adapters) = &config.vit.adapters {
            let specs = adapter_parameters(adapters, config.vit.width);
            write_weights(&dir.join("adapters.safetensors"), &specs, self.dtype, &mut seed);
        }
        let json = serde_json::json!({ "tec_zoo": config });
        std::fs::write(dir.join("config.json"), serde_json::to_vec(&json).unwrap()).unwrap();
        Canonical::open(dir).unwrap()
    }
}

fn runtime_options() -> RuntimeOptions {
    RuntimeOptions {
        ort_library: std::env::var_os("ORT_DYLIB_PATH").filter(|path| !path.is_empty()).map(PathBuf::from),
        threads: Some(1),
        ..Default::default()
    }
}

/// The runtimes of this machine: two are built in, the third is used where its library is found.
fn runtimes() -> Vec<Runtime> {
    match find_ort_library(&runtime_options()) {
        Ok(_) => Runtime::ALL.to_vec(),
        Err(RuntimeError::OrtNotFound { .. }) => {
            eprintln!("ONNX Runtime is not installed: its part of this test is left out");
            vec![Runtime::Tract, Runtime::Candle]
        }
        Err(error) => panic!("{error}"),
    }
}

fn check_options(runtimes: Vec<Runtime>, batch: usize, size: [usize; 2]) -> CheckOptions {
    // Nano activations are of order 1: 2e-5 is ten times what was seen and far below what any wrong operator does.
    CheckOptions {
        runtimes,
        runtime: runtime_options(),
        tolerance: Some(Tolerance::MaxAbsDiff(2e-5)),
        images: Some(Images::synthetic(batch, size)),
        sizes: vec![],
    }
}

/// Checks at batch 1 and 3, and that exactly `able` ran it.
fn agrees(model: &Canonical, path: &Path, size: [usize; 2], able: &[Runtime]) {
    for batch in [1, 3] {
        let report = check(path, Reference::Model(model), &check_options(runtimes(), batch, size)).unwrap();
        for entry in &report.runtimes {
            match &entry.verdict {
                RuntimeVerdict::Ran { .. } => assert!(able.contains(&entry.runtime), "{report:#?}"),
                RuntimeVerdict::CouldNotRun { .. } => assert!(!able.contains(&entry.runtime), "{report:#?}"),
            }
        }
        let outputs = report.runtimes.iter().filter_map(|entry| match &entry.verdict {
            RuntimeVerdict::Ran { outputs } => Some(outputs),
            RuntimeVerdict::CouldNotRun { .. } => None,
        });
        assert!(outputs.flatten().all(|output| output.passed), "{report:#?}");
        // All were named: one that did not run is no proof.
        assert_eq!(report.holds, Some(able.len() == runtimes().len()), "{report:#?}");
        assert_eq!(report.ran().len(), able.len(), "{report:#?}");
    }
}

const OPERATORS_OF_CONSTANTS: [&str; 3] = ["Identity", "Constant", "ConstantOfShape"];

/// Walks the decoded graph: everything is used, nothing computes a constant, nothing is stored twice.
fn is_tidy(path: &Path) -> ModelInfo {
    let bytes = std::fs::read(path).unwrap();
    let info = ModelInfo::parse(&bytes).unwrap();
    let stored: HashSet<&str> = info.initializers.iter().map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(stored.len(), info.initializers.len(), "a name is stored twice");
    let mut used: HashSet<&str> = info.outputs.iter().map(|output| output.name.as_str()).collect();
    let mut names = HashSet::new();
    let mut made: HashSet<&str> = info.inputs.iter().map(|input| input.name.as_str()).collect();
    for node in &info.nodes {
        assert!(!OPERATORS_OF_CONSTANTS.contains(&node.operator.as_str()), "{node:?}");
        assert!(node.inputs.iter().any(|input| !stored.contains(input.as_str())), "foldable: {node:?}");
        assert!(
            node.inputs.iter().all(|input| stored.contains(input.as_str()) || made.contains(input.as_str())),
            "{node:?}"
        );
        assert_eq!(node.domain, "");
        assert!(names.insert(node.name.as_str()), "two nodes are called {}", node.name);
        used.extend(node.inputs.iter().map(String::as_str));
        made.extend(node.outputs.iter().map(String::as_str));
    }
    assert!(info.outputs.iter().all(|output| made.contains(output.name.as_str())));
    assert!(stored.iter().all(|tensor| used.contains(tensor)), "something stored is never used");
    // A value nobody uses is allowed where its siblings are used (Split); a node nobody uses is not.
    for node in &info.nodes {
        assert!(node.outputs.iter().any(|output| used.contains(output.as_str())), "dead: {node:?}");
    }
    info
}

fn file(dir: &tempfile::TempDir, name: &str) -> PathBuf {
    dir.path().join(name)
}

#[test]
fn every_variant_gives_the_eager_forwards_numbers_in_every_runtime_at_every_batch() {
    let dir = tempfile::tempdir().unwrap();
    let model = Nano::default().write(&file(&dir, "nano"));
    for adapters in [Adapters::Drop, Adapters::Keep] {
        let path = file(&dir, "portable.onnx");
        export(&model, &path, &ExportOptions { adapters, ..Default::default() }).unwrap();
        agrees(&model, &path, [32, 24], &runtimes());
        let info = is_tidy(&path);
        assert_eq!(info.opsets, [(String::new(), 17)]);
        assert_eq!(info.ir_version, 8);

        let path = file(&dir, "ort.onnx");
        export(&model, &path, &ExportOptions { adapters, target: Target::Ort, ..Default::default() }).unwrap();
        agrees(&model, &path, [32, 24], &without_candle());
        is_tidy(&path);
        let refused = open(Runtime::Candle, &path, &runtime_options())
            .and_then(|mut session| run(&mut session, Images::synthetic(1, [32, 24])));
        let reason = refused.unwrap_err().in_full();
        assert_eq!(reason, "candle could not run it: unsupported op_type LayerNormalization");
    }
}

fn without_candle() -> Vec<Runtime> {
    runtimes().into_iter().filter(|runtime| *runtime != Runtime::Candle).collect()
}

#[test]
fn every_operator_set_offered_is_one_the_runtimes_accept() {
    let dir = tempfile::tempdir().unwrap();
    let model = Nano { adapters: false, ..Default::default() }.write(&file(&dir, "nano"));
    let path = file(&dir, "x.onnx");
    for opset in 13..=17 {
        export(&model, &path, &ExportOptions { opset: Some(opset), ..Default::default() }).unwrap();
        agrees(&model, &path, [32, 24], &runtimes());
    }
    for opset in 13..=23 {
        let options = ExportOptions { opset: Some(opset), target: Target::Ort, ..Default::default() };
        let report = export(&model, &path, &options).unwrap();
        assert_eq!(report.opset, opset);
        // Below 17 there is no fused operator at all, and candle-onnx runs it like any portable graph.
        let able = if opset < 17 { runtimes() } else { without_candle() };
        agrees(&model, &path, [32, 24], &able);
    }
    for (target, opset) in [(Target::Portable, 18), (Target::Portable, 12), (Target::Ort, 24), (Target::Ort, 9)] {
        let refused = export(&model, &path, &ExportOptions { opset: Some(opset), target, ..Default::default() });
        assert!(matches!(refused, Err(ExportError::Opset { .. })), "{refused:?}");
    }
}

#[test]
fn both_activations_every_dtype_and_a_missing_norm_export_right() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "x.onnx");
    for (i, nano) in [
        Nano { activation: Activation::GeluTanh, ..Default::default() },
        Nano { final_norm: false, ..Default::default() },
        Nano { dtype: Dtype::F16, ..Default::default() },
        Nano { dtype: Dtype::BF16, ..Default::default() },
        Nano { dtype: Dtype::F64, ..Default::default() },
    ]
    .into_iter()
    .enumerate()
    {
        let model = nano.write(&file(&dir, &format!("nano{i}")));
        for (target, able) in [(Target::Portable, runtimes()), (Target::Ort, without_candle())] {
            export(&model, &path, &ExportOptions { adapters: Adapters::Keep, target, ..Default::default() }).unwrap();
            agrees(&model, &path, [32, 24], &able);
        }
        let info = is_tidy(&path);
        assert!(info.initializers.iter().all(|tensor| tensor.element == 1 || tensor.element == 7), "f32 and i64 only");
        let has_norm = info.initializers.iter().any(|tensor| tensor.name == "norm.weight");
        assert_eq!(has_norm, model.config().vit.final_norm);
        assert_eq!(info.metadata["has_final_norm"], has_norm.to_string());
    }
}

#[test]
fn layer_scale_registers_and_swiglu_export_right_in_every_variant() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "x.onnx");
    let features = ["cls", "mean", "block0", "norm"].map(|name| name.parse().unwrap()).to_vec();
    let parts = [
        Nano::dinov2(),
        Nano { adapters: true, ..Nano::dinov2() },
        Nano { classifier: Some(ClassifierConfig { classes: 5, fc_norm: true }), final_norm: false, ..Nano::dinov2() },
        Nano { mlp: Mlp::Plain, ..Nano::dinov2() },
        Nano { registers: 0, ..Nano::dinov2() },
    ];
    for (i, nano) in parts.into_iter().enumerate() {
        let model = nano.write(&file(&dir, &format!("nano{i}")));
        let vit = &model.config().vit;
        let last = if vit.final_norm { features.clone() } else { features[..3].to_vec() };
        for purpose in [Purpose::Tokens, Purpose::Classification, Purpose::Levels(vec![1, 5]), Purpose::Features(last)]
        {
            let keep = vit.adapters.is_some() && purpose == Purpose::Tokens;
            let adapters = if keep { Adapters::Keep } else { Adapters::Drop };
            for (target, able) in [(Target::Portable, runtimes()), (Target::Ort, without_candle())] {
                for size in [[32, 24], [40, 64]] {
                    let purpose = purpose.clone();
                    let options =
                        ExportOptions { purpose, adapters, target, size: Size::Fixed(size), ..Default::default() };
                    export(&model, &path, &options).unwrap();
                    agrees(&model, &path, size, &able);
                    let info = is_tidy(&path);
                    assert_eq!(info.metadata["prefix_tokens"], vit.prefix_tokens().to_string());
                    assert_eq!(info.metadata["activation"], if i == 3 { "gelu-erf" } else { "swiglu" });
                }
            }
        }
    }
}

#[test]
fn registers_are_between_the_class_token_and_the_patches_and_in_no_map() {
    let dir = tempfile::tempdir().unwrap();
    let model = Nano::dinov2().write(&file(&dir, "nano"));
    let path = file(&dir, "x.onnx");
    let report = export(&model, &path, &ExportOptions::default()).unwrap();
    assert_eq!(report.outputs[0].shape, ["batch", "16", "16"]); // 1 + 3 + 4·3 tokens
    let report =
        export(&model, &path, &ExportOptions { purpose: Purpose::Levels(vec![5]), ..Default::default() }).unwrap();
    assert_eq!(report.outputs[0].shape, ["batch", "16", "4", "3"]);
    let names: HashSet<String> = ModelInfo::open(&path).unwrap().nodes.into_iter().map(|node| node.name).collect();
    for name in ["/blocks.0/ls1/Mul", "/blocks.0/mlp/Sigmoid", "/blocks.5/ls2/Mul"] {
        assert!(names.contains(name), "{name} is not among {names:?}");
    }
}

#[test]
fn another_size_bakes_the_resampled_position_table() {
    let dir = tempfile::tempdir().unwrap();
    let model = Nano::default().write(&file(&dir, "nano"));
    let path = file(&dir, "x.onnx");
    let size = [40, 64];
    for (target, able) in [(Target::Portable, runtimes()), (Target::Ort, without_candle())] {
        let options = ExportOptions { size: Size::Fixed(size), target, ..Default::default() };
        let report = export(&model, &path, &options).unwrap();
        assert_eq!(report.outputs[0].shape, ["batch", "41", "16"]);
        agrees(&model, &path, size, &able);
    }
    let info = is_tidy(&path);
    let table = info.initializers.iter().find(|tensor| tensor.name == "pos_embed").unwrap();
    assert_eq!(table.dims, [1, 1 + 5 * 8, 16]);
    assert_eq!(info.metadata["grid"], "[5,8]");
}

#[test]
fn a_size_that_is_no_whole_number_of_patches_is_refused_with_the_nearest_that_is() {
    let dir = tempfile::tempdir().unwrap();
    let model = Nano::default().write(&file(&dir, "nano"));
    for size in [[33, 24], [0, 8], [1 << 20, 8]] {
        let path = file(&dir, "x.onnx");
        let refused = export(&model, &path, &ExportOptions { size: Size::Fixed(size), ..Default::default() });
        let Err(error @ ExportError::Size { .. }) = refused else { panic!("{refused:?}") };
        assert!(error.in_full().contains("`size`: "), "{error}");
        assert!(!path.exists());
    }
}

#[test]
fn levels_are_maps_of_raw_block_outputs() {
    let dir = tempfile::tempdir().unwrap();
    let model = Nano::default().write(&file(&dir, "nano"));
    let path = file(&dir, "x.onnx");
    for (target, able) in [(Target::Portable, runtimes()), (Target::Ort, without_candle())] {
        let options = ExportOptions { purpose: Purpose::Levels(vec![0, 2, 4]), target, ..Default::default() };
        let report = export(&model, &path, &options).unwrap();
        let names: Vec<&str> = report.outputs.iter().map(|output| output.name.as_str()).collect();
        assert_eq!(names, ["level0", "level1", "level2"]);
        assert!(report.outputs.iter().all(|output| output.shape == ["batch", "16", "4", "3"]));
        agrees(&model, &path, [32, 24], &able);
    }
    // What no level needs is not in the file.
    let info = is_tidy(&path);
    assert!(
        !info.initializers.iter().any(|tensor| tensor.name.starts_with("blocks.5") || tensor.name == "norm.weight")
    );
    for levels in [vec![], vec![6], vec![2, 1], vec![1, 1]] {
        let refused = export(&model, &path, &ExportOptions { purpose: Purpose::Levels(levels), ..Default::default() });
        assert!(matches!(refused, Err(ExportError::Levels { .. })), "{refused:?}");
    }
}

#[test]
fn classification_gives_the_models_feature_and_its_logits_where_it_has_a_head() {
    let dir = tempfile::tempdir().unwrap();
    for (name, classifier, outputs) in [
        ("plain", None, &["feature"][..]),
        ("cls", Some(ClassifierConfig { classes: 5, fc_norm: false }), &["feature", "logits"]),
        ("mean", Some(ClassifierConfig { classes: 5, fc_norm: true }), &["feature", "logits"]),
    ] {
        let nano = Nano { classifier, final_norm: name != "mean", ..Default::default() };
        let model = nano.write(&file(&dir, name));
        let path = file(&dir, "x.onnx");
        for (target, able) in [(Target::Portable, runtimes()), (Target::Ort, without_candle())] {
            let options = ExportOptions { purpose: Purpose::Classification, target, ..Default::default() };
            let report = export(&model, &path, &options).unwrap();
            assert_eq!(report.outputs.iter().map(|output| output.name.as_str()).collect::<Vec<_>>(), outputs);
            agrees(&model, &path, [32, 24], &able);
            is_tidy(&path);
        }
    }
}

#[test]
fn features_by_name_come_in_any_order_and_never_twice() {
    let dir = tempfile::tempdir().unwrap();
    let model = Nano::default().write(&file(&dir, "nano"));
    let path = file(&dir, "x.onnx");
    let names = ["cls", "norm", "block5", "mean", "adapted", "block0"];
    for rotation in 0..names.len() {
        let wanted = (0..names.len()).map(|i| names[(i + rotation) % names.len()].parse().unwrap()).collect();
        export(&model, &path, &ExportOptions { purpose: Purpose::Features(wanted), ..Default::default() }).unwrap();
        agrees(&model, &path, [32, 24], &runtimes());
        let info = is_tidy(&path);
        let reshapes = info.nodes.iter().filter(|node| node.operator == "Reshape").map(|node| &node.inputs);
        let mut seen = HashSet::new();
        assert!(reshapes.into_iter().all(|inputs| seen.insert(inputs)), "a value is laid out twice");
    }
    let twice = vec!["cls".parse().unwrap(); 2];
    for wanted in [twice, vec![], vec!["block6".parse().unwrap()]] {
        let refused =
            export(&model, &path, &ExportOptions { purpose: Purpose::Features(wanted), ..Default::default() });
        assert!(matches!(refused, Err(ExportError::Unrecordable { .. })), "{refused:?}");
    }
}

#[test]
fn adapters_are_named_where_kept_absent_where_dropped_and_refused_where_there_are_none() {
    let dir = tempfile::tempdir().unwrap();
    let model = Nano::default().write(&file(&dir, "nano"));
    let path = file(&dir, "x.onnx");
    export(&model, &path, &ExportOptions { adapters: Adapters::Keep, ..Default::default() }).unwrap();
    let info = is_tidy(&path);
    let names: HashSet<&str> = info.initializers.iter().map(|tensor| tensor.name.as_str()).collect();
    let adapters = model.config().vit.adapters.unwrap();
    for spec in adapter_parameters(&adapters, 16).iter().filter(|spec| spec.name.starts_with("encoder_adapter.")) {
        assert!(names.contains(spec.name.as_str()), "{} is missing", spec.name);
    }
    // Every parameter of the backbone keeps its name as well, the folded-away ones of other exporters included.
    for spec in vit_parameters(&model.config().vit) {
        assert!(names.contains(spec.name.as_str()), "{} is missing", spec.name);
    }
    assert_eq!(
        info.outputs.iter().map(|output| output.name.as_str()).collect::<Vec<_>>(),
        ["last_hidden_state", "adapted", "adapted_group0", "adapted_group1"]
    );

    export(&model, &path, &ExportOptions::default()).unwrap();
    let info = is_tidy(&path);
    assert!(!info.initializers.iter().any(|tensor| tensor.name.contains("adapter")));
    assert_eq!(info.metadata["adapters"], "dropped");

    let plain = Nano { adapters: false, ..Default::default() }.write(&file(&dir, "plain"));
    let refused = export(&plain, &path, &ExportOptions { adapters: Adapters::Keep, ..Default::default() });
    assert!(matches!(refused, Err(ExportError::NoAdapters { .. })));
}

#[test]
fn the_same_model_gives_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let model = Nano::default().write(&file(&dir, "nano"));
    for target in [Target::Portable, Target::Ort] {
        let options =
            ExportOptions { adapters: Adapters::Keep, target, size: Size::Fixed([64, 64]), ..Default::default() };
        let [a, b] = ["a.onnx", "b.onnx"].map(|name| {
            let path = file(&dir, name);
            export(&model, &path, &options).unwrap();
            std::fs::read(path).unwrap()
        });
        assert!(a == b);
    }
}

#[test]
fn the_file_says_how_to_feed_it_and_where_it_comes_from() {
    let dir = tempfile::tempdir().unwrap();
    let model = Nano::default().write(&file(&dir, "nano"));
    let path = file(&dir, "x.onnx");
    let report = export(&model, &path, &ExportOptions::default()).unwrap();
    let info = ModelInfo::open(&path).unwrap();
    assert_eq!(info.producer, "tec-zoo");
    assert_eq!(info.graph, "nano");
    assert!(info.description.contains("4 heads"));
    assert_eq!(info.nodes.len(), report.nodes);
    assert_eq!(report.bytes, std::fs::metadata(&path).unwrap().len());
    let [input] = info.inputs.as_slice() else { panic!() };
    assert_eq!(input.name, "pixel_values");
    let batch = DimInfo::Name("batch".into());
    assert_eq!(input.dims, [batch, DimInfo::Size(3), DimInfo::Size(32), DimInfo::Size(24)]);
    let expected: BTreeMap<&str, &str> = [
        ("model", "nano"),
        ("family", "tec"),
        ("mean", "[0.485,0.456,0.406]"),
        ("std", "[0.229,0.224,0.225]"),
        ("crop_pct", "0.875"),
        ("interpolation", "bicubic"),
        ("source_sha256", "0000000000000000000000000000000000000000000000000000000000000000"),
        ("branch", "teacher"),
        ("licence", "CC-BY-NC-4.0"),
        ("feature", "cls"),
        ("patch_size", "8"),
        ("grid", "[4,3]"),
        ("resample", r#"{"rule":"scale-offset","offset":0.1}"#),
        ("has_final_norm", "true"),
        ("target", "portable"),
        ("lineage", r#"["mae-nano"]"#),
    ]
    .into();
    for (key, value) in expected {
        assert_eq!(info.metadata.get(key).map(String::as_str), Some(value), "{key}");
    }
}

#[test]
fn nodes_are_named_after_the_parameters_they_use() {
    let dir = tempfile::tempdir().unwrap();
    let model = Nano::default().write(&file(&dir, "nano"));
    let path = file(&dir, "x.onnx");
    export(&model, &path, &ExportOptions { target: Target::Ort, adapters: Adapters::Keep, ..Default::default() })
        .unwrap();
    let info = ModelInfo::open(&path).unwrap();
    let names: HashSet<&str> = info.nodes.iter().map(|node| node.name.as_str()).collect();
    for name in [
        "/patch_embed/proj/Conv",
        "/blocks.0/norm1/LayerNormalization",
        "/blocks.0/attn/qkv/Gemm",
        "/blocks.0/attn/Attention",
        "/blocks.5/mlp/Gelu",
        "/blocks.5/Add_1",
        "/encoder_adapter/groups.1/fuse/Gemm",
    ] {
        assert!(names.contains(name), "{name} is not among {names:?}");
    }
    let attention = info.nodes.iter().find(|node| node.operator == "Attention").unwrap();
    assert_eq!(attention.attributes["q_num_heads"], AttributeValue::Int(4));
    assert!(!info.nodes.iter().any(|node| node.operator == "Transpose" && node.name.starts_with("/blocks")));
}

#[test]
fn weights_beyond_the_threshold_go_to_a_data_file_that_runtimes_read() {
    let dir = tempfile::tempdir().unwrap();
    let model = Nano::default().write(&file(&dir, "nano"));
    let path = file(&dir, "x.onnx");
    let options = ExportOptions { external_above: 1000, target: Target::Ort, ..Default::default() };
    let report = export(&model, &path, &options).unwrap();
    let data = report.data.unwrap();
    assert_eq!(data, file(&dir, "x.onnx.data"));
    let len = std::fs::metadata(&data).unwrap().len();
    let info = is_tidy(&path);
    let outside: Vec<_> = info.initializers.iter().filter(|tensor| !tensor.external.is_empty()).collect();
    assert!(outside.iter().any(|tensor| tensor.name == "blocks.0.attn.qkv.weight"));
    for tensor in outside {
        assert_eq!(tensor.external["location"], "x.onnx.data");
        let [offset, length] = ["offset", "length"].map(|key| tensor.external[key].parse::<u64>().unwrap());
        assert_eq!(offset % 4096, 0);
        assert_eq!(length, tensor.dims.iter().product::<u64>() * 4);
        assert!(offset + length <= len);
    }
    agrees(&model, &path, [32, 24], &without_candle());
    let mut refused = None;
    if let Err(error) = open(Runtime::Candle, &path, &runtime_options()) {
        refused = Some(error.in_full());
    }
    assert!(refused.unwrap().contains("external data"));
}

#[test]
fn a_refused_or_failed_export_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let model = Nano::default().write(&file(&dir, "nano"));
    let missing = dir.path().join("no/such/folder/x.onnx");
    let refused = export(&model, &missing, &ExportOptions::default());
    assert!(matches!(refused, Err(ExportError::Destination(DestinationError::NoFolder { .. }))), "{refused:?}");
    let target = file(&dir, "taken");
    std::fs::create_dir(&target).unwrap();
    assert!(export(&model, &target, &ExportOptions::default()).is_err());
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

#[test]
fn a_check_notices_another_models_graph() {
    let dir = tempfile::tempdir().unwrap();
    let model = Nano::default().write(&file(&dir, "nano"));
    let other = Nano { activation: Activation::GeluTanh, ..Default::default() }.write(&file(&dir, "other"));
    let path = file(&dir, "x.onnx");
    export(&other, &path, &ExportOptions::default()).unwrap();
    let report = check(&path, Reference::Model(&model), &check_options(vec![Runtime::Tract], 2, [32, 24])).unwrap();
    assert_eq!(report.holds, Some(false), "{report:#?}");
    // Without a model, runtimes are compared with one another, and these agree.
    let options = check_options(vec![Runtime::Tract, Runtime::Candle], 2, [32, 24]);
    let report = check(&path, Reference::FirstRuntime, &options).unwrap();
    assert_eq!((report.reference.as_str(), report.ran().len(), report.holds), ("tract", 2, Some(true)), "{report:#?}");
}

#[test]
fn values_that_are_not_finite_fail_a_check() {
    let dir = tempfile::tempdir().unwrap();
    let model = Nano::default().write(&file(&dir, "nano"));
    let path = file(&dir, "x.onnx");
    export(&model, &path, &ExportOptions::default()).unwrap();
    let mut options = check_options(vec![Runtime::Tract], 1, [32, 24]);
    options.images.as_mut().unwrap().values[0] = f32::NAN;
    let report = check(&path, Reference::Model(&model), &options).unwrap();
    assert_eq!(report.holds, Some(false));
    let RuntimeVerdict::Ran { outputs } = &report.runtimes[0].verdict else { panic!("{report:#?}") };
    assert!(outputs[0].problem.as_ref().unwrap().contains("not finite"));
}

#[test]
fn runtimes_say_why_they_cannot_run_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "x.onnx");
    for bytes in [&b""[..], b"\x00\x01\x02", b"not a model at all, whatever its name says"] {
        std::fs::write(&path, bytes).unwrap();
        assert!(ModelInfo::open(&path).is_err());
        for runtime in runtimes() {
            let outcome = open(runtime, &path, &runtime_options())
                .and_then(|mut session| run(&mut session, Images::synthetic(1, [32, 24])));
            assert!(matches!(outcome, Err(RuntimeError::Failed { .. })), "{runtime}: {outcome:?}");
        }
    }
}

#[test]
fn the_library_that_was_named_is_the_only_one_tried() {
    let options = RuntimeOptions { ort_library: Some("/no/such/libonnxruntime.so".into()), ..Default::default() };
    assert_eq!(find_ort_library(&options).unwrap(), PathBuf::from("/no/such/libonnxruntime.so"));
}

/// A small but complete file to damage.
fn sample() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let model = Nano::default().write(&file(&dir, "nano"));
    let path = file(&dir, "x.onnx");
    let options = ExportOptions { target: Target::Ort, external_above: 0, ..Default::default() };
    export(&model, &path, &options).unwrap();
    std::fs::read(path).unwrap()
}

#[test]
fn a_truncated_file_is_refused_or_shorter_but_never_trusted_beyond_its_end() {
    let bytes = sample();
    let whole = ModelInfo::parse(&bytes).unwrap();
    for end in 0..bytes.len() {
        if let Ok(info) = ModelInfo::parse(&bytes[..end]) {
            assert!(info.metadata.len() <= whole.metadata.len() && info.nodes.len() <= whole.nodes.len());
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_end_in_a_result(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        let _ = ModelInfo::parse(&bytes);
    }

    #[test]
    fn any_damage_ends_in_a_result(flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        static SAMPLE: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
        let mut bytes = SAMPLE.get_or_init(sample).clone();
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let _ = ModelInfo::parse(&bytes);
    }
}
