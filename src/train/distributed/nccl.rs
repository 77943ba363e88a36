//! A process with one GPU among those of a run.
//!
//! Sums are queued on a stream of their own, behind what filled the gradient and before what reads it, so neither the
//! host nor backward waits for them.

use std::ffi::c_void;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::time::Duration;

use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DriverError};
use candle_core::cuda_backend::cudarc::nccl::{result, sys};
use candle_core::{CudaDevice, Storage, Tensor};

use super::{DistributedError, Meeting, Place, SHARED};

/// The others may still be reading their base model.
const MEETING_TIME: Duration = Duration::from_secs(600);

/// Values worth a message of their own (16 MiB): NCCL's rings reach their rate from there on.
pub(super) const MESSAGE: usize = 4 << 20;

/// NCCL's communicator and the stream its work is queued on.
pub(super) struct Process {
    place: Place,
    meeting: Option<Meeting>,
    communicator: Arc<Communicator>,
    compute: Arc<CudaStream>,
    stream: Arc<CudaStream>,
}

/// Aborted once, by whoever notices first that it must be.
struct Communicator(AtomicPtr<sys::ncclComm>);

impl Communicator {
    fn get(&self) -> sys::ncclComm_t {
        self.0.load(Ordering::Acquire)
    }

    /// Makes kernels that wait for a lost process end.
    fn abort(&self) {
        let communicator = self.0.swap(std::ptr::null_mut(), Ordering::AcqRel);
        if !communicator.is_null() {
            // SAFETY: a communicator NCCL made, taken out so that nobody aborts it again.
            let _ = unsafe { result::comm_abort(communicator) };
        }
    }
}

impl Process {
    /// Meets the others and makes a communicator on `device`.
    pub(super) fn join(place: &Place, device: &CudaDevice) -> Result<Self, DistributedError> {
        let mut shared = [0u8; SHARED];
        if place.rank == 0 {
            let id = result::get_uniqueid().map_err(|error| failed(&error))?;
            for (to, from) in shared.iter_mut().zip(id.internal) {
                *to = from as u8;
            }
        }
        let meeting = Meeting::join(place, shared, MEETING_TIME)?;
        let mut id = sys::ncclUniqueId { internal: [0; SHARED] };
        for (to, from) in id.internal.iter_mut().zip(meeting.shared()) {
            *to = *from as std::ffi::c_char;
        }
        let compute = device.cuda_stream();
        compute.context().bind_to_thread().map_err(driver)?;
        let stream = compute.context().new_stream().map_err(driver)?;
        let mut communicator = std::ptr::null_mut();
        // SAFETY: the pointer is written before it is read, on success; rank and size fit, see `Place::read`.
        unsafe { result::comm_init_rank(&mut communicator, place.size as i32, id, place.rank as i32) }
            .map_err(|error| failed(&error))?;
        let communicator = Arc::new(Communicator(AtomicPtr::new(communicator)));
        let aborted = Arc::clone(&communicator);
        meeting.on_loss(move || aborted.abort());
        Ok(Self { place: place.clone(), meeting: Some(meeting), communicator, compute, stream })
    }

    pub(super) fn alive(&self) -> Result<(), DistributedError> {
        match self.meeting.as_ref().and_then(Meeting::lost) {
            Some(rank) => Err(DistributedError::Lost { rank, size: self.place.size }),
            None => Ok(()),
        }
    }

    /// Queues the sum of a part of `gradient`, behind what is queued on the compute stream.
    pub(super) fn start(&self, gradient: &Tensor, part: Range<usize>) -> Result<(), DistributedError> {
        self.alive()?;
        let (storage, layout) = gradient.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else {
            return Err(DistributedError::Gradient { gradient: format!("{gradient:?}") });
        };
        let (start, _read) = storage.as_cuda_slice::<f32>()?.device_ptr(&self.compute);
        let at = (start + ((layout.start_offset() + part.start) * size_of::<f32>()) as u64) as *mut c_void;
        self.stream.join(&self.compute).map_err(driver)?;
        let (kind, sum) = (sys::ncclDataType_t::ncclFloat32, sys::ncclRedOp_t::ncclSum);
        let (communicator, stream) = (self.communicator.get(), self.stream.cu_stream().cast());
        // SAFETY: in place, inside the gradient, which whoever reduces it keeps until the streams are joined.
        match unsafe { result::all_reduce(at, at, part.len(), kind, sum, communicator, stream) } {
            Ok(_) => Ok(()),
            Err(error) => {
                self.alive()?;
                Err(failed(&error))
            }
        }
    }

    /// Makes what is queued from here on wait for the sums.
    pub(super) fn order(&self) -> Result<(), DistributedError> {
        self.compute.join(&self.stream).map_err(driver)
    }

    pub(super) fn sum(&self, values: &mut [f64]) -> Result<(), DistributedError> {
        let mut device = self.compute.clone_htod(values).map_err(driver)?;
        self.whole(&mut device, |at, len, this| {
            let (kind, sum) = (sys::ncclDataType_t::ncclFloat64, sys::ncclRedOp_t::ncclSum);
            // SAFETY: in place on `len` values at `at`, which live until the stream is joined.
            unsafe {
                result::all_reduce(at, at, len, kind, sum, this.communicator.get(), this.stream.cu_stream().cast())
            }
        })?;
        self.compute.memcpy_dtoh(&device, values).map_err(driver)?;
        self.compute.synchronize().map_err(driver)?;
        self.alive()
    }

    pub(super) fn broadcast(&self, bytes: &mut [u8]) -> Result<(), DistributedError> {
        let mut device = self.compute.clone_htod(bytes).map_err(driver)?;
        self.whole(&mut device, |at, len, this| {
            let kind = sys::ncclDataType_t::ncclUint8;
            // SAFETY: as in `sum`.
            unsafe { result::broadcast(at, at, len, kind, 0, this.communicator.get(), this.stream.cu_stream().cast()) }
        })?;
        self.compute.memcpy_dtoh(&device, bytes).map_err(driver)?;
        self.compute.synchronize().map_err(driver)?;
        self.alive()
    }

    /// Queues `work` on all of `values`, between what came before it on the compute stream and what follows.
    fn whole<T>(
        &self,
        values: &mut CudaSlice<T>,
        work: impl FnOnce(*mut c_void, usize, &Self) -> Result<result::NcclStatus, result::NcclError>,
    ) -> Result<(), DistributedError> {
        self.alive()?;
        let len = values.len();
        self.stream.join(&self.compute).map_err(driver)?;
        let (at, _written) = values.device_ptr_mut(&self.stream);
        if let Err(error) = work(at as *mut c_void, len, self) {
            // A communicator aborted for a loss answers with an error of its own.
            self.alive()?;
            return Err(failed(&error));
        }
        self.compute.join(&self.stream).map_err(driver)
    }

    pub(super) fn leave(mut self) {
        let _ = self.stream.synchronize();
        if let Some(meeting) = self.meeting.take() {
            meeting.leave();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.communicator.abort();
    }
}

fn failed(error: &result::NcclError) -> DistributedError {
    let reason = match error.0 {
        sys::ncclResult_t::ncclSystemError => "a system call failed, or libnccl.so.2 was not found".into(),
        sys::ncclResult_t::ncclInvalidUsage => "invalid usage, often two processes on one GPU".into(),
        code => format!("{code:?}"),
    };
    DistributedError::Engine { engine: "NCCL", reason }
}

fn driver(error: DriverError) -> DistributedError {
    DistributedError::Engine { engine: "CUDA", reason: error.to_string() }
}
