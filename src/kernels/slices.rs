//! Contiguous values of CPU tensors as slices, and tensors made of vectors.
//!
//! Kernels work on slices. Whoever reads one here is not part of candle's own gradient graph, so a tensor that is tracked
//! there is refused: its gradient would be dropped without a word.

use std::cell::Cell;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Deref;

use candle_core::{
    CpuStorage, DType, Device, InplaceOp1, Layout, Result, Shape, Storage, StorageRef, Tensor, WithDType,
};
use half::bf16;
use rayon::prelude::*;

use super::gemm::{Number, Stored, Values};
use super::simd::{Isa, Lane, Task, dispatch, vectors};

/// Values a thread adds up at a time.
const CHUNK: usize = 64 * 1024;

/// A number kernels compute with: read and written in its own type, computed in f32.
pub(crate) trait Element: WithDType + Number + Stored {
    fn wide(self) -> f32;
    fn narrow(value: f32) -> Self;
    fn values(slice: &[Self]) -> Values<'_>;
    fn vec_mut(storage: &mut CpuStorage) -> Option<&mut Vec<Self>>;
}

impl Element for f32 {
    fn values(slice: &[Self]) -> Values<'_> {
        Values::F32(slice)
    }

    fn wide(self) -> f32 {
        self
    }

    fn narrow(value: f32) -> Self {
        value
    }

    fn vec_mut(storage: &mut CpuStorage) -> Option<&mut Vec<Self>> {
        match storage {
            CpuStorage::F32(values) => Some(values),
            _ => None,
        }
    }
}

impl Element for bf16 {
    fn values(slice: &[Self]) -> Values<'_> {
        Values::Bf16(slice)
    }

    fn wide(self) -> f32 {
        self.to_f32()
    }

    fn narrow(value: f32) -> Self {
        bf16::from_f32(value)
    }

    fn vec_mut(storage: &mut CpuStorage) -> Option<&mut Vec<Self>> {
        match storage {
            CpuStorage::BF16(values) => Some(values),
            _ => None,
        }
    }
}

/// A buffer whose parts tasks write without overlapping.
pub(super) struct Disjoint<T>(pub(super) *mut T);

// SAFETY: whoever writes through it promises not to overlap.
unsafe impl<T> Sync for Disjoint<T> {}

impl<T> Disjoint<T> {
    pub(super) fn get(&self) -> *mut T {
        self.0
    }
}

/// Values of a tensor, held for reading.
pub(crate) struct Slice<'t, T> {
    guard: StorageRef<'t>,
    start: usize,
    end: usize,
    values: PhantomData<T>,
}

impl<T: Element> Deref for Slice<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match &*self.guard {
            Storage::Cpu(storage) => storage.as_slice::<T>().map_or(&[], |values| &values[self.start..self.end]),
            _ => &[],
        }
    }
}

/// The values of a contiguous CPU tensor of type `T`.
pub(crate) fn read<'t, T: Element>(tensor: &'t Tensor, operation: &str) -> Result<Slice<'t, T>> {
    if tensor.track_op() {
        candle_core::bail!(
            "{operation}: an input takes part in candle's automatic differentiation, which would lose its gradient here; \
             record the pass on a `Tape` instead"
        );
    }
    if tensor.dtype() != T::DTYPE {
        candle_core::bail!("{operation}: an input is {:?}, not {:?}", tensor.dtype(), T::DTYPE);
    }
    let (guard, layout) = tensor.storage_and_layout();
    match (&*guard, layout.contiguous_offsets()) {
        (Storage::Cpu(_), Some((start, end))) => Ok(Slice { guard, start, end, values: PhantomData }),
        (Storage::Cpu(_), None) => candle_core::bail!("{operation}: an input is strided"),
        _ => candle_core::bail!("{operation}: an input is not in main memory"),
    }
}

/// The values of `view` in main memory, row-major.
pub(crate) fn to_host(view: &Tensor) -> Result<Vec<f32>> {
    let view = view.flatten_all()?;
    // From a device, candle fetches all of the buffer a view looks into.
    if view.device().is_cpu() { view.to_vec1() } else { view.force_contiguous()?.to_vec1() }
}

/// Runs `f` on the values of a contiguous CPU tensor of type `T`, in place: every view of the storage sees the change.
pub(crate) fn write<T: Element>(tensor: &Tensor, operation: &'static str, f: impl FnOnce(&mut [T])) -> Result<()> {
    struct InPlace<T, F>(&'static str, Cell<Option<F>>, PhantomData<T>);
    impl<T: Element, F: FnOnce(&mut [T])> InplaceOp1 for InPlace<T, F> {
        fn name(&self) -> &'static str {
            self.0
        }

        fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
            let (Some((start, end)), Some(values), Some(f)) =
                (layout.contiguous_offsets(), T::vec_mut(storage), self.1.take())
            else {
                candle_core::bail!("{}: the output is strided, or not {:?}", self.0, T::DTYPE);
            };
            f(&mut values[start..end]);
            Ok(())
        }
    }
    tensor.inplace_op1(&InPlace(operation, Cell::new(Some(f)), PhantomData))
}

/// A CPU tensor of `values`.
pub(crate) fn tensor<T: Element>(values: Vec<T>, shape: impl Into<Shape>) -> Result<Tensor> {
    Tensor::from_vec(values, shape, &Device::Cpu)
}

/// A vector of `len` values that `fill` writes: large buffers are not cleared first.
///
/// # Safety
/// When `fill` succeeds, it has written every value.
pub(super) unsafe fn made<T>(len: usize, fill: impl FnOnce(&mut [MaybeUninit<T>]) -> Result<()>) -> Result<Vec<T>> {
    let mut values = Vec::with_capacity(len);
    fill(&mut values.spare_capacity_mut()[..len])?;
    // SAFETY: there is room for `len`, and the caller's promise.
    unsafe { values.set_len(len) };
    Ok(values)
}

/// A vector of zeros, on which `fill` writes.
pub(crate) fn filled<T: Element>(len: usize, fill: impl FnOnce(&mut [T])) -> Vec<T> {
    let mut values = vec![T::zero(); len];
    fill(&mut values);
    values
}

/// a + b, where b (1, …) may be of one image and then counts for every image of a (B, …); of one type.
pub(crate) fn sum(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    const NAME: &str = "add";
    let each = b.elem_count();
    let alike = a.dims() == b.dims()
        || (a.rank() == b.rank() && b.dims().first() == Some(&1) && a.dims()[1..] == b.dims()[1..]);
    if !a.device().is_cpu() || !alike || a.dtype() != b.dtype() || each == 0 {
        return a.broadcast_add(b);
    }
    by_dtype!(a, NAME, T => {
        let (x, y) = (read::<T>(a, NAME)?, read::<T>(b, NAME)?);
        let fill = |out: &mut [MaybeUninit<T>]| {
            let images = out.par_chunks_mut(each).zip(x.par_chunks(each));
            images.for_each(|(out, x)| {
                let parts = out.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK).zip(y.par_chunks(CHUNK)));
                parts.for_each(|(out, (x, y))| dispatch(Sum { x, y, out }));
            });
            Ok(())
        };
        // SAFETY: the chunks of all three are of the same lengths, and cover them.
        tensor(unsafe { made(x.len(), fill)? }, a.shape())
    })
}

struct Sum<'a, T> {
    x: &'a [T],
    y: &'a [T],
    out: &'a mut [MaybeUninit<T>],
}

impl<T: Lane> Task for Sum<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Isa>(self) {
        let (x, y, out) = (self.x.as_ptr(), self.y.as_ptr(), self.out.as_mut_ptr().cast::<T>());
        // SAFETY: the instructions are there, and as many values in all.
        unsafe {
            vectors!(S, self.out.len().min(self.x.len()).min(self.y.len()), |i, n| {
                T::store::<S>(out.add(i), n, S::add(T::load::<S>(x.add(i), n), T::load::<S>(y.add(i), n)));
            });
        }
    }
}

/// Adds `part` to `sum`, in place, or puts it there when `fresh`; both f32 or of one type, and as many values.
pub(crate) fn accumulate(sum: &Tensor, part: &Tensor, fresh: bool) -> Result<()> {
    #[cfg(feature = "cuda")]
    if sum.device().is_cuda() {
        return super::cuda::accumulate(sum, part, fresh);
    }
    const NAME: &str = "accumulate";
    by_dtype!(sum, NAME, T => {
        let part = part.to_dtype(sum.dtype())?;
        let part = read::<T>(&part, NAME)?;
        if part.len() != sum.elem_count() {
            candle_core::bail!("{NAME}: {} values for {}", part.len(), sum.elem_count());
        }
        write::<T>(sum, NAME, |sum| {
            sum.par_chunks_mut(CHUNK).zip(part.par_chunks(CHUNK)).for_each(|(sum, part)| {
                if fresh {
                    sum.copy_from_slice(part);
                } else {
                    dispatch(Add { sum, part });
                }
            });
        })
    })
}

struct Add<'a, T> {
    sum: &'a mut [T],
    part: &'a [T],
}

impl<T: Lane> Task for Add<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Isa>(self) {
        let (sum, part) = (self.sum.as_mut_ptr(), self.part.as_ptr());
        // SAFETY: the instructions are there, and as many values in both.
        unsafe {
            vectors!(S, self.sum.len().min(self.part.len()), |i, n| {
                T::store::<S>(sum.add(i), n, S::add(T::load::<S>(sum.add(i), n), T::load::<S>(part.add(i), n)));
            });
        }
    }
}

/// Adds `part` in place to the slice of `whole` (B, T, C) that starts at `start` along `axis` 1 or 2.
pub(crate) fn accumulate_part(whole: &Tensor, part: &Tensor, axis: usize, start: usize) -> Result<()> {
    #[cfg(feature = "cuda")]
    if whole.device().is_cuda() {
        return super::cuda::accumulate_part(whole, part, axis, start);
    }
    const NAME: &str = "accumulate";
    let (whole_dims, part_dims) = (whole.dims3()?, part.dims3()?);
    let fits = match axis {
        1 => part_dims.0 == whole_dims.0 && part_dims.2 == whole_dims.2 && start + part_dims.1 <= whole_dims.1,
        _ => part_dims.0 == whole_dims.0 && part_dims.1 == whole_dims.1 && start + part_dims.2 <= whole_dims.2,
    };
    if !fits {
        candle_core::bail!("{NAME}: {part_dims:?} does not fit into {whole_dims:?} at {start} of axis {axis}");
    }
    // A run is what lies side by side in both.
    let (run, period, offset) = match axis {
        1 => (part_dims.1 * part_dims.2, whole_dims.1 * whole_dims.2, start * whole_dims.2),
        _ => (part_dims.2, whole_dims.2, start),
    };
    by_dtype!(whole, NAME, T => {
        let part = part.to_dtype(whole.dtype())?;
        let part = read::<T>(&part, NAME)?;
        write::<T>(whole, NAME, |whole| {
            whole.par_chunks_mut(period).zip(part.par_chunks(run)).for_each(|(whole, part)| {
                for (sum, part) in whole[offset..].iter_mut().zip(part) {
                    *sum = T::narrow(sum.wide() + part.wide());
                }
            });
        })
    })
}

/// Refuses what is neither f32 nor bf16.
pub(crate) fn unsupported<R>(dtype: DType, operation: &str) -> Result<R> {
    candle_core::bail!("{operation}: {dtype:?} is not supported; use F32 or BF16")
}

/// Runs a generic function for the element type of a tensor.
macro_rules! by_dtype {
    ($tensor:expr, $operation:expr, $T:ident => $body:expr) => {
        match $tensor.dtype() {
            candle_core::DType::F32 => {
                type $T = f32;
                $body
            }
            candle_core::DType::BF16 => {
                type $T = half::bf16;
                $body
            }
            other => $crate::kernels::slices::unsupported(other, $operation),
        }
    };
}
pub(crate) use by_dtype;
