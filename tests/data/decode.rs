//! Pixels against PIL's and torchvision's.

use tec_zoo::data::{Augment, TrainTransform};

/// Settings whose result is the image itself: no crop, no flip, values 0..255 once scaled back.
fn plain(size: [usize; 2]) -> Augment {
    let ratio = [size[1] as f64 / size[0] as f64; 2];
    Augment { size, scale: [1.0, 1.0], ratio, flip: 0.0, mean: [0.0; 3], std: [1.0; 3], ..Augment::default() }
}

/// The grey levels of a fixture, (H, W, 3).
fn levels(name: &str, shape: &[usize]) -> Vec<u8> {
    let [height, width] = [shape[0], shape[1]];
    let mut out = vec![0.0; 3 * height * width];
    let encoded = std::fs::read(super::fixture(name)).unwrap();
    let mut transform = TrainTransform::new(plain([height, width]));
    let applied = transform.apply(&encoded, [0, 0, 0], &mut out).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!([applied.crop.height as usize, applied.crop.width as usize], [height, width], "{name}");
    let plane = height * width;
    (0..3 * plane).map(|at| (out[at % 3 * plane + at / 3] * 255.0).round() as u8).collect()
}

fn worst(name: &str) -> (u8, f64) {
    let (shape, theirs) = super::expected("decoded.safetensors", name);
    let ours = levels(name, &shape);
    let differences = ours.iter().zip(&theirs).map(|(a, b)| a.abs_diff(*b));
    let mean = differences.clone().map(f64::from).sum::<f64>() / theirs.len() as f64;
    (differences.max().unwrap(), mean)
}

/// PNG and WebP leave a decoder no choice; greys beyond 255, dropped alpha and high bytes are PIL's choices.
#[test]
fn png_and_webp_are_pils_to_the_bit() {
    for name in [
        "rgba.png",
        "palette.png",
        "bilevel.png",
        "grey_alpha.png",
        "grey16.png",
        "rgb16.png",
        "lossless.webp",
        "lossy.webp",
    ] {
        assert_eq!(worst(name), (0, 0.0), "{name}");
    }
}

/// Both follow the standard, but round and enlarge the colour planes differently.
#[test]
fn jpeg_is_pils_to_a_few_grey_levels() {
    for name in ["420.jpg", "420_even.jpg", "420_restarts.jpg", "422.jpg", "444.jpg", "grey.jpg", "rgb.jpg"] {
        let (worst, mean) = worst(name);
        assert!(worst <= 3 && mean < 0.5, "{name}: worst {worst}, mean {mean}");
    }
    for name in ["progressive.jpg", "orientation.jpg", "cmyk.jpg", "420_dot.jpg"] {
        let (worst, mean) = worst(name);
        assert!(worst <= 3 && mean < 0.5, "{name}: worst {worst}, mean {mean}");
    }
}
