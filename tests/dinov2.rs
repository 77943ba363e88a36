//! DINOv2: LayerScale, registers and SwiGLU against its authors' numbers, and in and out of three dialects.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use safetensors::{Dtype, SafeTensors};
use tec_zoo::checkpoint::Checkpoint;
use tec_zoo::convert::{self, Action, ConvertError, Layout, Plan, Request};
use tec_zoo::kernels::Eager;
use tec_zoo::model::{Canonical, Mlp, Ops, Resample, VitConfig, stats, vit_parameters};
use tec_zoo::zoo::Zoo;

use super::convert::torch_file;
use super::parity::Reference;
use crate::words::InFull;

/// Two blocks of width 24: sums are short, and a few units in the last place of f32 are all that may differ.
const TOLERANCE: f64 = 2e-6;

const MODELS: [&str; 3] = ["vit", "vit_reg4", "vitg_reg4"];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/dinov2")
}

fn checkpoint(name: &str) -> PathBuf {
    folder().join(format!("{name}_tiny14_pretrain.pth"))
}

fn four_heads() -> Request {
    Request { heads: Some(4), ..Request::default() }
}

fn convert(file: &Path, out: &Path, request: &Request) -> convert::Conversion {
    convert::convert(file, out, request, &mut |_| ControlFlow::Continue(())).unwrap()
}

fn emit(model: &Path, layout: Layout, out: &Path) -> Result<convert::Emission, ConvertError> {
    convert::emit(&Canonical::open(model).unwrap(), layout, None, out, &mut |_| ControlFlow::Continue(()))
}

/// The values of a stored tensor of the fixtures, which are f32.
fn values(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

#[test]
fn every_block_agrees_with_the_authors_classes_and_so_does_a_rectangular_image() {
    for name in MODELS {
        let dir = tempfile::tempdir().unwrap();
        // No family is asked for: nothing but DINOv2 has these names.
        let made = convert(&checkpoint(name), &dir.path().join("model"), &four_heads());
        assert_eq!(made.plan.family(), "dinov2");
        let registers = usize::from(name.ends_with("reg4")) * 4;
        let vit = &made.config.vit;
        assert_eq!((vit.layer_scale, vit.registers, vit.image_size), (true, registers, [42, 42]));
        assert_eq!((vit.mlp, vit.mlp_width), if name == "vitg_reg4" { (Mlp::SwiGlu, 64) } else { (Mlp::Plain, 96) });

        let model = Canonical::open(&made.dir).unwrap();
        let reference = Reference::open(&folder(), &format!("{name}_expected.safetensors"));
        let mut ops = Eager::new(&model);
        let features = ops.features(&reference.get("images")).unwrap();
        for (i, block) in features.blocks.iter().enumerate() {
            assert_eq!(block.dim(1).unwrap(), 1 + registers + 9);
            reference.agrees_within(TOLERANCE, &format!("block{i}"), block);
        }
        reference.agrees_within(TOLERANCE, "norm", features.last());
        let features = ops.features(&reference.get("images_large")).unwrap();
        reference.agrees_within(TOLERANCE, "last_large", features.last());
    }
}

/// Each part, left out or misread, is far outside the tolerance: the fixtures would show it.
#[test]
fn the_fixtures_notice_each_part_that_is_not_a_plain_vits() {
    let dir = tempfile::tempdir().unwrap();
    let made = convert(&checkpoint("vitg_reg4"), &dir.path().join("model"), &four_heads());
    let model = Canonical::open(&made.dir).unwrap();
    let reference = Reference::open(&folder(), "vitg_reg4_expected.safetensors");
    let images = reference.get("images");
    let expected = reference.get("norm");
    let off = |ops: &mut Eager<'_>| {
        let found = ops.features(&images).unwrap().last().clone();
        let worst = (found - &expected).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
        worst.to_scalar::<f32>().unwrap()
    };
    let mut ops = Eager::new(&model);
    assert!(off(&mut ops) < 1e-5);
    let halves = ["fc1.weight", "fc1.bias"].map(|leaf| {
        let name = format!("blocks.1.mlp.{leaf}");
        let x = ops.parameter(&name).unwrap();
        let swapped = Tensor::cat(&[x.narrow(0, 64, 64).unwrap(), x.narrow(0, 0, 64).unwrap()], 0).unwrap();
        (name, swapped)
    });
    let ones =
        |name: &str, len| vec![(name.to_owned(), Tensor::ones(len, candle_core::DType::F32, &Device::Cpu).unwrap())];
    let registers = Tensor::zeros((1, 4, 24), candle_core::DType::F32, &Device::Cpu).unwrap();
    for change in [
        ones("blocks.0.ls1.gamma", 24),
        ones("blocks.1.ls2.gamma", 24),
        halves.to_vec(),
        vec![("reg_token".into(), registers)],
    ] {
        for (name, tensor) in &change {
            ops.substitute(name, tensor.clone()).unwrap();
        }
        assert!(off(&mut ops) > 1e-2, "{}", change[0].0);
        change.iter().for_each(|(name, _)| ops.restore(name));
    }
}

#[test]
fn with_registers_the_class_token_takes_its_position_and_no_number_changes() {
    let dir = tempfile::tempdir().unwrap();
    let made = convert(&checkpoint("vit_reg4"), &dir.path().join("model"), &four_heads());
    assert_eq!(made.plan.computed(), ["cls_token"]);
    let folded: Vec<&str> =
        made.plan.decisions().iter().filter(|d| d.action == Action::Fold).map(|d| d.source.as_str()).collect();
    assert_eq!(folded, ["pos_embed"]);
    let ignored: Vec<&str> =
        made.plan.decisions().iter().filter(|d| d.action == Action::Ignore).map(|d| d.source.as_str()).collect();
    assert_eq!(ignored, ["mask_token"]);

    let source = Checkpoint::open(&checkpoint("vit_reg4")).unwrap();
    let stored = |name: &str| {
        let entry = source.tensors().iter().find(|entry| entry.path == [name]).unwrap();
        values(&source.bytes(entry).unwrap())
    };
    let model = Canonical::open(&made.dir).unwrap();
    let ours = |name: &str| values(model.get(name).unwrap().bytes);
    let (token, table) = (stored("cls_token"), stored("pos_embed"));
    // The very sum the authors' forward pass begins with, in f32.
    let sum: Vec<f32> = token.iter().zip(&table).map(|(a, b)| a + b).collect();
    assert_eq!(ours("cls_token"), sum);
    assert_eq!(ours("pos_embed"), table[24..]);
    assert_eq!(ours("reg_token"), stored("register_tokens"));

    let plain = convert(&checkpoint("vit"), &dir.path().join("plain"), &four_heads());
    assert_eq!(plain.plan.computed(), [] as [&str; 0]);
    assert_eq!(Canonical::open(&plain.dir).unwrap().get("pos_embed").unwrap().shape, [1, 10, 24]);
}

#[test]
fn each_kind_goes_to_timm_and_transformers_and_comes_back_bit_for_bit() {
    for name in MODELS {
        let dir = tempfile::tempdir().unwrap();
        let at = |part: &str| dir.path().join(part);
        convert(&checkpoint(name), &at("model"), &four_heads());
        for (layout, family, out) in [(Layout::Timm, "timm", "timm"), (Layout::Hf, "hf-dinov2", "hf")] {
            emit(&at("model"), layout, &at(out)).unwrap();
            let back = convert(&at(out), &at(&format!("{out}-back")), &Request::default());
            assert_eq!(back.plan.family(), family);
            let [a, b] = [at("model"), back.dir].map(|dir| std::fs::read(dir.join("model.safetensors")).unwrap());
            assert!(a == b, "{name} through {family}");
            let [a, b] = ["model".to_owned(), format!("{out}-back")].map(|dir| Canonical::open(&at(&dir)).unwrap());
            let (mut a, b) = (a.config().vit.clone(), b.config().vit.clone());
            // Each library has its own rule for the table, and that is what its files say.
            let rule = match (family, a.registers) {
                ("hf-dinov2", 0) => Resample::Size,
                _ => Resample::SizeAntialias,
            };
            a.position.resample = rule;
            assert_eq!(a, b, "{name} through {family}");
        }
        let bytes = std::fs::read(at("hf/model.safetensors")).unwrap();
        let hf = SafeTensors::deserialize(&bytes).unwrap();
        let table = hf.tensor("embeddings.position_embeddings").unwrap();
        assert_eq!(table.shape(), [1, 10, 24]);
        assert_eq!(values(&table.data()[..96]).iter().all(|value| *value == 0.0), name != "vit");
        assert_eq!(hf.tensor("embeddings.mask_token").unwrap().shape(), [1, 24]);
        assert_eq!(hf.tensor("encoder.layer.0.mlp.weights_in.weight").is_ok(), name == "vitg_reg4");
    }
}

#[test]
fn the_rule_for_the_table_is_the_authors_for_each_kind() {
    let rule = |name: &str| {
        Plan::new(&Checkpoint::open(&checkpoint(name)).unwrap(), &four_heads()).unwrap().vit().position.resample
    };
    assert_eq!(rule("vit"), Resample::ScaleOffset { offset: 0.1 });
    assert_eq!(rule("vit_reg4"), Resample::SizeAntialias);
    for manifest in Zoo::embedded().unwrap().list(Some("dinov2")) {
        let zoo = Zoo::embedded().unwrap();
        let vit = &zoo.get(&manifest.name).unwrap().vit;
        let expected = if vit.registers > 0 { rule("vit_reg4") } else { rule("vit") };
        assert_eq!(vit.position.resample, expected, "{}", manifest.name);
    }
}

#[test]
fn what_a_plain_vit_has_not_is_refused_where_a_layout_cannot_say_it() {
    let dir = tempfile::tempdir().unwrap();
    let at = |part: &str| dir.path().join(part);
    convert(&checkpoint("vitg_reg4"), &at("model"), &four_heads());
    let mut tensors = torch_file::tensors(&Checkpoint::open(&checkpoint("vitg_reg4")).unwrap());
    // In timm's names, where LayerScale is not what marks the dialect.
    tensors
        .retain(|tensor| !tensor.key().contains(".ls") && tensor.key() != "mask_token" && tensor.key() != "pos_embed");
    for tensor in &mut tensors {
        let name = tensor.path[0].replace("w12", "fc1").replace("w3", "fc2").replace("register_tokens", "reg_token");
        tensor.path[0] = name;
    }
    tensors.push(torch_file::Tensor::f32(&["pos_embed"], &[1, 9, 24], |i| i as f32));
    let edited = torch_file::checkpoint(&tensors);
    let request = Request { family: Some("timm".into()), ..four_heads() };
    let plan = Plan::new(&edited, &request).unwrap();
    plan.apply(&edited, "edited.pth", &at("bare"), &mut |_| ControlFlow::Continue(())).unwrap();
    let vit = &Canonical::open(&at("bare")).unwrap().config().vit.clone();
    assert_eq!((vit.layer_scale, vit.registers, vit.mlp), (false, 4, Mlp::SwiGlu));
    insta::assert_snapshot!(emit(&at("bare"), Layout::Hf, &at("hf")).unwrap_err().in_full(), @r"
    `hf` cannot express this model: it has registers or SwiGLU without the LayerScale that Dinov2Model always applies
    hint: `layout`: timm has each by itself
    ");
    emit(&at("bare"), Layout::Timm, &at("timm")).unwrap();
    let back = convert(&at("timm"), &at("back"), &Request::default());
    assert_eq!(&back.config.vit, vit);
}

#[test]
fn damaged_registers_scales_and_gates_are_named() {
    let whole = torch_file::tensors(&Checkpoint::open(&checkpoint("vitg_reg4")).unwrap());
    let refused = |change: &dyn Fn(&mut Vec<torch_file::Tensor>)| {
        let mut tensors = whole.clone();
        change(&mut tensors);
        let request = Request { family: Some("dinov2".into()), ..four_heads() };
        Plan::new(&torch_file::checkpoint(&tensors), &request).map(|_| ()).unwrap_err().in_full()
    };
    let replaced = |name: &'static str, shape: &'static [usize]| {
        refused(&move |tensors| {
            tensors.retain(|tensor| tensor.key() != name);
            tensors.push(torch_file::Tensor::f32(&[name], shape, |_| 0.5));
        })
    };
    for (name, shape) in [
        ("register_tokens", &[1, 4, 23][..]),
        ("register_tokens", &[4, 24]),
        ("register_tokens", &[1, 0, 24]),
        ("register_tokens", &[2, 4, 24]),
        ("pos_embed", &[1, 1, 24]),
        ("pos_embed", &[10, 24]),
        ("cls_token", &[1, 2, 24]),
        ("blocks.1.ls2.gamma", &[23]),
        ("blocks.1.ls2.gamma", &[1, 24]),
        ("blocks.1.mlp.w12.weight", &[64, 24]),
        ("blocks.0.mlp.w3.weight", &[24, 96]),
    ] {
        let error = replaced(name, shape);
        let renamed = [("register_tokens", "reg_token"), ("w12", "fc1"), ("w3", "fc2")];
        let target = renamed.iter().fold(name.to_owned(), |name, (from, to)| name.replace(from, to));
        assert!(error.contains(&target) || error.contains("position table"), "{name} {shape:?}: {error}");
    }
    let error = refused(&|tensors| tensors.retain(|tensor| tensor.key() != "blocks.1.ls1.gamma"));
    assert!(error.contains("blocks.1.ls1.gamma"), "{error}");
    let error = refused(&|tensors| {
        let token = tensors.iter_mut().find(|tensor| tensor.key() == "cls_token").unwrap();
        (token.dtype, token.bytes) = (Dtype::I64, vec![0; 24 * 8]);
    });
    assert!(error.contains("cls_token"), "{error}");
}

#[test]
fn a_configuration_from_before_these_parts_still_reads_and_is_written_without_them() {
    let old = serde_json::json!({
        "image_size": [224, 224], "patch_size": 16, "width": 384, "depth": 12, "heads": 6, "mlp_width": 1536,
        "norm_eps": 1e-6, "activation": "gelu-erf", "final_norm": true,
        "position": {"kind": {"type": "learned"}, "resample": {"rule": "size"}},
    });
    let config: VitConfig = serde_json::from_value(old.clone()).unwrap();
    assert_eq!((config.layer_scale, config.registers, config.mlp), (false, 0, Mlp::Plain));
    assert_eq!(serde_json::to_value(&config).unwrap(), old);
}

/// timm's names for the models, with their parameters; multiply-accumulates by hand from the layers' sizes.
#[test]
fn parameters_and_macs_count_registers_and_the_gate() {
    let zoo = Zoo::embedded().unwrap();
    let count = |name: &str| stats::vit(&zoo.get(name).unwrap().vit, [224, 224]);
    let (plain, with) = (count("dinov2-vitg14"), count("dinov2-vitg14-reg"));
    assert_eq!((plain.parameters, with.parameters), (1_136_479_232, 1_136_483_840));
    let macs = |tokens: u64| {
        let (c, h) = (1536, 4096);
        256 * 3 * 14 * 14 * c + 40 * (tokens * (4 * c * c + 3 * c * h) + 2 * tokens * tokens * c)
    };
    assert_eq!((plain.macs_without_grad, with.macs_without_grad), (macs(257), macs(261)));
    let specs = vit_parameters(&zoo.get("dinov2-vitg14-reg").unwrap().vit);
    let shape = |name: &str| specs.iter().find(|spec| spec.name == name).unwrap().shape.clone();
    assert_eq!((shape("reg_token"), shape("pos_embed")), (vec![1, 4, 1536], vec![1, 37 * 37, 1536]));
    assert_eq!(
        (shape("blocks.39.mlp.fc1.weight"), shape("blocks.39.mlp.fc2.weight")),
        (vec![8192, 1536], vec![1536, 4096])
    );
}

#[test]
fn a_gate_that_candle_differentiates_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let made = convert(&checkpoint("vitg_reg4"), &dir.path().join("model"), &four_heads());
    let model = Canonical::open(&made.dir).unwrap();
    let x = candle_core::Var::ones((2, 8), candle_core::DType::F32, &Device::Cpu).unwrap();
    let mut ops = Eager::new(&model);
    let refused = format!("{:?}", ops.swiglu(x.as_tensor()).unwrap_err());
    assert!(refused.contains("automatic differentiation"), "{refused}");
    assert_eq!(ops.swiglu(&x.as_tensor().copy().unwrap().detach()).unwrap().dims(), [2, 4]);
}
