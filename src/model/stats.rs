//! Parameter and multiply-accumulate counts, from configurations alone.
//!
//! # What is counted
//! One image. Every product of a weight or of an activation with an activation, once, as one multiply-accumulate: patch
//! embedding, Linears, and attention's q·kᵀ and weights·v (T²·C each; in windows, of the T of each window, padding included).
//! Biases, norms, softmax, GELU, additions, relative positions and products taken value by value (LayerScale, a SwiGLU's gate) are not. Parts whose result is thrown away count when
//! upstream computes them: both of TEC's decoders predict the class row and drop it. This is the convention of Table 8 of
//! the TEC paper: it gives 8.3 G and 17.6 G, and 118.6 M parameters, for ViT-B, position tables included.

use serde::Serialize;

use super::{AdapterConfig, Mlp, ParameterSpec, PositionKind, VitConfig, adapter_parameters, vit_parameters};

/// What a model holds and what one image costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// All parameters, fixed position tables included.
    pub parameters: u64,
    /// Those an optimizer moves: all but fixed position tables.
    pub trainable: u64,
    /// Multiply-accumulates of one image's forward pass whose results carry a gradient.
    pub macs_with_grad: u64,
    /// Those of what is only run: a frozen base model, or an encoder in use.
    pub macs_without_grad: u64,
}

/// What a pretraining adds to the student's encoder.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TecShape {
    /// Token width of the decoder all targets share (512 for ViT-B, 768 for ViT-L).
    pub decoder_width: usize,
    /// Its blocks, run once for each target (2).
    pub decoder_depth: usize,
    /// Whether the base's features are predicted.
    pub feature: bool,
    /// Query rows of the attention target besides the class token's; `None` without an attention target.
    pub top_k: Option<usize>,
    /// Whether the image itself is predicted.
    pub pixels: bool,
    /// Share of the student's patches that is masked (0.75).
    pub mask_ratio: f64,
    /// Blocks fused by one group of the encoder adapter (3); `None` without one.
    pub blocks_per_group: Option<usize>,
    /// Whether the class token passes through an MLP first.
    pub input_adapter: bool,
}

/// Counts of an encoder run on an image of `image` `[H, W]` pixels, with the head and the encoder adapter it has.
///
/// Nothing is trained in such a pass: `macs_with_grad` is 0. `trainable` is what fine-tuning would move.
pub fn vit(config: &VitConfig, image: [usize; 2]) -> Stats {
    let grid = image.map(|side| side / config.patch_size);
    let patches = wide(grid[0]) * wide(grid[1]);
    let tokens = patches + wide(config.prefix_tokens());
    let mut parameters = total(&vit_parameters(config));
    let mut macs = encoder_macs(config, patches, tokens);
    if let Some(window) = &config.window {
        let windows: u128 = grid.iter().map(|side| wide(side.div_ceil(window.size))).product();
        let blocks = wide(config.depth - window.global_blocks.len());
        let (places, c) = (windows * wide(window.size).pow(2), wide(config.width));
        // The padding goes through qkv and attention.
        macs = macs - blocks * (2 * tokens * tokens * c + tokens * 3 * c * c)
            + blocks * (2 * places * wide(window.size).pow(2) * c + places * 3 * c * c);
    }
    if let Some(classifier) = config.classifier {
        macs += wide(config.width) * wide(classifier.classes);
    }
    if let Some(adapters) = &config.adapters {
        parameters += total(&adapter_parameters(adapters, config.width));
        macs += adapter_macs(adapters, config.width, tokens);
    }
    Stats {
        parameters: narrow(parameters),
        trainable: narrow(parameters - fixed_positions(config)),
        macs_with_grad: 0,
        macs_without_grad: narrow(macs),
    }
}

/// Counts of a pretraining: `student` with its adapters and decoders, trained against a frozen `base` where there is one.
///
/// Both see images of the student's native size; the parameters are the student's side alone.
pub fn tec(student: &VitConfig, base: Option<&VitConfig>, shape: &TecShape) -> Stats {
    let c = student.width;
    let d = wide(shape.decoder_width);
    let target = wide(base.map_or(0, |base| base.width));
    let patches = wide(student.patches());
    let tokens = patches + 1;
    let kept = wide(student.visible_patches(shape.mask_ratio.clamp(0.0, 1.0))) + 1;

    let fixed = tokens * wide(c) + tokens * d;
    let mut parameters = total(&vit_parameters(student));
    let mut macs = encoder_macs(student, patches, kept);
    if shape.input_adapter {
        // Its class token is the student's own here.
        let mlp = 2 * wide(c) * 4 * wide(c);
        parameters += mlp + 5 * wide(c);
        macs += mlp;
    }
    if let Some(blocks_per_group) = shape.blocks_per_group {
        let adapters = AdapterConfig {
            groups: student.depth / blocks_per_group.max(1),
            blocks_per_group,
            mlp_width: 4 * shape.decoder_width,
            norm_eps: 1e-5,
            input_mlp_width: None,
        };
        parameters += total(&adapter_parameters(&adapters, c));
        macs += adapter_macs(&adapters, c, kept);
    }
    parameters += tokens * d + wide(shape.decoder_depth) * block_parameters(d);

    let feature = shape.feature.then_some(target);
    let attention = shape.top_k.map(|_| 2 * target);
    let pixels = shape.pixels.then(|| 3 * wide(student.patch_size) * wide(student.patch_size));
    for output in feature.into_iter().chain(attention).chain(pixels) {
        // Linear in, mask token, LayerNorm, Linear out.
        parameters += (wide(c) * d + d) + d + 2 * d + (d * output + output);
        macs += kept * wide(c) * d
            + wide(shape.decoder_depth) * block_macs(d, Mlp::Plain, 4 * d, tokens)
            + tokens * d * output;
    }
    if let Some(top_k) = shape.top_k {
        macs += (wide(top_k) + 1) * tokens * target;
    }
    let [height, width] = student.image_size;
    Stats {
        parameters: narrow(parameters),
        trainable: narrow(parameters - fixed),
        macs_with_grad: narrow(macs),
        macs_without_grad: base.map_or(0, |base| vit(&backbone(base), [height, width]).macs_without_grad),
    }
}

/// A base model is run for its blocks: heads and adapters it may have stay out.
fn backbone(config: &VitConfig) -> VitConfig {
    VitConfig { classifier: None, adapters: None, ..config.clone() }
}

/// `patches` are embedded, `tokens` of them, class token included, go through the blocks.
fn encoder_macs(config: &VitConfig, patches: u128, tokens: u128) -> u128 {
    let patch = 3 * wide(config.patch_size) * wide(config.patch_size) * wide(config.width);
    patches * patch + wide(config.depth) * block_macs(wide(config.width), config.mlp, wide(config.mlp_width), tokens)
}

/// Of a block whose MLP is `form`, `mlp` wide.
fn block_macs(c: u128, form: Mlp, mlp: u128, tokens: u128) -> u128 {
    let linears = match form {
        Mlp::Plain => 2,
        Mlp::SwiGlu => 3,
    };
    tokens * (4 * c * c + linears * c * mlp) + 2 * tokens * tokens * c
}

fn block_parameters(c: u128) -> u128 {
    12 * c * c + 13 * c
}

fn adapter_macs(adapters: &AdapterConfig, c: usize, tokens: u128) -> u128 {
    let fuse = wide(adapters.blocks_per_group) * wide(c) * wide(c);
    wide(adapters.groups) * tokens * (fuse + 2 * wide(c) * wide(adapters.mlp_width))
}

fn fixed_positions(config: &VitConfig) -> u128 {
    match config.position.kind {
        PositionKind::SinCos { .. } => wide(config.position_rows()) * wide(config.width),
        PositionKind::Learned => 0,
    }
}

fn total(specs: &[ParameterSpec]) -> u128 {
    specs.iter().map(|spec| spec.elements() as u128).sum()
}

fn wide(n: usize) -> u128 {
    n as u128
}

/// Only configurations far beyond any real one exceed 64 bits.
fn narrow(n: u128) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}
