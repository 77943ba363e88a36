//! Malformed and malicious input ends in one named error.

mod files;
mod legacy;
mod make;
mod mutated;
mod pickles;
mod safetensors;
mod tensors;
mod zips;

use std::borrow::Cow;
use std::time::{Duration, Instant};

use tec_zoo::checkpoint::{Checkpoint, CheckpointError};

use crate::words::InFull;

/// Long for a machine that is busy with other tests; every attack here would take hours, or all memory, if it worked.
const PATIENCE: Duration = Duration::from_secs(20);

/// Reads a file that may be anything, and all tensors of it that are not too large to look at.
fn read(bytes: Vec<u8>) -> Result<Checkpoint, CheckpointError> {
    let start = Instant::now();
    let read = Checkpoint::from_bytes("hostile.pth", Cow::Owned(bytes));
    if let Ok(checkpoint) = &read {
        for tensor in checkpoint.tensors().iter().filter(|tensor| tensor.shape.iter().product::<usize>() < 1 << 20) {
            let _ = checkpoint.bytes(tensor);
        }
    }
    assert!(start.elapsed() < PATIENCE, "took {:?}", start.elapsed());
    read
}

/// The message with which a file is refused: one that names the file, fits a screen, and leaves the terminal alone.
fn refused(bytes: Vec<u8>) -> String {
    let message = read(bytes).expect_err("it was read").in_full();
    assert_clear(&message);
    message
}

fn assert_clear(message: &str) {
    assert!(message.starts_with("cannot read checkpoint `hostile.pth`: "), "{message}");
    assert!(message.lines().count() <= 3 && message.chars().count() < 1000, "{message}");
    assert!(message.chars().all(|char| char == '\n' || !char.is_control()), "{message:?}");
}
