//! The forward passes against the authors' numbers.
//!
//! Agreement is `max |Δ| / max |reference|` per tensor. 1e-5 is what f32 leaves over a few blocks: sums run in another
//! order than PyTorch's, and nothing else differs.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use tec_zoo::convert::{self, Request};
use tec_zoo::kernels::Eager;
use tec_zoo::model::{Canonical, Ops, Vit, Weights};

const TOLERANCE: f64 = 1e-5;

pub(crate) struct Reference(Weights);

impl Reference {
    pub(crate) fn open(dir: &Path, name: &str) -> Self {
        Self(Weights::open(&dir.join(name)).unwrap())
    }

    pub(crate) fn get(&self, name: &str) -> Tensor {
        let view = self.0.get(name).unwrap_or_else(|| panic!("the reference has no {name}"));
        let values: Vec<f32> = view.bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        Tensor::from_vec(values, view.shape, &Device::Cpu).unwrap()
    }

    fn agrees(&self, name: &str, ours: &Tensor) {
        self.agrees_within(TOLERANCE, name, ours);
    }

    pub(crate) fn agrees_within(&self, tolerance: f64, name: &str, ours: &Tensor) {
        let theirs = self.get(name);
        assert_eq!(ours.dims(), theirs.dims(), "{name}");
        let flat = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let (ours, theirs) = (flat(ours), flat(&theirs));
        let mut worst = 0f64;
        for (a, b) in ours.iter().zip(&theirs) {
            assert!(a.is_finite() && b.is_finite(), "{name} is not finite");
            worst = worst.max((f64::from(*a) - f64::from(*b)).abs());
        }
        let scale = theirs.iter().fold(0f64, |most, b| most.max(f64::from(b.abs())));
        assert!(worst <= tolerance * scale, "{name}: {:e} relative", worst / scale);
    }
}

/// Where the reference files are: the repository's copies, and the originals when `TEC_ZOO_REFERENCE_DIR` names them.
fn reference_dirs() -> Vec<PathBuf> {
    let own = PathBuf::from("fixtures/reference");
    std::iter::once(own).chain(std::env::var_os("TEC_ZOO_REFERENCE_DIR").map(PathBuf::from)).collect()
}

/// Every block, and the final norm where the model has one.
fn encoder_agrees(model: &Canonical, reference: &Reference) {
    let mut ops = Eager::new(model);
    let features = ops.features(&reference.get("images")).unwrap();
    assert_eq!(features.blocks.len(), 4);
    for (i, block) in features.blocks.iter().enumerate() {
        reference.agrees(&format!("block{i}"), block);
    }
    if let Some(norm) = &features.norm {
        reference.agrees("norm", norm);
    }
}

/// Converts `dir/file` as a user would.
pub(crate) fn convert(file: &Path, family: &str, branch: Option<&str>, out: &Path) -> Canonical {
    let request = Request {
        family: Some(family.into()),
        branch: branch.map(String::from),
        heads: Some(4),
        norm_eps: Some(1e-6),
        ..Request::default()
    };
    convert::convert(file, out, &request, &mut |_| ControlFlow::Continue(())).unwrap();
    Canonical::open(out).unwrap()
}

/// Checks a checkpoint of each reference directory.
fn each(file: &str, family: &str, branch: Option<&str>, expected: &str, more: impl Fn(&Canonical, &Reference)) {
    for dir in reference_dirs() {
        let out = tempfile::tempdir().unwrap();
        let model = convert(&dir.join(file), family, branch, &out.path().join("model"));
        let reference = Reference::open(&dir, expected);
        encoder_agrees(&model, &reference);
        more(&model, &reference);
    }
}

#[test]
fn mae_agrees_block_by_block_from_every_container() {
    for file in ["mae_pretrain_vit_tiny.pth", "mae_pretrain_vit_tiny_legacy.pth", "mae_full_checkpoint-799.pth"] {
        each(file, "mae", None, "mae_expected.safetensors", |_, _| {});
    }
}

#[test]
fn mocov3_base_agrees_block_by_block_from_every_container() {
    for file in ["mocov3_vit_tiny.pth.tar", "mocov3_vit_tiny_legacy.pth.tar"] {
        each(file, "moco-v3", Some("base"), "mocov3_expected.safetensors", |_, _| {});
    }
}

#[test]
fn ibot_teacher_agrees_and_so_does_its_rectangular_image_under_its_own_position_rule() {
    for (file, branch) in [("ibot_checkpoint_teacher.pth", None), ("ibot_checkpoint_full.pth", Some("teacher"))] {
        each(file, "ibot", branch, "ibot_expected.safetensors", |model, reference| {
            let mut ops = Eager::new(model);
            let features = ops.features(&reference.get("images")).unwrap();
            reference.agrees("upstream_forward", features.last());
            let features = ops.features(&reference.get("images_large")).unwrap();
            reference.agrees("upstream_forward_large", features.last());
        });
    }
}

#[test]
fn dino_agrees_block_by_block_at_patch_8_and_16_and_on_rectangular_images() {
    for (file, branch, record) in
        [("vit8_pretrain.pth", None, "vit8"), ("vit16_full_checkpoint.pth", Some("teacher"), "vit16")]
    {
        let dir = Path::new("fixtures/dino");
        let out = tempfile::tempdir().unwrap();
        let model = convert(&dir.join(file), "dino", branch, &out.path().join("model"));
        assert_eq!(model.config().vit.patch_size, record.strip_prefix("vit").unwrap().parse::<usize>().unwrap());
        let reference = Reference::open(dir, &format!("{record}_expected.safetensors"));
        let mut ops = Eager::new(&model);
        let features = ops.features(&reference.get("images")).unwrap();
        for (i, block) in features.blocks.iter().enumerate() {
            reference.agrees(&format!("block{i}"), block);
        }
        reference.agrees("norm", features.last());
        let features = ops.features(&reference.get("images_large")).unwrap();
        reference.agrees("last_large", features.last());
    }
}

#[test]
fn tec_agrees_and_so_do_its_merged_class_token_and_its_adapted_feature() {
    each("tec_checkpoint-299.pth", "tec", None, "tec_expected.safetensors", |model, reference| {
        let mut ops = Eager::new(model);
        let vit = Vit::new(&model.config().vit);
        reference.agrees("cls_token_merged", &ops.parameter("cls_token").unwrap());
        reference.agrees("cls_token_merged", &vit.merged_class_token(&mut ops).unwrap().unwrap());
        let features = ops.features(&reference.get("images")).unwrap();
        let adapted = vit.adapt(&mut ops, &features).unwrap().unwrap();
        reference.agrees("encoder_adaptor", &adapted.adapted);
        assert_eq!(adapted.groups.len(), 2);
    });
}

#[test]
fn released_tec_agrees_block_by_block_and_has_no_final_norm() {
    each("tec_converted.pth", "tec", None, "tec_expected.safetensors", |model, reference| {
        assert!(!model.config().vit.final_norm);
        reference.agrees("cls_token_merged", &Eager::new(model).parameter("cls_token").unwrap());
    });
}
