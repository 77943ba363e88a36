//! Images in: which files an input names, and the evaluation transform that turns each into a model's input; features out.

mod batch;
mod features;
mod input;
mod random;
mod transform;

pub use batch::{Batch, ImageBatches};
pub use features::FeatureFile;
pub use input::{DataError, Input};
pub use random::{Draws, Purpose, Uniform};
pub use transform::EvalTransform;
