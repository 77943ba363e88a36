//! Where a tensor's elements lie, and how they are gathered when they do not lie in a row.

use std::borrow::Cow;
use std::ops::Range;

use super::CheckpointError;

/// A strided view into one source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// Index of the source.
    pub(super) source: usize,
    /// Byte range of the storage the view is in.
    pub(super) storage: Range<usize>,
    /// Byte offset of the first element within the storage.
    pub(super) offset: usize,
    /// Steps between neighbours along each axis, in elements.
    pub(super) strides: Vec<usize>,
    /// Bytes of one element.
    pub(super) element: usize,
}

impl Place {
    /// Checks that every element of `shape` lies inside the storage.
    pub(super) fn check(&self, shape: &[usize]) -> Result<(), String> {
        if self.strides.len() != shape.len() {
            return Err(format!("it has {} axes and {} strides", shape.len(), self.strides.len()));
        }
        let elements = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
        let Some(elements) = elements.filter(|elements| elements.checked_mul(self.element).is_some()) else {
            return Err(format!("its shape {shape:?} overflows"));
        };
        if elements == 0 {
            return Ok(());
        }
        let mut last = 0usize;
        for (&size, &stride) in shape.iter().zip(&self.strides) {
            let step = (size - 1).checked_mul(stride).and_then(|step| last.checked_add(step));
            last = step.ok_or_else(|| format!("its strides {:?} overflow", self.strides))?;
        }
        let end =
            last.checked_add(1).and_then(|n| n.checked_mul(self.element)).and_then(|n| n.checked_add(self.offset));
        match end {
            Some(end) if end <= self.storage.len() => Ok(()),
            _ => Err(format!(
                "it reaches beyond its storage of {} bytes (offset {}, shape {shape:?}, strides {:?})",
                self.storage.len(),
                self.offset,
                self.strides
            )),
        }
    }

    /// The byte range of the elements, when they lie in a row in row-major order.
    pub(super) fn contiguous(&self, shape: &[usize]) -> Option<Range<usize>> {
        let start = self.storage.start + self.offset;
        let elements: usize = shape.iter().product();
        if elements == 0 {
            return Some(self.storage.start..self.storage.start);
        }
        let mut expected = 1;
        for (&size, &stride) in shape.iter().zip(&self.strides).rev() {
            // An axis of one element never steps, whatever its stride says.
            if size != 1 && stride != expected {
                return None;
            }
            expected *= size;
        }
        Some(start..start + elements * self.element)
    }

    /// The elements in row-major order. `bytes` is the whole source.
    pub(super) fn gather<'a>(&self, shape: &[usize], bytes: &'a [u8]) -> Result<Cow<'a, [u8]>, CheckpointError> {
        if let Some(range) = self.contiguous(shape) {
            return Ok(Cow::Borrowed(&bytes[range]));
        }
        let elements: usize = shape.iter().product();
        let start = self.storage.start + self.offset;
        // An expanded view can name more bytes than exist; the file bounds what is worth allocating for it.
        let total = elements * self.element;
        if total > bytes.len() {
            return Err(CheckpointError::Expanded { bytes: total, file: bytes.len() });
        }
        let mut out = Vec::with_capacity(total);
        let mut index = vec![0usize; shape.len()];
        let mut at = 0usize;
        for _ in 0..elements {
            let from = start + at * self.element;
            out.extend_from_slice(&bytes[from..from + self.element]);
            for axis in (0..shape.len()).rev() {
                index[axis] += 1;
                at += self.strides[axis];
                if index[axis] < shape[axis] {
                    break;
                }
                at -= self.strides[axis] * shape[axis];
                index[axis] = 0;
            }
        }
        Ok(Cow::Owned(out))
    }
}
