//! The eager operations: exact where exactness is promised, loud where a gradient is asked for.

use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};
use half::bf16;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use tec_zoo::kernels::{Eager, KernelError};
use tec_zoo::model::{Activation, Canonical, Ops, VitConfig, vit_parameters};

/// A model directory of the given shape, with deterministic weights stored as `dtype`.
fn model(dir: &Path, width: usize, heads: usize, dtype: Dtype) -> Canonical {
    let vit = serde_json::json!({
        "image_size": [32, 48], "patch_size": 16, "width": width, "depth": 2, "heads": heads, "mlp_width": 4 * width,
        "norm_eps": 1e-6, "activation": "gelu-erf", "final_norm": true,
        "position": {"kind": {"type": "learned"}, "resample": {"rule": "size"}},
    });
    let config = serde_json::json!({"tec_zoo": {
        "format": 1, "family": "test", "vit": vit, "feature": "cls",
        "preprocessing": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic", "crop_pct": 0.875},
        "provenance": {"source_file": "none", "source_sha256": "", "source_bytes": 0, "container": "none",
            "converter": "none", "tool": "test"},
        "licence": {"spdx": "unknown"},
    }});
    let vit: VitConfig = serde_json::from_value(vit).unwrap();
    let mut state = 1u32;
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = vit_parameters(&vit)
        .into_iter()
        .map(|spec| {
            let mut bytes = Vec::new();
            for _ in 0..spec.elements() {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let value = bf16::from_f32((state >> 16) as f32 / 65536.0 - 0.5);
                match dtype {
                    Dtype::BF16 => bytes.extend(value.to_le_bytes()),
                    Dtype::F64 => bytes.extend(value.to_f64().to_le_bytes()),
                    _ => bytes.extend(value.to_f32().to_le_bytes()),
                }
            }
            (spec.name, spec.shape, bytes)
        })
        .collect();
    let views = tensors
        .iter()
        .map(|(name, shape, bytes)| (name.as_str(), TensorView::new(dtype, shape.clone(), bytes).unwrap()));
    std::fs::write(dir.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    Canonical::open(dir).unwrap()
}

fn wave(shape: &[usize]) -> Tensor {
    let n = shape.iter().product::<usize>();
    let values: Vec<f32> = (0..n).map(|i| (i as f32 * 0.37).sin()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn flat(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn gelu_uses_the_error_function_and_not_its_tanh_approximation() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(dir.path(), 8, 2, Dtype::F32);
    let mut ops = Eager::new(&model);
    let x = Tensor::new(&[-3f32, -1.0, 0.0, 0.5, 2.0, 40.0], &Device::Cpu).unwrap();
    // torch.nn.functional.gelu, float64.
    let exact = [-0.004_049_694f32, -0.158_655_25, 0.0, 0.345_731_23, 1.954_499_7, 40.0];
    assert!(worst(&flat(&ops.gelu(&x, Activation::GeluErf).unwrap()), &exact) < 1e-6);
    let tanh = [-0.003_637_392_f32, -0.158_808, 0.0, 0.345_714, 1.954_597_7, 40.0];
    assert!(worst(&flat(&ops.gelu(&x, Activation::GeluTanh).unwrap()), &tanh) < 1e-6);
}

#[test]
fn attention_over_more_tokens_than_one_block_of_queries_matches_the_definition() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(dir.path(), 8, 2, Dtype::F32);
    let (batch, tokens, width, heads) = (2, 300, 24, 3);
    let d = width / heads;
    let qkv = wave(&[batch, tokens, 3 * width]);
    let x = flat(&qkv);
    let at = |b: usize, t: usize, third: usize, n: usize, c: usize| {
        f64::from(x[(b * tokens + t) * 3 * width + third * width + n * d + c])
    };
    let mut expected = vec![0f32; batch * tokens * width];
    for b in 0..batch {
        for n in 0..heads {
            for t in 0..tokens {
                let logits: Vec<f64> = (0..tokens)
                    .map(|s| (0..d).map(|c| at(b, t, 0, n, c) * at(b, s, 1, n, c)).sum::<f64>() / (d as f64).sqrt())
                    .collect();
                let most = logits.iter().copied().fold(f64::MIN, f64::max);
                let weights: Vec<f64> = logits.iter().map(|l| (l - most).exp()).collect();
                let total: f64 = weights.iter().sum();
                for c in 0..d {
                    let value: f64 = (0..tokens).map(|s| weights[s] * at(b, s, 2, n, c)).sum();
                    expected[(b * tokens + t) * width + n * d + c] = (value / total) as f32;
                }
            }
        }
    }
    let ours = flat(&Eager::new(&model).attention(&qkv, heads).unwrap());
    assert!(worst(&ours, &expected) < 2e-6, "{}", worst(&ours, &expected));
}

#[test]
fn a_tensor_that_candle_differentiates_is_refused_and_never_loses_its_gradient_in_silence() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(dir.path(), 8, 2, Dtype::F32);
    let mut ops = Eager::new(&model);
    let x = Var::from_tensor(&wave(&[1, 3, 24])).unwrap();
    let narrow = Var::from_tensor(&wave(&[1, 3, 8])).unwrap();
    let images = Var::from_tensor(&wave(&[1, 3, 32, 48])).unwrap();
    for refused in [
        ops.gelu(&x, Activation::GeluErf).map(|_| ()),
        ops.attention(&x, 2).map(|_| ()),
        ops.layer_norm(&narrow, "norm", 1e-6).map(|_| ()),
        ops.linear(&narrow, "blocks.0.attn.proj").map(|_| ()),
        ops.features(&images).map(|_| ()),
    ] {
        let refused = format!("{:?}", refused.unwrap_err());
        assert!(refused.contains("automatic differentiation"), "{refused}");
    }
}

#[test]
fn stored_precision_is_widened_to_the_same_numbers() {
    let images = wave(&[1, 3, 32, 48]);
    let outputs: Vec<Vec<f32>> = [Dtype::F32, Dtype::BF16, Dtype::F64]
        .into_iter()
        .map(|dtype| {
            let dir = tempfile::tempdir().unwrap();
            let model = model(dir.path(), 8, 2, dtype);
            flat(Eager::new(&model).features(&images).unwrap().last())
        })
        .collect();
    assert_eq!(outputs[0], outputs[1]);
    assert_eq!(outputs[0], outputs[2]);
    assert!(outputs[0].iter().all(|v| v.is_finite()));
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(dir.path(), 8, 2, Dtype::F32);
    let mut ops = Eager::new(&model);
    for shape in [&[1, 3, 33, 48][..], &[1, 1, 32, 48], &[3, 32, 48], &[0, 3, 32, 48]] {
        let images = Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
        assert!(matches!(ops.features(&images), Err(KernelError::Images { patch: 16, .. })), "{shape:?}");
    }
    let refused = ops.linear(&wave(&[1, 8]), "blocks.7.attn.qkv").unwrap_err();
    assert!(refused.to_string().contains("`blocks.7.attn.qkv.weight`"), "{refused}");
    let refused = ops.linear(&wave(&[1, 9]), "blocks.0.attn.qkv").unwrap_err();
    assert!(refused.to_string().contains("blocks.0.attn.qkv"), "{refused}");
    assert!(ops.attention(&wave(&[1, 3, 24]), 5).is_err());
    assert!(ops.substitute("norm.weight", wave(&[9])).is_err());
}
