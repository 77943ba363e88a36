//! The sha256 of a checkpoint's files, computed while its tensors are being copied.

use std::sync::atomic::{AtomicBool, Ordering};

use sha2::{Digest, Sha256};

use crate::checkpoint::Checkpoint;

const BLOCK: usize = 4 << 20;

/// Size and lower-case hex sha256 of the checkpoint's files, one after the other; `None` once `stop` is set.
pub(crate) fn digest(checkpoint: &Checkpoint, stop: &AtomicBool) -> Option<(u64, String)> {
    let mut hash = Sha256::new();
    let mut size = 0;
    for block in checkpoint.sources().flat_map(|bytes| bytes.chunks(BLOCK)) {
        if stop.load(Ordering::Relaxed) {
            return None;
        }
        hash.update(block);
        size += block.len() as u64;
    }
    Some((size, hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()))
}
