//! There and back: into other libraries' layouts and back again, bit for bit.

use std::ops::ControlFlow;
use std::path::Path;

use safetensors::SafeTensors;
use tec_zoo::convert::{ConvertError, Emission, Layout, Request, emit};
use tec_zoo::model::{Canonical, CanonicalError, vit_parameters};

use super::torch_file::{Tensor, tensors};
use super::{asking, fixture, four_heads, open, run, run_edited};
use crate::words::InFull;

fn emitted(model: &Path, layout: Layout, out: &Path) -> Result<Emission, ConvertError> {
    emit(&Canonical::open(model).unwrap(), layout, None, out, &mut |_| ControlFlow::Continue(()))
}

/// Asserts that both models have the same parameters, bit for bit.
fn assert_same(a: &Path, b: &Path) {
    let (a, b) = (Canonical::open(a).unwrap(), Canonical::open(b).unwrap());
    let (mut left, mut right) = (a.config().vit.clone(), b.config().vit.clone());
    // Names do not say whose weights these are: the family's resampling rule and its extra files stay behind.
    for vit in [&mut left, &mut right] {
        (vit.adapters, vit.decoder) = (None, None);
        vit.position.resample = tec_zoo::model::Resample::Size;
    }
    assert_eq!(left, right);
    for spec in vit_parameters(&left) {
        let (x, y) = (a.get(&spec.name).unwrap(), b.get(&spec.name).unwrap());
        assert_eq!((x.dtype, x.shape, x.bytes), (y.dtype, y.shape, y.bytes), "{}", spec.name);
    }
}

#[test]
fn every_fixture_goes_to_timm_and_hugging_face_and_comes_back_the_same() {
    for (name, branch, _, _) in super::FIXTURES {
        let temp = tempfile::tempdir().unwrap();
        let at = |part: &str| temp.path().join(part);
        run(&fixture(name), &at("model"), &asking(branch)).unwrap();
        emitted(&at("model"), Layout::Timm, &at("timm")).unwrap();
        // The configuration beside the weights says heads and final norm: nothing is asked.
        let back = run(&at("timm"), &at("from-timm"), &Request::default()).unwrap();
        assert_eq!(back.plan.family(), "timm");
        assert_same(&at("model"), &at("from-timm"));
        if name == "tec_converted.pth" {
            let error = emitted(&at("model"), Layout::Hf, &at("hf")).unwrap_err().in_full();
            assert!(error.contains("no final norm"), "{error}");
            assert!(!at("hf").exists());
            continue;
        }
        emitted(&at("model"), Layout::Hf, &at("hf")).unwrap();
        let back = run(&at("hf"), &at("from-hf"), &Request::default()).unwrap();
        assert_eq!(back.plan.family(), "hf-vit");
        assert_same(&at("model"), &at("from-hf"));
        // And once more around: the files themselves are the same.
        emitted(&at("from-hf"), Layout::Hf, &at("hf-again")).unwrap();
        for file in ["model.safetensors", "config.json"] {
            let [a, b] = ["hf", "hf-again"].map(|dir| std::fs::read(at(dir).join(file)).unwrap());
            assert!(a == b, "{name} {file}");
        }
    }
}

#[test]
fn a_bare_timm_file_says_no_heads() {
    let temp = tempfile::tempdir().unwrap();
    let at = |part: &str| temp.path().join(part);
    run(&fixture("mae_pretrain_vit_tiny.pth"), &at("model"), &four_heads()).unwrap();
    let made = emitted(&at("model"), Layout::Timm, &at("bare.safetensors")).unwrap();
    assert_eq!(made.tensors, 54);
    let timm = |heads| Request { family: Some("timm".to_owned()), heads, ..Request::default() };
    let error = run(&at("bare.safetensors"), &at("back"), &timm(None)).unwrap_err().in_full();
    assert!(error.contains("`heads`: N"), "{error}");
    run(&at("bare.safetensors"), &at("back"), &timm(Some(4))).unwrap();
    assert_same(&at("model"), &at("back"));
    assert!(emitted(&at("model"), Layout::Timm, &at("bare.safetensors")).is_err(), "an existing file is not replaced");
    assert!(emitted(&at("model"), Layout::Hf, &at("hf.safetensors")).is_err(), "heads have no place in a bare file");
}

#[test]
fn a_classifier_goes_to_both_layouts_where_they_can_say_it() {
    let mut with_head = tensors(&open("mae_pretrain_vit_tiny.pth"));
    with_head.push(Tensor::f32(&["model", "head.weight"], &[7, 16], |at| at as f32));
    with_head.push(Tensor::f32(&["model", "head.bias"], &[7], |at| at as f32));
    let mae = Request { family: Some("mae".to_owned()), ..four_heads() };
    let temp = tempfile::tempdir().unwrap();
    let at = |part: &str| temp.path().join(part);
    run_edited(&with_head, &at("cls"), &mae).unwrap();
    for layout in [Layout::Timm, Layout::Hf] {
        let (out, back) = (at(layout.name()), at(&format!("from-{}", layout.name())));
        emitted(&at("cls"), layout, &out).unwrap();
        run(&out, &back, &Request::default()).unwrap();
        assert_same(&at("cls"), &back);
    }
    let bytes = std::fs::read(at("hf/model.safetensors")).unwrap();
    let names: Vec<String> = SafeTensors::deserialize(&bytes).unwrap().names().into_iter().map(str::to_owned).collect();
    assert!(names.iter().any(|name| name == "classifier.weight"));
    assert!(names.iter().all(|name| name.starts_with("vit.") || name.starts_with("classifier.")), "{names:?}");

    for tensor in &mut with_head {
        if let Some(leaf) = tensor.path[1].strip_prefix("norm.") {
            tensor.path[1] = format!("fc_norm.{leaf}");
        }
    }
    run_edited(&with_head, &at("pooled"), &mae).unwrap();
    emitted(&at("pooled"), Layout::Timm, &at("timm-pooled")).unwrap();
    run(&at("timm-pooled"), &at("pooled-again"), &Request::default()).unwrap();
    assert_same(&at("pooled"), &at("pooled-again"));
    assert!(emitted(&at("pooled"), Layout::Hf, &at("hf-pooled")).is_err());
}

#[test]
fn an_epsilon_timm_cannot_say_is_refused_by_name() {
    let temp = tempfile::tempdir().unwrap();
    let at = |part: &str| temp.path().join(part);
    let request = Request { norm_eps: Some(1e-12), ..four_heads() };
    run(&fixture("mae_pretrain_vit_tiny.pth"), &at("model"), &request).unwrap();
    insta::assert_snapshot!(emitted(&at("model"), Layout::Timm, &at("timm")).unwrap_err().in_full(), @r"
    `timm` cannot express this model: its LayerNorm epsilon is 1e-12; timm's ViT has 1e-6 and no field for it
    hint: `layout`: hf keeps the epsilon
    ");
    emitted(&at("model"), Layout::Hf, &at("hf")).unwrap();
    run(&at("hf"), &at("back"), &Request::default()).unwrap();
    assert_same(&at("model"), &at("back"));
}

#[test]
fn what_a_layout_has_no_place_for_is_said() {
    let temp = tempfile::tempdir().unwrap();
    let at = |part: &str| temp.path().join(part);
    run(&fixture("tec_checkpoint-299.pth"), &at("model"), &four_heads()).unwrap();
    let made = emitted(&at("model"), Layout::Hf, &at("hf")).unwrap();
    assert_eq!(made.left_out.len(), 2);
    assert!(made.left_out[0].contains("adapters"));
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let temp = tempfile::tempdir().unwrap();
    let at = |part: &str| temp.path().join(part);
    let made = run(&fixture("tec_checkpoint-299.pth"), &at("a"), &four_heads()).unwrap();
    run(&fixture("tec_checkpoint-299.pth"), &at("b"), &four_heads()).unwrap();
    assert_eq!(made.files.len(), 4);
    for (file, _) in made.files {
        let [a, b] = ["a", "b"].map(|dir| std::fs::read(at(dir).join(file.name())).unwrap());
        assert!(a == b, "{}", file.name());
    }
}

#[test]
fn a_tampered_directory_is_not_a_model() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("model");
    run(&fixture("tec_checkpoint-299.pth"), &dir, &four_heads()).unwrap();
    let read = |name: &str| std::fs::read(dir.join(name)).unwrap();
    let originals = ["config.json", "model.safetensors", "adapters.safetensors"].map(|name| (name, read(name)));
    let text = |at: usize| String::from_utf8_lossy(&originals[at].1).into_owned();
    let refused = |name: &str, bytes: &[u8]| {
        std::fs::write(dir.join(name), bytes).unwrap();
        let error = Canonical::open(&dir).unwrap_err();
        for (name, bytes) in &originals {
            std::fs::write(dir.join(name), bytes).unwrap();
        }
        error
    };
    let config = |from: &str, to: &str| {
        assert!(text(0).contains(from), "{from}");
        refused("config.json", text(0).replace(from, to).as_bytes())
    };
    assert!(matches!(
        config("\"depth\": 4", "\"depth\": 3"),
        CanonicalError::Mismatch { .. } | CanonicalError::Config { .. }
    ));
    assert!(matches!(config("\"final_norm\": true", "\"final_norm\": false"), CanonicalError::Mismatch { .. }));
    assert!(matches!(config("\"heads\": 4", "\"heads\": 5"), CanonicalError::Config { .. }));
    assert!(matches!(config("\"format\": 1", "\"format\": 2"), CanonicalError::Config { .. }));
    assert!(matches!(config("\"tec_zoo\"", "\"other\""), CanonicalError::Config { .. }));
    assert!(matches!(config("\"blocks_per_group\": 2", "\"blocks_per_group\": 1"), CanonicalError::Config { .. }));
    assert!(matches!(refused("config.json", b"{"), CanonicalError::Config { .. }));
    for (at, name) in [(1, "model.safetensors"), (2, "adapters.safetensors")] {
        let whole = &originals[at].1;
        assert!(matches!(refused(name, &whole[..whole.len() - 1]), CanonicalError::Safetensors { .. }));
        assert!(matches!(refused(name, b""), CanonicalError::Safetensors { .. }));
        // One letter of a name, one side of a shape: the header still parses, the model is another one.
        let edit = |from: &[u8], to: &[u8]| {
            let place = whole.windows(from.len()).position(|window| window == from).unwrap();
            [&whole[..place], to, &whole[place + from.len()..]].concat()
        };
        assert!(matches!(refused(name, &edit(b".bias\"", b".bogs\"")), CanonicalError::Mismatch { .. }));
        assert!(matches!(refused(name, &edit(b"\"F32\"", b"\"I32\"")), CanonicalError::Mismatch { .. }));
        assert!(matches!(refused(name, &edit(b"[64,16]", b"[16,64]")), CanonicalError::Mismatch { .. }));
    }
    std::fs::remove_file(dir.join("adapters.safetensors")).unwrap();
    assert!(matches!(Canonical::open(&dir).unwrap_err(), CanonicalError::Io { .. }));
    std::fs::remove_file(dir.join("config.json")).unwrap();
    assert!(matches!(Canonical::open(&dir).unwrap_err(), CanonicalError::NotAModel { .. }));
}
