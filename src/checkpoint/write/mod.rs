//! `torch.save`'s zip, written without Python: one state dictionary that `torch.load(weights_only=True)` reads, mapped or
//! not.
//!
//! The way of the file is the way of the bytes: every entry's size is known before the first is written, so the tensors
//! stream from wherever they lie (a mapped model, mostly) and nothing is written twice. Only tensors are written; there is
//! no way to put anything else into the pickle.

mod archive;
mod pickle;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

use ::safetensors::Dtype;
use archive::Archive;

/// A dictionary of tensors, in order.
#[derive(Debug)]
pub(crate) struct State<'a> {
    /// The key under which the dictionary lies in the file's outer one; without, it is the file's object itself.
    pub(crate) wrap: Option<&'a str>,
    pub(crate) tensors: Vec<StateTensor<'a>>,
}

/// A tensor of a [`State`]: contiguous, row-major.
///
/// Two that borrow the very same bytes share a storage in the file, as two tensors over one memory do in PyTorch.
#[derive(Debug)]
pub(crate) struct StateTensor<'a> {
    name: &'a str,
    /// Name of the storage's class in the pickle.
    class: &'static str,
    element: usize,
    shape: &'a [usize],
    bytes: &'a [u8],
}

impl<'a> StateTensor<'a> {
    /// `None` for an element type that torch has no storage of.
    pub(crate) fn new(name: &'a str, dtype: Dtype, shape: &'a [usize], bytes: &'a [u8]) -> Option<Self> {
        let class = match dtype {
            Dtype::F32 => "FloatStorage",
            Dtype::F64 => "DoubleStorage",
            Dtype::F16 => "HalfStorage",
            Dtype::BF16 => "BFloat16Storage",
            Dtype::I64 => "LongStorage",
            _ => return None,
        };
        Some(Self { name, class, element: dtype.bitsize() / 8, shape, bytes })
    }
}

impl<'a> State<'a> {
    /// The storages in the order of the file, and for each tensor the number of its own.
    fn storages(&self) -> (Vec<&'a [u8]>, Vec<usize>) {
        let mut known = HashMap::new();
        let mut storages = Vec::new();
        let numbers = self.tensors.iter().map(|tensor| {
            *known.entry((tensor.bytes.as_ptr(), tensor.bytes.len(), tensor.class)).or_insert_with(|| {
                storages.push(tensor.bytes);
                storages.len() - 1
            })
        });
        let numbers = numbers.collect();
        (storages, numbers)
    }

    /// Bytes of the storages, each counted once.
    pub(crate) fn bytes(&self) -> u64 {
        self.storages().0.iter().map(|bytes| bytes.len() as u64).sum()
    }

    /// Hands the file to `put`, piece by piece, in order.
    ///
    /// # Errors
    /// The first error of `put`.
    pub(crate) fn write<E>(&self, put: &mut impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        self.write_into(Archive::new(put))
    }

    fn write_into<E, P: FnMut(&[u8]) -> Result<(), E>>(&self, mut archive: Archive<'_, P>) -> Result<(), E> {
        let (storages, numbers) = self.storages();
        archive.add("archive/data.pkl", &pickle::dictionary(self, &numbers))?;
        archive.add("archive/byteorder", b"little")?;
        for (number, bytes) in storages.iter().enumerate() {
            archive.add(&format!("archive/data/{number}"), bytes)?;
        }
        archive.add("archive/version", b"3\n")?;
        archive.finish()
    }
}
