//! Fine-tuned segmenters and detectors: every key accounted for, and PyTorch's numbers, eagerly and in every runtime.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use tec_zoo::checkpoint::Checkpoint;
use tec_zoo::convert::{self, Action, ConvertError, Layout, Plan, Request};
use tec_zoo::kernels::Eager;
use tec_zoo::model::{Canonical, Neck, RelativePosition, Vit, Weights, Window};
use tec_zoo::onnx::runtime::{Images, Runtime, RuntimeError, RuntimeOptions, find_ort_library};
use tec_zoo::onnx::{ExportOptions, MapOptions, Purpose, Size, Target};

use super::parity::Reference;
use super::quiet::{export, open, run};
use crate::words::InFull;

/// Activations are of order 1 to 10, blocks are few: ten times what was seen, a tenth of what is promised.
const TOLERANCE: f64 = 1e-5;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/finetuned")
}

fn checkpoint(name: &str) -> PathBuf {
    folder().join(format!("{name}.pth"))
}

/// iBOT's files say neither heads nor, where it is no square, the image's size.
fn request(name: &str) -> Request {
    match name {
        "ibot_segmentation" => Request { heads: Some(2), ..Request::default() },
        "ibot_detection" => Request { heads: Some(2), image_size: Some([16, 24]), ..Request::default() },
        _ => Request::default(),
    }
}

fn convert(name: &str, out: &Path) -> convert::Conversion {
    convert::convert(&checkpoint(name), out, &request(name), &mut |_| ControlFlow::Continue(())).unwrap()
}

const SEGMENTERS: [(&str, Purpose); 3] = [
    ("mmseg_mae_upernet", Purpose::UperNet(PLAIN)),
    ("ibot_segmentation", Purpose::UperNet(PLAIN)),
    ("ibot_detection", Purpose::CascadeMaskRcnn(PLAIN)),
];
const PLAIN: MapOptions = MapOptions { levels: Vec::new(), norm: None, parameter_free: false };
const DETECTORS: [&str; 2] = ["detectron2_vitdet", "mmdet_vitdet"];

#[test]
fn every_key_is_copied_ignored_by_name_or_shortened_and_nothing_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let names = SEGMENTERS.map(|(name, _)| name).into_iter().chain(DETECTORS);
    for (name, family, ignored) in
        names.zip(["mmseg", "ibot", "ibot", "vitdet", "vitdet"]).zip([7, 3, 3, 4, 2]).map(flat)
    {
        let made = convert(name, &dir.path().join(name));
        assert_eq!(made.plan.family(), family, "{name}");
        let count = |action: Action| made.plan.decisions().iter().filter(|decision| decision.action == action).count();
        assert_eq!(count(Action::Ignore), ignored, "{name}: {}", made.plan);
        assert_eq!(count(Action::Shorten), usize::from(family == "vitdet"), "{name}");
        assert_eq!(count(Action::Copy) + count(Action::Ignore) + count(Action::Shorten), made.plan.decisions().len());
        let neck = made.plan.decisions().iter().filter(|decision| decision.file == Some("neck.safetensors")).count();
        assert_eq!(neck, if family == "vitdet" { 32 } else { 10 }, "{name}");
        let copied = Weights::open(&made.dir.join("neck.safetensors")).unwrap();
        assert_eq!(copied.names().count(), neck);
    }
}

fn flat(((name, family), ignored): ((&'static str, &'static str), usize)) -> (&'static str, &'static str, usize) {
    (name, family, ignored)
}

#[test]
fn the_architecture_is_read_off_the_tensors() {
    let dir = tempfile::tempdir().unwrap();
    let vit = convert("mmseg_mae_upernet", &dir.path().join("mmseg")).config.vit;
    assert_eq!((vit.heads, vit.layer_scale, vit.final_norm, vit.class_token), (2, true, false, true));
    assert_eq!(vit.relative_position, Some(RelativePosition::Table));
    assert_eq!(vit.neck, Some(Neck::FeaturePyramid { norm_eps: 1e-5 }));
    for (name, norm) in [("ibot_segmentation", true), ("ibot_detection", false)] {
        let vit = convert(name, &dir.path().join(name)).config.vit;
        assert_eq!((vit.final_norm, vit.relative_position), (norm, None));
        assert_eq!(vit.neck, Some(Neck::FeaturePyramid { norm_eps: 1e-5 }));
    }
    for name in DETECTORS {
        let vit = convert(name, &dir.path().join(name)).config.vit;
        assert_eq!((vit.heads, vit.class_token, vit.image_size), (2, false, [24, 24]));
        assert_eq!(vit.window, Some(Window { size: 4, global_blocks: vec![1, 3, 5, 7] }));
        assert_eq!(vit.relative_position, Some(RelativePosition::Decomposed { grid: [10, 10] }));
        assert_eq!(vit.neck, Some(Neck::SimplePyramid { width: 12, norm_eps: 1e-6 }));
        assert_eq!(Purpose::VitDet.size(&vit), [40, 40]);
    }
}

#[test]
fn the_eager_pass_agrees_with_pytorch() {
    let dir = tempfile::tempdir().unwrap();
    for (name, purpose) in SEGMENTERS {
        let model = Canonical::open(&convert(name, &dir.path().join(name)).dir).unwrap();
        let contract = purpose.maps(model.config()).unwrap().unwrap();
        let normed = model.config().vit.final_norm;
        pyramid_agrees(
            &model,
            &contract.levels,
            normed,
            &Reference::open(&folder(), &format!("{name}_expected.safetensors")),
        );
    }
    for name in DETECTORS {
        let model = Canonical::open(&convert(name, &dir.path().join(name)).dir).unwrap();
        for images in ["vitdet", "vitdet_wide"] {
            let reference = Reference::open(&folder(), &format!("{images}_expected.safetensors"));
            pyramid_agrees(&model, &[7], false, &reference);
        }
    }
}

fn pyramid_agrees(model: &Canonical, levels: &[usize], normed: bool, reference: &Reference) {
    let vit = Vit::new(&model.config().vit);
    let mut ops = Eager::new(model);
    let images = reference.get("images");
    let grid = ops.grid(&images).unwrap();
    let features = ops.features(&images).unwrap();
    let levels = vit.levels(&mut ops, &features, levels, normed).unwrap();
    let maps = vit.pyramid(&mut ops, &levels, grid).unwrap();
    assert!(maps.len() >= 4);
    for (i, map) in maps.iter().enumerate() {
        let (batch, _, channels) = map.value.dims3().unwrap();
        let value = map.value.transpose(1, 2).unwrap().contiguous().unwrap();
        let value = value.reshape((batch, channels, map.grid[0], map.grid[1])).unwrap();
        reference.agrees_within(TOLERANCE, &format!("p{}", 2 + i), &value);
    }
}

fn runtime_options() -> RuntimeOptions {
    RuntimeOptions {
        ort_library: std::env::var_os("ORT_DYLIB_PATH").filter(|path| !path.is_empty()).map(PathBuf::from),
        threads: Some(1),
        ..Default::default()
    }
}

fn runtimes(target: Target) -> Vec<Runtime> {
    let mut all = vec![Runtime::Tract];
    match find_ort_library(&runtime_options()) {
        Ok(_) => all.push(Runtime::Ort),
        Err(RuntimeError::OrtNotFound { .. }) => eprintln!("ONNX Runtime is not installed: it is left out"),
        Err(error) => panic!("{error}"),
    }
    if target == Target::Portable {
        all.push(Runtime::Candle);
    }
    all
}

/// Runs the file in every runtime and compares each output with PyTorch's.
fn runs_agree(path: &Path, target: Target, reference: &Reference) {
    let images = reference.get("images");
    let (batch, _, height, width) = images.dims4().unwrap();
    let values = images.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let images = Images { shape: [batch, 3, height, width], values };
    for runtime in runtimes(target) {
        let outputs = run(&mut open(runtime, path, &runtime_options()).unwrap(), images.clone()).unwrap();
        for output in outputs {
            let ours = candle_core::Tensor::from_vec(output.values, output.shape, &candle_core::Device::Cpu).unwrap();
            reference.agrees_within(TOLERANCE, &output.name, &ours);
        }
    }
}

#[test]
fn exported_files_agree_with_pytorch_in_every_runtime() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.onnx");
    for target in [Target::Portable, Target::Ort] {
        for (name, purpose) in SEGMENTERS {
            let out = dir.path().join(format!("{name}_{target}"));
            let model = Canonical::open(&convert(name, &out).dir).unwrap();
            export(&model, &path, &ExportOptions { target, purpose, ..Default::default() }).unwrap();
            runs_agree(&path, target, &Reference::open(&folder(), &format!("{name}_expected.safetensors")));
        }
        let model = Canonical::open(&convert(DETECTORS[0], &dir.path().join(target.to_string())).dir).unwrap();
        for (images, size) in [("vitdet", Size::Native), ("vitdet_wide", Size::Fixed([24, 56]))] {
            let options = ExportOptions { target, purpose: Purpose::VitDet, size, ..Default::default() };
            export(&model, &path, &options).unwrap();
            runs_agree(&path, target, &Reference::open(&folder(), &format!("{images}_expected.safetensors")));
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let wrong = Request { heads: Some(4), ..Request::default() };
    let open = |name: &str| Checkpoint::open(&checkpoint(name)).unwrap();
    for name in ["mmseg_mae_upernet", "detectron2_vitdet"] {
        let refused = Plan::new(&open(name), &wrong).unwrap_err().in_full();
        assert!(refused.contains("for 2 heads, not 4"), "{refused}");
    }
    // The table of 5 × 5 patches is no table of 1 × 25.
    let wrong = Request { image_size: Some([4, 100]), ..Request::default() };
    let refused = Plan::new(&open("mmseg_mae_upernet"), &wrong).unwrap_err().in_full();
    assert!(refused.contains("relative_position_bias_table"), "{refused}");
    for name in ["mmseg_mae_upernet", "detectron2_vitdet"] {
        let model = Canonical::open(&convert(name, &dir.path().join(name)).dir).unwrap();
        for layout in [Layout::Timm, Layout::Hf] {
            let refused =
                convert::emit(&model, layout, None, &dir.path().join("x"), &mut |_| ControlFlow::Continue(()));
            assert!(matches!(refused, Err(ConvertError::Inexpressible { .. })), "{refused:?}");
        }
    }
}
