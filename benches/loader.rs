//! Images a second that the training loader delivers, from JPEGs of ImageNet's usual size, and what decoding costs of it.
//!
//! With `TEC_ZOO_LOADER_FOLDER` set, it loads that folder once instead and prints what `benches/peers/loader.py` compares:
//! `TEC_ZOO_LOADER_WORKERS` threads, `TEC_ZOO_LOADER_EPOCHS` epochs, exact decoding if `TEC_ZOO_LOADER_EXACT` is there. With
//! `TEC_ZOO_LOADER_DECODER` as `own` or `zune`, it only decodes a random crop of each of that folder's JPEGs, on one thread, with
//! this crate's decoder or with `zune-jpeg`, and writes what the whole images decode to into `TEC_ZOO_LOADER_PIXELS`, if that is
//! there.

use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use divan::Bencher;
use divan::counter::ItemsCount;
use image::codecs::jpeg::JpegEncoder;
use tec_zoo::data::{
    Augment, Crop, Dataset, Draws, Loader, LoaderSettings, Picture, Position, Purpose, Share, TrainTransform,
};
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

const BATCH: usize = 64;

fn main() {
    match std::env::var_os("TEC_ZOO_LOADER_FOLDER") {
        Some(folder) => match std::env::var("TEC_ZOO_LOADER_DECODER") {
            Ok(decoder) => decode_once(Path::new(&folder), &decoder),
            Err(_) => load_once(Path::new(&folder)),
        },
        None => divan::main(),
    }
}

fn settings(workers: usize, epochs: u64, exact_decode: bool) -> LoaderSettings {
    LoaderSettings {
        seed: 1,
        augment: Augment { exact_decode, ..Augment::default() },
        batch: BATCH,
        noise: 196,
        share: Share { rank: 0, world: 1 },
        epochs,
        batches: None,
        workers,
        prefetch: 2,
        broken_limit: 0,
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// Largest resident memory so far, in MiB; 0 where the system does not say.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) / 1024
}

/// From the first batch on: starting threads and processes is not what is compared.
fn load_once(folder: &Path) {
    let workers = number("TEC_ZOO_LOADER_WORKERS", 2) as usize;
    let epochs = number("TEC_ZOO_LOADER_EPOCHS", 1);
    let dataset = Arc::new(Dataset::open(folder).expect("a data set"));
    let exact = std::env::var_os("TEC_ZOO_LOADER_EXACT").is_some();
    let mut loader = Loader::new(dataset, settings(workers, epochs, exact), Position::default()).expect("a loader");
    let (mut start, mut images, mut waited) = (Instant::now(), 0, Duration::ZERO);
    while let Some(batch) = loader.next() {
        let batch = batch.expect("a batch");
        match batch.position {
            Position { epoch: 0, batch: 0 } => start = Instant::now(),
            _ => images += batch.samples.len(),
        }
        waited += batch.waited;
        loader.recycle(batch.images, batch.noise);
    }
    let seconds = start.elapsed().as_secs_f64();
    println!(r#"{{"images_per_second": {:.1}, "peak_mib": {}}}"#, images as f64 / seconds, peak());
    eprintln!("{images} images in {seconds:.2} s, of which the taker waited {waited:.2?}");
}

/// The crop of an image as RGB: only that is decoded, or all of it and the rest cut away.
fn cropped(decoder: &str, encoded: &[u8], crop: impl Fn(u32, u32) -> Crop) -> Vec<u8> {
    if decoder == "own" {
        let picture = Picture::open(encoded).expect("a JPEG");
        let (width, height) = picture.dimensions();
        return picture.decode_part(crop(width, height), 1).expect("a JPEG").image.pixels;
    }
    let options = DecoderOptions::default().jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut jpeg = JpegDecoder::new_with_options(ZCursor::new(encoded), options);
    let pixels = jpeg.decode().expect("a JPEG");
    let (width, height) = jpeg.dimensions().expect("decoded");
    let Crop { left, top, width: wide, height: high } = crop(width as u32, height as u32);
    let rows = pixels.chunks_exact(width * 3).skip(top as usize).take(high as usize);
    rows.flat_map(|row| &row[left as usize * 3..][..wide as usize * 3]).copied().collect()
}

/// Images a second of one thread; the files are read before.
fn decode_once(folder: &Path, decoder: &str) {
    let dataset = Dataset::open(folder).expect("a data set");
    let encoded: Vec<Vec<u8>> = (0..dataset.len())
        .map(|at| {
            let mut bytes = Vec::new();
            dataset.read(at, &mut bytes).expect("a file");
            bytes
        })
        .collect();
    let Augment { scale, ratio, .. } = Augment::default();
    let start = Instant::now();
    for (sample, encoded) in (0..).zip(&encoded) {
        let draws = || Draws::new(1, 0, sample, Purpose::Crop);
        let crop = |width, height| Crop::random(width, height, scale, ratio, &mut draws());
        std::hint::black_box(cropped(decoder, encoded, crop));
    }
    println!(r#"{{"images_per_second": {:.1}}}"#, encoded.len() as f64 / start.elapsed().as_secs_f64());
    if let Some(pixels) = std::env::var_os("TEC_ZOO_LOADER_PIXELS") {
        for (at, encoded) in encoded.iter().enumerate() {
            let all = cropped(decoder, encoded, Crop::all);
            std::fs::write(Path::new(&pixels).join(format!("{at:05}")), all).expect("a file");
        }
    }
}

/// A picture with structure at all scales, as photographs have.
fn picture(width: u32, height: u32, seed: u64) -> image::RgbImage {
    let mut draws = Draws::new(seed, 0, 0, Purpose::Crop);
    let mut grid = |side: u32| -> Vec<[f32; 3]> {
        (0..side * side).map(|_| [(); 3].map(|()| (draws.word() >> 40) as f32 / (1 << 24) as f32 - 0.5)).collect()
    };
    let octaves: Vec<(u32, f32, Vec<[f32; 3]>)> =
        (2..8).map(|octave| (1 << octave, 160.0 / 1.5_f32.powi(octave - 2), grid((1 << octave) + 2))).collect();
    image::RgbImage::from_fn(width, height, |x, y| {
        let mut pixel = [128.0; 3];
        for (side, weight, grid) in &octaves {
            let scale = *side as f32 / width.max(height) as f32;
            let (u, v) = (x as f32 * scale, y as f32 * scale);
            let (at, du, dv) = ((v as u32 * (side + 2) + u as u32) as usize, u.fract(), v.fract());
            for (channel, pixel) in pixel.iter_mut().enumerate() {
                let node = |offset: usize| grid[at + offset][channel];
                let below = *side as usize + 2;
                let top = node(0) * (1.0 - du) + node(1) * du;
                let bottom = node(below) * (1.0 - du) + node(below + 1) * du;
                *pixel += weight * (top * (1.0 - dv) + bottom * dv);
            }
        }
        image::Rgb(pixel.map(|value| value as u8))
    })
}

fn jpeg(width: u32, height: u32, seed: u64) -> Vec<u8> {
    let mut out = Cursor::new(Vec::new());
    picture(width, height, seed).write_with_encoder(JpegEncoder::new_with_quality(&mut out, 90)).expect("a JPEG");
    out.into_inner()
}

#[divan::bench(args = [1, 2], sample_count = 5, sample_size = 1)]
fn an_epoch_of_256_images(bencher: Bencher<'_, '_>, workers: usize) {
    let dir = tempfile::tempdir().expect("a folder");
    for i in 0..256_u64 {
        std::fs::write(dir.path().join(format!("{i}.jpg")), jpeg(500, 375, i % 16)).expect("a file");
    }
    let dataset = Arc::new(Dataset::open(dir.path()).expect("a data set"));
    bencher.counter(ItemsCount::new(256_usize)).bench_local(|| {
        let mut loader =
            Loader::new(dataset.clone(), settings(workers, 1, false), Position::default()).expect("a loader");
        while let Some(batch) = loader.next() {
            let batch = batch.expect("a batch");
            loader.recycle(batch.images, batch.noise);
        }
    });
}

#[divan::bench(args = [500, 2000])]
fn decode_all(bencher: Bencher<'_, '_>, width: u32) {
    let encoded = jpeg(width, width * 3 / 4, 1);
    bencher.counter(ItemsCount::new(1_usize)).bench_local(|| Picture::open(&encoded).and_then(Picture::decode));
}

#[divan::bench(args = [500, 2000])]
fn decode_all_with_the_image_crate(bencher: Bencher<'_, '_>, width: u32) {
    let encoded = jpeg(width, width * 3 / 4, 1);
    bencher.counter(ItemsCount::new(1_usize)).bench_local(|| image::load_from_memory(&encoded));
}

#[divan::bench(args = [1, 2, 4, 8])]
fn decode_the_middle_of_2000(bencher: Bencher<'_, '_>, reduce: u32) {
    let encoded = jpeg(2000, 1500, 1);
    let crop = Crop { left: 400, top: 300, width: 1200, height: 900 };
    bencher
        .counter(ItemsCount::new(1_usize))
        .bench_local(|| Picture::open(&encoded).and_then(|picture| picture.decode_part(crop, reduce)));
}

#[divan::bench(args = [500, 2000])]
fn whole_transform(bencher: Bencher<'_, '_>, width: u32) {
    let encoded = jpeg(width, width * 3 / 4, 1);
    let mut transform = TrainTransform::new(Augment::default());
    let mut out = vec![0.0; Augment::default().values()];
    let mut sample = 0;
    bencher.counter(ItemsCount::new(1_usize)).bench_local(|| {
        sample += 1;
        transform.apply(&encoded, [1, 0, sample], &mut out)
    });
}
