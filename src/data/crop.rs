//! Which part of an image is shown: torchvision's `RandomResizedCrop.get_params`.

use super::random::Uniform;

/// A rectangle of pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crop {
    /// First column.
    pub left: u32,
    /// First row.
    pub top: u32,
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

impl Crop {
    /// The whole image.
    pub fn all(width: u32, height: u32) -> Self {
        Self { left: 0, top: 0, width, height }
    }

    /// A crop of a share of the area within `scale` and an aspect ratio (width / height) within `ratio`.
    ///
    /// Ten times a share (uniform) and a ratio (uniform in its logarithm) are drawn, in f32 as torchvision draws them; the
    /// first rectangle that fits is put somewhere at random. If none fits, it is the largest central one whose ratio is
    /// allowed, or all.
    pub fn random(width: u32, height: u32, scale: [f64; 2], ratio: [f64; 2], numbers: &mut impl Uniform) -> Self {
        let area = f64::from(width) * f64::from(height);
        let logs = ratio.map(|ratio| libm::logf(ratio as f32));
        for _ in 0..10 {
            let target = area * f64::from(between(numbers, scale.map(|share| share as f32)));
            let aspect = f64::from(libm::expf(between(numbers, logs)));
            // Python rounds halves to even.
            let wide = (target * aspect).sqrt().round_ties_even() as u32;
            let high = (target / aspect).sqrt().round_ties_even() as u32;
            if (1..=width).contains(&wide) && (1..=height).contains(&high) {
                let top = numbers.below(height - high + 1);
                let left = numbers.below(width - wide + 1);
                return Self { left, top, width: wide, height: high };
            }
        }
        let all = f64::from(width) / f64::from(height.max(1));
        let (wide, high) = if all < ratio[0].min(ratio[1]) {
            (width, (f64::from(width) / ratio[0].min(ratio[1])).round_ties_even() as u32)
        } else if all > ratio[0].max(ratio[1]) {
            ((f64::from(height) * ratio[0].max(ratio[1])).round_ties_even() as u32, height)
        } else {
            (width, height)
        };
        let (wide, high) = (wide.min(width), high.min(height));
        Self { left: (width - wide) / 2, top: (height - high) / 2, width: wide, height: high }
    }
}

fn between(numbers: &mut impl Uniform, [low, high]: [f32; 2]) -> f32 {
    numbers.unit() * (high - low) + low
}
