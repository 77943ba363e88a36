//! The ViT forward pass, and TEC's adapters on top of it.

use super::{Activation, AdapterConfig, Mlp, Ops, PositionRequest, VitConfig};

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

/// TEC's encoder adapter applied.
#[derive(Debug, Clone)]
pub struct Adapted<V> {
    /// What each group of blocks contributes, Z'_n: (B, 1 + L, C) each.
    pub groups: Vec<V>,
    /// Z_e, the LayerNorm of their sum: (B, 1 + L, C).
    pub adapted: V,
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

    /// The configuration.
    pub fn config(&self) -> &'a VitConfig {
        self.config
    }

    /// The encoder on `images` (B, 3, H, W), where `grid` is `[H / p, W / p]`.
    pub fn encode<O: Ops>(
        &self,
        ops: &mut O,
        images: &O::Value,
        grid: O::Grid,
    ) -> Result<Features<O::Value>, O::Error> {
        let mut x = self.embed(ops, images, grid)?;
        let mut blocks = Vec::with_capacity(self.config.depth);
        for i in 0..self.config.depth {
            x = self.block(ops, &x, i, grid)?;
            blocks.push(x.clone());
        }
        let norm = self.norm(ops, &x)?;
        Ok(Features { blocks, norm })
    }

    /// The final norm of the last block's output; `None` where the checkpoint has none.
    pub fn norm<O: Ops>(&self, ops: &mut O, x: &O::Value) -> Result<Option<O::Value>, O::Error> {
        match self.config.final_norm {
            true => ops.layer_norm(x, "norm", self.config.norm_eps).map(Some),
            false => Ok(None),
        }
    }

    /// Patches, class token, registers and positions: the input of block 0, (B, 1 + R + L, C).
    pub fn embed<O: Ops>(&self, ops: &mut O, images: &O::Value, grid: O::Grid) -> Result<O::Value, O::Error> {
        let patches = ops.patch_embed(images, "patch_embed.proj", self.config.patch_size)?;
        let class_row = self.config.has_class_position();
        let resample = self.config.position.resample;
        let request = PositionRequest { native: self.config.grid(), grid, resample, class_row };
        let position = ops.position("pos_embed", &request)?;
        if !self.config.class_token {
            return ops.add(&patches, &position);
        }
        let cls = ops.parameter("cls_token")?;
        if class_row {
            let tokens = ops.prepend_token(&cls, &patches)?;
            return ops.add(&tokens, &position);
        }
        let patches = ops.add(&patches, &position)?;
        let registers = ops.parameter("reg_token")?;
        let tokens = ops.prepend_token(&registers, &patches)?;
        ops.prepend_token(&cls, &tokens)
    }

    /// Block `i` on an image of `grid` patches: pre-norm attention and MLP, each scaled where the model has LayerScale, and
    /// added to its input.
    pub fn block<O: Ops>(&self, ops: &mut O, x: &O::Value, i: usize, grid: O::Grid) -> Result<O::Value, O::Error> {
        let c = self.config;
        let prefix = format!("blocks.{i}");
        if c.plain_attention() {
            return Ok(self.block_at(ops, x, &prefix)?.0);
        }
        let mut h = ops.layer_norm(x, &format!("{prefix}.norm1"), c.norm_eps)?;
        let window = c.window_of(i);
        if let Some(size) = window {
            h = ops.windows(&h, grid, size)?;
        }
        let qkv = ops.linear(&h, &format!("{prefix}.attn.qkv"))?;
        h = match c.relative_of(i) {
            None => ops.attention(&qkv, c.heads)?,
            Some(relative) => {
                let grid = window.map_or(grid, |size| ops.fixed_grid([size, size]));
                ops.relative_attention(&qkv, c.heads, grid, &relative)?
            }
        };
        if let Some(size) = window {
            // Before the projection, which then has no padding to work on; token by token, it makes no difference.
            h = ops.unwindow(&h, grid, size)?;
        }
        self.end_block(ops, x, &h, &prefix)
    }

    /// The block of plain attention whose parameters' names start with `prefix`: its output, and its qkv (B, T, 3·C).
    pub fn block_at<O: Ops>(&self, ops: &mut O, x: &O::Value, prefix: &str) -> Result<(O::Value, O::Value), O::Error> {
        let (h, qkv) = self.attend(ops, x, prefix)?;
        Ok((self.end_block(ops, x, &h, prefix)?, qkv))
    }

    /// The output of [`Self::block_at`] for the tokens that `pick` takes of a value: they attend to all, and what follows is
    /// computed for them alone.
    pub fn block_for<O: Ops>(
        &self,
        ops: &mut O,
        x: &O::Value,
        prefix: &str,
        pick: impl Fn(&mut O, &O::Value) -> Result<O::Value, O::Error>,
    ) -> Result<O::Value, O::Error> {
        let (h, _) = self.attend(ops, x, prefix)?;
        let (x, h) = (pick(ops, x)?, pick(ops, &h)?);
        self.end_block(ops, &x, &h, prefix)
    }

    /// The attention of x, (B, T, C), and the qkv it is of.
    fn attend<O: Ops>(&self, ops: &mut O, x: &O::Value, prefix: &str) -> Result<(O::Value, O::Value), O::Error> {
        let h = ops.layer_norm(x, &format!("{prefix}.norm1"), self.config.norm_eps)?;
        let qkv = ops.linear(&h, &format!("{prefix}.attn.qkv"))?;
        Ok((ops.attention(&qkv, self.config.heads)?, qkv))
    }

    /// What follows attention: its projection, and the MLP.
    fn end_block<O: Ops>(&self, ops: &mut O, x: &O::Value, h: &O::Value, prefix: &str) -> Result<O::Value, O::Error> {
        let c = self.config;
        let x = self.end_branch(ops, x, h, &format!("{prefix}.attn.proj"), &format!("{prefix}.ls1.gamma"))?;
        let h = ops.layer_norm(&x, &format!("{prefix}.norm2"), c.norm_eps)?;
        let fc1 = format!("{prefix}.mlp.fc1");
        let h = match c.mlp {
            Mlp::Plain => ops.linear_gelu(&h, &fc1, c.activation)?,
            Mlp::SwiGlu => {
                let h = ops.linear(&h, &fc1)?;
                ops.swiglu(&h)?
            }
        };
        self.end_branch(ops, &x, &h, &format!("{prefix}.mlp.fc2"), &format!("{prefix}.ls2.gamma"))
    }

    /// x + layer(h), the latter scaled where the model has LayerScale.
    fn end_branch<O: Ops>(
        &self,
        ops: &mut O,
        x: &O::Value,
        h: &O::Value,
        layer: &str,
        gamma: &str,
    ) -> Result<O::Value, O::Error> {
        if !self.config.layer_scale {
            return ops.linear_add(x, h, layer);
        }
        let h = ops.linear(h, layer)?;
        let h = ops.layer_scale(&h, gamma)?;
        ops.add(x, &h)
    }

    /// TEC's encoder adapter on an encoder's features: `None` where the model keeps no adapters.
    ///
    /// Its LayerNorms have PyTorch's default eps, and its MLPs the exact GELU whatever the encoder's activation
    /// (`FeatureAdaptor` upstream). The class token goes through too.
    pub fn adapt<O: Ops>(
        &self,
        ops: &mut O,
        features: &Features<O::Value>,
    ) -> Result<Option<Adapted<O::Value>>, O::Error> {
        match &self.config.adapters {
            Some(adapters) => self.adapt_with(ops, features, adapters).map(Some),
            None => Ok(None),
        }
    }

    fn adapt_with<O: Ops>(
        &self,
        ops: &mut O,
        features: &Features<O::Value>,
        adapters: &AdapterConfig,
    ) -> Result<Adapted<O::Value>, O::Error> {
        // Blocks 0…D−2 raw, the last one after the encoder's final norm.
        let raw = features.blocks.iter().take(features.blocks.len().saturating_sub(1));
        let parts: Vec<O::Value> = raw.chain([features.last()]).cloned().collect();
        let x = ops.concat_channels(&parts)?;
        let x = ops.layer_norm(&x, "encoder_adapter.norm_in", adapters.norm_eps)?;
        let span = adapters.blocks_per_group * self.config.width;
        let mut groups = Vec::with_capacity(adapters.groups);
        let mut sum: Option<O::Value> = None;
        for g in 0..adapters.groups {
            let prefix = format!("encoder_adapter.groups.{g}");
            let part = ops.channels(&x, g * span, span)?;
            let fused = ops.linear(&part, &format!("{prefix}.fuse"))?;
            let h = ops.linear_gelu(&fused, &format!("{prefix}.mlp.fc1"), Activation::GeluErf)?;
            let h = ops.linear(&h, &format!("{prefix}.mlp.fc2"))?;
            let z = ops.add(&fused, &h)?;
            sum = Some(match sum {
                None => z.clone(),
                Some(sum) => ops.add(&sum, &z)?,
            });
            groups.push(z);
        }
        let sum = sum.unwrap_or(x);
        let adapted = ops.layer_norm(&sum, "encoder_adapter.norm_out", adapters.norm_eps)?;
        Ok(Adapted { groups, adapted })
    }

    /// TEC's input adapter on the unmerged class token, (1, 1, C): what the model's `cls_token` was made from.
    /// `None` where the checkpoint kept no input adapter.
    pub fn merged_class_token<O: Ops>(&self, ops: &mut O) -> Result<Option<O::Value>, O::Error> {
        if self.config.adapters.and_then(|adapters| adapters.input_mlp_width).is_none() {
            return Ok(None);
        }
        let token = ops.parameter("input_adapter.cls_token")?;
        let h = ops.linear_gelu(&token, "input_adapter.fc1", Activation::GeluErf)?;
        ops.linear(&h, "input_adapter.fc2").map(Some)
    }

    /// Class token of the encoder's last output, (B, C).
    pub fn class_token<O: Ops>(&self, ops: &mut O, features: &Features<O::Value>) -> Result<O::Value, O::Error> {
        ops.select_token(features.last(), 0)
    }

    /// Mean of the patch tokens of the encoder's last output, (B, C).
    pub fn mean<O: Ops>(&self, ops: &mut O, features: &Features<O::Value>) -> Result<O::Value, O::Error> {
        ops.mean_tokens(features.last(), self.config.prefix_tokens())
    }

    /// Logits of a fine-tuned checkpoint's head, (B, classes); `None` where it has none.
    ///
    /// With `fc_norm`, MAE's fine-tuning head: the mean of the patch tokens *before* any final norm, normed on its own
    /// (`global_pool` in mae's `models_vit.py`). Otherwise the class token of the last output.
    pub fn classify<O: Ops>(&self, ops: &mut O, features: &Features<O::Value>) -> Result<Option<O::Value>, O::Error> {
        let Some(classifier) = self.config.classifier else {
            return Ok(None);
        };
        let pooled = match (classifier.fc_norm, features.blocks.last()) {
            (true, Some(last)) => {
                let mean = ops.mean_tokens(last, self.config.prefix_tokens())?;
                ops.layer_norm(&mean, "fc_norm", self.config.norm_eps)?
            }
            _ => self.class_token(ops, features)?,
        };
        ops.linear(&pooled, "head").map(Some)
    }
}
