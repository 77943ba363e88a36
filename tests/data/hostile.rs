//! Bytes that only pretend to be images or archives.

use std::path::Path;

use proptest::prelude::*;
use tec_zoo::data::{Augment, Dataset, TrainTransform};

fn decode(encoded: &[u8]) {
    let mut out = vec![0.0; 3 * 16 * 16];
    // Whatever comes out, nothing may panic.
    drop(TrainTransform::new(Augment { size: [16, 16], ..Augment::default() }).apply(encoded, [1, 2, 3], &mut out));
}

fn open(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).unwrap();
    if let Ok(dataset) = Dataset::open(path) {
        let mut read = Vec::new();
        for at in 0..dataset.len().min(100) {
            drop(dataset.read(at, &mut read));
            assert!(read.len() <= bytes.len());
        }
    }
}

const IMAGES: [&str; 18] = [
    "420.jpg",
    "422.jpg",
    "grey.jpg",
    "progressive.jpg",
    "cmyk.jpg",
    "420_restarts.jpg",
    "rgba.png",
    "lossy.webp",
    "lossless.webp",
    "rgb.bmp",
    "palette.bmp",
    "lzw.tiff",
    "deflate.tif",
    "grey16.tif",
    "animated.gif",
    "rgb.ppm",
    "bilevel.pbm",
    "plain31.pgm",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_after_any_magic_are_refused(magic in 0..9_usize, bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let magics: [&[u8]; 9] = [
            b"\xff\xd8\xff",
            b"\x89PNG\r\n\x1a\n",
            b"RIFF\x00\x10\x00\x00WEBPVP8 ",
            b"BM",
            b"GIF89a",
            b"II*\0\x08\0\0\0",
            b"P6\n",
            b"P2 ",
            b"",
        ];
        decode(&[magics[magic], &bytes[..]].concat());
    }

    #[test]
    fn changed_bytes_of_real_images_do_no_harm(
        image in prop::sample::select(&IMAGES[..]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
        whole in any::<bool>(),
    ) {
        let mut bytes = std::fs::read(super::fixture(image)).unwrap();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        decode(if whole { &bytes } else { &bytes[..cut.index(bytes.len())] });
    }

    #[test]
    fn changed_archives_do_no_harm(
        changes in prop::collection::vec((0..4096_usize, any::<u8>()), 1..6),
        cut in 0..4096_usize,
    ) {
        let mut builder = tar::Builder::new(Vec::new());
        for i in 0..3_u64 {
            let mut header = tar::Header::new_gnu();
            header.set_size(100 + i);
            builder.append_data(&mut header, format!("{i}.jpg"), &vec![1; 100 + i as usize][..]).unwrap();
        }
        let mut bytes = builder.into_inner().unwrap();
        for (at, value) in changes {
            let at = at % bytes.len();
            bytes[at] = value;
            // A header whose checksum does not fit says nothing: most changes have to get past it.
            let header = at / 512 * 512;
            if bytes[header + 257..].starts_with(b"ustar") {
                let sum: u32 = bytes[header..header + 512].iter().enumerate().map(|(i, &byte)| if (148..156).contains(&i) { 32 } else { u32::from(byte) }).sum();
                bytes[header + 148..header + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.tar");
        open(&path, &bytes);
        open(&path, &bytes[..cut.min(bytes.len())]);
    }
}

/// A few bytes that claim 10,000 × 10,000 pixels must not cost 300 MB.
#[test]
fn claims_that_the_file_cannot_hold_are_not_believed() {
    let mut png = std::fs::read(super::fixture("rgba.png")).unwrap();
    png[16..24].copy_from_slice(&[0, 0, 0x27, 0x10, 0, 0, 0x27, 0x10]);
    let checksum = crc(&png[12..29]);
    png[29..33].copy_from_slice(&checksum.to_be_bytes());
    let mut jpg = std::fs::read(super::fixture("420.jpg")).unwrap();
    let frame = jpg.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
    jpg[frame + 5..frame + 9].copy_from_slice(&[0x27, 0x10, 0x27, 0x10]);
    for bytes in [png, jpg] {
        let mut transform = TrainTransform::new(Augment::default());
        let mut out = vec![0.0; Augment::default().values()];
        let error = transform.apply(&bytes, [0, 0, 0], &mut out).unwrap_err();
        assert!(error.contains("cannot hold 10000×10000"), "{error}");
    }
}

/// A header of each new format that claims 10,000 × 10,000 or more: refused by what the file can hold, or once its few bytes
/// are used up, and in neither case by running out of memory.
#[test]
fn huge_claims_of_rare_formats_end_at_once() {
    let bmp = {
        let mut bytes = std::fs::read(super::fixture("rgb.bmp")).unwrap();
        bytes[18..26].copy_from_slice(&[0x10, 0x27, 0, 0, 0x10, 0x27, 0, 0]);
        bytes
    };
    let gif = {
        let mut bytes = std::fs::read(super::fixture("still.gif")).unwrap();
        bytes[6..10].copy_from_slice(&[0xff; 4]);
        bytes
    };
    let tif = {
        let mut bytes = std::fs::read(super::fixture("rgb.tif")).unwrap();
        let at = u32::from_le_bytes(bytes[4..8].try_into().unwrap()) as usize;
        let entries = usize::from(u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap()));
        for entry in 0..entries {
            let entry = at + 2 + 12 * entry;
            // ImageWidth, ImageLength, RowsPerStrip.
            if [[0, 1], [1, 1], [22, 1]].contains(&[bytes[entry], bytes[entry + 1]]) {
                bytes[entry + 2..entry + 4].copy_from_slice(&[4, 0]);
                bytes[entry + 8..entry + 12].copy_from_slice(&10_000_u32.to_le_bytes());
            }
        }
        bytes
    };
    let ppm = b"P6\n60000 60000\n255\n0123456789".to_vec();
    let pgm = b"P5\n10000 10000\n255\n0123456789".to_vec();
    for (name, bytes) in [("bmp", bmp), ("gif", gif), ("tif", tif), ("ppm", ppm), ("pgm", pgm)] {
        let mut transform = TrainTransform::new(Augment::default());
        let mut out = vec![0.0; Augment::default().values()];
        let error = transform.apply(&bytes, [0, 0, 0], &mut out).unwrap_err();
        assert!(!error.is_empty(), "{name}");
        println!("{name}: {error}");
    }
}

fn crc(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}
