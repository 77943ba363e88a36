//! A safetensors file written header first, then tensor by tensor as the bytes come.

use std::io::Write;

use serde_json::json;

pub(crate) use crate::header::Slot;

/// Bytes handed to the system at once; between two such, progress is told and an interruption is heard.
const CHUNK: usize = 8 << 20;

/// Order in which tensors are written: as given, wider element types first where they are mixed, so that each is aligned.
pub(crate) fn order(slots: &[Slot<'_>]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..slots.len()).collect();
    order.sort_by_key(|at| std::cmp::Reverse(slots[*at].dtype.bitsize()));
    order
}

/// The header for `slots` in `order`.
pub(crate) fn header(slots: &[Slot<'_>], order: &[usize]) -> Vec<u8> {
    // transformers refuses files that do not say which framework's layout they have.
    crate::header::header(json!({ "format": "pt" }), order.iter().map(|at| &slots[*at]))
}

/// Writes through to `out`, counting, and telling `progress` how many bytes each step wrote.
pub(crate) struct Counted<'a, W, P> {
    pub(crate) out: W,
    pub(crate) written: u64,
    pub(crate) progress: &'a mut P,
}

/// Why a counted write stopped.
pub(crate) enum Stop {
    Io(std::io::Error),
    Interrupted,
}

impl<W: Write, P: FnMut(u64) -> bool> Counted<'_, W, P> {
    /// Writes all of `bytes`.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        for chunk in bytes.chunks(CHUNK) {
            self.out.write_all(chunk).map_err(Stop::Io)?;
            self.written += chunk.len() as u64;
            if !(self.progress)(chunk.len() as u64) {
                return Err(Stop::Interrupted);
            }
        }
        Ok(())
    }
}
