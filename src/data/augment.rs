//! The pretraining transform: torchvision's `RandomResizedCrop → RandomHorizontalFlip → ToTensor → Normalize`.

use super::decode::Picture;
use super::pixels::Normalise;
use super::random::Uniform;
use super::resample::Resample;
use super::{Crop, Draws, Purpose};
use crate::model::Interpolation;

/// A crop is only decoded at reduced size if it then still is so many times larger than the result: the resampling that follows
/// hides the difference (PIL's `thumbnail` has the same rule and number).
const GAP: u32 = 2;

/// Settings of the pretraining transform; the default is MAE's and TEC's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Augment {
    /// `[H, W]` of the result.
    pub size: [usize; 2],
    /// Least and largest share of the area that is kept.
    pub scale: [f64; 2],
    /// Least and largest aspect ratio (width / height) of what is kept.
    pub ratio: [f64; 2],
    /// Probability of mirroring.
    pub flip: f64,
    /// Resampling filter.
    pub interpolation: Interpolation,
    /// Mean of each channel, of values in [0, 1].
    pub mean: [f64; 3],
    /// Standard deviation of each channel.
    pub std: [f64; 3],
    /// Whether JPEGs are decoded at full size even where a crop is more than twice as large as the result after halving.
    pub exact_decode: bool,
}

impl Default for Augment {
    fn default() -> Self {
        Self {
            size: [224, 224],
            scale: [0.2, 1.0],
            ratio: [3.0 / 4.0, 4.0 / 3.0],
            flip: 0.5,
            interpolation: Interpolation::Bicubic,
            mean: [0.485, 0.456, 0.406],
            std: [0.229, 0.224, 0.225],
            exact_decode: false,
        }
    }
}

impl Augment {
    /// Values of one transformed image.
    pub fn values(&self) -> usize {
        3 * self.size[0] * self.size[1]
    }

    /// What is wrong with the settings.
    pub(super) fn refusal(&self) -> Option<String> {
        let range = |[low, high]: [f64; 2]| 0.0 < low && low <= high && high.is_finite();
        if self.size.iter().any(|&side| side == 0 || side > 1 << 14) {
            Some(format!("images of {}×{} pixels", self.size[0], self.size[1]))
        } else if !range(self.scale) || !range(self.ratio) {
            Some(format!("crops of scale {:?} and ratio {:?}", self.scale, self.ratio))
        } else if !(0.0..=1.0).contains(&self.flip) {
            Some(format!("a flip probability of {}", self.flip))
        } else if self.std.iter().any(|&std| std <= 0.0 || !std.is_finite()) {
            Some(format!("a standard deviation of {:?}", self.std))
        } else {
            None
        }
    }
}

/// What was done to an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Applied {
    /// What was kept of it.
    pub crop: Crop,
    /// Whether it was mirrored.
    pub flipped: bool,
}

/// Decodes, crops, resizes, mirrors and normalises one image at a time.
#[derive(Debug)]
pub struct TrainTransform {
    augment: Augment,
    resample: Resample,
    normalise: Normalise,
}

impl TrainTransform {
    /// A transform with these settings.
    pub fn new(augment: Augment) -> Self {
        Self {
            augment,
            resample: Resample::new(augment.interpolation),
            normalise: Normalise::new(augment.mean, augment.std),
        }
    }

    /// Turns an encoded image into (3, H, W) normalised values as sample `sample` of `epoch` looks under `seed`.
    ///
    /// # Errors
    /// Why the image cannot be decoded; `out`, which must hold [`Augment::values`], is then unchanged.
    pub fn apply(
        &mut self,
        encoded: &[u8],
        [seed, epoch, sample]: [u64; 3],
        out: &mut [f32],
    ) -> Result<Applied, String> {
        let augment = &self.augment;
        let picture = Picture::open(encoded)?;
        let (width, height) = picture.dimensions();
        let mut draws = Draws::new(seed, epoch, sample, Purpose::Crop);
        let crop = Crop::random(width, height, augment.scale, augment.ratio, &mut draws);
        let flipped = f64::from(Draws::new(seed, epoch, sample, Purpose::Flip).unit()) < augment.flip;

        let [height, width] = augment.size;
        let larger = |factor: u32| {
            let least = |pixels: usize| pixels as u64 * u64::from(GAP * factor);
            u64::from(crop.width) >= least(width) && u64::from(crop.height) >= least(height)
        };
        let reduce = [8, 4, 2].into_iter().find(|&factor| !augment.exact_decode && larger(factor)).unwrap_or(1);
        let kept = picture.decode_part(crop, reduce)?;
        let resized = self.resample.resize(&kept, width as u32, height as u32)?;
        self.normalise.planes(resized, width, flipped, out);
        Ok(Applied { crop, flipped })
    }
}
