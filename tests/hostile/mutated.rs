//! Every small fixture, cut short or with one bit turned: read or refused, soon, and never a panic.

use std::sync::LazyLock;
use std::{fs, path::Path};

use proptest::prelude::*;

use super::{assert_clear, read};
use crate::words::InFull;

/// The fixtures; those that are zips a second time without checksums, which would hide the reader behind them.
static FIXTURES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/containers");
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|kind| kind == "pth" || kind == "safetensors"));
    paths.sort();
    let mut out: Vec<Vec<u8>> = paths.iter().map(|path| fs::read(path).unwrap()).collect();
    for at in 0..out.len() {
        if out[at].starts_with(b"PK") {
            out.push(without_checksums(out[at].clone()));
        }
    }
    out
});

fn without_checksums(mut bytes: Vec<u8>) -> Vec<u8> {
    for at in 0..bytes.len() - 20 {
        if bytes[at..].starts_with(b"PK\x01\x02") {
            bytes[at + 16..at + 20].fill(0);
        }
    }
    bytes
}

fn read_or_refuse(bytes: Vec<u8>) {
    if let Err(error) = read(bytes) {
        let message = error.in_full();
        if !message.contains("is empty") {
            assert_clear(&message);
        }
    }
}

#[test]
fn the_fixtures_themselves_are_read() {
    assert!(FIXTURES.len() > 30, "{}", FIXTURES.len());
    for bytes in FIXTURES.iter() {
        read(bytes.clone()).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_truncation_is_read_or_refused(which in any::<prop::sample::Index>(), cut in any::<prop::sample::Index>()) {
        let bytes = which.get(&FIXTURES);
        read_or_refuse(bytes[..cut.index(bytes.len())].to_vec());
    }

    #[test]
    fn any_single_turned_bit_is_read_or_refused(
        which in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        bit in 0u8..8,
    ) {
        let mut bytes = which.get(&FIXTURES).clone();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        read_or_refuse(bytes);
    }

    #[test]
    fn any_stretch_of_foreign_bytes_is_read_or_refused(
        which in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        foreign in proptest::collection::vec(any::<u8>(), 1..16),
    ) {
        let mut bytes = which.get(&FIXTURES).clone();
        let at = at.index(bytes.len());
        let end = (at + foreign.len()).min(bytes.len());
        bytes.splice(at..end, foreign);
        read_or_refuse(bytes);
    }
}
