//! The kernels on an NVIDIA GPU: the same functions as on the CPU, launched on candle's stream.
//!
//! Matrix products are cuBLAS's; what lies between them is written in the `.cu` files here, compiled to PTX when this crate
//! is built and loaded at the first use. Nothing here waits for the device: sizes are the host's, sums stay on the device.

pub(super) mod adamw;
pub(super) mod attention;
mod columns;
pub(super) mod gelu;
pub(super) mod layer_norm;
pub(super) mod linear;
pub(super) mod losses;
mod product;
pub(super) mod row_logits;
pub(super) mod swiglu;
pub(super) mod tokens;

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{DevicePtr, LaunchConfig, PushKernelArg, result as driver, sys};
use candle_core::{CudaDevice, DType, Device, Result, Shape, Storage, Tensor};
use half::bf16;

/// The GPU numbered `ordinal`, with a stream of its own: the default one would wait for other threads' work.
pub(super) fn open(ordinal: usize) -> Result<Device> {
    let device = CudaDevice::new_with_stream(ordinal)?;
    // Freed memory stays with the program: giving it back to the driver and asking again costs more than a kernel.
    let mut keep = u64::MAX;
    let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the device's own pool; the threshold is a 64-bit number. All work of this program is on one stream, or
    // ordered around it by explicit events, so candle's own events, two for each allocation, can go.
    unsafe {
        let number = driver::device::get(ordinal as i32).w()?;
        let pool = driver::device::get_default_mem_pool(number).w()?;
        driver::mem_pool::set_attribute(pool, attribute, (&raw mut keep).cast()).w()?;
        device.disable_event_tracking();
    }
    Ok(Device::Cuda(device))
}

/// Threads of a block, where nothing speaks for another number.
const THREADS: u32 = 256;

/// A `.cu` file.
struct Module {
    name: &'static str,
    ptx: &'static str,
}

macro_rules! module {
    ($name:literal) => {
        $crate::kernels::cuda::Module {
            name: concat!("tec-zoo ", $name),
            ptx: include_str!(concat!(env!("OUT_DIR"), "/", $name, ".ptx")),
        }
    };
}
use module;

const ELEMENTWISE: Module = module!("elementwise");

/// What a kernel takes.
#[derive(Clone, Copy)]
enum Argument {
    /// An address, or a count of values.
    Long(u64),
    /// A size.
    Word(u32),
    /// A number.
    Float(f32),
}

/// Blocks along each axis, threads of each, bytes of memory they share.
#[derive(Clone, Copy)]
struct Grid {
    blocks: [usize; 3],
    threads: u32,
    shared: usize,
}

impl Grid {
    /// A thread for each of `n` values.
    fn each(n: usize) -> Self {
        Self { blocks: [n.div_ceil(THREADS as usize), 1, 1], threads: THREADS, shared: 0 }
    }

    /// A block for each of so many rows of `c` values.
    fn rows(blocks: [usize; 3], c: usize) -> Self {
        let threads = (c as u32).next_multiple_of(32).clamp(32, THREADS);
        Self { blocks, threads, shared: 0 }
    }

    /// Blocks that take a row's `c` columns, times so many.
    fn columns(c: usize, times: usize) -> Self {
        Self { blocks: [c.div_ceil(THREADS as usize), times, 1], threads: THREADS, shared: 0 }
    }
}

impl Module {
    /// Queues a kernel; a grid without blocks is no work.
    ///
    /// # Safety
    /// The arguments are the kernel's, in its order, and every address lies in a tensor of the size it expects, which is
    /// not freed before the stream gets there: tensors are freed in the stream's order, so those that live now are safe.
    unsafe fn launch(&self, device: &CudaDevice, kernel: &str, grid: Grid, arguments: &[Argument]) -> Result<()> {
        if grid.blocks.contains(&0) {
            return Ok(());
        }
        let [x, y, z] = grid.blocks;
        let (Ok(x), Ok(y), Ok(z)) = (i32::try_from(x), u16::try_from(y), u16::try_from(z)) else {
            candle_core::bail!("`{kernel}`: a grid of {:?} blocks is more than a GPU takes", grid.blocks);
        };
        let function = device.get_or_load_custom_func(kernel, self.name, self.ptx)?;
        let mut builder = function.builder();
        for argument in arguments {
            match argument {
                Argument::Long(value) => builder.arg(value),
                Argument::Word(value) => builder.arg(value),
                Argument::Float(value) => builder.arg(value),
            };
        }
        let config = LaunchConfig {
            grid_dim: (x as u32, u32::from(y), u32::from(z)),
            block_dim: (grid.threads, 1, 1),
            shared_mem_bytes: grid.shared as u32,
        };
        // SAFETY: the caller's.
        unsafe { builder.launch(config) }.w()?;
        Ok(())
    }
}

/// A tensor's device.
fn device(tensor: &Tensor) -> Result<&CudaDevice> {
    match tensor.device() {
        Device::Cuda(device) => Ok(device),
        _ => candle_core::bail!("a tensor is not on the GPU as the others are"),
    }
}

/// The address of the first value of a contiguous tensor of type `dtype` and `len` values.
fn address(tensor: &Tensor, dtype: DType, len: usize) -> Result<Argument> {
    if tensor.track_op() {
        candle_core::bail!(
            "an input takes part in candle's automatic differentiation, which would lose its gradient here; \
             record the pass on a `Tape` instead"
        );
    }
    if tensor.dtype() != dtype || tensor.elem_count() != len {
        candle_core::bail!("{:?} values {:?} where {len} of {dtype:?} are needed", tensor.dtype(), tensor.dims());
    }
    let (storage, layout) = tensor.storage_and_layout();
    let (Storage::Cuda(storage), Some((start, _))) = (&*storage, layout.contiguous_offsets()) else {
        candle_core::bail!("a tensor is strided, or not on the GPU");
    };
    let stream = storage.device.cuda_stream();
    let (base, size) = match dtype {
        DType::F32 => (storage.as_cuda_slice::<f32>()?.device_ptr(&stream).0, 4),
        DType::BF16 => (storage.as_cuda_slice::<bf16>()?.device_ptr(&stream).0, 2),
        DType::U32 => (storage.as_cuda_slice::<u32>()?.device_ptr(&stream).0, 4),
        DType::U8 => (storage.as_cuda_slice::<u8>()?.device_ptr(&stream).0, 1),
        other => return super::slices::unsupported(other, "a GPU kernel"),
    };
    Ok(Argument::Long(base + (start * size) as u64))
}

/// A tensor whose values a kernel writes, all of them, before anybody reads them.
fn unwritten(shape: impl Into<Shape>, dtype: DType, device: &CudaDevice) -> Result<Tensor> {
    // SAFETY: see above; any bits are an f32 or a bf16.
    unsafe { Tensor::empty(shape, dtype, &Device::Cuda(device.clone())) }
}

/// How kernels are named for a type.
fn suffix(dtype: DType) -> Result<&'static str> {
    match dtype {
        DType::F32 => Ok("f32"),
        DType::BF16 => Ok("bf16"),
        other => super::slices::unsupported(other, "a GPU kernel"),
    }
}

/// `sum += part`, or `sum = part` when `fresh`.
pub(super) fn accumulate(sum: &Tensor, part: &Tensor, fresh: bool) -> Result<()> {
    let (device, n, dtype) = (device(sum)?, sum.elem_count(), sum.dtype());
    if fresh {
        let flat = sum.flatten_all()?;
        return flat.slice_set(&part.to_dtype(dtype)?.flatten_all()?.contiguous()?, 0, 0);
    }
    let part = part.to_dtype(dtype)?;
    let arguments = [address(sum, dtype, n)?, address(&part, dtype, n)?, Argument::Long(n as u64)];
    // SAFETY: `accumulate` takes two buffers of n values, and n.
    unsafe { ELEMENTWISE.launch(device, &format!("accumulate_{}", suffix(dtype)?), Grid::each(n), &arguments) }
}

/// Adds `part` to the slice of `whole` (B, T, C) that starts at `start` along `axis` 1 or 2.
pub(super) fn accumulate_part(whole: &Tensor, part: &Tensor, axis: usize, start: usize) -> Result<()> {
    let (whole_dims, part_dims) = (whole.dims3()?, part.dims3()?);
    let (fits, run, period, offset) = match axis {
        1 => (
            part_dims.0 == whole_dims.0 && part_dims.2 == whole_dims.2 && start + part_dims.1 <= whole_dims.1,
            part_dims.1 * part_dims.2,
            whole_dims.1 * whole_dims.2,
            start * whole_dims.2,
        ),
        _ => (
            part_dims.0 == whole_dims.0 && part_dims.1 == whole_dims.1 && start + part_dims.2 <= whole_dims.2,
            part_dims.2,
            whole_dims.2,
            start,
        ),
    };
    if !fits {
        candle_core::bail!("accumulate: {part_dims:?} does not fit into {whole_dims:?} at {start} of axis {axis}");
    }
    let (device, dtype, n) = (device(whole)?, whole.dtype(), part.elem_count());
    let part = part.to_dtype(dtype)?;
    let long = |n: usize| Argument::Long(n as u64);
    let sum = address(whole, dtype, whole.elem_count())?;
    let arguments = [sum, address(&part, dtype, n)?, long(n), long(run), long(period), long(offset)];
    // SAFETY: `accumulate_part` takes two buffers, the values of the second and how its runs lie in the first.
    unsafe { ELEMENTWISE.launch(device, &format!("accumulate_part_{}", suffix(dtype)?), Grid::each(n), &arguments) }
}
