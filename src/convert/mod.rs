//! Checkpoints of any known dialect into the common format, and back.
//!
//! A [`Mapping`] is a dialect as data (`converters/*.toml`): where the tensors sit, what each key becomes, and the
//! published facts of its family. A [`Plan`] decides every key of one checkpoint from its headers, and fails with
//! everything that is wrong at once. [`Plan::apply`] streams the tensors, bit for bit, into a directory that appears whole
//! or not at all. [`emit`] runs the same rules backwards.
//!
//! Nothing is guessed: what tensors cannot say comes from a flag, from the configuration beside them, or from what the
//! family published, and [`Plan::facts`] says which.
//!
//! ```no_run
//! use std::ops::ControlFlow;
//! use std::path::Path;
//! use tec_zoo::convert::{Request, convert};
//!
//! let request = Request { family: Some("moco-v3".into()), branch: Some("momentum".into()), ..Request::default() };
//! let out = Path::new("moco-v3-vits");
//! let made = convert(Path::new("vit-s-300ep.pth.tar"), out, &request, &mut |_| ControlFlow::Continue(()))?;
//! assert_eq!(made.config.vit.heads, 12);
//! # Ok::<(), tec_zoo::convert::ConvertError>(())
//! ```

mod apply;
mod assemble;
mod builtin;
mod claims;
mod consumer;
mod detect;
mod digest;
mod emit;
mod error;
mod facts;
mod hf;
mod hub;
mod mapping;
mod merge;
mod numbers;
mod plan;
mod position;
mod problems;
mod sidecar;
mod template;
mod write;

use std::ops::ControlFlow;
use std::path::Path;

pub use apply::{Conversion, Progress};
pub use detect::detect;
pub use emit::{Emission, Layout, emit};
pub use error::{ConvertError, Unknown};
pub use facts::Fact;
#[cfg(any(feature = "fetch", feature = "train"))]
pub(crate) use hub::config_text;
pub use mapping::{Mapping, MappingError, SidecarKind};
pub use plan::{Action, Candidate, Decision, Plan};
pub use problems::{Ambiguous, Misshaped, Missing, Problems, Unclaimed};
pub use sidecar::Sidecar;

use crate::checkpoint::Checkpoint;
use crate::destination::Destination;

/// What is asked of a conversion; what is left out is detected, or refused by name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Request {
    /// `--family`: a mapping's name.
    pub family: Option<String>,
    /// `--branch`: which of several networks in the file.
    pub branch: Option<String>,
    /// `--heads`.
    pub heads: Option<usize>,
    /// `--eps`: the encoder's LayerNorm epsilon.
    pub norm_eps: Option<f64>,
    /// `--image-size HxW`, in pixels: the native size, where the position table is not square.
    pub image_size: Option<[usize; 2]>,
    /// The configuration beside the weights; [`convert`] looks for it itself.
    pub sidecar: Option<Sidecar>,
}

/// Converts the checkpoint `path` into the model directory `out`.
///
/// # Errors
/// Says what stands in the way; nothing is left behind.
pub fn convert(
    path: &Path,
    out: impl Into<Destination>,
    request: &Request,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Conversion, ConvertError> {
    let checkpoint = Checkpoint::open(path)?;
    let mut request = request.clone();
    if request.sidecar.is_none() {
        request.sidecar = Sidecar::beside(path);
    }
    let plan = Plan::new(&checkpoint, &request)?;
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    plan.apply(&checkpoint, &name, out, progress)
}
