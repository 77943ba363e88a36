//! A safetensors file written header first, then tensor by tensor as the bytes come.

use std::io::Write;

use safetensors::Dtype;
use serde_json::{Map, Value, json};

/// Bytes handed to the system at once; between two such, progress is told and an interruption is heard.
const CHUNK: usize = 8 << 20;

/// A tensor about to be written.
#[derive(Debug, Clone)]
pub(crate) struct Slot<'a> {
    pub(crate) name: &'a str,
    pub(crate) dtype: Dtype,
    pub(crate) shape: &'a [usize],
}

impl Slot<'_> {
    fn bytes(&self) -> u64 {
        self.shape.iter().map(|side| *side as u64).product::<u64>() * (self.dtype.bitsize() as u64) / 8
    }
}

/// Order in which tensors are written: as given, wider element types first where they are mixed, so that each is aligned.
pub(crate) fn order(slots: &[Slot<'_>]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..slots.len()).collect();
    order.sort_by_key(|at| std::cmp::Reverse(slots[*at].dtype.bitsize()));
    order
}

/// The header for `slots` in `order`, padded with spaces so that the tensors start on a multiple of 8.
pub(crate) fn header(slots: &[Slot<'_>], order: &[usize]) -> Vec<u8> {
    let mut json = Map::new();
    // transformers refuses files that do not say which framework's layout they have.
    json.insert("__metadata__".to_owned(), json!({ "format": "pt" }));
    let mut offset = 0;
    for at in order {
        let slot = &slots[*at];
        let end = offset + slot.bytes();
        let entry = json!({ "dtype": slot.dtype.to_string(), "shape": slot.shape, "data_offsets": [offset, end] });
        json.insert(slot.name.to_owned(), entry);
        offset = end;
    }
    let mut text = Value::Object(json).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut out = (text.len() as u64).to_le_bytes().to_vec();
    out.append(&mut text);
    out
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
