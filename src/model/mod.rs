//! What a Vision Transformer *is* here: its configuration, the names and shapes of its parameters, the directory
//! format it is kept in, and its forward pass, written once over [`Ops`].
//!
//! Nothing in this module computes: [`crate::kernels`] runs the passes, [`crate::onnx`] records them.
//!
//! Shape letters: B batch, H×W image, p patch size, L patches, R registers (0 unless said), C width, D depth, N heads.
//! Where tokens are written (B, 1 + L, C), a model with registers has (B, 1 + R + L, C), and one without class token
//! (B, L, C).

mod canonical;
mod config;
mod neck;
mod ops;
mod output;
mod parameters;
pub mod position;
mod position_kind;
mod pyramid;
pub(crate) mod relative;
pub mod stats;
mod vit;
mod window;

#[cfg(feature = "train")]
pub(crate) use canonical::Part;
pub use canonical::{Canonical, CanonicalError, ModelFile, TensorView, Weights};
pub use config::{
    Activation, AdapterConfig, AxisOrder, BranchPoint, ClassifierConfig, DecoderConfig, Feature, Interpolation,
    Licence, Mlp, ModelConfig, PositionConfig, PositionKind, Preprocessing, Provenance, Resample, VitConfig,
};
pub use neck::{Neck, neck_parameters};
pub use ops::{Ops, PositionRequest};
pub use output::FeatureOutput;
pub use parameters::{ParameterSpec, adapter_parameters, vit_parameters};
pub use position_kind::{is_sin_cos, position_kind};
pub use pyramid::Map;
pub use vit::{Adapted, Features, Stage, Vit};
pub use window::{RelativePosition, RelativeRequest, Window};
pub(crate) use window::{pyramid_levels, quarters};
