//! Crop boxes against torchvision's, and what the random numbers promise.

use std::collections::VecDeque;

use serde::Deserialize;
use tec_zoo::data::{Crop, Draws, Purpose, Uniform};

#[derive(Deserialize)]
struct Case {
    size: [u32; 2],
    scale: [f64; 2],
    ratio: [f64; 2],
    units: VecDeque<u32>,
    belows: VecDeque<[u32; 2]>,
    #[serde(rename = "box")]
    crop: [u32; 4],
}

impl Uniform for Case {
    fn unit(&mut self) -> f32 {
        self.units.pop_front().expect("more numbers than torchvision took") as f32 * 2f32.powi(-24)
    }

    fn below(&mut self, bound: u32) -> u32 {
        let [theirs, value] = self.belows.pop_front().expect("more numbers than torchvision took");
        assert_eq!(bound, theirs);
        value
    }
}

#[test]
fn boxes_are_torchvisions_when_the_numbers_are() {
    let text = std::fs::read_to_string(super::fixture("crops.json")).unwrap();
    let cases: Vec<Case> = serde_json::from_str(&text).unwrap();
    assert!(cases.len() > 200);
    for (at, mut case) in cases.into_iter().enumerate() {
        let ([width, height], scale, ratio) = (case.size, case.scale, case.ratio);
        let crop = Crop::random(width, height, scale, ratio, &mut case);
        assert_eq!([crop.left, crop.top, crop.width, crop.height], case.crop, "case {at}: {width}×{height}");
        assert!(case.units.is_empty() && case.belows.is_empty(), "case {at}: torchvision took more numbers");
    }
}

#[test]
fn crops_cover_what_they_should() {
    let (mut areas, mut logs, mut lefts) = (Vec::new(), Vec::new(), Vec::new());
    for sample in 0..20_000 {
        let mut draws = Draws::new(3, 0, sample, Purpose::Crop);
        let crop = Crop::random(2000, 2000, [0.2, 0.5], [3.0 / 4.0, 4.0 / 3.0], &mut draws);
        areas.push(f64::from(crop.width) * f64::from(crop.height) / 4e6);
        logs.push((f64::from(crop.width) / f64::from(crop.height)).ln());
        lefts.push(f64::from(crop.left) / f64::from(2000 - crop.width));
    }
    // The share is uniform in [0.2, 0.5], the logarithm of the ratio in ±ln(4/3), the place everywhere. Each bin of ten should
    // hold 2000 ± 42 (one standard deviation): 200 is almost five.
    for (values, low, high) in [(areas, 0.2, 0.5), (logs, -(4f64 / 3.0).ln(), (4f64 / 3.0).ln()), (lefts, 0.0, 1.0)] {
        let mut bins = [0; 10];
        for value in values {
            assert!(value > low - 1e-3 && value < high + 1e-3, "{value} is not within {low}..{high}");
            bins[(((value - low) / (high - low) * 10.0) as usize).min(9)] += 1;
        }
        assert!(bins.iter().all(|&count: &i32| (count - 2000).abs() < 200), "{low}..{high}: {bins:?}");
    }
}

#[test]
fn numbers_are_uniform_and_stay_what_they_are() {
    let mut draws = Draws::new(1, 2, 3, Purpose::Mask);
    let units: Vec<f32> = (0..40_000).map(|_| draws.unit()).collect();
    assert!(units.iter().all(|unit| (0.0..1.0).contains(unit)));
    let mean = units.iter().map(|&unit| f64::from(unit)).sum::<f64>() / 4e4;
    // One standard deviation is 0.0014.
    assert!((mean - 0.5).abs() < 0.006, "{mean}");
    let mut thirds = [0; 3];
    (0..30_000).for_each(|_| thirds[draws.below(3) as usize] += 1);
    assert!(thirds.iter().all(|&count: &i32| (count - 10_000).abs() < 400), "{thirds:?}");

    // A changed sequence would silently change every recipe's result. The words are those of ChaCha8, written down from its
    // definition, under the documented key.
    let mut draws = Draws::new(1, 2, 3, Purpose::Mask);
    assert_eq!([draws.word(), draws.word()], EXPECTED);
}

const EXPECTED: [u64; 2] = [0x0221_5b08_a9d6_507c, 0x7ed5_6c52_1099_be4f];
