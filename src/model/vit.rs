//! The ViT forward pass, and TEC's adapters on top of it.

use super::{Ops, PositionRequest, VitConfig};

/// A point of the forward pass that can be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Tokens entering block 0: (B, 1 + L, C).
    Embedded,
    /// Raw output of block i: (B, 1 + L, C).
    Block(usize),
    /// After the final norm.
    Norm,
    /// TEC's adapted feature Z_e.
    Adapted,
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Stage::Embedded => write!(f, "embedded"),
            Stage::Block(i) => write!(f, "block{i}"),
            Stage::Norm => write!(f, "norm"),
            Stage::Adapted => write!(f, "adapted"),
        }
    }
}

/// What a forward pass leaves behind.
#[derive(Debug, Clone)]
pub struct Features<V> {
    /// Raw output of every block, (B, 1 + L, C) each.
    pub blocks: Vec<V>,
    /// After the final norm; absent where the checkpoint has none.
    pub norm: Option<V>,
}

impl<V: Clone> Features<V> {
    /// The last thing the encoder says: the normed tokens, or the last block's where there is no final norm.
    pub fn last(&self) -> &V {
        self.norm.as_ref().unwrap_or_else(|| &self.blocks[self.blocks.len() - 1])
    }
}

/// The forward passes of a configuration.
#[derive(Debug, Clone, Copy)]
pub struct Vit<'a> {
    config: &'a VitConfig,
}

impl<'a> Vit<'a> {
    /// Passes for `config`.
    pub fn new(config: &'a VitConfig) -> Self {
        Self { config }
    }

    /// The encoder on `images` (B, 3, H, W), where `grid` is `[H / p, W / p]`.
    pub fn encode<O: Ops>(
        &self,
        ops: &mut O,
        images: &O::Value,
        grid: [usize; 2],
    ) -> Result<Features<O::Value>, O::Error> {
        let mut x = self.embed(ops, images, grid)?;
        let mut blocks = Vec::with_capacity(self.config.depth);
        for i in 0..self.config.depth {
            x = self.block(ops, &x, i)?;
            blocks.push(x.clone());
        }
        let norm = match self.config.final_norm {
            true => Some(ops.layer_norm(&x, "norm", self.config.norm_eps)?),
            false => None,
        };
        Ok(Features { blocks, norm })
    }

    /// Patches, class token and positions: the input of block 0, (B, 1 + L, C).
    pub fn embed<O: Ops>(&self, ops: &mut O, images: &O::Value, grid: [usize; 2]) -> Result<O::Value, O::Error> {
        let patches = ops.patch_embed(images, "patch_embed.proj", self.config.patch_size)?;
        let cls = ops.parameter("cls_token")?;
        let tokens = ops.prepend_token(&cls, &patches)?;
        let request = PositionRequest { native: self.config.grid(), grid, resample: self.config.position.resample };
        let position = ops.position("pos_embed", &request)?;
        ops.add(&tokens, &position)
    }

    /// Block `i`: pre-norm attention and MLP, each added to its input.
    pub fn block<O: Ops>(&self, ops: &mut O, x: &O::Value, i: usize) -> Result<O::Value, O::Error> {
        let c = self.config;
        let h = ops.layer_norm(x, &format!("blocks.{i}.norm1"), c.norm_eps)?;
        let h = ops.linear(&h, &format!("blocks.{i}.attn.qkv"))?;
        let h = ops.attention(&h, c.heads)?;
        let h = ops.linear(&h, &format!("blocks.{i}.attn.proj"))?;
        let x = ops.add(x, &h)?;
        let h = ops.layer_norm(&x, &format!("blocks.{i}.norm2"), c.norm_eps)?;
        let h = ops.linear(&h, &format!("blocks.{i}.mlp.fc1"))?;
        let h = ops.gelu(&h, c.activation)?;
        let h = ops.linear(&h, &format!("blocks.{i}.mlp.fc2"))?;
        ops.add(&x, &h)
    }
}
