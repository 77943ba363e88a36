//! The header of a safetensors file, for the writers here that stream what follows it.
//!
//! The crate's own writer wants every tensor at hand and takes metadata from a hash map, whose order differs from run to
//! run; these files are the same bytes for the same input.

use safetensors::Dtype;
use serde_json::{Map, Value, json};

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

/// The length field and the header for `slots` in the order their bytes will follow, padded with spaces so that the
/// tensors start on a multiple of 8.
pub(crate) fn header<'a>(metadata: Value, slots: impl Iterator<Item = &'a Slot<'a>>) -> Vec<u8> {
    let mut json = Map::new();
    json.insert("__metadata__".to_owned(), metadata);
    let mut offset = 0;
    for slot in slots {
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
