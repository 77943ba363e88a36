//! Pixels against PIL's and torchvision's.

use tec_zoo::data::{Augment, Crop, Part, Picture, Rgb, TrainTransform};

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
    worst_of("decoded.safetensors", name)
}

fn worst_of(file: &str, name: &str) -> (u8, f64) {
    let (shape, theirs) = super::expected(file, name);
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

#[test]
fn the_formats_photographs_rarely_come_in_are_pils_to_the_bit() {
    let mut wrong = Vec::new();
    for name in [
        "rgb.bmp",
        "palette.bmp",
        "bilevel.bmp",
        "rgb.tif",
        "lzw.tiff",
        "deflate.tif",
        "grey.tif",
        "grey16.tif",
        "rgba.tif",
        "still.gif",
        "animated.gif",
        "transparent.gif",
        "rgb.ppm",
        "grey.pgm",
        "bilevel.pbm",
        "any.pnm",
        "plain31.pgm",
        "photo.jfif",
    ] {
        match worst_of("formats.safetensors", name) {
            (0, _) => {}
            (worst, mean) => wrong.push(format!("{name}: worst {worst}, mean {mean}")),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// What nearly all photographs are: decoded here, in libjpeg's own integers.
const OWN: [&str; 9] = [
    "420.jpg",
    "420_even.jpg",
    "420_thin.jpg",
    "420_dot.jpg",
    "420_restarts.jpg",
    "422.jpg",
    "444.jpg",
    "grey.jpg",
    "rgb.jpg",
];

#[test]
fn baseline_jpeg_is_pils_to_the_bit_whatever_its_exif_says() {
    for name in OWN.iter().chain(&["orientation.jpg"]) {
        assert_eq!(worst(name), (0, 0.0), "{name}");
    }
}

/// Another decoder's: it follows the standard too, but rounds and enlarges the colour planes differently.
#[test]
fn other_jpeg_is_pils_to_a_few_grey_levels() {
    for name in ["progressive.jpg", "cmyk.jpg"] {
        let (worst, mean) = worst(name);
        assert!(worst <= 3 && mean < 0.5, "{name}: worst {worst}, mean {mean}");
    }
}

fn part(name: &str, crop: Crop, reduce: u32) -> Part {
    let encoded = std::fs::read(super::fixture(name)).unwrap();
    Picture::open(&encoded).unwrap().decode_part(crop, reduce).unwrap()
}

#[test]
fn reduced_jpeg_is_libjpegs_own_to_the_bit() {
    for name in ["444.jpg", "grey.jpg", "420_large.jpg", "422_large.jpg"] {
        let encoded = std::fs::read(super::fixture(name)).unwrap();
        let (width, height) = Picture::open(&encoded).unwrap().dimensions();
        for factor in [2, 4, 8] {
            let (shape, theirs) = super::expected("reduced.safetensors", &format!("{name}/{factor}"));
            let ours = part(name, Crop::all(width, height), factor);
            assert_eq!([ours.image.height as usize, ours.image.width as usize], shape[..2], "{name}/{factor}");
            assert!(ours.image.pixels == theirs, "{name}/{factor}");
        }
    }
}

#[test]
fn a_part_is_that_part_of_the_whole_at_every_scale() {
    for name in
        ["420_large.jpg", "422_large.jpg", "444.jpg", "420_restarts.jpg", "grey.jpg", "rgba.png", "progressive.jpg"]
    {
        let encoded = std::fs::read(super::fixture(name)).unwrap();
        let (width, height) = Picture::open(&encoded).unwrap().dimensions();
        for reduce in [1, 2, 4, 8] {
            let whole = part(name, Crop::all(width, height), reduce);
            let factor = whole.reduced;
            for at in 0..60 {
                let (left, top) = (at * 7 % width, at * 5 % height);
                let crop =
                    Crop { left, top, width: 1 + at * 11 % (width - left), height: 1 + at * 13 % (height - top) };
                let found = part(name, crop, reduce);
                let (left, top) = (crop.left / factor, crop.top / factor);
                assert_eq!(found.left, f64::from(crop.left) / f64::from(factor) - f64::from(left));
                assert!(found.left + found.width <= f64::from(found.image.width));
                assert!(found.top + found.height <= f64::from(found.image.height));
                for row in 0..found.image.height {
                    let line = |image: &Rgb, row: u32, left: u32, width: u32| {
                        let start = (row * image.width + left) as usize * 3;
                        image.pixels[start..start + width as usize * 3].to_vec()
                    };
                    let width = found.image.width;
                    assert!(
                        line(&found.image, row, 0, width) == line(&whole.image, top + row, left, width),
                        "{name}/{reduce}: {crop:?}, row {row}"
                    );
                }
            }
        }
    }
}

/// torchvision's `resized_crop` of several boxes, which Pillow resizes.
#[test]
fn crops_resize_to_torchvisions_pixels_to_the_bit() {
    for name in ["444.jpg", "422.jpg", "420.jpg", "420_restarts.jpg", "rgba.png"] {
        let encoded = std::fs::read(super::fixture(name)).unwrap();
        for [left, top, width, height] in [[0, 0, 61, 41], [13, 7, 39, 31], [40, 20, 21, 21], [1, 1, 20, 17]] {
            let (_, theirs) = super::expected("decoded.safetensors", &format!("{name}@{left},{top},{width},{height}"));
            // The crop as an image of its own, losslessly, of which the transform keeps everything.
            let crop =
                Picture::open(&encoded).unwrap().decode_part(Crop { left, top, width, height }, 1).unwrap().image;
            let image = image::RgbImage::from_raw(width, height, crop.pixels).unwrap();
            let mut png = std::io::Cursor::new(Vec::new());
            image.write_to(&mut png, image::ImageFormat::Png).unwrap();
            let mut out = vec![0.0; 3 * 32 * 32];
            let augment = Augment { ratio: [f64::from(width) / f64::from(height); 2], ..plain([32, 32]) };
            TrainTransform::new(augment).apply(&png.into_inner(), [0, 0, 0], &mut out).unwrap();
            for (at, &level) in theirs.iter().enumerate() {
                let ours = (out[at % 3 * 1024 + at / 3] * 255.0).round() as u8;
                assert_eq!(ours, level, "{name} {left},{top},{width},{height}: value {at}");
            }
        }
    }
}

/// Decoding at reduced size leaves out what resampling would throw away: on a smooth picture with edges, as photographs are,
/// it must stay close, and it must in fact happen.
#[test]
fn reduced_decoding_is_close_to_exact_decoding() {
    let encoded = std::fs::read(super::fixture("420_large.jpg")).unwrap();
    let (mut sum, mut count, mut worst, mut different) = (0.0, 0.0, 0.0_f32, 0);
    for sample in 0..50 {
        let [fast, exact] = [false, true].map(|exact_decode| {
            let augment = Augment { size: [24, 24], mean: [0.0; 3], std: [1.0; 3], exact_decode, ..Augment::default() };
            let mut out = vec![0.0; augment.values()];
            TrainTransform::new(augment).apply(&encoded, [1, 0, sample], &mut out).unwrap();
            out
        });
        different += i32::from(fast != exact);
        for (a, b) in fast.iter().zip(&exact) {
            let difference = (a - b).abs() * 255.0;
            (sum, count, worst) = (sum + f64::from(difference), count + 1.0, worst.max(difference));
        }
    }
    println!("mean {}, worst {worst}, {different} of 50 differ", sum / count);
    assert!(different > 25, "{different}");
    assert!(sum / count < 1.0 && worst < 16.0, "mean {}, worst {worst}", sum / count);
}
