//! Exports in narrower numbers: f16 products between f32 islands, and weights in eight bits.

use std::ops::ControlFlow;

use super::*;
use crate::words::InFull;
use tec_zoo::onnx::{
    CALIBRATED_COSINE, Calibration, CalibrationError, Calibrator, Dtype as Numbers, Event, HALF_COSINE, INT8_COSINE,
};

/// `TensorProto.DataType`.
const F32: u64 = 1;
const U8: u64 = 2;
const I8: u64 = 3;
const I32: u64 = 6;
const F16: u64 = 10;

/// A model whose blocks write values a thousand times as large as the rest into single channels, everywhere and for single
/// tokens, and whose attention is sharp: what trained ViTs do. Wide enough for sums of some length.
fn with_outliers(dir: &Path, nano: Nano) -> Canonical {
    let config = nano.write(dir).config().clone();
    let mut seed = 5;
    write_tensors(&dir.join("model.safetensors"), &config.vit, |name, count| {
        let mut values = super::noise(count, &mut seed);
        if name.contains("norm") && name.ends_with("weight") {
            values.iter_mut().for_each(|value| *value += 1.0);
        }
        let block = |i: usize| name.starts_with(&format!("blocks.{i}."));
        match name {
            // About 3,000 in one channel of every token.
            _ if block(1) && name.ends_with("mlp.fc2.bias") => values[3] = -3000.0,
            // Some hundreds in another one, as the token has it.
            _ if block(2) && name.ends_with("mlp.fc2.weight") => {
                let width = count / 16;
                values[7 * width..8 * width].iter_mut().for_each(|value| *value *= 400.0);
            }
            // Logits of some dozens.
            _ if name.ends_with("attn.qkv.weight") => values.iter_mut().for_each(|value| *value *= 4.0),
            _ => {}
        }
        values
    });
    Canonical::open(dir).unwrap()
}

fn of(dtype: Numbers, target: Target) -> ExportOptions {
    ExportOptions { dtype, target, purpose: Purpose::Levels(vec![0, 1, 2, 3, 5]), ..Default::default() }
}

/// Checks with the tolerance the file's own metadata asks for; returns the smallest cosine of any output.
fn holds(model: &Canonical, path: &Path, able: &[Runtime], tolerance: f64) -> f64 {
    let options = CheckOptions { runtimes: runtimes(), runtime: runtime_options(), ..Default::default() };
    let report = check(path, Reference::Model(model), &options).unwrap();
    assert_eq!(report.tolerance, Tolerance::Cosine(tolerance));
    let mut least = 1.0_f64;
    for entry in &report.runtimes {
        let RuntimeVerdict::Ran { outputs } = &entry.verdict else {
            assert!(!able.contains(&entry.runtime), "{report:#?}");
            continue;
        };
        assert!(able.contains(&entry.runtime), "{report:#?}");
        least = outputs.iter().fold(least, |least, output| least.min(output.cosine_of_bulk));
    }
    // All were named: one that did not run is no proof.
    assert_eq!(report.holds, Some(able.len() == runtimes().len()), "{report:#?}");
    least
}

/// The type of every float value, worked out from the file alone.
fn elements(info: &ModelInfo) -> BTreeMap<String, u64> {
    let mut elements: BTreeMap<String, u64> =
        info.initializers.iter().map(|tensor| (tensor.name.clone(), tensor.element)).collect();
    elements.extend(info.inputs.iter().map(|input| (input.name.clone(), input.element)));
    for node in &info.nodes {
        let element = match (node.operator.as_str(), node.attributes.get("to")) {
            ("Cast", Some(AttributeValue::Int(to))) => *to as u64,
            ("Shape", _) => 7,
            ("DequantizeLinear", _) => F32,
            _ => elements[&node.inputs[0]],
        };
        elements.extend(node.outputs.iter().map(|output| (output.clone(), element)));
    }
    elements
}

#[test]
fn f16_holds_at_every_level_with_outliers_in_every_runtime() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "x.onnx");
    let plain = || Nano { adapters: false, ..Nano::default() };
    for (i, nano) in [plain(), Nano::dinov2()].into_iter().enumerate() {
        let model = with_outliers(&file(&dir, &format!("nano{i}")), nano);
        for (target, able) in [(Target::Ort, without_candle()), (Target::Portable, runtimes())] {
            for size in [Size::Native, Size::Fixed([40, 56]), Size::Dynamic] {
                export(&model, &path, &ExportOptions { size, ..of(Numbers::F16, target) }).unwrap();
                let info = is_tidy(&path);
                assert_eq!(info.metadata["dtype"], "f16");
                holds(&model, &path, &able, HALF_COSINE);
            }
        }
    }
}

#[test]
fn the_outliers_of_these_tests_leave_a_norm_in_f16_no_digits() {
    // Why the islands are there: the variance of a token with one value of 3,000 among sixteen is beyond f16's 65,504.
    let dir = tempfile::tempdir().unwrap();
    let model = with_outliers(&file(&dir, "nano"), Nano { adapters: false, ..Nano::default() });
    let path = file(&dir, "x.onnx");
    export(&model, &path, &of(Numbers::F32, Target::Portable)).unwrap();
    let outputs =
        run(&mut open(Runtime::Tract, &path, &runtime_options()).unwrap(), Images::synthetic(1, [32, 24])).unwrap();
    let largest = |level: usize| outputs[level].values.iter().fold(0_f32, |most, value| most.max(value.abs()));
    assert!(largest(0) < 100.0 && largest(1) > 2900.0 && largest(1).powi(2) / 16.0 > half::f16::MAX.to_f32());
}

#[test]
fn norms_softmax_activations_and_the_residual_sum_are_f32_and_products_are_f16() {
    let dir = tempfile::tempdir().unwrap();
    let model = Nano::default().write(&file(&dir, "nano"));
    let path = file(&dir, "x.onnx");
    for (target, opset) in [(Target::Portable, None), (Target::Ort, None), (Target::Ort, Some(20))] {
        for size in [Size::Native, Size::Dynamic] {
            let options = ExportOptions { opset, size, adapters: Adapters::Keep, ..of(Numbers::F16, target) };
            export(&model, &path, &options).unwrap();
            let info = is_tidy(&path);
            let elements = elements(&info);
            let stored: HashSet<&str> = info.initializers.iter().map(|tensor| tensor.name.as_str()).collect();
            let mut products = 0;
            for node in &info.nodes {
                let of_inputs: Vec<u64> = node.inputs.iter().map(|input| elements[input]).collect();
                let in_graph = node.name.starts_with("/blocks") || node.name.starts_with("/encoder_adapter");
                match node.operator.as_str() {
                    "MatMul" | "Conv" | "Attention" if in_graph || node.operator == "Conv" => {
                        assert!(of_inputs.iter().all(|element| *element == F16), "{node:?}");
                        products += 1;
                    }
                    // The position table's, made from lengths.
                    "MatMul" => assert!(of_inputs.iter().all(|element| *element == F32), "{node:?}"),
                    "LayerNormalization" | "ReduceMean" | "Sqrt" | "Pow" | "Div" | "Sub" | "Softmax" | "Erf"
                    | "Gelu" => {
                        assert!(!of_inputs.contains(&F16), "{node:?}");
                    }
                    // Two values of the images: the residual sum.
                    "Add" if node.inputs.iter().all(|input| !stored.contains(input.as_str())) => {
                        assert!(!of_inputs.contains(&F16), "{node:?}");
                    }
                    _ => {}
                }
            }
            // The patch embedding; four Linears and attention (two products unless it is one node) of each block; the
            // adapters' Linears.
            let attention = if opset.is_none() && target == Target::Ort { 1 } else { 2 };
            assert!(products > 1 + 6 * (4 + attention), "{products}");
            for output in &info.outputs {
                assert_eq!((output.element, elements[&output.name]), (F32, F32), "{output:?}");
            }
            assert_eq!(info.inputs[0].element, F32);
            let weight = info.initializers.iter().find(|tensor| tensor.name == "blocks.0.mlp.fc1.weight").unwrap();
            assert_eq!((weight.element, weight.bytes), (F16, 16 * 40 * 2));
            let norm = info.initializers.iter().find(|tensor| tensor.name == "blocks.0.norm1.weight").unwrap();
            assert_eq!(norm.element, F32);
        }
    }
}

#[test]
fn narrow_numbers_go_with_every_purpose_and_every_stored_type() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "x.onnx");
    for (i, stored) in [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F64].into_iter().enumerate() {
        let model = Nano { dtype: stored, ..Nano::default() }.write(&file(&dir, &format!("nano{i}")));
        for purpose in [Purpose::Tokens, Purpose::Classification, Purpose::VitDet, Purpose::UperNet(Default::default())]
        {
            for (dtype, cosine) in [(Numbers::F16, HALF_COSINE), (Numbers::Int8, INT8_COSINE)] {
                let options = ExportOptions {
                    purpose: purpose.clone(),
                    adapters: Adapters::Keep,
                    size: Size::Dynamic,
                    ..of(dtype, Target::Portable)
                };
                export(&model, &path, &options).unwrap();
                holds(&model, &path, &runtimes(), cosine);
            }
        }
    }
    let model = Canonical::open(&file(&dir, "nano0")).unwrap();
    for dtype in [Numbers::F16, Numbers::Int8] {
        let options = ExportOptions { normalize_input: true, ..of(dtype, Target::Portable) };
        export(&model, &path, &options).unwrap();
        assert_eq!(ModelInfo::open(&path).unwrap().inputs[0].element, U8);
        holds(&model, &path, &runtimes(), if dtype == Numbers::F16 { HALF_COSINE } else { INT8_COSINE });
    }
}

#[test]
fn eight_bits_hold_weights_and_scales_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let model = with_outliers(&file(&dir, "nano"), Nano { adapters: false, ..Nano::default() });
    let path = file(&dir, "x.onnx");
    for (target, element, able) in [(Target::Portable, U8, runtimes()), (Target::Ort, I8, without_candle())] {
        export(&model, &path, &of(Numbers::Int8, target)).unwrap();
        holds(&model, &path, &able, INT8_COSINE);
        let info = ModelInfo::open(&path).unwrap();
        assert_eq!(info.metadata["dtype"], "int8");
        let mut linears = 0;
        for tensor in &info.initializers {
            let linear =
                tensor.name.starts_with("blocks") && tensor.name.ends_with(".weight") && tensor.dims.len() == 2;
            let rounded = tensor.element == element && !tensor.name.ends_with("_zero_point");
            assert_eq!(rounded, linear, "{tensor:?}");
            if linear {
                linears += 1;
                assert_eq!(tensor.bytes, tensor.dims.iter().product::<u64>());
                let scale = format!("{}_scale", tensor.name);
                let scale = info.initializers.iter().find(|tensor| tensor.name == scale).unwrap();
                assert_eq!((scale.element, &scale.dims), (F32, &vec![tensor.dims[1]]));
            }
        }
        assert_eq!(linears, 4 * 6);
        assert!(!elements(&info).values().any(|element| *element == F16));
    }
}

#[test]
fn narrow_weights_go_to_a_data_file_too_and_the_bytes_are_always_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let model = Nano::default().write(&file(&dir, "nano"));
    for (dtype, bytes, cosine) in [(Numbers::F16, 2, HALF_COSINE), (Numbers::Int8, 1, INT8_COSINE)] {
        let options = ExportOptions { external_above: 1000, ..of(dtype, Target::Ort) };
        let [first, second] = ["a", "b"].map(|name| {
            let path = file(&dir, name).join("x.onnx");
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            export(&model, &path, &options).unwrap();
            path
        });
        assert_eq!(std::fs::read(&first).unwrap(), std::fs::read(&second).unwrap());
        assert_eq!(
            std::fs::read(first.with_extension("onnx.data")).unwrap(),
            std::fs::read(second.with_extension("onnx.data")).unwrap()
        );
        let info = ModelInfo::open(&first).unwrap();
        let weight = info.initializers.iter().find(|tensor| tensor.name == "blocks.0.attn.qkv.weight").unwrap();
        assert_eq!(weight.external.get("length").map(String::as_str), (bytes > 1).then_some("1536"), "{weight:?}");
        holds(&model, &first, &without_candle(), cosine);
        for folder in ["a", "b"] {
            std::fs::remove_dir_all(file(&dir, folder)).unwrap();
        }
    }
}

#[test]
fn weights_that_cannot_be_rounded_are_named_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "x.onnx");
    for (value, dtype, expected) in [
        (7e4, Numbers::F16, "`blocks.2.mlp.fc1.weight` cannot be f16: it holds 70000"),
        (f32::NAN, Numbers::F16, "`blocks.2.mlp.fc1.weight` cannot be rounded: it holds NaN"),
        (f32::NEG_INFINITY, Numbers::Int8, "`blocks.2.mlp.fc1.weight` cannot be rounded: it holds inf"),
    ] {
        let folder = file(&dir, "nano");
        let config = Nano { adapters: false, ..Nano::default() }.write(&folder).config().clone();
        let mut seed = 1;
        write_tensors(&folder.join("model.safetensors"), &config.vit, |name, count| {
            let mut values = super::noise(count, &mut seed);
            if name == "blocks.2.mlp.fc1.weight" {
                values[5] = value;
            }
            values
        });
        let model = Canonical::open(&folder).unwrap();
        let refused = export(&model, &path, &of(dtype, Target::Portable)).unwrap_err().in_full();
        assert!(refused.starts_with(expected), "{refused}");
        assert!(refused.contains("\nhint: "), "{refused}");
        assert!(!path.exists());
    }
}

/// Nobody listens.
fn go_on(_: Event<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// The ranges of an export of `model`, seen on three batches.
fn calibrated(model: &Canonical, options: &ExportOptions) -> Result<Calibration, CalibrationError> {
    let scratch = tempfile::tempdir().unwrap();
    let mut calibrator = Calibrator::new(model, options, scratch.path(), &runtime_options(), &mut go_on)?;
    for size in [[32, 24], [32, 24], [40, 56]] {
        let size = if options.size == Size::Dynamic { size } else { [32, 24] };
        calibrator.observe(Images::synthetic(2, size), &mut go_on)?;
    }
    calibrator.finish()
}

#[test]
fn a_calibration_puts_what_linears_take_in_eight_bits_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "x.onnx");
    let plain = || Nano { adapters: false, ..Nano::default() };
    let models = [
        plain().write(&file(&dir, "plain")),
        with_outliers(&file(&dir, "outliers"), plain()),
        Nano::dinov2().write(&file(&dir, "dinov2")),
        Nano::default().write(&file(&dir, "tec")),
    ];
    for model in &models {
        let adapters = if model.config().vit.adapters.is_some() { Adapters::Keep } else { Adapters::Drop };
        for (target, size) in [(Target::Portable, Size::Native), (Target::Ort, Size::Dynamic)] {
            let mut options = ExportOptions { size, adapters, ..of(Numbers::Int8, target) };
            options.calibration = Some(calibrated(model, &options).unwrap());
            assert_eq!(options.calibration.as_ref().unwrap().images(), 6);
            export(model, &path, &options).unwrap();
            holds(model, &path, &without_candle(), CALIBRATED_COSINE);
            let info = ModelInfo::open(&path).unwrap();
            assert_eq!(info.metadata["calibration"], "6 images");
            let count = |operator: &str| info.nodes.iter().filter(|node| node.operator == operator).count();
            let of = |element: u64| info.initializers.iter().filter(|tensor| tensor.element == element).count();
            let linears = info.nodes.iter().filter(|node| node.operator == "QuantizeLinear").count();
            assert!(linears >= 4 * 6, "{linears}");
            // Weights and their zero points, biases, and what is taken.
            assert_eq!((of(I8), of(I32), of(U8)), (2 * linears, linears, linears));
            assert_eq!(count("DequantizeLinear"), 3 * linears);
        }
    }
}

#[test]
fn a_range_is_what_was_seen_and_holds_zero() {
    // A first block whose norm gives its bias alone: what qkv takes is known.
    let dir = tempfile::tempdir().unwrap();
    let config = Nano { adapters: false, ..Nano::default() }.write(&file(&dir, "nano")).config().clone();
    let mut seed = 1;
    write_tensors(&file(&dir, "nano/model.safetensors"), &config.vit, |name, count| match name {
        "blocks.0.norm1.weight" => vec![0.0; count],
        "blocks.0.norm1.bias" => (0..count).map(|i| 0.5 + i as f32 * 0.25).collect(),
        _ => super::noise(count, &mut seed),
    });
    let model = Canonical::open(&file(&dir, "nano")).unwrap();
    let options = of(Numbers::Int8, Target::Portable);
    let ranges = calibrated(&model, &options).unwrap();
    assert_eq!(ranges.range("blocks.0.attn.qkv.weight"), Some([0.0, 4.25]));
    assert!(ranges.range("blocks.5.mlp.fc2.weight").is_some_and(|[low, high]| low < 0.0 && high > 0.0));
    // Convolutions are no Linears, and parameters that are no product's have no range.
    assert_eq!(ranges.range("patch_embed.proj.weight"), None);
    assert_eq!(ranges.range("norm.weight"), None);
}

#[test]
fn a_calibration_without_images_or_numbers_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let options = of(Numbers::Int8, Target::Portable);
    let model = Nano { adapters: false, ..Nano::default() }.write(&file(&dir, "nano"));
    let calibrator = Calibrator::new(&model, &options, dir.path(), &runtime_options(), &mut go_on).unwrap();
    assert!(matches!(calibrator.finish(), Err(CalibrationError::NoImages)));
    let mut calibrator = Calibrator::new(&model, &options, dir.path(), &runtime_options(), &mut go_on).unwrap();
    let broken = Images { shape: [1, 3, 32, 24], values: vec![f32::NAN; 3 * 32 * 24] };
    let refused = calibrator.observe(broken, &mut go_on).unwrap_err();
    assert!(matches!(refused, CalibrationError::NotFinite { .. }), "{refused}");
    // An export that is not possible cannot be calibrated either.
    let impossible = ExportOptions { purpose: Purpose::Levels(vec![99]), ..options };
    let refused = Calibrator::new(&model, &impossible, dir.path(), &runtime_options(), &mut go_on).unwrap_err();
    assert!(matches!(refused, CalibrationError::Export(ExportError::Levels { .. })), "{refused}");
}

#[test]
fn a_bias_far_beyond_its_weights_is_kept() {
    // In steps of a weight of 1e-12 a bias of 5 would not fit in 32 bits.
    let dir = tempfile::tempdir().unwrap();
    let config = Nano { adapters: false, ..Nano::default() }.write(&file(&dir, "nano")).config().clone();
    let mut seed = 1;
    write_tensors(&file(&dir, "nano/model.safetensors"), &config.vit, |name, count| {
        let mut values = super::noise(count, &mut seed);
        match name {
            "blocks.1.mlp.fc2.weight" => values.iter_mut().take(count / 16).for_each(|value| *value *= 1e-12),
            "blocks.1.mlp.fc2.bias" => values[0] = 5.0,
            "blocks.2.attn.proj.weight" => values.iter_mut().take(count / 16).for_each(|value| *value = 0.0),
            _ => {}
        }
        values
    });
    let model = Canonical::open(&file(&dir, "nano")).unwrap();
    for target in [Target::Portable, Target::Ort] {
        let mut options = of(Numbers::Int8, target);
        options.calibration = Some(calibrated(&model, &options).unwrap());
        let path = file(&dir, "x.onnx");
        export(&model, &path, &options).unwrap();
        assert!(holds(&model, &path, &without_candle(), CALIBRATED_COSINE) > 0.999);
    }
}
