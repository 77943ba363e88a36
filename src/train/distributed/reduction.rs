//! The sum of a gradient over all processes, while the rest of it is still being computed.

use candle_core::Tensor;

#[cfg(any(feature = "mpi", feature = "nccl"))]
use super::Engine;
use super::{DistributedError, World};
#[cfg(feature = "mpi")]
use crate::kernels::to_host;

/// A flat gradient on its way to becoming the sum over all processes.
///
/// Backward fills the tensor from its end to its start, as a forward order of parameters has it, and says with
/// [`start`](Self::start) how far down it is final. What was said to be final is not to be touched until
/// [`finish`](Self::finish).
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use tec_zoo::train::distributed::{Place, World};
///
/// let world = World::join(Place::alone(), &Device::Cpu)?;
/// let gradient = Tensor::ones(10, DType::F32, &Device::Cpu)?;
/// let mut sum = world.reduction(&gradient)?;
/// sum.start(6)?; // the last four are summed, while the others are computed
/// sum.finish()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Reduction<'w> {
    world: &'w World,
    #[cfg_attr(not(any(feature = "mpi", feature = "nccl")), expect(dead_code, reason = "nobody to send it to"))]
    gradient: Tensor,
    /// Values from here on are final.
    open: usize,
    /// Values from here on are on their way.
    started: usize,
    /// Where each part on its way begins, and who brings its sum.
    #[cfg(feature = "mpi")]
    under_way: Vec<(usize, std::sync::mpsc::Receiver<Vec<f32>>)>,
}

impl World {
    /// Takes a flat f32 gradient, to be summed in place over all processes.
    ///
    /// # Errors
    /// `gradient` is no contiguous f32 vector on the world's device.
    pub fn reduction(&self, gradient: &Tensor) -> Result<Reduction<'_>, DistributedError> {
        let fits = gradient.dtype() == candle_core::DType::F32 && gradient.rank() == 1 && gradient.is_contiguous();
        let here = match &self.engine {
            super::Engine::Alone => true,
            #[cfg(feature = "mpi")]
            Engine::Mpi(_) => gradient.device().is_cpu(),
            #[cfg(feature = "nccl")]
            Engine::Nccl(_) => gradient.device().is_cuda(),
        };
        if !fits || !here {
            return Err(DistributedError::Gradient { gradient: format!("{gradient:?}") });
        }
        let len = gradient.elem_count();
        Ok(Reduction {
            world: self,
            gradient: gradient.clone(),
            open: len,
            started: len,
            #[cfg(feature = "mpi")]
            under_way: Vec::new(),
        })
    }
}

impl Reduction<'_> {
    /// Values from `from` on are final; their sum starts. Returns at once.
    ///
    /// # Errors
    /// `from` lies in what was final before, or the other processes cannot be reached.
    pub fn start(&mut self, from: usize) -> Result<(), DistributedError> {
        if from > self.open {
            return Err(DistributedError::Order { from, open: self.open });
        }
        self.open = from;
        if self.message().is_some_and(|message| self.started - from >= message) { self.send() } else { Ok(()) }
    }

    /// Values worth a message of their own: smaller ranges wait for their neighbours.
    fn message(&self) -> Option<usize> {
        match &self.world.engine {
            super::Engine::Alone => None,
            #[cfg(feature = "mpi")]
            Engine::Mpi(_) => Some(super::mpi::MESSAGE),
            #[cfg(feature = "nccl")]
            Engine::Nccl(_) => Some(super::nccl::MESSAGE),
        }
    }

    /// Waits until the gradient holds the sums, the same in every process. On a GPU, it is what is queued afterwards that
    /// waits, not the host.
    ///
    /// # Errors
    /// The other processes cannot be reached.
    pub fn finish(mut self) -> Result<(), DistributedError> {
        self.open = 0;
        self.send()?;
        #[cfg(feature = "mpi")]
        for (start, sum) in std::mem::take(&mut self.under_way) {
            let sum = super::mpi::receive(&sum)?;
            let len = sum.len();
            let sum = Tensor::from_vec(sum, len, &candle_core::Device::Cpu)?;
            self.gradient.slice_set(&sum, 0, start)?;
        }
        #[cfg(feature = "nccl")]
        if let Engine::Nccl(process) = &self.world.engine {
            process.order()?;
        }
        self.world.alive()
    }

    /// Sends what is final and not on its way.
    fn send(&mut self) -> Result<(), DistributedError> {
        let part = self.open..self.started;
        self.started = self.open;
        if part.is_empty() {
            return Ok(());
        }
        match &self.world.engine {
            super::Engine::Alone => Ok(()),
            #[cfg(feature = "mpi")]
            Engine::Mpi(process) => {
                let values = to_host(&self.gradient.narrow(0, part.start, part.len())?)?;
                self.under_way.push((part.start, process.start(values)?));
                Ok(())
            }
            #[cfg(feature = "nccl")]
            Engine::Nccl(process) => process.start(&self.gradient, part),
        }
    }
}
