//! The download from a server that does not do ranges: from the beginning to the end, in one piece.

use std::fs::File;
use std::io::{Read, Write as _};
use std::path::Path;
use std::time::Instant;

use super::board::{Hasher, Hashes, stalled};
use super::caller::Caller;
use super::http::{Reply, read_some};
use super::retry::Failure;
use super::tree::Leaf;
use super::{FetchError, Options};

const BUFFER: usize = 128 << 10;

/// What is known of the size before the end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// The published size.
    pub published: Option<u64>,
    /// No more than this is accepted.
    pub most: u64,
}

/// Writes the body of `reply` to `path` and hashes it; also returns its size.
///
/// # Errors
/// Why it could not be finished; nothing of it can be kept.
pub(super) fn receive(
    reply: Reply<'_>,
    path: &Path,
    limits: Limits,
    md5: bool,
    options: &Options,
    caller: &Caller,
) -> Result<(Hashes, u64), Failure> {
    let Reply { encoding, length, body, .. } = reply;
    let total = limits.published.or(length);
    let mut body: Box<dyn Read + '_> = match encoding.as_deref() {
        None => Box::new(body),
        Some("gzip" | "x-gzip") => Box::new(flate2::read::GzDecoder::new(body)),
        Some(other) => {
            return Err(Failure::Refused(format!("the server encodes the file as `{other}`, which is not understood")));
        }
    };
    let mut file = File::create(path).map_err(|error| Failure::Local(FetchError::io("create", path)(error)))?;
    let (mut whole, mut chunk, mut leaves) = (Hasher::new(md5), blake3::Hasher::new(), Vec::<Leaf>::new());
    let mut buffer = vec![0; BUFFER];
    let (mut have, mut filled) = (0_u64, 0_u64);
    let mut window = (Instant::now(), 0);
    loop {
        let want = (options.chunk - filled).min(BUFFER as u64) as usize;
        let read = read_some(&mut *body, &mut buffer[..want], caller)?;
        if read == 0 {
            break;
        }
        have += read as u64;
        if have > limits.most {
            return Err(Failure::Refused(format!("the server sends more than {} bytes", limits.most)));
        }
        let bytes = &buffer[..read];
        let missing = total.unwrap_or(have).saturating_sub(have - read as u64);
        file.write_all(bytes).map_err(|error| Failure::Local(FetchError::write(path, missing)(error)))?;
        whole.update(bytes);
        chunk.update(bytes);
        filled += read as u64;
        if filled == options.chunk {
            leaves.push(chunk.finalize().into());
            chunk.reset();
            filled = 0;
        }
        window.1 += read as u64;
        stalled(&mut window, options)?;
        caller.progress(have, total);
        caller.check().map_err(Failure::Local)?;
    }
    if filled > 0 {
        leaves.push(chunk.finalize().into());
    }
    if let Some(total) = total.filter(|total| *total != have) {
        return Err(Failure::transient(format!("the connection ended after {have} of {total} bytes")));
    }
    caller.progress(have, Some(have));
    Ok((whole.finish(leaves), have))
}
