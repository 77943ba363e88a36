//! Random masking by argsort of noise (`random_masking` upstream).

use std::rc::Rc;

use crate::kernels::Restore;

/// Which patches of a batch the student sees.
#[derive(Debug, Clone)]
pub(super) struct Mask {
    /// (B, K): the visible patches, in the order of their noise.
    pub(super) visible: Vec<u32>,
    /// Where every patch went.
    pub(super) restore: Rc<Restore>,
}

impl Mask {
    /// Keeps the `kept` patches of smallest noise of each image; `noise` is (B, L).
    pub(super) fn new(noise: &[f32], patches: usize, kept: usize) -> Self {
        let (mut visible, mut places) = (Vec::new(), vec![0; noise.len()]);
        for (noise, places) in noise.chunks_exact(patches).zip(places.chunks_exact_mut(patches)) {
            let mut order: Vec<u32> = (0..patches as u32).collect();
            order.sort_by(|a, b| noise[*a as usize].total_cmp(&noise[*b as usize]));
            for (place, patch) in order.iter().enumerate() {
                places[*patch as usize] = place as u32;
            }
            visible.extend_from_slice(&order[..kept]);
        }
        Self { visible, restore: Rc::new(Restore::new(places, patches, kept)) }
    }
}
