//! Mappings, plans and conversions, in both directions.

mod consumers;
mod refusals;
mod roundtrip;
mod staging;
pub(crate) mod torch_file;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use tec_zoo::checkpoint::Checkpoint;
use tec_zoo::convert::{Action, Conversion, ConvertError, Mapping, Plan, Request, convert, detect};
use tec_zoo::model::{
    Activation, AxisOrder, Canonical, Feature, ModelFile, PositionKind, VitConfig, position_kind, vit_parameters,
};

use crate::words::InFull;

/// The reference checkpoints: file, branch, family, tensors of the three files.
const FIXTURES: [(&str, Option<&str>, &str, [usize; 3]); 12] = [
    ("mae_pretrain_vit_tiny.pth", None, "mae", [54, 0, 0]),
    ("mae_pretrain_vit_tiny_legacy.pth", None, "mae", [54, 0, 0]),
    ("mae_full_checkpoint-799.pth", None, "mae", [54, 0, 32]),
    ("ibot_checkpoint_teacher.pth", None, "ibot", [54, 0, 0]),
    ("ibot_checkpoint_full.pth", Some("teacher"), "ibot", [54, 0, 0]),
    ("ibot_checkpoint_full.pth", Some("student"), "ibot", [54, 0, 0]),
    ("mocov3_vit_tiny.pth.tar", Some("base"), "moco-v3", [54, 0, 0]),
    ("mocov3_vit_tiny.pth.tar", Some("momentum"), "moco-v3", [54, 0, 0]),
    ("mocov3_vit_tiny_legacy.pth.tar", Some("base"), "moco-v3", [54, 0, 0]),
    ("mocov3_vit_tiny_legacy.pth.tar", Some("momentum"), "moco-v3", [54, 0, 0]),
    ("tec_checkpoint-299.pth", None, "tec", [54, 21, 39]),
    ("tec_converted.pth", None, "tec", [52, 0, 0]),
];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/reference").join(name)
}

fn open(name: &str) -> Checkpoint {
    Checkpoint::open(&fixture(name)).unwrap()
}

/// The fixtures' heads, which no tensor says.
fn four_heads() -> Request {
    Request { heads: Some(4), ..Request::default() }
}

fn asking(branch: Option<&str>) -> Request {
    Request { branch: branch.map(str::to_owned), ..four_heads() }
}

/// Converts without looking at what comes by the way.
fn run(path: &Path, out: &Path, request: &Request) -> Result<Conversion, ConvertError> {
    convert(path, out, request, &mut |_| ControlFlow::Continue(()))
}

/// Converts an edited checkpoint.
fn run_edited(tensors: &[torch_file::Tensor], out: &Path, request: &Request) -> Result<Conversion, ConvertError> {
    let checkpoint = torch_file::checkpoint(tensors);
    let plan = Plan::new(&checkpoint, request)?;
    plan.apply(&checkpoint, "edited.pth", out, &mut |_| ControlFlow::Continue(()))
}

#[test]
fn every_fixture_converts_and_every_copied_tensor_is_the_same_bit_for_bit() {
    for (name, branch, family, counts) in FIXTURES {
        let temp = tempfile::tempdir().unwrap();
        let out = temp.path().join("model");
        let made = run(&fixture(name), &out, &asking(branch)).unwrap();
        assert_eq!(made.plan.family(), family, "{name}");

        let model = Canonical::open(&out).unwrap();
        let checkpoint = open(name);
        let files: Vec<(ModelFile, Vec<u8>)> =
            made.files.iter().map(|(file, _)| (*file, std::fs::read(out.join(file.name())).unwrap())).collect();
        let mut copied = 0;
        for (entry, decision) in checkpoint.tensors().iter().zip(made.plan.decisions()) {
            assert_eq!(decision.source, entry.path.join("/"));
            let (Some(target), Some(file)) = (&decision.target, decision.file) else { continue };
            if made.plan.computed().contains(target) {
                continue;
            }
            let (_, bytes) = files.iter().find(|(have, _)| have.name() == file).unwrap();
            let parsed = SafeTensors::deserialize(bytes).unwrap();
            let tensor = parsed.tensor(target).unwrap();
            assert_eq!(tensor.shape(), entry.shape, "{name} {target}");
            assert_eq!(tensor.data(), checkpoint.bytes(entry).unwrap().as_ref(), "{name} {target}");
            copied += 1;
        }
        let count = |file: ModelFile| made.files.iter().find(|(have, _)| *have == file).map_or(0, |(_, n)| *n);
        assert_eq!([ModelFile::Model, ModelFile::Adapters, ModelFile::Decoder].map(count), counts, "{name}");
        // The merged class token and the un-merged one beside it come of one tensor.
        assert_eq!(copied, counts.iter().sum::<usize>() - 2 * made.plan.computed().len(), "{name}");
        assert_eq!(model.config().provenance.source_file, name);
        assert_eq!(model.config().provenance.source_sha256, sha256(&std::fs::read(fixture(name)).unwrap()));
        assert_eq!(model.config(), &made.config);
    }
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn both_torch_containers_give_the_same_file() {
    for (zip, legacy, branch) in [
        ("mae_pretrain_vit_tiny.pth", "mae_pretrain_vit_tiny_legacy.pth", None),
        ("mocov3_vit_tiny.pth.tar", "mocov3_vit_tiny_legacy.pth.tar", Some("momentum")),
    ] {
        let temp = tempfile::tempdir().unwrap();
        let [a, b] = [(zip, "a"), (legacy, "b")].map(|(name, out)| {
            let out = temp.path().join(out);
            run(&fixture(name), &out, &asking(branch)).unwrap();
            std::fs::read(out.join("model.safetensors")).unwrap()
        });
        assert!(a == b, "{zip} and {legacy} differ");
    }
}

#[test]
fn branches_of_one_file_are_different_models() {
    for (name, branches) in
        [("ibot_checkpoint_full.pth", ["teacher", "student"]), ("mocov3_vit_tiny.pth.tar", ["base", "momentum"])]
    {
        let temp = tempfile::tempdir().unwrap();
        let [first, second] = branches.map(|branch| {
            let out = temp.path().join(branch);
            let made = run(&fixture(name), &out, &asking(Some(branch))).unwrap();
            let provenance = &made.config.provenance;
            assert_eq!(provenance.branch.as_deref(), Some(branch));
            assert_eq!(
                provenance.other_branches,
                branches.iter().copied().filter(|b| *b != branch).collect::<Vec<_>>()
            );
            std::fs::read(out.join("model.safetensors")).unwrap()
        });
        assert_ne!(first, second, "{name}");
    }
}

#[test]
fn the_merged_class_token_agrees_with_the_authors_code() {
    let temp = tempfile::tempdir().unwrap();
    let out = temp.path().join("model");
    run(&fixture("tec_checkpoint-299.pth"), &out, &four_heads()).unwrap();
    let model = Canonical::open(&out).unwrap();
    let expected = std::fs::read(fixture("tec_expected.safetensors")).unwrap();
    let expected = floats(SafeTensors::deserialize(&expected).unwrap().tensor("cls_token_merged").unwrap().data());
    let merged = floats(model.get("cls_token").unwrap().bytes);
    assert_eq!(merged.len(), expected.len());
    // Upstream computes in f32, here f64 is rounded once: values below 1 differ in their last bits.
    for (ours, theirs) in merged.iter().zip(&expected) {
        assert!((ours - theirs).abs() <= 1e-6, "{ours} {theirs}");
    }
    let before = open("tec_checkpoint-299.pth");
    let token = before.tensors().iter().find(|entry| entry.path.ends_with(&["cls_token".to_owned()])).unwrap();
    assert_eq!(model.get("input_adapter.cls_token").unwrap().bytes, before.bytes(token).unwrap().as_ref());
    let adapters = model.config().vit.adapters.unwrap();
    assert_eq!((adapters.groups, adapters.blocks_per_group, adapters.mlp_width), (2, 2, 96));
    assert_eq!((adapters.norm_eps, adapters.input_mlp_width), (1e-5, Some(64)));
    assert!(model.config().vit.final_norm);
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|value| f32::from_le_bytes(*value)).collect()
}

#[test]
fn the_configuration_says_what_no_tensor_does() {
    let temp = tempfile::tempdir().unwrap();
    let config = |name: &str, branch: Option<&str>, out: &str| {
        run(&fixture(name), &temp.path().join(out), &asking(branch)).unwrap().config
    };
    let moco = config("mocov3_vit_tiny.pth.tar", Some("base"), "moco");
    assert_eq!(moco.vit.position.kind, PositionKind::SinCos { axis_order: AxisOrder::RowFirst });
    assert_eq!((moco.vit.heads, moco.vit.norm_eps, moco.vit.activation), (4, 1e-6, Activation::GeluErf));
    assert_eq!(moco.licence.spdx, "CC-BY-NC-4.0");
    let released = config("tec_converted.pth", None, "tec");
    assert_eq!(released.vit.position.kind, PositionKind::SinCos { axis_order: AxisOrder::ColumnFirst });
    assert!(!released.vit.final_norm);
    assert_eq!((released.licence.spdx.as_str(), released.feature), ("unknown", Feature::Mean));
    let ibot = config("ibot_checkpoint_teacher.pth", None, "ibot");
    assert_eq!(ibot.vit.position.kind, PositionKind::Learned);
    assert_eq!((ibot.licence.spdx.as_str(), ibot.vit.image_size), ("Apache-2.0", [64, 64]));
}

#[test]
fn a_fine_tuned_mae_keeps_its_head_and_has_no_final_norm() {
    let mut tensors = torch_file::tensors(&open("mae_pretrain_vit_tiny.pth"));
    for tensor in &mut tensors {
        if let Some(leaf) = tensor.path[1].strip_prefix("norm.") {
            tensor.path[1] = format!("fc_norm.{leaf}");
        }
    }
    tensors.push(torch_file::Tensor::f32(&["model", "head.weight"], &[7, 16], |at| at as f32));
    tensors.push(torch_file::Tensor::f32(&["model", "head.bias"], &[7], |at| at as f32));
    let temp = tempfile::tempdir().unwrap();
    // TEC fine-tunes into the same names: the file cannot say which it is.
    let refused = run_edited(&tensors, &temp.path().join("a"), &four_heads()).unwrap_err();
    assert!(matches!(&refused, ConvertError::AmbiguousFamily { candidates } if candidates.len() == 2), "{refused}");
    let request = Request { family: Some("mae".to_owned()), ..four_heads() };
    let made = run_edited(&tensors, &temp.path().join("b"), &request).unwrap();
    let classifier = made.config.vit.classifier.unwrap();
    assert_eq!((classifier.classes, classifier.fc_norm, made.config.vit.final_norm), (7, true, false));
    assert_eq!(made.config.feature, Feature::Mean);
    Canonical::open(&temp.path().join("b")).unwrap();

    // Fine-tuning trains the table; of a backbone alone, a table that is not MAE's is another family's.
    let trained = |tensors: &mut [torch_file::Tensor]| {
        let table = tensors.iter_mut().find(|tensor| tensor.key() == "pos_embed").unwrap();
        table.bytes.chunks_exact_mut(4).enumerate().for_each(|(at, value)| {
            let nudged = f32::from_le_bytes(value.try_into().unwrap()) + 0.01 * (at % 7) as f32;
            value.copy_from_slice(&nudged.to_le_bytes());
        });
    };
    trained(&mut tensors);
    let made = run_edited(&tensors, &temp.path().join("c"), &request).unwrap();
    assert_eq!(made.config.vit.position.kind, PositionKind::Learned);
    let mut backbone = torch_file::tensors(&open("mae_pretrain_vit_tiny.pth"));
    trained(&mut backbone);
    let refused = run_edited(&backbone, &temp.path().join("d"), &request).unwrap_err();
    assert!(matches!(refused, ConvertError::Position { .. }), "{refused}");
}

#[test]
fn dino_falls_out_of_ibots_names() {
    let tensors = |checkpoint: &Checkpoint| torch_file::tensors(checkpoint);
    let temp = tempfile::tempdir().unwrap();
    let mut full = tensors(&open("ibot_checkpoint_full.pth"));
    full.retain(|tensor| !tensor.key().ends_with("masked_embed"));
    for tensor in &mut full {
        if tensor.path[0] == "ibot_loss" {
            tensor.path[0] = "dino_loss".to_owned();
        }
    }
    let request = asking(Some("student"));
    assert_eq!(run_edited(&full, &temp.path().join("full"), &request).unwrap().plan.family(), "dino");
    // The released backbone has timm's names and nothing else to tell it by.
    let mut flat = tensors(&open("ibot_checkpoint_teacher.pth"));
    flat.iter_mut().for_each(|tensor| drop(tensor.path.remove(0)));
    let refused = run_edited(&flat, &temp.path().join("flat"), &four_heads()).unwrap_err().in_full();
    assert!(refused.contains("`family`: dino or `family`: timm"), "{refused}");
    let request = Request { family: Some("dino".to_owned()), ..four_heads() };
    run_edited(&flat, &temp.path().join("flat"), &request).unwrap();
}

#[test]
fn moco_v3s_linear_classifier_and_deit_conversion_convert() {
    let base = torch_file::tensors(&open("mocov3_vit_tiny.pth.tar"));
    let encoder: Vec<_> = base
        .iter()
        .filter_map(|tensor| {
            let key = tensor.key().strip_prefix("module.base_encoder.")?;
            (!key.starts_with("head.")).then(|| (key.to_owned(), tensor.clone()))
        })
        .collect();
    let temp = tempfile::tempdir().unwrap();
    let placed = |path: &dyn Fn(&str) -> Vec<String>| -> Vec<torch_file::Tensor> {
        encoder.iter().map(|(key, tensor)| torch_file::Tensor { path: path(key), ..tensor.clone() }).collect()
    };
    let deit = placed(&|key| vec!["model".to_owned(), key.to_owned()]);
    assert_eq!(run_edited(&deit, &temp.path().join("deit"), &four_heads()).unwrap().plan.family(), "moco-v3");
    let mut linear = placed(&|key| vec!["state_dict".to_owned(), format!("module.{key}")]);
    linear.push(torch_file::Tensor::f32(&["state_dict", "module.head.weight"], &[5, 16], |_| 0.5));
    linear.push(torch_file::Tensor::f32(&["state_dict", "module.head.bias"], &[5], |_| 0.5));
    let made = run_edited(&linear, &temp.path().join("linear"), &four_heads()).unwrap();
    assert_eq!(made.config.vit.classifier.unwrap().classes, 5);
}

#[test]
fn narrow_and_wide_floats_are_copied_as_they_are_and_stay_aligned() {
    let mut tensors = torch_file::tensors(&open("mae_pretrain_vit_tiny.pth"));
    for tensor in &mut tensors {
        let values = floats(&tensor.bytes);
        if tensor.key().ends_with("norm1.weight") {
            // An odd count of 2-byte values before 4-byte ones would misalign them in file order.
            tensor.dtype = Dtype::BF16;
            tensor.bytes = values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect();
        } else if tensor.key() == "cls_token" {
            tensor.dtype = Dtype::F64;
            tensor.bytes = values.iter().flat_map(|v| f64::from(*v).to_le_bytes()).collect();
        } else if tensor.key() == "pos_embed" {
            tensor.dtype = Dtype::F16;
            tensor.bytes = values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect();
        }
    }
    let temp = tempfile::tempdir().unwrap();
    let out = temp.path().join("model");
    // The position table is still recognised in half precision.
    run_edited(&tensors, &out, &four_heads()).unwrap();
    let model = Canonical::open(&out).unwrap();
    for tensor in &tensors {
        let view = model.get(tensor.key()).unwrap();
        assert_eq!((view.dtype, view.bytes), (tensor.dtype, tensor.bytes.as_slice()), "{}", tensor.key());
        let size = tensor.dtype.bitsize() / 8;
        assert_eq!(view.bytes.as_ptr() as usize % size, 0, "{}", tensor.key());
    }
}

#[test]
fn a_plan_accounts_for_every_tensor_of_the_file() {
    let checkpoint = open("mocov3_vit_tiny.pth.tar");
    let plan = Plan::new(&checkpoint, &asking(Some("base"))).unwrap();
    assert_eq!(plan.decisions().len(), checkpoint.tensors().len());
    let count = |action| plan.decisions().iter().filter(|decision| decision.action == action).count();
    assert_eq!((count(Action::Copy), count(Action::OtherBranch), count(Action::Ignore)), (54, 64, 20));
    let json = plan.to_json();
    assert_eq!(json["tensors"].as_array().unwrap().len(), checkpoint.tensors().len());
    assert_eq!(json["branch"], "base");
    let table = plan.to_string();
    assert!(table.contains("heads       4  (flag)"), "{table}");
    assert!(table.contains("64 tensors of another branch"), "{table}");
}

#[test]
fn detection_says_which_families_fit_and_why_the_others_do_not() {
    let candidates = detect(&open("mocov3_vit_tiny.pth.tar"), None).unwrap();
    assert_eq!(candidates.len(), 1);
    assert_eq!((candidates[0].family.as_str(), candidates[0].fits), ("moco-v3", true));
    assert_eq!(candidates[0].branches, ["base", "momentum"]);
    let candidates = detect(&open("mae_pretrain_vit_tiny.pth"), None).unwrap();
    let verdicts: Vec<_> = candidates.iter().map(|candidate| (candidate.family.as_str(), candidate.fits)).collect();
    assert_eq!(verdicts, [("mae", true), ("moco-v3", false)]);
    assert!(candidates[1].reasons[0].contains("position table"), "{:?}", candidates[1].reasons);
}

#[test]
fn position_kinds_are_told_apart_and_a_nudge_makes_a_table_learned() {
    let table = |name: &str, key: &str| {
        let checkpoint = open(name);
        let entry = checkpoint.tensors().iter().find(|entry| entry.path.last().unwrap() == key).unwrap();
        floats(&checkpoint.bytes(entry).unwrap())
    };
    let column = PositionKind::SinCos { axis_order: AxisOrder::ColumnFirst };
    let row = PositionKind::SinCos { axis_order: AxisOrder::RowFirst };
    let mut mae = table("mae_pretrain_vit_tiny.pth", "pos_embed");
    assert_eq!(position_kind(&mae, [4, 4], 16, 1e-4), column);
    let moco = table("mocov3_vit_tiny.pth.tar", "module.momentum_encoder.pos_embed");
    assert_eq!(position_kind(&moco, [4, 4], 16, 1e-4), row);
    let ibot = table("ibot_checkpoint_teacher.pth", "pos_embed");
    assert_eq!(position_kind(&ibot, [4, 4], 16, 1e-4), PositionKind::Learned);
    // A class row that is not zero, a patch off by more than the tolerance, a grid of another shape.
    mae[3] = 1e-3;
    assert_eq!(position_kind(&mae, [4, 4], 16, 1e-4), PositionKind::Learned);
    mae[3] = 0.0;
    assert_eq!(position_kind(&mae, [2, 8], 16, 1e-4), PositionKind::Learned);
    mae[100] += 1e-3;
    assert_eq!(position_kind(&mae, [4, 4], 16, 1e-4), PositionKind::Learned);
    // An f32 angle is exact enough up to the largest grids in use: 64 × 64 patches, built in f32 as MoCo v3 builds it.
    let (side, width) = (64_usize, 768_usize);
    let mut large = vec![0_f32; width];
    for patch in 0..side * side {
        for position in [patch / side, patch % side] {
            let angle = |k: usize| position as f32 * (1.0 / 10_000_f32.powf(k as f32 / (width / 4) as f32));
            large.extend((0..width / 4).map(|k| angle(k).sin()));
            large.extend((0..width / 4).map(|k| angle(k).cos()));
        }
    }
    assert_eq!(position_kind(&large, [side, side], width, 1e-4), row);
}

#[test]
fn the_published_sizes_fall_out_of_the_shapes() {
    let vit = |width, depth, patch_size, final_norm| VitConfig {
        image_size: [224, 224],
        patch_size,
        width,
        depth,
        mlp_width: 4 * width,
        final_norm,
        classifier: None,
        ..Plan::new(&open("mae_pretrain_vit_tiny.pth"), &four_heads()).unwrap().vit().clone()
    };
    // Tensors, parameters: ViT-S/16, ViT-B/16 with and without the final norm, ViT-L/16, ViT-H/14.
    for (config, tensors, parameters) in [
        (vit(384, 12, 16, true), 150, 21_665_664),
        (vit(768, 12, 16, true), 150, 85_798_656),
        (vit(768, 12, 16, false), 148, 85_797_120),
        (vit(1024, 24, 16, true), 294, 303_301_632),
        (vit(1024, 24, 16, false), 292, 303_299_584),
        (vit(1280, 32, 14, true), 390, 630_764_800),
    ] {
        let specs = vit_parameters(&config);
        assert_eq!(specs.len(), tensors);
        assert_eq!(specs.iter().map(tec_zoo::model::ParameterSpec::elements).sum::<usize>(), parameters);
    }
}

#[test]
fn published_heads_are_by_width_and_moco_v3s_small_model_has_twelve() {
    let heads = |name: &str, width| Mapping::builtin(name).unwrap().published_heads(width);
    assert_eq!(heads("moco-v3", 384), Some(12));
    assert_eq!(heads("ibot", 384), Some(6));
    assert_eq!([768, 1024, 1280].map(|width| heads("mae", width)), [Some(12), Some(16), Some(16)]);
    assert_eq!(heads("tec", 1024), Some(16));
    // Names that any family may come in say nothing.
    assert_eq!([heads("timm", 384), heads("hf-vit", 768)], [None, None]);
}

#[test]
fn every_built_in_mapping_parses_and_is_named_after_its_file() {
    let mut names: Vec<String> = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("converters"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter_map(|name| name.strip_suffix(".toml").map(str::to_owned))
        .collect();
    names.sort();
    assert_eq!(names, Mapping::builtin_names().collect::<Vec<_>>());
    assert_eq!(Mapping::all().unwrap().iter().map(Mapping::name).collect::<Vec<_>>(), names);
}
