//! Several processes that train one model, each on its share of every batch.
//!
//! The processes are started by `torchrun`, `mpirun` or `srun`, not from here; [`Place`] reads what those say. On GPUs
//! the sums are NCCL's (feature `nccl`), on CPUs MPI's (feature `mpi`); what is summed is one flat gradient, in pieces,
//! while backward still computes the rest ([`Reduction`]).
//!
//! A run has one fate. A process that fails calls [`World::abort`], and one that is killed is noticed: by the launcher,
//! by MPI, or, between GPUs, by the connection every process keeps to rank 0 ([`Meeting`]). Whoever waits for it gets an
//! error instead of an answer, and ends; checkpoints are rank 0's, written atomically, so the last one stays whole.

mod meeting;
#[cfg(feature = "mpi")]
mod mpi;
#[cfg(feature = "nccl")]
mod nccl;
mod place;
mod reduction;

pub use meeting::{Meeting, SHARED};
pub use place::{Launcher, Place};
pub use reduction::Reduction;

use candle_core::Device;

use crate::hint::Hint;

/// The processes of a run, seen from one of them.
pub struct World {
    place: Place,
    engine: Engine,
}

enum Engine {
    Alone,
    #[cfg(feature = "mpi")]
    Mpi(mpi::Process),
    #[cfg(feature = "nccl")]
    Nccl(Box<nccl::Process>),
}

impl World {
    /// Joins the other processes of `place`'s world, with NCCL when `device` is a GPU and MPI when not; waits for them.
    ///
    /// # Errors
    /// This build lacks the engine, or the others cannot be reached.
    pub fn join(place: Place, device: &Device) -> Result<Self, DistributedError> {
        let engine = match (place.size, device) {
            (1, _) => Engine::Alone,
            #[cfg(feature = "nccl")]
            (_, Device::Cuda(device)) => Engine::Nccl(Box::new(nccl::Process::join(&place, device)?)),
            #[cfg(feature = "mpi")]
            (_, Device::Cpu) if place.launcher == Launcher::Torchrun => {
                return Err(DistributedError::NotMpi { size: place.size });
            }
            #[cfg(feature = "mpi")]
            (_, Device::Cpu) => Engine::Mpi(mpi::Process::join(&place)?),
            (size, device) => {
                let (device, feature) = if device.is_cuda() { ("GPUs", "nccl") } else { ("CPUs", "mpi") };
                return Err(DistributedError::NoEngine { size, device, feature });
            }
        };
        Ok(Self { place, engine })
    }

    /// This process's place.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// 0 … [`size`](Self::size) − 1; rank 0 writes the files and speaks to the user.
    pub fn rank(&self) -> usize {
        self.place.rank
    }

    /// Processes in all.
    pub fn size(&self) -> usize {
        self.place.size
    }

    /// `values` become their sums over all processes, the same to the bit in each.
    ///
    /// For the few numbers every process must agree on: loss terms, and whether somebody was asked to stop.
    ///
    /// # Errors
    /// The other processes cannot be reached.
    pub fn sum(&self, values: &mut [f64]) -> Result<(), DistributedError> {
        match &self.engine {
            Engine::Alone => {
                let _ = values;
                Ok(())
            }
            #[cfg(feature = "mpi")]
            Engine::Mpi(process) => process.sum(values),
            #[cfg(feature = "nccl")]
            Engine::Nccl(process) => process.sum(values),
        }
    }

    /// `bytes` become rank 0's; everyone passes as many.
    ///
    /// # Errors
    /// The other processes cannot be reached.
    pub fn broadcast(&self, bytes: &mut [u8]) -> Result<(), DistributedError> {
        match &self.engine {
            Engine::Alone => {
                let _ = bytes;
                Ok(())
            }
            #[cfg(feature = "mpi")]
            Engine::Mpi(process) => process.broadcast(bytes),
            #[cfg(feature = "nccl")]
            Engine::Nccl(process) => process.broadcast(bytes),
        }
    }

    /// Waits until every process has come here.
    ///
    /// # Errors
    /// The other processes cannot be reached.
    pub fn barrier(&self) -> Result<(), DistributedError> {
        match &self.engine {
            Engine::Alone => Ok(()),
            #[cfg(feature = "mpi")]
            Engine::Mpi(process) => process.barrier(),
            #[cfg(feature = "nccl")]
            Engine::Nccl(process) => process.sum(&mut [0.0]),
        }
    }

    /// Whether everyone is there, as far as is known without asking; to be called before a checkpoint is written.
    ///
    /// # Errors
    /// A process is gone.
    pub fn alive(&self) -> Result<(), DistributedError> {
        match &self.engine {
            Engine::Alone => Ok(()),
            // MPI itself ends a process whose fellow is gone.
            #[cfg(feature = "mpi")]
            Engine::Mpi(_) => Ok(()),
            #[cfg(feature = "nccl")]
            Engine::Nccl(process) => process.alive(),
        }
    }

    /// Leaves after a finished run, together with the others. A world dropped without it counts as lost.
    ///
    /// # Errors
    /// The other processes cannot be reached.
    pub fn leave(self) -> Result<(), DistributedError> {
        self.barrier()?;
        match self.engine {
            Engine::Alone => Ok(()),
            #[cfg(feature = "mpi")]
            Engine::Mpi(process) => process.leave(),
            #[cfg(feature = "nccl")]
            Engine::Nccl(process) => {
                process.leave();
                Ok(())
            }
        }
    }

    /// Ends this process with exit code `code`, and with it all others. Say why first.
    pub fn abort(&self, code: i32) -> ! {
        match &self.engine {
            Engine::Alone => std::process::exit(code),
            #[cfg(feature = "mpi")]
            Engine::Mpi(process) => process.abort(code),
            // Its connection breaks with it, which the others notice.
            #[cfg(feature = "nccl")]
            Engine::Nccl(_) => std::process::exit(code),
        }
    }
}

/// Why several processes cannot work together.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DistributedError {
    /// A launcher's variable is no number.
    #[error("`{name}={value}` is not what a launcher would set: a whole number is expected")]
    Variable {
        /// The variable.
        name: &'static str,
        /// Its value.
        value: String,
    },
    /// One of a launcher's variables is missing.
    #[error("`{present}` is set, but not `{missing}`")]
    Incomplete {
        /// The variable that is there.
        present: &'static str,
        /// The one that is not.
        missing: &'static str,
    },
    /// The rank lies outside the world.
    #[error("`{rank_name}={rank}` is no rank among `{size_name}={size}` processes")]
    Rank {
        /// The rank.
        rank: usize,
        /// Processes in all.
        size: usize,
        /// The rank's variable.
        rank_name: &'static str,
        /// The size's variable.
        size_name: &'static str,
    },
    /// The build cannot do it.
    #[error("started as one of {size} processes, but this build cannot join them on {device}")]
    NoEngine {
        /// Processes in all.
        size: usize,
        /// What they would compute on.
        device: &'static str,
        /// The feature that brings the engine.
        feature: &'static str,
    },
    /// On CPUs, MPI starts the processes.
    #[error("started as one of {size} processes by torchrun, but processes on CPUs are joined by MPI")]
    NotMpi {
        /// Processes in all.
        size: usize,
    },
    /// The engine and the launcher's variables differ.
    #[error("MPI says that this is {seen}, the launcher's variables {told}")]
    Disagreement {
        /// What the engine says.
        seen: String,
        /// What the variables say.
        told: String,
    },
    /// Nobody said where rank 0 is.
    #[error("nothing says where rank 0 of {size} processes can be met")]
    NoMeetingPoint {
        /// Processes in all.
        size: usize,
    },
    /// The processes did not find one another.
    #[error("rank {rank} met nobody at `{address}`: {reason}")]
    Meeting {
        /// This process's rank.
        rank: usize,
        /// Where it looked.
        address: String,
        /// What went wrong.
        reason: String,
    },
    /// A process is gone.
    #[error("lost the connection to rank {rank} of {size}: the run ends here")]
    Lost {
        /// Which one: rank 0's connection also breaks when any other process is lost.
        rank: usize,
        /// Processes in all.
        size: usize,
    },
    /// A gradient was said to be final twice.
    #[error("the gradient is final from {open} on already, and cannot become so from {from}")]
    Order {
        /// Where it is said to be final from.
        from: usize,
        /// Where it was final from before.
        open: usize,
    },
    /// What should be summed is no flat gradient of this world's.
    #[error("{gradient} is no contiguous f32 vector on this world's device")]
    Gradient {
        /// The tensor.
        gradient: String,
    },
    /// A tensor could not be read or written.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// The engine failed.
    #[error("{engine} failed: {reason}")]
    Engine {
        /// MPI or NCCL.
        engine: &'static str,
        /// Its reason.
        reason: String,
    },
}

impl DistributedError {
    /// What to do next.
    pub fn hint(&self) -> Option<Hint> {
        Some(match self {
            Self::Incomplete { .. } => "start with torchrun, mpirun or srun, which set both".into(),
            Self::NoEngine { feature, .. } => {
                format!("build with the feature `{feature}`, or start a single process").into()
            }
            Self::NotMpi { size } => {
                Hint::new().words(format!("start with `mpirun -n {size}`, or choose ")).set("device", "cuda")
            }
            Self::Disagreement { .. } => {
                "is `mpirun` of the MPI library this was built with, and are old variables set?".into()
            }
            Self::NoMeetingPoint { .. } => "set `MASTER_ADDR` to its host name".into(),
            Self::Meeting { .. } => "`MASTER_ADDR` and `MASTER_PORT` name another place".into(),
            Self::Lost { .. } => "resume it from its last checkpoint".into(),
            Self::Engine { engine: "NCCL", .. } => "`NCCL_DEBUG=WARN` makes it say more".into(),
            _ => return None,
        })
    }
}
