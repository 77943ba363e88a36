//! Images in: which files an input names, the transforms that turn each into a model's input, and batches of them for
//! evaluation ([`ImageBatches`]) and for training ([`Loader`]); features out.
//!
//! What a training run sees is decided by numbers that are looked up, not drawn ([`Draws`]): the order of an epoch
//! ([`EpochOrder`]), a sample's crop, its mirroring and its mask. So batch `b` of epoch `e` is the same, bit for bit, whatever
//! the number of threads and wherever a run was resumed.

mod augment;
mod batch;
mod braces;
mod crop;
mod dataset;
mod decode;
mod digest;
mod features;
mod formats;
mod input;
mod jpeg;
mod kept;
mod loader;
pub(crate) mod lossless;
mod names;
mod order;
mod pixels;
mod random;
mod resample;
mod scan;
mod shards;
mod stamp;
mod transform;
mod walk;

pub use augment::{Applied, Augment, TrainTransform};
pub use batch::{Batch, ImageBatches};
pub use crop::Crop;
pub use dataset::Dataset;
pub use decode::{Part, Picture, Rgb};
pub use digest::DataDigest;
pub use features::FeatureFile;
pub use formats::Unread;
pub(crate) use input::counted;
pub use input::{DataError, Input};
pub use loader::{Activity, Broken, Loader, LoaderActivity, LoaderSettings, Position, TrainBatch};
pub use order::{EpochOrder, Share};
pub use random::{Draws, Purpose, Uniform};
pub use scan::ScanEvent;
pub use shards::DamagedShard;
pub use transform::EvalTransform;
