//! The header of a safetensors file. The format's own crate checks offsets and sizes; what it lets pass is checked here.

use std::collections::HashSet;
use std::fmt;

use ::safetensors::SafeTensors;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, Visitor};

use super::error::shown;
use super::place::Place;
use super::{CheckpointError, TensorEntry};

/// Whether `bytes` look like a safetensors file: its header's length, and the header's brace.
pub(super) fn is_safetensors(bytes: &[u8]) -> bool {
    bytes.get(8) == Some(&b'{')
}

/// The tensors.
pub(super) fn read(bytes: &[u8], source: usize) -> Result<Vec<TensorEntry>, CheckpointError> {
    let (len, header) = SafeTensors::read_metadata(bytes)?;
    let start = 8 + len;
    let text = &bytes[8..start];
    let mut json = serde_json::Deserializer::from_slice(text);
    if let Err(error) = json.deserialize_map(Once) {
        return Err(CheckpointError::Header { reason: error.to_string() });
    }
    let mut tensors = Vec::new();
    for name in header.offset_keys() {
        let Some(info) = header.info(&name) else { continue };
        let fail = |reason: String| CheckpointError::Tensor { name: shown(&name), reason };
        let element = info.dtype.bitsize() / 8;
        if element == 0 {
            return Err(fail(format!("its type {} is smaller than a byte, which is not supported", info.dtype)));
        }
        let storage = start + info.data_offsets.0..start + info.data_offsets.1;
        let place = Place::whole(source, storage, &info.shape, element).map_err(fail)?;
        tensors.push(TensorEntry { path: vec![name], dtype: info.dtype, shape: info.shape.clone(), place });
    }
    Ok(tensors)
}

/// A map whose keys each stand once. JSON readers let the last one win, and two tools that let different ones win see
/// two different files.
struct Once;

impl<'de> Visitor<'de> for Once {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a header")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = HashSet::new();
        while let Some((name, IgnoredAny)) = map.next_entry::<String, _>()? {
            if seen.contains(&name) {
                return Err(A::Error::custom(format!("tensor `{}` is there twice", shown(&name))));
            }
            seen.insert(name);
        }
        Ok(())
    }
}
