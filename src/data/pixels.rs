//! From 8-bit RGB to normalised planes.

/// `ToTensor` and `Normalize`: (v / 255 - mean) / std in f32, looked up.
#[derive(Debug)]
pub(super) struct Normalise(Box<[[f32; 256]; 3]>);

impl Normalise {
    pub(super) fn new(mean: [f64; 3], std: [f64; 3]) -> Self {
        Self(Box::new(std::array::from_fn(|channel| {
            let (mean, std) = (mean[channel] as f32, std[channel] as f32);
            std::array::from_fn(|value| (value as f32 / 255.0 - mean) / std)
        })))
    }

    /// Writes the planes (3, H, W) of an interleaved picture of W columns, each row mirrored or not.
    pub(super) fn planes(&self, pixels: &[u8], width: usize, mirrored: bool, out: &mut [f32]) {
        let pixels = pixels.as_chunks::<3>().0;
        let plane = pixels.len();
        if plane == 0 {
            return;
        }
        for (channel, out) in out.chunks_exact_mut(plane).enumerate() {
            let table = &self.0[channel];
            for (row, out) in pixels.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
                let values = row.iter().map(|pixel| table[usize::from(pixel[channel])]);
                match mirrored {
                    false => out.iter_mut().zip(values).for_each(|(out, value)| *out = value),
                    true => out.iter_mut().rev().zip(values).for_each(|(out, value)| *out = value),
                }
            }
        }
    }
}
