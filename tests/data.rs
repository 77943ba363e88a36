//! Training data: what PIL and torchvision would make of it, bit by bit where that is promised, and that neither threads nor
//! resuming nor broken files change what a run sees; and that a run knows its data again.

mod crop;
mod dataset;
mod decode;
mod digest;
mod hostile;
mod loader;
mod order;
mod scan;

use std::path::{Path, PathBuf};

use tec_zoo::model::Weights;

fn fixture(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "fixtures", "images", "train", name].iter().collect()
}

/// Shape and bytes of a u8 tensor that PIL or torchvision made.
fn expected(file: &str, name: &str) -> (Vec<usize>, Vec<u8>) {
    let weights = Weights::open(&fixture(file)).unwrap();
    let tensor = weights.get(name).unwrap_or_else(|| panic!("`{name}` is not in {file}"));
    (tensor.shape.to_vec(), tensor.bytes.to_vec())
}

/// A small picture that is different for every `seed`.
fn picture(width: u32, height: u32, seed: u32) -> image::RgbImage {
    image::RgbImage::from_fn(width, height, |x, y| {
        let mix = |k: u32| ((x * (3 + k) + y * (7 - k) + seed * 37) ^ (seed * 11 + k * 53)) as u8;
        image::Rgb([mix(0), mix(1), mix(2)])
    })
}

fn save(path: &Path, image: &image::RgbImage) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    image.save(path).unwrap();
}

/// A folder of `count` pictures in three classes.
fn folder(count: u32) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for i in 0..count {
        let extension = ["jpg", "png", "webp"][(i % 3) as usize];
        save(&dir.path().join(format!("class{}/{i:03}.{extension}", i % 3)), &picture(40 + i, 33 + (i * 7) % 20, i));
    }
    dir
}
