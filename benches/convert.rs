//! Conversion of a ViT-S-size checkpoint (87 MB of random values), and of its header alone.
//! `benches/peers/convert.py` compares ViT-L with `cp` and with PyTorch.

#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark that cannot go on should stop where it stands")]

use std::io::{BufWriter, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use divan::counter::BytesCount;
use serde_json::{Map, json};
use tec_zoo::checkpoint::Checkpoint;
use tec_zoo::convert::{Mapping, Plan, Request};
use tec_zoo::destination::Destination;

fn main() {
    divan::main();
}

/// Names and shapes of a ViT-S/16 in timm's layout.
fn parameters() -> Vec<(String, Vec<usize>)> {
    let c = 384;
    let pair = |name: String, weight: Vec<usize>| {
        [(format!("{name}.bias"), vec![weight[0]]), (format!("{name}.weight"), weight)]
    };
    let mut out = vec![("cls_token".to_owned(), vec![1, 1, c]), ("pos_embed".to_owned(), vec![1, 197, c])];
    out.extend(pair("patch_embed.proj".to_owned(), vec![c, 3, 16, 16]));
    for i in 0..12 {
        for (name, shape) in [
            ("norm1", vec![c]),
            ("attn.qkv", vec![3 * c, c]),
            ("attn.proj", vec![c, c]),
            ("norm2", vec![c]),
            ("mlp.fc1", vec![4 * c, c]),
            ("mlp.fc2", vec![c, 4 * c]),
        ] {
            out.extend(pair(format!("blocks.{i}.{name}"), shape));
        }
    }
    out.extend(pair("norm".to_owned(), vec![c]));
    out
}

/// Writes the checkpoint: `bytes` of tensors.
fn write(path: &Path) -> u64 {
    let mut header = Map::new();
    let mut end = 0;
    for (name, shape) in parameters() {
        let start = end;
        end += 4 * shape.iter().product::<usize>();
        header.insert(name, json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, end] }));
    }
    let mut text = serde_json::to_string(&header).unwrap();
    while !text.len().is_multiple_of(8) {
        text.push(' ');
    }
    let mut file = BufWriter::new(std::fs::File::create(path).unwrap());
    file.write_all(&(text.len() as u64).to_le_bytes()).unwrap();
    file.write_all(text.as_bytes()).unwrap();
    let mut state = 1_u32;
    for _ in 0..end / 4 {
        // xorshift: bytes that do not compress, values that do not matter.
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        file.write_all(&(f32::from_bits(0x3f80_0000 | state >> 9) - 1.5).to_le_bytes()).unwrap();
    }
    file.flush().unwrap();
    end as u64
}

fn request() -> Request {
    Request { family: Some("timm".to_owned()), heads: Some(6), ..Request::default() }
}

fn checkpoint() -> (tempfile::TempDir, PathBuf, u64) {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("vit-s.safetensors");
    let bytes = write(&path);
    (temp, path, bytes)
}

#[divan::bench(sample_count = 10)]
fn whole(bencher: divan::Bencher) {
    let (temp, path, bytes) = checkpoint();
    let out = temp.path().join("model");
    bencher.counter(BytesCount::new(bytes)).bench_local(|| {
        let go = &mut |_| ControlFlow::Continue(());
        tec_zoo::convert::convert(&path, Destination::new(&out).overwrite(true), &request(), go).unwrap()
    });
}

#[divan::bench]
fn header_and_plan(bencher: divan::Bencher) {
    let (_temp, path, _) = checkpoint();
    bencher.bench_local(|| Plan::new(&Checkpoint::open(&path).unwrap(), &request()).unwrap());
}

#[divan::bench]
fn every_mapping() -> Vec<Mapping> {
    Mapping::all().unwrap()
}
