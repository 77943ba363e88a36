//! What a run writes while it goes: metrics, TensorBoard events, curves.

use std::io::Write;
use std::path::Path;

use tec_zoo::train::{Events, Metrics, StepRecord};
use tec_zoo::view::{Curve, curves};

fn record(step: u64) -> StepRecord {
    let loss = 3.0 / step as f64;
    StepRecord {
        step,
        epoch: (step - 1) as f64 / 10.0,
        lr: 1e-3,
        loss,
        feature: Some(loss * 0.4),
        attention: Some(loss * 0.6),
        pixels: None,
        grad_norm: 1.25,
        images: 32 * step,
        skipped: 0,
        images_per_second: 100.5,
        data_wait: 0.02,
        time: 1.7e9 + step as f64,
    }
}

fn written(dir: &Path, steps: u64) -> std::path::PathBuf {
    let path = dir.join(Metrics::NAME);
    let (mut metrics, kept) = Metrics::open(&path, 0).unwrap();
    assert_eq!(kept, []);
    (1..=steps).for_each(|step| metrics.append(&record(step)).unwrap());
    path
}

#[test]
fn a_metrics_line_has_stable_keys() {
    let dir = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(written(dir.path(), 1)).unwrap();
    insta::assert_snapshot!(text.trim_end(), @r#"{"step":1,"epoch":0.0,"lr":0.001,"loss":3.0,"feature":1.2000000000000002,"attention":1.7999999999999998,"grad_norm":1.25,"images":32,"skipped":0,"images_per_second":100.5,"data_wait":0.02,"time":1700000001.0}"#);
}

#[test]
fn continuing_cuts_what_is_after_the_checkpoint_and_what_a_crash_left() {
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path(), 9);
    let whole = std::fs::read(&path).unwrap();
    std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"step\":10,\"epo").unwrap();
    assert_eq!(Metrics::read(&path).unwrap().len(), 9);
    let (mut metrics, kept) = Metrics::open(&path, 6).unwrap();
    assert_eq!(kept.iter().map(|record| record.step).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
    (7..=9).for_each(|step| metrics.append(&record(step)).unwrap());
    assert_eq!(std::fs::read(&path).unwrap(), whole);
}

#[test]
fn updates_that_metrics_have_lost_are_named() {
    let told = |steps: &[u64]| steps.iter().map(|step| record(*step)).collect::<Vec<_>>();
    assert_eq!(Metrics::missing(&told(&[1, 2, 3]), 0..3), []);
    assert_eq!(Metrics::missing(&[], 0..0), []);
    assert_eq!(Metrics::missing(&told(&[2, 3, 6, 8]), 0..9), [1..=1, 4..=5, 7..=7, 9..=9]);
    assert_eq!(Metrics::missing(&[], 0..4), [1..=4]);
    assert_eq!(Metrics::missing(&told(&[5, 6, 8]), 4..8), [7..=7]);
}

#[test]
fn a_line_out_of_order_ends_what_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(Metrics::NAME);
    let lines = [1, 2, 2, 3].map(|step| serde_json::to_string(&record(step)).unwrap()).join("\n");
    std::fs::write(&path, lines + "\n").unwrap();
    assert_eq!(Metrics::open(&path, 9).unwrap().1.len(), 2);
    assert_eq!(Metrics::read(&path).unwrap().len(), 2, "the rest is gone");
}

/// Castagnoli's polynomial, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 })
    })
}

/// The messages of a TFRecord file whose checksums all hold.
fn records(file: &[u8]) -> Vec<Vec<u8>> {
    let masked = |bytes: &[u8]| {
        let crc = crc32c(bytes);
        crc.rotate_right(15).wrapping_add(0xa282_ead8)
    };
    let word = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap());
    let (mut at, mut out) = (0, Vec::new());
    while at < file.len() {
        let length = u64::from_le_bytes(file[at..at + 8].try_into().unwrap()) as usize;
        assert_eq!(word(at + 8), masked(&file[at..at + 8]));
        let message = &file[at + 12..at + 12 + length];
        assert_eq!(word(at + 12 + length), masked(message));
        out.push(message.to_vec());
        at += 16 + length;
    }
    out
}

/// TensorBoard's own reader is asked in `tests/interop`.
#[test]
fn events_are_framed_records_one_for_each_update_and_are_remade_when_a_run_continues() {
    assert_eq!(crc32c(b"123456789"), 0xe306_9283, "the check value of CRC-32C");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(Events::NAME);
    let mut events = Events::start(&path, 1.7e9, &[]).unwrap();
    (1..=5).for_each(|step| events.append(&record(step)).unwrap());
    let first = records(&std::fs::read(&path).unwrap());
    assert_eq!(first.len(), 6);
    assert!(first[0].ends_with(b"brain.Event:2"), "{:?}", first[0]);
    let has = |message: &[u8], part: &[u8]| message.windows(part.len()).any(|window| window == part);
    assert!(has(&first[1], b"loss/attention") && !has(&first[1], b"loss/pixels"));
    // Tag `optimizer/grad_norm`, then field 2 as a 32-bit float: 1.25.
    assert!(has(&first[1], b"optimizer/grad_norm\x15\x00\x00\xa0\x3f"));

    let kept: Vec<StepRecord> = (1..=3).map(record).collect();
    let mut events = Events::start(&path, 1.8e9, &kept).unwrap();
    (4..=5).for_each(|step| events.append(&record(step)).unwrap());
    assert_eq!(records(&std::fs::read(&path).unwrap())[1..], first[1..]);
}

#[test]
fn curves_draw_every_run_into_a_panel_for_each_quantity() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("curves.svg");
    let run = |name: &str, steps: u64| Curve { name: name.to_owned(), records: (1..=steps).map(record).collect() };
    curves(&[run("alpha", 5000), run("beta", 3)], &out).unwrap();
    let svg = std::fs::read_to_string(&out).unwrap();
    for text in ["feature loss", "attention loss", "learning rate", "gradient norm", "alpha", "beta", "epoch"] {
        assert!(svg.contains(text), "{text}");
    }
    assert!(!svg.contains("pixel loss"), "no run has one");
    // Six panels, two lines each; five thousand points do not fit into a panel's width.
    assert!(svg.matches("<polyline").count() >= 12);
    assert!(svg.len() < 400_000, "{}", svg.len());
    let error = curves(&[run("empty", 0)], &out).unwrap_err().to_string();
    assert_eq!(error, "`empty` has no updates to draw yet");
}

#[test]
fn a_picture_is_of_the_kind_its_name_says() {
    let dir = tempfile::tempdir().unwrap();
    let runs = [Curve { name: "größer".to_owned(), records: (1..=50).map(record).collect() }];
    let written = |name: &str| {
        let out = dir.path().join(name);
        curves(&runs, &out).map(|()| std::fs::read(out).unwrap())
    };
    let picture = image::load_from_memory_with_format(&written("x.PNG").unwrap(), image::ImageFormat::Png).unwrap();
    let picture = picture.to_rgb8();
    assert_eq!(picture.dimensions(), (960, 6 * 260));
    // White paper, dark letters, and a line in colour.
    let count = |is: fn(&[u8; 3]) -> bool| picture.pixels().filter(|pixel| is(&pixel.0)).count();
    assert!(count(|pixel| *pixel == [255; 3]) > 1_000_000);
    assert!(count(|pixel| pixel.iter().all(|value| *value < 64)) > 3_000);
    assert!(count(|[r, g, b]| r.abs_diff(*g).max(g.abs_diff(*b)) > 100) > 3_000);
    for name in ["x.svg", "x"] {
        assert!(written(name).unwrap().starts_with(b"<svg"), "{name}");
    }
    let error = written("x.pdf").unwrap_err().to_string();
    assert!(error.contains("`.svg` or `.png`, not `.pdf`"), "{error}");
    assert!(!dir.path().join("x.pdf").exists());
}
