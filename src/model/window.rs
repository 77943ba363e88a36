//! What detectors and segmenters change about a ViT's attention: windows, and relative positions.

use serde::{Deserialize, Serialize};

use super::VitConfig;

/// Blocks whose attention stays within windows: ViTDet (arXiv 2203.16527, section 3).
///
/// The map is padded with zeros, after the block's first norm, to whole windows at the right and the bottom; the padding
/// is attended to like any token, as in detectron2's `window_partition`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// Side of a window, in patches.
    pub size: usize,
    /// Blocks that see the whole image all the same, in order.
    pub global_blocks: Vec<usize>,
}

impl Window {
    /// ViTDet's choice at any depth: windows of 14 patches, the last block of each quarter global.
    pub fn vitdet(depth: usize) -> Self {
        Self { size: 14, global_blocks: quarters(depth) }
    }
}

/// The last block of each quarter of `depth` blocks: 2, 5, 8, 11 of twelve.
pub(crate) fn quarters(depth: usize) -> Vec<usize> {
    let mut ends: Vec<usize> = (1..=4).map(|i| depth * i / 4).filter(|end| *end > 0).map(|end| end - 1).collect();
    ends.dedup();
    ends
}

/// The blocks whose outputs segmenters and detectors take: mmsegmentation's and iBOT's choice, blocks 3, 5, 7, 11 of twelve
/// and 7, 11, 15, 23 of twenty-four; the last of each quarter of other depths.
pub(crate) fn pyramid_levels(depth: usize) -> Vec<usize> {
    match depth {
        12 => vec![3, 5, 7, 11],
        24 => vec![7, 11, 15, 23],
        depth => quarters(depth),
    }
}

/// What attention's logits learn about how far apart two patches are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum RelativePosition {
    /// ViTDet, after MViTv2: `q·rel_pos_h[Δrow] + q·rel_pos_w[Δcolumn]` is added to the logits, with q *before* it is
    /// scaled. The tables (2·side − 1, C / N) of `blocks.{i}.attn.rel_pos_{h,w}` are stretched linearly to other sizes.
    Decomposed {
        /// Patches `[rows, columns]` for which the global blocks' tables were made; a windowed block's are for its window.
        grid: [usize; 2],
    },
    /// BEiT and mmsegmentation's MAE: `blocks.{i}.attn.relative_position_bias_table` ((2·rows − 1)·(2·columns − 1) + 3, N)
    /// holds what is added for each offset between two patches, then for class → patch, patch → class, class → class.
    Table,
}

/// Where a block's relative positions are and what they are needed for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelativeRequest {
    /// The attention's parameters: `blocks.{i}.attn`.
    pub name: String,
    /// Their form.
    pub kind: RelativePosition,
}

impl VitConfig {
    /// Side of the windows that block `i` attends in; `None` where it attends to all.
    pub fn window_of(&self, i: usize) -> Option<usize> {
        self.window.as_ref().filter(|window| !window.global_blocks.contains(&i)).map(|window| window.size)
    }

    /// Block `i`'s relative positions.
    pub fn relative_of(&self, i: usize) -> Option<RelativeRequest> {
        self.relative_position.map(|kind| RelativeRequest { name: format!("blocks.{i}.attn"), kind })
    }

    /// Whether every block attends to all tokens by their contents alone.
    pub fn plain_attention(&self) -> bool {
        self.window.is_none() && self.relative_position.is_none()
    }

    pub(super) fn validate_attention(&self) -> Result<(), String> {
        if !self.class_token && self.registers > 0 {
            return Err("`registers` follow a class token, and `class_token` is false".into());
        }
        if let Some(window) = &self.window {
            if window.size == 0 || window.size > super::config::MAX_SIDE {
                return Err(format!("`window.size` is {}", window.size));
            }
            if window.global_blocks.windows(2).any(|pair| pair[0] >= pair[1])
                || window.global_blocks.last().is_some_and(|last| *last >= self.depth)
            {
                return Err(format!("`window.global_blocks` {:?} are not blocks in order", window.global_blocks));
            }
            if self.class_token {
                return Err("`window` needs a map of patches, and `class_token` is true".into());
            }
        }
        match self.relative_position {
            None => Ok(()),
            Some(RelativePosition::Decomposed { grid }) => {
                if grid.iter().any(|side| *side == 0 || *side > super::config::MAX_SIDE) {
                    return Err(format!("`relative_position.grid` is {grid:?}"));
                }
                match self.class_token {
                    true => Err("decomposed relative positions are between patches, and `class_token` is true".into()),
                    false => Ok(()),
                }
            }
            Some(RelativePosition::Table) if self.prefix_tokens() != 1 || self.window.is_some() => {
                Err("a `relative_position` table is for one class token and no windows".into())
            }
            Some(RelativePosition::Table) => Ok(()),
        }
    }
}
