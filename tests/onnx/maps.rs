//! Exports for segmenters and detectors: levels, necks, windows and relative positions against the eager forward.

use super::*;
use crate::words::InFull;
use tec_zoo::model::{Neck, RelativePosition, Window, neck_parameters};
use tec_zoo::onnx::{LevelNorm, MapOptions};

/// The nano model without adapters, its configuration changed, in `dir`. Running variances are positive.
fn model(dir: &Path, family: &str, change: impl FnOnce(&mut VitConfig)) -> Canonical {
    let plain = Nano { adapters: false, ..Nano::default() }.write(dir);
    let mut config = plain.config().clone();
    config.family = family.to_owned();
    change(&mut config.vit);
    let mut seed = 11;
    write_weights(&dir.join("model.safetensors"), &vit_parameters(&config.vit), Dtype::F32, &mut seed);
    if let Some(neck) = &config.vit.neck {
        write_weights(&dir.join("neck.safetensors"), &neck_parameters(neck, config.vit.width), Dtype::F32, &mut seed);
    }
    let json = serde_json::json!({ "tec_zoo": config });
    std::fs::write(dir.join("config.json"), serde_json::to_vec(&json).unwrap()).unwrap();
    Canonical::open(dir).unwrap()
}

/// A ViTDet checkpoint: no class token, windows of 2 × 2 patches but in two blocks.
fn vitdet(vit: &mut VitConfig) {
    vit.class_token = false;
    vit.final_norm = false;
    vit.window = Some(Window { size: 2, global_blocks: vec![2, 5] });
}

/// Exports in both targets, runs everywhere, and returns what the portable file says.
fn exported(model: &Canonical, dir: &tempfile::TempDir, purpose: &Purpose, size: [usize; 2]) -> ModelInfo {
    let path = file(dir, "x.onnx");
    let mut info = None;
    for (target, able) in [(Target::Ort, without_candle()), (Target::Portable, runtimes())] {
        let options = ExportOptions { purpose: purpose.clone(), target, size: Size::Fixed(size), ..Default::default() };
        export(model, &path, &options).unwrap();
        agrees(model, &path, size, &able);
        info = Some(match model.config().vit.relative_position {
            // The one thing a runtime may compute ahead: every pair's offset looked up in a table, which would be far
            // larger than the table.
            Some(RelativePosition::Table) => ModelInfo::open(&path).unwrap(),
            _ => is_tidy(&path),
        });
    }
    info.unwrap()
}

fn shapes(info: &ModelInfo) -> Vec<(&str, String)> {
    let text = |dims: &[DimInfo]| dims[1..].iter().map(DimInfo::to_string).collect::<Vec<_>>().join("×");
    info.outputs.iter().map(|output| (output.name.as_str(), text(&output.dims))).collect()
}

fn upernet(options: MapOptions) -> Purpose {
    Purpose::UperNet(options)
}

#[test]
fn levels_are_raw_or_normed_as_the_consumer_of_the_family_expects() {
    let dir = tempfile::tempdir().unwrap();
    let ibot = model(&file(&dir, "ibot"), "ibot", |_| {});
    let mae = model(&file(&dir, "mae"), "mae", |_| {});
    let bare = model(&file(&dir, "tec"), "tec", |vit| vit.final_norm = false);
    let plain = MapOptions::default;
    for (model, purpose, norm) in [
        (&ibot, upernet(plain()), "final"),
        (&ibot, Purpose::CascadeMaskRcnn(plain()), "raw"),
        (&ibot, upernet(MapOptions { norm: Some(LevelNorm::Raw), ..plain() }), "raw"),
        (&mae, upernet(plain()), "raw"),
        (&mae, upernet(MapOptions { norm: Some(LevelNorm::Final), ..plain() }), "final"),
        (&bare, upernet(plain()), "raw"),
    ] {
        let info = exported(model, &dir, &purpose, [32, 24]);
        assert_eq!(info.metadata["level_norm"], norm, "{purpose:?}");
        assert_eq!(info.metadata["neck"], "downstream");
        assert_eq!(info.metadata["levels"], "[0,2,3,5]");
        assert_eq!(info.metadata["strides"], "[8,8,8,8]");
        assert_eq!(info.metadata["for"], purpose.name());
        let names = ["level0", "level1", "level2", "level3"].map(|name| (name, "16×4×3".to_owned()));
        assert_eq!(shapes(&info), names);
    }
    let options = MapOptions { norm: Some(LevelNorm::Final), ..plain() };
    let options = ExportOptions { purpose: upernet(options), ..Default::default() };
    let refused = export(&bare, &file(&dir, "x.onnx"), &options).unwrap_err().in_full();
    assert_eq!(refused, "the maps are not possible: the model has no final norm\nhint: use `norm`: raw");
}

#[test]
fn twelve_and_twenty_four_blocks_have_the_published_levels() {
    let dir = tempfile::tempdir().unwrap();
    for (depth, levels) in [(12, "[3,5,7,11]"), (24, "[7,11,15,23]"), (8, "[1,3,5,7]")] {
        let deep = model(&file(&dir, &depth.to_string()), "mae", |vit| vit.depth = depth);
        let info = exported(&deep, &dir, &upernet(MapOptions::default()), [16, 16]);
        assert_eq!(info.metadata["levels"], levels);
    }
}

#[test]
fn a_feature_pyramid_gives_four_strides_through_the_models_own_neck() {
    let dir = tempfile::tempdir().unwrap();
    let neck = Neck::FeaturePyramid { norm_eps: 1e-5 };
    let tuned = model(&file(&dir, "tuned"), "mae", |vit| vit.neck = Some(neck));
    for size in [[32, 24], [40, 64]] {
        for purpose in [upernet(MapOptions::default()), Purpose::CascadeMaskRcnn(MapOptions::default())] {
            let info = exported(&tuned, &dir, &purpose, size);
            let [h, w] = size.map(|side| side / 8);
            let expected = [("p2", 4 * h, 4 * w), ("p3", 2 * h, 2 * w), ("p4", h, w), ("p5", h / 2, w / 2)];
            assert_eq!(shapes(&info), expected.map(|(name, h, w)| (name, format!("16×{h}×{w}"))));
            assert_eq!(info.metadata["neck"], "feature-pyramid");
            assert_eq!(info.metadata["strides"], "[2,4,8,16]");
        }
    }
    let options = ExportOptions { purpose: Purpose::VitDet, ..Default::default() };
    let refused = export(&tuned, &file(&dir, "x.onnx"), &options);
    assert!(matches!(refused, Err(ExportError::Neck { .. })), "{refused:?}");
}

#[test]
fn a_pyramid_without_parameters_is_made_only_when_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let mae = model(&file(&dir, "mae"), "mae", |_| {});
    let purpose = upernet(MapOptions { parameter_free: true, ..MapOptions::default() });
    let info = exported(&mae, &dir, &purpose, [40, 24]);
    assert_eq!(info.metadata["neck"], "parameter-free");
    let expected = [("p2", "16×20×12"), ("p3", "16×10×6"), ("p4", "16×5×3"), ("p5", "16×2×1")];
    assert_eq!(shapes(&info), expected.map(|(name, shape)| (name, shape.to_owned())));
}

#[test]
fn windows_and_decomposed_positions_are_those_of_the_eager_forward_with_and_without_padding() {
    let dir = tempfile::tempdir().unwrap();
    let relative = RelativePosition::Decomposed { grid: [4, 3] };
    let windowed = model(&file(&dir, "windowed"), "vitdet", vitdet);
    let both = model(&file(&dir, "both"), "vitdet", |vit| {
        vitdet(vit);
        vit.relative_position = Some(relative);
    });
    for model in [&windowed, &both] {
        // Whole windows, and grids of 4×3 and 5×7 that need padding; the positions are stretched where sizes differ.
        for size in [[32, 32], [32, 24], [40, 56]] {
            let info = exported(model, &dir, &Purpose::VitDet, size);
            let [h, w] = size.map(|side| side / 8);
            assert_eq!(shapes(&info), [("last_feat", format!("16×{h}×{w}"))]);
            assert_eq!(info.metadata["window"], "2");
            assert_eq!(info.metadata["global_blocks"], "[2,5]");
            assert_eq!(info.metadata["prefix_tokens"], "0");
        }
        exported(model, &dir, &Purpose::Levels(vec![1, 5]), [32, 24]);
    }
    assert_eq!(Purpose::VitDet.size(&both.config().vit), [32, 24]);
}

#[test]
fn a_plain_model_becomes_a_vitdet_backbone_without_its_class_token() {
    let dir = tempfile::tempdir().unwrap();
    let plain = model(&file(&dir, "plain"), "mae", |vit| vit.depth = 4);
    // 16 × 15 patches: two windows of 14 each way.
    let info = exported(&plain, &dir, &Purpose::VitDet, [128, 120]);
    assert_eq!(info.metadata["window"], "14");
    assert_eq!(info.metadata["global_blocks"], "[0,1,2,3]", "every quarter of four blocks is one block");
    assert!(!info.initializers.iter().any(|tensor| tensor.name == "cls_token" || tensor.name.starts_with("norm")));
    let deeper = model(&file(&dir, "deeper"), "dinov2", |vit| vit.registers = 2);
    let info = exported(&deeper, &dir, &Purpose::VitDet, [128, 120]);
    assert_eq!(info.metadata["global_blocks"], "[0,2,3,5]");
    assert!(!info.initializers.iter().any(|tensor| tensor.name == "reg_token"));
}

#[test]
fn a_simple_pyramid_follows_the_last_map() {
    let dir = tempfile::tempdir().unwrap();
    let tuned = model(&file(&dir, "tuned"), "vitdet", |vit| {
        vitdet(vit);
        vit.neck = Some(Neck::SimplePyramid { width: 12, norm_eps: 1e-6 });
        vit.relative_position = Some(RelativePosition::Decomposed { grid: [4, 3] });
    });
    let info = exported(&tuned, &dir, &Purpose::VitDet, [40, 24]);
    let expected = [
        ("last_feat", "16×5×3"),
        ("p2", "12×20×12"),
        ("p3", "12×10×6"),
        ("p4", "12×5×3"),
        ("p5", "12×2×1"),
        ("p6", "12×1×1"),
    ];
    assert_eq!(shapes(&info), expected.map(|(name, shape)| (name, shape.to_owned())));
    assert_eq!(info.metadata["strides"], "[8,2,4,8,16,32]");
    assert_eq!(info.metadata["neck"], "simple-pyramid");
    assert_eq!(info.metadata["relative_position"], "decomposed");
}

#[test]
fn a_table_of_relative_positions_is_for_the_native_size() {
    let dir = tempfile::tempdir().unwrap();
    let tuned = model(&file(&dir, "tuned"), "mae", |vit| {
        vit.relative_position = Some(RelativePosition::Table);
        vit.layer_scale = true;
        vit.final_norm = false;
        vit.neck = Some(Neck::FeaturePyramid { norm_eps: 1e-5 });
    });
    exported(&tuned, &dir, &upernet(MapOptions::default()), [32, 24]);
    exported(&tuned, &dir, &Purpose::Tokens, [32, 24]);
    let options = ExportOptions { purpose: Purpose::Tokens, size: Size::Fixed([32, 32]), ..Default::default() };
    let refused = export(&tuned, &file(&dir, "x.onnx"), &options).unwrap_err().in_full();
    assert!(refused.contains("relative_position_bias_table"), "{refused}");
}

#[test]
fn what_a_model_cannot_be_is_refused_when_it_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let plain = Nano { adapters: false, ..Nano::default() }.write(&file(&dir, "plain"));
    let refused = |change: fn(&mut VitConfig)| {
        let mut vit = plain.config().vit.clone();
        change(&mut vit);
        vit.validate().unwrap_err()
    };
    let windows = |global_blocks| Some(Window { size: 2, global_blocks });
    for (problem, words) in [
        (refused(|vit| vit.window = Some(Window { size: 2, global_blocks: vec![] })), "`class_token` is true"),
        (refused(|vit| vit.relative_position = Some(RelativePosition::Decomposed { grid: [4, 3] })), "class_token"),
        (refused(|vit| vit.neck = Some(Neck::SimplePyramid { width: 0, norm_eps: 1e-6 })), "neck.width"),
        (refused(|vit| vit.neck = Some(Neck::FeaturePyramid { norm_eps: 0.0 })), "neck.norm_eps"),
    ] {
        assert!(problem.contains(words), "{problem}");
    }
    for global_blocks in [vec![6], vec![2, 2], vec![3, 1]] {
        let mut vit = plain.config().vit.clone();
        vitdet(&mut vit);
        vit.window = windows(global_blocks);
        assert!(vit.validate().unwrap_err().contains("global_blocks"));
    }
}

#[test]
fn one_dynamic_file_gives_the_maps_of_every_size() {
    let dir = tempfile::tempdir().unwrap();
    let pyramid = model(&file(&dir, "pyramid"), "mae", |vit| vit.neck = Some(Neck::FeaturePyramid { norm_eps: 1e-5 }));
    let plain = model(&file(&dir, "plain"), "ibot", |_| {});
    let detector = model(&file(&dir, "detector"), "vitdet", |vit| {
        vitdet(vit);
        vit.neck = Some(Neck::SimplePyramid { width: 12, norm_eps: 1e-6 });
        vit.relative_position = Some(RelativePosition::Decomposed { grid: [4, 3] });
    });
    let free = MapOptions { parameter_free: true, ..MapOptions::default() };
    let path = file(&dir, "x.onnx");
    for (model, purpose) in [
        (&pyramid, upernet(MapOptions::default())),
        (&plain, upernet(MapOptions::default())),
        (&plain, Purpose::CascadeMaskRcnn(free)),
        (&plain, Purpose::VitDet),
        (&detector, Purpose::VitDet),
    ] {
        for (target, able) in [(Target::Ort, without_candle()), (Target::Portable, runtimes())] {
            let options = ExportOptions { purpose: purpose.clone(), target, size: Size::Dynamic, ..Default::default() };
            export(model, &path, &options).unwrap();
            is_tidy(&path);
            // The native grid, one that fills its windows of 2, and one that fills none.
            for size in [[32, 24], [32, 48], [40, 56]] {
                agrees(model, &path, size, &able);
            }
        }
    }
}
