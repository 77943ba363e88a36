//! The checkpoint's checksum, for provenance.

use std::sync::atomic::{AtomicBool, Ordering};

use sha2::{Digest, Sha256};

use super::ConvertError;
use crate::checkpoint::Checkpoint;

/// Size and lower-case hex sha256 of the checkpoint's files, one after the other.
///
/// # Errors
/// [`ConvertError::Interrupted`] once `stop` is set; a file that cannot be read again.
pub(crate) fn digest(checkpoint: &Checkpoint, stop: &AtomicBool) -> Result<(u64, String), ConvertError> {
    let mut hash = Sha256::new();
    let mut size = 0;
    checkpoint.stream_files(&mut |piece| {
        if stop.load(Ordering::Relaxed) {
            return Err(ConvertError::Interrupted);
        }
        hash.update(piece);
        size += piece.len() as u64;
        Ok(())
    })?;
    Ok((size, hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()))
}
