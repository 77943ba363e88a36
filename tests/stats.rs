//! Parameter and multiply-accumulate counts: the paper's Table 8 and its ViT-L counterpart, exactly.

use tec_zoo::model::VitConfig;
use tec_zoo::model::stats::{self, TecShape};

fn vit(width: usize, depth: usize, heads: usize, position: &str) -> VitConfig {
    let kind = match position {
        "learned" => serde_json::json!({"type": "learned"}),
        _ => serde_json::json!({"type": "sin-cos", "axis_order": "column-first"}),
    };
    serde_json::from_value(serde_json::json!({
        "image_size": [224, 224], "patch_size": 16, "width": width, "depth": depth, "heads": heads,
        "mlp_width": 4 * width, "norm_eps": 1e-6, "activation": "gelu-erf", "final_norm": true,
        "position": {"kind": kind, "resample": {"rule": "size"}},
    }))
    .unwrap()
}

fn tec(decoder_width: usize) -> TecShape {
    TecShape {
        decoder_width,
        decoder_depth: 2,
        feature: true,
        top_k: Some(15),
        pixels: false,
        mask_ratio: 0.75,
        blocks_per_group: Some(3),
        input_adapter: true,
    }
}

fn giga(macs: u64) -> String {
    format!("{:.3}", macs as f64 / 1e9)
}

#[test]
fn tec_vit_b_has_the_parameters_and_macs_of_the_papers_table_8() {
    let b = vit(768, 12, 12, "sin-cos");
    let stats = stats::tec(&b, Some(&b), &tec(512));
    assert_eq!((stats.parameters, stats.trainable), (118_594_304, 118_342_144));
    assert_eq!((giga(stats.macs_with_grad), giga(stats.macs_without_grad)), ("8.308".into(), "17.563".into()));
}

#[test]
fn tec_vit_l_has_the_parameters_and_macs_of_the_authors_code() {
    let l = vit(1024, 24, 16, "sin-cos");
    let stats = stats::tec(&l, Some(&l), &tec(768));
    assert_eq!((stats.parameters, stats.trainable), (405_553_408, 405_200_384));
    assert_eq!((giga(stats.macs_with_grad), giga(stats.macs_without_grad)), ("25.522".into(), "61.554".into()));
}

#[test]
fn an_encoder_counts_its_parameters_and_one_forward_pass() {
    let stats = stats::vit(&vit(768, 12, 12, "learned"), [224, 224]);
    assert_eq!((stats.parameters, stats.trainable), (85_798_656, 85_798_656));
    assert_eq!((stats.macs_with_grad, giga(stats.macs_without_grad)), (0, "17.563".into()));
    let fixed = stats::vit(&vit(768, 12, 12, "sin-cos"), [224, 224]);
    assert_eq!(fixed.parameters - fixed.trainable, 197 * 768);
    let keys: Vec<String> = serde_json::to_value(stats).unwrap().as_object().unwrap().keys().cloned().collect();
    assert_eq!(keys, ["parameters", "trainable", "macs_with_grad", "macs_without_grad"]);
}

#[test]
fn no_configuration_makes_the_counts_overflow() {
    let mut huge = vit(1 << 16, 1 << 10, 1, "learned");
    huge.patch_size = 1;
    huge.image_size = [1 << 14, 1 << 14];
    assert_eq!(stats::vit(&huge, huge.image_size).macs_without_grad, u64::MAX);
}

#[test]
fn windows_cost_what_windows_cost() {
    let window = tec_zoo::model::Window::vitdet(12);
    let detector = VitConfig { class_token: false, window: Some(window), ..vit(768, 12, 12, "learned") };
    // 64 × 64 patches: 8 blocks of 25 windows of 14 × 14, 4 of all patches.
    let (c, patches, places) = (768_u64, 4096, 25 * 196);
    let everywhere = patches * 3 * 256 * c + 12 * patches * 9 * c * c;
    let global = 4 * (patches * 3 * c * c + 2 * patches * patches * c);
    let windowed = 8 * (places * 3 * c * c + 2 * places * 196 * c);
    assert_eq!(stats::vit(&detector, [1024, 1024]).macs_without_grad, everywhere + global + windowed);
}
