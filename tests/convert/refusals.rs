//! What a conversion refuses, in which words, and that it then leaves nothing behind.

use proptest::prelude::*;
use safetensors::Dtype;
use tec_zoo::convert::{ConvertError, Mapping, Plan, Problems, Request, Sidecar};

use super::torch_file::{Tensor, checkpoint, tensors};
use super::{four_heads, open, run, run_edited};
use crate::words::InFull;

/// The encoder fixture, for editing.
fn mae() -> Vec<Tensor> {
    tensors(&open("mae_pretrain_vit_tiny.pth"))
}

fn as_family(family: &str) -> Request {
    Request { family: Some(family.to_owned()), ..four_heads() }
}

/// Why an edited file is refused; proves that nothing was written.
fn refusal(tensors: &[Tensor], request: &Request) -> ConvertError {
    let temp = tempfile::tempdir().unwrap();
    let error = run_edited(tensors, &temp.path().join("model"), request).unwrap_err();
    assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 0, "something was left behind");
    error
}

fn problems(tensors: &[Tensor], request: &Request) -> Problems {
    match refusal(tensors, request) {
        ConvertError::Problems(problems) => *problems,
        other => panic!("{other}"),
    }
}

#[test]
fn heads_are_asked_for_by_the_fields_name_and_never_guessed() {
    let error = refusal(&mae(), &Request::default());
    insta::assert_snapshot!(error.in_full(), @r"
    the tensors do not say everything
      heads       attention heads: no tensor says them, and none are published for `mae` at width 16
    hint: add `heads`: N
    ");
    let error = refusal(&mae(), &Request { heads: Some(5), ..Request::default() });
    assert!(error.in_full().contains("5 heads do not divide the width, 16"), "{error}");
    let error = refusal(&mae(), &Request { heads: Some(0), ..Request::default() });
    assert!(error.in_full().contains("0 heads"), "{error}");
}

#[test]
fn a_branch_is_asked_for_by_the_fields_name_and_never_guessed() {
    let full = tensors(&open("ibot_checkpoint_full.pth"));
    insta::assert_snapshot!(refusal(&full, &four_heads()).in_full(), @r"
    this `ibot` checkpoint holds student and teacher
    hint: choose one: `branch`: student or `branch`: teacher
    ");
    let wrong = Request { branch: Some("base".to_owned()), ..four_heads() };
    insta::assert_snapshot!(refusal(&full, &wrong).in_full(), @"this `ibot` checkpoint has no branch `base`; it has student, teacher");
    let none = Request { branch: Some("teacher".to_owned()), ..four_heads() };
    insta::assert_snapshot!(refusal(&mae(), &none).in_full(), @"this `mae` checkpoint has no branch `teacher`; it holds one network, without branches");
}

#[test]
fn everything_wrong_is_reported_at_once_with_near_misses() {
    let mut edited = mae();
    edited.retain(|tensor| tensor.key() != "norm.bias");
    for tensor in &mut edited {
        match tensor.key() {
            "blocks.3.attn.qkv.bias" => tensor.path[1] = "blocks.3.attn.qkv_bias".to_owned(),
            "blocks.0.mlp.fc2.weight" => tensor.shape = vec![64, 16],
            _ => {}
        }
    }
    edited.push(Tensor { dtype: Dtype::I64, bytes: vec![0; 16 * 8], ..mae()[4].clone() });
    let last = edited.last_mut().unwrap();
    (last.path[1], last.shape) = ("norm.bias".to_owned(), vec![16]);
    edited.push(Tensor::f32(&["model", "gamma"], &[3], |_| 1.0));
    insta::assert_snapshot!(refusal(&edited, &as_family("mae")).in_full(), @r"
    cannot convert as `mae`: 1 parameter has no source, 2 keys are unclaimed, 1 tensor has another shape, 1 parameter is no float
      missing    blocks.3.attn.qkv.bias  (48)
      unclaimed  model/blocks.3.attn.qkv_bias  (48)
      unclaimed  model/gamma  (3)
      shape      blocks.0.mlp.fc2.weight  (64×16), must be (16×64)
      no float   norm.bias  I64
    hint: unclaimed `model/blocks.3.attn.qkv_bias` is close to `blocks.3.attn.qkv.bias`, which is missing
    ");
}

#[test]
fn a_missing_final_norm_is_named_where_the_family_always_has_one() {
    let mut edited = mae();
    edited.retain(|tensor| !tensor.key().starts_with("norm."));
    let found = problems(&edited, &as_family("mae"));
    let missing: Vec<_> = found.missing.iter().map(|missing| missing.name.as_str()).collect();
    assert_eq!(missing, ["norm.weight", "norm.bias"]);
}

#[test]
fn every_anchor_may_be_missing_without_its_size_being_invented() {
    for key in ["cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight", "blocks.0.norm1.bias"] {
        let mut edited = mae();
        edited.retain(|tensor| tensor.key() != key);
        let found = problems(&edited, &as_family("mae"));
        assert_eq!(found.missing.len(), 1, "{key}: {found}");
        assert_eq!(found.missing[0].name, key);
        assert!(found.misshaped.is_empty() && found.unclaimed.is_empty(), "{key}: {found}");
    }
}

#[test]
fn unknown_tensors_beside_the_weights_are_an_error_and_known_ones_are_not() {
    let mut edited = mae();
    edited.push(Tensor::f32(&["optimizer", "state"], &[3], |_| 1.0));
    let temp = tempfile::tempdir().unwrap();
    run_edited(&edited, &temp.path().join("model"), &as_family("mae")).unwrap();
    edited.push(Tensor::f32(&["model_ema", "cls_token"], &[1, 1, 16], |_| 1.0));
    let found = problems(&edited, &as_family("mae"));
    assert_eq!(found.unclaimed[0].key, "model_ema/cls_token");
    // A tensor right at the top is no state of an optimizer, whatever it is called.
    let mut edited = mae();
    edited.push(Tensor::f32(&["optimizer"], &[3], |_| 1.0));
    assert_eq!(problems(&edited, &as_family("mae")).unclaimed[0].key, "optimizer");
}

#[test]
fn a_transposed_position_table_is_named() {
    let mut edited = tensors(&open("mocov3_vit_tiny.pth.tar"));
    let momentum = Request { branch: Some("momentum".to_owned()), ..as_family("moco-v3") };
    for tensor in edited.iter_mut().filter(|tensor| tensor.key().ends_with("pos_embed")) {
        for row in tensor.bytes.chunks_exact_mut(16 * 4) {
            row.rotate_left(8 * 4);
        }
    }
    insta::assert_snapshot!(refusal(&edited, &momentum).in_full(), @r"
    the position table is not `moco-v3`'s: expected a sine-cosine table, rows in the first half of the channels, found a sine-cosine table, columns in the first half of the channels
    hint: this is a transposed position table (MAE's and MoCo v3's axis orders are swapped): is this the right family?
    ");
    let mut learned = mae();
    let table = learned.iter_mut().find(|tensor| tensor.key() == "pos_embed").unwrap();
    table.bytes[0..4].copy_from_slice(&0.5_f32.to_le_bytes());
    let error = refusal(&learned, &as_family("mae"));
    assert!(error.in_full().contains("found a learned table"), "{error}");
    let error = refusal(
        &tensors(&open("ibot_checkpoint_teacher.pth")),
        &Request { family: Some("mae".into()), ..four_heads() },
    );
    assert!(matches!(error, ConvertError::NoLayout { .. }), "{error}");
}

#[test]
fn a_table_that_is_not_square_needs_the_image_size() {
    let mut edited = tensors(&open("ibot_checkpoint_teacher.pth"));
    let table = edited.iter_mut().find(|tensor| tensor.key() == "pos_embed").unwrap();
    table.shape = vec![1, 13, 16];
    table.bytes.truncate(13 * 16 * 4);
    insta::assert_snapshot!(refusal(&edited, &Request::default()).in_full(), @r"
    the tensors do not say everything
      heads       attention heads: no tensor says them, and none are published for `ibot` at width 16
      image_size  native image size: 12 patches of side 16 are no square
    hint: add `heads`: N and `image_size`: HxW
    ");
    let sized = |size| Request { image_size: Some(size), ..four_heads() };
    let temp = tempfile::tempdir().unwrap();
    let made = run_edited(&edited, &temp.path().join("model"), &sized([48, 64])).unwrap();
    assert_eq!(made.config.vit.grid(), [3, 4]);
    for wrong in [[64, 64], [47, 64], [0, 0], [usize::MAX, usize::MAX]] {
        let error = refusal(&edited, &sized(wrong));
        assert!(matches!(error, ConvertError::Contradiction { .. }), "{error}");
    }
}

#[test]
fn an_unknown_family_is_answered_with_the_nearest() {
    let error = refusal(&mae(), &as_family("mocov3"));
    insta::assert_snapshot!(error.in_full(), @r"
    no converter is called `mocov3`; there are dino, dinov2, hf-dinov2, hf-vit, ibot, mae, mmpretrain, mmseg, moco-v3, tec, timm, vitdet
    hint: did you mean `family`: moco-v3?
    ");
}

#[test]
fn a_file_without_an_encoder_is_of_no_family() {
    let error = refusal(&[Tensor::f32(&["model", "layer.weight"], &[2, 2], |_| 0.0)], &four_heads());
    assert!(matches!(&error, ConvertError::NoFamily { candidates } if candidates.is_empty()), "{error}");
    let error = refusal(&[], &as_family("tec"));
    assert!(error.in_full().contains("the top level has no tensors"), "{error}");
}

#[test]
fn absurd_sizes_are_refused_before_anything_is_computed_with_them() {
    let edit = |change: &dyn Fn(&mut Tensor)| {
        let mut edited = mae();
        edited.iter_mut().for_each(change);
        problems(&edited, &as_family("mae"))
    };
    let far = edit(&|tensor| {
        if tensor.key() == "blocks.3.norm1.bias" {
            tensor.path[1] = "blocks.18446744073709551615.norm1.bias".to_owned();
        }
    });
    assert!(!far.absurd.is_empty() || !far.unexpected.is_empty(), "{far}");
    let empty = edit(&|tensor| {
        if tensor.key() == "pos_embed" {
            (tensor.shape, tensor.bytes) = (vec![1, 0, 16], Vec::new());
        }
    });
    assert_eq!(empty.absurd, ["position table of 0 rows"]);
    let scalar = edit(&|tensor| {
        if tensor.key() == "cls_token" || tensor.key() == "patch_embed.proj.weight" {
            (tensor.shape, tensor.bytes) = (Vec::new(), vec![0; 4]);
        }
    });
    assert!(!scalar.misshaped.is_empty(), "{scalar}");
}

#[test]
fn a_configuration_beside_the_weights_is_believed_and_not_contradicted() {
    let sidecar =
        Sidecar::parse(r#"{"model_type": "vit", "num_attention_heads": 4, "layer_norm_eps": 1e-12, "image_size": 64}"#);
    assert!(sidecar.is_some());
    assert!(Sidecar::parse("{}").is_none() && Sidecar::parse("[").is_none());
    let rename = |key: &str| {
        let (block, rest) = key.strip_prefix("blocks.").and_then(|key| key.split_once('.')).unwrap_or(("", key));
        let name = match rest.rsplit_once('.').unwrap_or((rest, "")) {
            ("cls_token", _) => return vec![(String::from("embeddings.cls_token"), 1)],
            ("pos_embed", _) => return vec![(String::from("embeddings.position_embeddings"), 1)],
            ("patch_embed.proj", leaf) => format!("embeddings.patch_embeddings.projection.{leaf}"),
            ("norm", leaf) => format!("layernorm.{leaf}"),
            ("norm1", leaf) => format!("encoder.layer.{block}.layernorm_before.{leaf}"),
            ("norm2", leaf) => format!("encoder.layer.{block}.layernorm_after.{leaf}"),
            ("attn.proj", leaf) => format!("encoder.layer.{block}.attention.output.dense.{leaf}"),
            ("mlp.fc1", leaf) => format!("encoder.layer.{block}.intermediate.dense.{leaf}"),
            ("mlp.fc2", leaf) => format!("encoder.layer.{block}.output.dense.{leaf}"),
            ("attn.qkv", leaf) => {
                let part = |name| (format!("encoder.layer.{block}.attention.attention.{name}.{leaf}"), 3);
                return ["query", "key", "value"].map(part).to_vec();
            }
            other => panic!("{other:?}"),
        };
        vec![(name, 1)]
    };
    let mut hf = Vec::new();
    for tensor in mae() {
        let parts = rename(tensor.key());
        let size = tensor.bytes.len() / parts.len();
        for (at, (name, split)) in parts.into_iter().enumerate() {
            let mut shape = tensor.shape.clone();
            shape[0] /= split;
            let bytes = tensor.bytes[at * size..(at + 1) * size].to_vec();
            hf.push(Tensor { path: vec![name], dtype: tensor.dtype, shape, bytes });
        }
    }
    let error = refusal(&hf, &Request::default());
    assert!(error.in_full().contains("`heads`: N and `norm_eps`: X"), "{error}");
    let beside = Request { sidecar: sidecar.clone(), ..Request::default() };
    let temp = tempfile::tempdir().unwrap();
    let made = run_edited(&hf, &temp.path().join("model"), &beside).unwrap();
    assert_eq!((made.config.vit.heads, made.config.vit.norm_eps), (4, 1e-12));
    let error = refusal(&hf, &Request { heads: Some(2), sidecar: sidecar.clone(), ..Request::default() });
    insta::assert_snapshot!(error.in_full(), @r"
    `heads` 2 contradicts the config.json beside the file, which says 4
    hint: leave out `heads`, or move the file away from that config.json
    ");
    let same = Request { heads: Some(4), norm_eps: Some(1e-12), sidecar, ..Request::default() };
    run_edited(&hf, &temp.path().join("same"), &same).unwrap();
    // One of the three parts gone: the joined parameter has no source.
    hf.retain(|tensor| tensor.path[0] != "encoder.layer.2.attention.attention.key.bias");
    let found = problems(&hf, &beside);
    assert_eq!(found.missing[0].name, "blocks.2.attn.qkv.bias");
    assert!(found.missing[0].sources.contains(&"encoder.layer.2.attention.attention.key.bias".to_owned()));
}

#[test]
fn a_plan_of_one_checkpoint_is_not_carried_out_on_another() {
    let plan = Plan::new(&open("mae_pretrain_vit_tiny.pth"), &four_heads()).unwrap();
    let temp = tempfile::tempdir().unwrap();
    let other = checkpoint(&mae()[..3]);
    let out = temp.path().join("model");
    let go = &mut |_| std::ops::ControlFlow::Continue(());
    assert!(plan.apply(&other, "other.pth", &out, go).is_err());
    assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 0);
}

#[test]
fn a_directory_an_empty_file_and_no_file_are_refused() {
    let temp = tempfile::tempdir().unwrap();
    let empty = temp.path().join("empty.pth");
    std::fs::write(&empty, b"").unwrap();
    for path in [temp.path(), &empty, &temp.path().join("none.pth")] {
        assert!(run(path, &temp.path().join("model"), &four_heads()).is_err());
    }
    assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 1);
}

/// A whole mapping, for breaking.
const MAPPING: &str = r#"
title = "test"
norm_eps = 1e-6
activation = "gelu-erf"
position = "any"
resample = { rule = "size" }
final_norm = "always"
feature = "cls"
preprocessing = { mean = [0, 0, 0], std = [1, 1, 1], interpolation = "bicubic", crop_pct = 1.0 }
licence = { spdx = "MIT" }
ignore = ["unused.{rest}"]
[heads]
16 = 4
[[layouts]]
root = ["model"]
[model]
cls_token = "cls_token"
"blocks.{rest}" = "blocks.{rest}"
"norm.{leaf}" = "norm.{leaf}"
"patch_embed.{rest}" = "patch_embed.{rest}"
pos_embed = "pos_embed"
"#;

#[test]
fn a_mapping_says_what_is_wrong_with_it() {
    Mapping::parse("test", MAPPING).unwrap();
    for (from, to, reason) in [
        ("[heads]", "colour = 1\n[heads]", "unknown field `colour`"),
        ("16 = 4", "16 = 5", "does not divide 16"),
        ("16 = 4", "wide = 4", "`wide` is not a width"),
        ("\"norm.{leaf}\" = \"norm.{leaf}\"", "\"norm.{leaf}\" = \"norm.weight\"", "cannot be run backwards"),
        ("\"norm.{leaf}\" = \"norm.{leaf}\"", "\"norm.{leaf\" = \"norm\"", "never closes it"),
        ("unused.{rest}", "unused.{rest}.x", "goes on after `{rest}`"),
        ("unused.{rest}", "unused.{i}{rest}", "nothing between them"),
        ("unused.{rest}", "unused.{i}0", "a digit right after"),
        ("unused.{rest}", "unused.{i}.{i}", "twice"),
        ("unused.{rest}", "unused.{j}", "placeholders are"),
        ("unused.{rest}", "norm.{leaf}", "claimed by two rules"),
        ("unused.{rest}", "", "1 to 256 bytes"),
        (
            "[[layouts]]\nroot = [\"model\"]",
            "[decoder]\nkeep = []\nwidth = \"x\"\nblocks = []",
            "missing field `layouts`",
        ),
    ] {
        assert!(MAPPING.contains(from), "{from}");
        let error = Mapping::parse("test", &MAPPING.replace(from, to)).unwrap_err().to_string();
        assert!(error.starts_with("mapping `test`: ") && error.contains(reason), "{to}: {error}");
    }
}

#[test]
fn two_rules_with_equal_right_to_a_key_are_an_error_and_the_more_specific_wins() {
    let with = |rule: &str| {
        let text = MAPPING.replace("[model]\n", &format!("[model]\n{rule}\n"));
        let mapping = Mapping::parse("test", &text).unwrap();
        Plan::with_mapping(&mapping, &checkpoint(&mae()), &four_heads())
    };
    with("").unwrap();
    let error = with("\"blocks.{i}.{rest}\" = \"other.{i}.{rest}\"").unwrap_err().to_string();
    assert!(
        error.contains("claimed by `blocks.{rest}` and `blocks.{i}.{rest}`")
            || error.contains("`blocks.{i}.{rest}` and `blocks.{rest}`"),
        "{error}"
    );
    let error = with("\"norm.weight\" = \"norm.bias\"").unwrap_err().to_string();
    assert!(error.contains("norm.bias  again from `model/norm.bias`"), "{error}");
    assert!(error.contains("missing    norm.weight"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_text_makes_the_mapping_parser_panic(text in ".{0,400}") {
        let _ = Mapping::parse("fuzz", &text);
    }

    #[test]
    fn no_edit_of_a_mapping_makes_the_parser_or_the_plan_panic(at in 0_usize..2000, cut in 0_usize..40, put in "[a-z{}.\"=\\[\\] 0-9]{0,12}") {
        let text: Vec<char> = include_str!("../../converters/tec.toml").chars().collect();
        let at = at.min(text.len());
        let end = (at + cut).min(text.len());
        let edited: String = text[..at].iter().chain(&put.chars().collect::<Vec<_>>()).chain(&text[end..]).collect();
        if let Ok(mapping) = Mapping::parse("fuzz", &edited) {
            let _ = Plan::with_mapping(&mapping, &open("tec_checkpoint-299.pth"), &four_heads());
        }
    }
}
