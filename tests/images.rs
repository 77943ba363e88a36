//! The evaluation transform against torchvision's.

use std::path::PathBuf;

use tec_zoo::data::EvalTransform;
use tec_zoo::model::{Interpolation, Preprocessing, Weights};

fn fixture(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "fixtures", "images", name].iter().collect()
}

/// Differences in grey levels, image by image.
fn differences(interpolation: Interpolation, expected: &str) -> Vec<Vec<f64>> {
    let std = [0.229, 0.224, 0.225];
    let preprocessing = Preprocessing { mean: [0.485, 0.456, 0.406], std, interpolation, crop_pct: 0.875 };
    let mut transform = EvalTransform::new(preprocessing, [48, 48]);
    let weights = Weights::open(&fixture("expected.safetensors")).unwrap();
    let expected = weights.get(expected).unwrap();
    let expected: Vec<f32> = expected.bytes.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect();
    let image = |i: usize| {
        let mut ours = Vec::new();
        transform.append(&fixture(&format!("{i}.png")), &mut ours).unwrap();
        let theirs = &expected[i * ours.len()..(i + 1) * ours.len()];
        let level = |at: usize| std[at / (48 * 48)] * 255.0;
        ours.iter().zip(theirs).enumerate().map(|(at, (a, b))| f64::from(a - b).abs() * level(at)).collect()
    };
    (0..4).map(image).collect()
}

/// What is left is f32's, a hundred-thousandth of a level. A wrong filter, offset or channel order is off by tens of levels.
#[test]
fn pixels_are_torchvisions_to_the_bit() {
    for (interpolation, name) in [(Interpolation::Bicubic, "bicubic"), (Interpolation::Bilinear, "bilinear")] {
        for (i, levels) in differences(interpolation, name).iter().enumerate() {
            let worst = levels.iter().copied().fold(0.0, f64::max);
            assert!(worst < 1e-3, "{name} {i}: worst {worst}");
        }
    }
}

#[test]
fn a_picture_of_the_resized_size_is_only_cropped() {
    let worst = differences(Interpolation::Bicubic, "bicubic")[3].iter().copied().fold(0.0, f64::max);
    assert!(worst < 1e-3, "{worst}");
}

#[test]
fn the_wrong_filter_is_noticed() {
    let worst = differences(Interpolation::Bilinear, "bicubic")[0].iter().copied().fold(0.0, f64::max);
    assert!(worst > 3.0, "{worst}");
}
