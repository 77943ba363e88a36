//! What a graph takes, and the images it is checked with.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::check::{CheckError, CheckOptions, DEFAULT_BATCH};
use super::event::{Event, Listener, tell};
use super::read::{DimInfo, ModelInfo};
use super::runtime::{Feed, Images, Pixels};

/// What a graph takes.
pub(super) struct Interface {
    /// Pixels, which it normalises; otherwise normalised images.
    pixels: bool,
    /// Height and width; `None` where any will do.
    size: Option<[usize; 2]>,
    /// The sizes a graph that takes any is tried at.
    sizes: Vec<[usize; 2]>,
}

/// Larger images than any export makes would only exhaust the machine.
const MAX_SIDE: u64 = 16_384;

impl Interface {
    pub(super) fn of(info: &ModelInfo, path: &Path) -> Result<Self, CheckError> {
        let refused = |reason: String| CheckError::Interface { path: path.display().to_string(), reason };
        let [input] = info.inputs.as_slice() else {
            return Err(refused(format!("it has {} inputs, not one image", info.inputs.len())));
        };
        let (pixels, sides) = match (input.element, input.dims.as_slice()) {
            (1, [_, DimInfo::Size(3), height, width]) => (false, [height, width]),
            (2, [_, height, width, DimInfo::Size(3)]) => (true, [height, width]),
            (_, dims) => {
                let dims: Vec<String> = dims.iter().map(DimInfo::to_string).collect();
                let dims = dims.join(", ");
                return Err(refused(format!(
                    "its input `{}` is ({dims}), neither f32 images (B, 3, H, W) nor u8 pixels (B, H, W, 3)",
                    input.name
                )));
            }
        };
        match sides {
            [&DimInfo::Size(height @ 1..=MAX_SIDE), &DimInfo::Size(width @ 1..=MAX_SIDE)] => {
                Ok(Self { pixels, size: Some([height as usize, width as usize]), sizes: vec![] })
            }
            [DimInfo::Name(_) | DimInfo::Unknown, DimInfo::Name(_) | DimInfo::Unknown] => {
                Ok(Self { pixels, size: None, sizes: typical(&info.metadata) })
            }
            [height, width] => Err(refused(format!("its images are {height} × {width}"))),
        }
    }

    /// What to run it on.
    pub(super) fn inputs(
        &self,
        options: &CheckOptions,
        path: &Path,
        hear: Listener<'_>,
    ) -> Result<Vec<Feed>, CheckError> {
        let refused = |reason: String| CheckError::Interface { path: path.display().to_string(), reason };
        let fits = |size: [usize; 2]| match self.size {
            Some([height, width]) if [height, width] != size => {
                Err(refused(format!("it takes images of {height}×{width}, not {}×{}", size[0], size[1])))
            }
            _ => Ok(size),
        };
        match &options.images {
            Some(_) if self.pixels => {
                Err(refused("it takes u8 pixels and normalises them; the images given are normalised".to_owned()))
            }
            Some(images) => {
                fits([images.shape[2], images.shape[3]])?;
                Ok(vec![Feed::Images(Arc::new(images.clone()))])
            }
            None => {
                let own = self.size.map_or_else(|| self.sizes.clone(), |size| vec![size]);
                let sizes = if options.sizes.is_empty() { &own } else { &options.sizes };
                let feed = |size| match self.pixels {
                    true => Feed::Pixels(Arc::new(Pixels::synthetic(DEFAULT_BATCH, size))),
                    false => Feed::Images(Arc::new(Images::synthetic(DEFAULT_BATCH, size))),
                };
                let mut feeds = Vec::with_capacity(sizes.len());
                for size in sizes {
                    tell(hear, Event::Working)?;
                    feeds.push(feed(fits(*size)?));
                }
                Ok(feeds)
            }
        }
    }
}

/// Sizes a graph that takes any is tried at: the model's native one, half as large again, and a rectangle; where the graph
/// pads, the rectangle is no whole number of patches.
fn typical(metadata: &BTreeMap<String, String>) -> Vec<[usize; 2]> {
    let patch = metadata.get("patch_size").and_then(|text| text.parse::<usize>().ok());
    let patch = patch.filter(|patch| (1..=1024).contains(patch)).unwrap_or(16);
    let native = metadata.get("native_image_size").and_then(|text| serde_json::from_str::<[usize; 2]>(text).ok());
    let [height, width] = native.unwrap_or([224, 224]).map(|side| side.clamp(patch, 1024));
    let square = (height.max(width) * 3 / 2).next_multiple_of(patch);
    let rest = if metadata.contains_key("padding") { patch / 2 } else { 0 };
    vec![[height, width], [square, square], [height + patch - rest, width + 5 * patch - rest]]
}
