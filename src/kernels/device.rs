//! Who computes: the CPU, or a GPU that is asked for by name. Nothing falls back.

use candle_core::Device;

use crate::hint::Hint;

/// Why a device cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// No such name.
    #[error("`{name}` is no device")]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// The build lacks it.
    #[error("this build has no CUDA")]
    NotBuilt,
    /// The driver, a library or the GPU is missing.
    #[error("cannot use GPU {ordinal}: {reason}")]
    Cuda {
        /// Which GPU.
        ordinal: usize,
        /// CUDA's reason.
        reason: String,
    },
}

impl DeviceError {
    /// What to do next.
    pub fn hint(&self) -> Option<Hint> {
        let words = match self {
            Self::Unknown { .. } => "cpu, cuda or cuda:N",
            Self::NotBuilt => "build with the feature `cuda`, see docs/cuda.md",
            Self::Cuda { .. } => {
                "`nvidia-smi` lists what the driver sees; libcublas and libcurand must be found, see docs/cuda.md"
            }
        };
        Some(words.into())
    }
}

/// The device called `name`: `cpu`, `cuda:N`, or `cuda`, which is the GPU numbered `local_rank`: one process, one GPU.
///
/// # Errors
/// There is no such name, or the device cannot be had; a GPU is never replaced by the CPU.
///
/// ```
/// use tec_zoo::kernels::open_device;
///
/// assert!(open_device("cpu", 0)?.is_cpu());
/// assert!(open_device("gpu", 0).is_err());
/// # Ok::<(), tec_zoo::kernels::DeviceError>(())
/// ```
pub fn open_device(name: &str, local_rank: usize) -> Result<Device, DeviceError> {
    let ordinal = match (name, name.split_once(':')) {
        ("cpu", _) => return Ok(Device::Cpu),
        ("cuda", _) => Some(local_rank),
        (_, Some(("cuda", ordinal))) => ordinal.parse().ok(),
        _ => None,
    };
    open_gpu(ordinal.ok_or_else(|| DeviceError::Unknown { name: name.into() })?)
}

#[cfg(not(feature = "cuda"))]
fn open_gpu(_ordinal: usize) -> Result<Device, DeviceError> {
    Err(DeviceError::NotBuilt)
}

#[cfg(feature = "cuda")]
fn open_gpu(ordinal: usize) -> Result<Device, DeviceError> {
    super::cuda::open(ordinal).map_err(|error| {
        // What follows is candle's backtrace.
        let reason = error.to_string().lines().next().unwrap_or_default().to_owned();
        DeviceError::Cuda { ordinal, reason }
    })
}
