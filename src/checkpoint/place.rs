//! Where a tensor's elements lie, and how they are gathered when they do not lie in a row.

use std::borrow::Cow;
use std::ops::Range;

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
    /// A view whose every element lies inside its storage.
    ///
    /// `storage` must lie inside the source. `offset` counts bytes, `strides` elements; axes no element is reached along
    /// lose their stride, so that no later arithmetic can overflow.
    pub(super) fn strided(
        source: usize,
        storage: Range<usize>,
        offset: usize,
        shape: &[usize],
        mut strides: Vec<usize>,
        element: usize,
    ) -> Result<Self, String> {
        if strides.len() != shape.len() {
            return Err(format!("it has {} axes and {} strides", shape.len(), strides.len()));
        }
        // A size of zero hides no overflow: whoever multiplies sizes in another order would meet it.
        let elements = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size.max(1)));
        if elements.and_then(|elements| elements.checked_mul(element)).is_none() {
            return Err(format!("its shape {shape:?} overflows"));
        }
        if shape.contains(&0) {
            return Ok(Self { source, storage, offset: 0, strides: vec![0; shape.len()], element });
        }
        let mut last = 0usize;
        for (&size, stride) in shape.iter().zip(&mut strides) {
            if size == 1 {
                *stride = 0;
            }
            let step = (size - 1).checked_mul(*stride).and_then(|step| last.checked_add(step));
            last = step.ok_or_else(|| format!("its strides overflow over the shape {shape:?}"))?;
        }
        let end = last.checked_add(1).and_then(|n| n.checked_mul(element)).and_then(|n| n.checked_add(offset));
        match end {
            Some(end) if end <= storage.len() => Ok(Self { source, storage, offset, strides, element }),
            _ => Err(format!(
                "it reaches beyond its storage of {} bytes (offset {offset}, shape {shape:?}, strides {strides:?})",
                storage.len(),
            )),
        }
    }

    /// All of `storage`, in row-major order.
    pub(super) fn whole(source: usize, storage: Range<usize>, shape: &[usize], element: usize) -> Result<Self, String> {
        let mut strides = vec![1usize; shape.len()];
        for axis in (1..shape.len()).rev() {
            // Where this saturates, the shape overflows too.
            strides[axis - 1] = strides[axis].saturating_mul(shape[axis].max(1));
        }
        Self::strided(source, storage, 0, shape, strides, element)
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
    pub(super) fn gather<'a>(&self, shape: &[usize], bytes: &'a [u8]) -> Result<Cow<'a, [u8]>, String> {
        if let Some(range) = self.contiguous(shape) {
            return Ok(Cow::Borrowed(&bytes[range]));
        }
        // An expanded view can name more bytes than exist; the file bounds what is worth allocating for it.
        let elements: usize = shape.iter().product();
        let total = elements * self.element;
        if total > bytes.len() {
            return Err(format!(
                "it repeats its elements to {total} bytes, more than the whole file's {}",
                bytes.len()
            ));
        }
        // The innermost axes that lie in a row are copied at once.
        let (mut inner, mut run) = (shape.len(), 1);
        while inner > 0 && (shape[inner - 1] == 1 || self.strides[inner - 1] == run) {
            inner -= 1;
            run *= shape[inner];
        }
        let (shape, strides) = (&shape[..inner], &self.strides[..inner]);
        let mut out = Vec::with_capacity(total);
        let mut index = vec![0usize; inner];
        let mut at = 0usize;
        for _ in 0..elements / run {
            let from = self.storage.start + self.offset + at * self.element;
            out.extend_from_slice(&bytes[from..from + run * self.element]);
            for axis in (0..inner).rev() {
                index[axis] += 1;
                at += strides[axis];
                if index[axis] < shape[axis] {
                    break;
                }
                at -= strides[axis] * shape[axis];
                index[axis] = 0;
            }
        }
        Ok(Cow::Owned(out))
    }
}
