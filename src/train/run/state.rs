//! Numbers of a run on disk: flat f32 tensors in a safetensors file, with a checksum of the whole file kept elsewhere.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::header::{Slot, header};
use crate::model::Weights;

/// Bytes converted, hashed and written at once.
const CHUNK: usize = 1 << 18;

/// Size and checksum of a file: what a torn one fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Seal {
    bytes: u64,
    crc32c: u32,
}

impl Seal {
    /// The seal of the file `path`.
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let mut buffer = vec![0; CHUNK];
        let mut seal = Self { bytes: 0, crc32c: 0 };
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(seal),
                count => seal.add(&buffer[..count]),
            }
        }
    }

    fn add(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.crc32c = crc32c::crc32c_append(self.crc32c, bytes);
    }
}

/// Writes `tensors` (name, shape, row-major values) as the new file `path`, and waits until they are on the platter.
pub(super) fn write(path: &Path, tensors: &[(&str, Vec<usize>, &[f32])]) -> io::Result<Seal> {
    let slots = tensors.iter().map(|(name, shape, _)| Slot { name, dtype: Dtype::F32, shape });
    let slots: Vec<Slot<'_>> = slots.collect();
    write_pieces(path, &slots, tensors.iter().map(|(_, _, values)| Ok(Cow::Borrowed(*values))))
}

/// [`write`], of values that come a piece at a time: a copy of all may be more than memory holds.
pub(super) fn write_pieces<'v>(
    path: &Path,
    slots: &[Slot<'_>],
    pieces: impl Iterator<Item = io::Result<Cow<'v, [f32]>>>,
) -> io::Result<Seal> {
    let mut file = File::create_new(path)?;
    let mut seal = Seal { bytes: 0, crc32c: 0 };
    let mut put = |bytes: &[u8]| {
        seal.add(bytes);
        file.write_all(bytes)
    };
    put(&header(json!({ "format": "pt" }), slots.iter()))?;
    let mut buffer = Vec::with_capacity(CHUNK);
    for piece in pieces {
        for part in piece?.chunks(CHUNK / 4) {
            buffer.clear();
            buffer.extend(part.iter().flat_map(|value| value.to_le_bytes()));
            put(&buffer)?;
        }
    }
    file.sync_all()?;
    Ok(seal)
}

/// Hands the bytes of a file of `weights` alone to `put`, some at a time.
pub(super) fn stream(weights: &Weights, put: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let views: Vec<_> = weights.names().filter_map(|name| Some((name, weights.get(name)?))).collect();
    let slots: Vec<Slot<'_>> =
        views.iter().map(|(name, view)| Slot { name, dtype: view.dtype, shape: view.shape }).collect();
    put(&header(json!({ "format": "pt" }), slots.iter()))?;
    views.iter().flat_map(|(_, view)| view.bytes.chunks(CHUNK)).try_for_each(put)
}

/// The tensor `name` of `file`.
pub(super) fn read(file: &Weights, name: &str) -> Result<Vec<f32>, String> {
    let view = file.get(name).ok_or_else(|| format!("it has no tensor `{name}`"))?;
    if view.dtype != Dtype::F32 {
        return Err(format!("its tensor `{name}` is {}, not F32", view.dtype));
    }
    Ok(view.bytes.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect())
}
