//! The student: what it is made of, and its way from the visible patches to its predictions (`models_tec_vit.py` upstream).
//!
//! Names of the backbone and the adapters are the common format's; those of the decoder are upstream's.

use std::rc::Rc;

use candle_core::{DType, Tensor};

use super::super::{Method, Target};
use super::error::StepError;
use super::kernel;
use super::mask::Mask;
use super::phase::{Listener, Phase, enter};
use super::token::class_token;
use crate::kernels::{Restore, RowLogits, Tape, Var, patches};
use crate::model::{
    Activation, AdapterConfig, Features, ModelFile, Ops, ParameterSpec, Vit, VitConfig, adapter_parameters,
    vit_parameters,
};

/// Epsilon of the adapters' LayerNorms: `nn.LayerNorm`'s default, not the encoder's.
const ADAPTER_EPS: f64 = 1e-5;

/// What the student predicts of its base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Predicted {
    /// Channels of a feature, or of a patch of pixels.
    pub(super) width: usize,
    /// Heads of the attention.
    pub(super) heads: usize,
}

/// The architecture of a student with its adapters and decoder.
#[derive(Debug, Clone)]
pub(super) struct Student {
    /// The backbone, with the adapters of the method.
    pub(super) vit: VitConfig,
    /// The decoder's blocks, as an encoder of their own.
    decoder: VitConfig,
    input_adapter: bool,
    predicted: Predicted,
    /// Prefixes of the decoder's parts, and the name of what follows its norm.
    feature: Option<Head>,
    attention: Option<Head>,
}

/// One target's way through the decoder.
#[derive(Debug, Clone, Copy)]
struct Head {
    prefix: &'static str,
    out: &'static str,
    /// Output channels, in widths of the target.
    parts: usize,
    /// Whether the loss looks at the hidden patches alone; nothing is computed for the others once attention is behind them.
    hidden: bool,
}

const FEATURE: Head = Head { prefix: "forward_fea_decoder.", out: "decoder_pred", parts: 1, hidden: true };
const ATTENTION: Head = Head { prefix: "forward_att_decoder.", out: "decoder_qk", parts: 2, hidden: false };
/// MAE's own decoder has one target and no prefix (`models_mae.py`).
const PIXELS: Head = Head { prefix: "", out: "decoder_pred", parts: 1, hidden: true };

/// What a forward pass of the student leaves on the tape.
pub(super) struct Pass {
    /// (B, 1 + K, C): Z_e, or the normed output without an encoder adapter.
    pub(super) latent: Var,
    /// (B, L − K, C_base): the hidden patches, in the order of their images.
    pub(super) feature: Option<Var>,
    /// (B, 1 + L, 2·C_base): queries and keys.
    pub(super) attention: Option<Var>,
}

impl Student {
    pub(super) fn new(vit: &VitConfig, method: &Method, predicted: Predicted) -> Result<Self, StepError> {
        let setup = |reason: String| StepError::Setup { reason };
        if !vit.class_token || !vit.plain_attention() {
            return Err(setup("a student has a class token, no windows and no relative positions".into()));
        }
        if method.blocks_per_group == 0 || !vit.depth.is_multiple_of(method.blocks_per_group) {
            let reason =
                format!("`blocks_per_group` {} does not divide the depth {}", method.blocks_per_group, vit.depth);
            return Err(setup(reason));
        }
        let d = method.decoder;
        if d.depth == 0 {
            return Err(setup("the decoder has no blocks".into()));
        }
        if d.heads == 0 || !d.width.is_multiple_of(d.heads) || !d.width.is_multiple_of(4) {
            let reason = format!("the decoder's width {} is no multiple of 4 and of its {} heads", d.width, d.heads);
            return Err(setup(reason));
        }
        let adapters = method.encoder_adapter().then(|| AdapterConfig {
            groups: vit.depth / method.blocks_per_group,
            blocks_per_group: method.blocks_per_group,
            mlp_width: 4 * d.width,
            norm_eps: ADAPTER_EPS,
            input_mlp_width: method.input_adapter().then_some(4 * vit.width),
        });
        let vit = VitConfig { final_norm: true, classifier: None, adapters, decoder: None, neck: None, ..vit.clone() };
        let decoder = VitConfig {
            width: d.width,
            depth: d.depth,
            heads: d.heads,
            mlp_width: 4 * d.width,
            norm_eps: 1e-6,
            activation: Activation::GeluErf,
            adapters: None,
            ..vit.clone()
        };
        let (feature, attention) = match method.target {
            Target::Feature => (Some(FEATURE), None),
            Target::Attention => (None, Some(ATTENTION)),
            Target::FeatureAndAttention => (Some(FEATURE), Some(ATTENTION)),
            Target::Pixels => (Some(PIXELS), None),
        };
        let input_adapter = method.input_adapter();
        Ok(Self { vit, decoder, input_adapter, predicted, feature, attention })
    }

    /// What is trained, in the order it is used in, each with the file it belongs to.
    pub(super) fn parameters(&self) -> Vec<(ModelFile, ParameterSpec)> {
        let c = self.vit.width;
        let mut adapters = match &self.vit.adapters {
            Some(adapters) => adapter_parameters(adapters, c),
            None => Vec::new(),
        };
        let mut out = vec![(ModelFile::Model, ParameterSpec { name: "cls_token".into(), shape: vec![1, 1, c] })];
        // The adapters' file keeps the class token before its adapter; in training it is the student's.
        adapters.retain(|spec| spec.name != "input_adapter.cls_token");
        if self.input_adapter && self.vit.adapters.is_none() {
            for (layer, shape) in [("fc1", [4 * c, c]), ("fc2", [c, 4 * c])] {
                adapters.extend(layer_of(&format!("input_adapter.{layer}"), shape));
            }
        }
        let (input, encoder): (Vec<_>, Vec<_>) =
            adapters.into_iter().partition(|spec| spec.name.starts_with("input_adapter."));
        out.extend(input.into_iter().map(|spec| (ModelFile::Adapters, spec)));
        let backbone = vit_parameters(&self.vit).into_iter();
        let backbone = backbone.filter(|spec| spec.name != "cls_token" && spec.name != "pos_embed");
        out.extend(backbone.map(|spec| (ModelFile::Model, spec)));
        out.extend(encoder.into_iter().map(|spec| (ModelFile::Adapters, spec)));
        out.extend(self.decoder_parameters().into_iter().map(|spec| (ModelFile::Decoder, spec)));
        out
    }

    fn decoder_parameters(&self) -> Vec<ParameterSpec> {
        let d = self.decoder.width;
        let mut out = Vec::new();
        let heads: Vec<&Head> = self.feature.iter().chain(&self.attention).collect();
        for head in &heads {
            let name = format!("{}mask_token", head.prefix);
            out.push(ParameterSpec { name, shape: vec![1, 1, d] });
            out.extend(layer_of(&format!("{}decoder_embed", head.prefix), [d, self.vit.width]));
        }
        let blocks = vit_parameters(&self.decoder).into_iter().filter(|spec| spec.name.starts_with("blocks."));
        out.extend(blocks.map(|spec| ParameterSpec { name: format!("decoder_{}", spec.name), ..spec }));
        for head in &heads {
            let norm = format!("{}decoder_norm", head.prefix);
            out.push(ParameterSpec { name: format!("{norm}.weight"), shape: vec![d] });
            out.push(ParameterSpec { name: format!("{norm}.bias"), shape: vec![d] });
            let shape = [head.parts * self.predicted.width, d];
            out.extend(layer_of(&format!("{}{}", head.prefix, head.out), shape));
        }
        out
    }

    /// Fixed tables: `pos_embed` and the decoder's.
    pub(super) fn tables(&self) -> [ParameterSpec; 2] {
        let table =
            |name: &str, width| ParameterSpec { name: name.into(), shape: vec![1, 1 + self.vit.patches(), width] };
        [table("pos_embed", self.vit.width), table("decoder_pos_embed", self.decoder.width)]
    }

    /// Predictions for `images` (B, 3, H, W) of which `mask` leaves some patches visible. With `recompute`, the backward
    /// pass computes the insides of blocks again instead of finding them in memory.
    pub(super) fn predict(
        &self,
        tape: &mut Tape<'_>,
        images: &Tensor,
        mask: &Mask,
        recompute: bool,
        hear: &mut Listener<'_>,
    ) -> Result<Pass, StepError> {
        let vit = Vit::new(&self.vit);
        let again = recompute.then(|| (Rc::new(self.vit.clone()), Rc::new(self.decoder.clone())));
        let mut x = self.embed(tape, images, mask)?;
        let mut blocks = Vec::with_capacity(self.vit.depth);
        for i in 0..self.vit.depth {
            enter(Phase::Student { block: i, of: self.vit.depth }, hear)?;
            x = match &again {
                None => tape.block(x, &self.vit, &format!("blocks.{i}"), None)?,
                Some((vit, _)) => tape.recomputed_block(x, vit, &format!("blocks.{i}"), None)?,
            };
            blocks.push(x);
        }
        let features = Features { norm: vit.norm(tape, &x)?, blocks };
        let latent = match vit.adapt(tape, &features)? {
            Some(adapted) => adapted.adapted,
            None => *features.last(),
        };
        let decoder = again.map(|(_, decoder)| decoder);
        let mut decode = |head: &Option<Head>| {
            head.map(|head| self.decode(tape, latent, head, &mask.restore, decoder.as_ref(), hear)).transpose()
        };
        Ok(Pass { latent, feature: decode(&self.feature)?, attention: decode(&self.attention)? })
    }

    /// (B, 1 + K, C): visible patches with their positions, behind the class token.
    fn embed(&self, tape: &mut Tape<'_>, images: &Tensor, mask: &Mask) -> Result<Var, StepError> {
        let kept = mask.restore.kept;
        let (rows, position) = kernel("patch_embed", || {
            let precision = tape.parameters().precision();
            let rows = patches(images, self.vit.patch_size, Some((&mask.visible, kept)), precision)?;
            // Row 0 of the table is the class token's.
            let table = tape.parameters().fixed_tensor("pos_embed")?.squeeze(0)?;
            let ids: Vec<u32> = mask.visible.iter().map(|patch| patch + 1).collect();
            let ids = Tensor::from_vec(ids, mask.visible.len(), images.device())?;
            let (batch, width) = (rows.dim(0)?, self.vit.width);
            Ok((rows, table.index_select(&ids, 0)?.reshape((batch, kept, width))?))
        })?;
        let (rows, position) = (tape.constant(rows), tape.constant(position));
        let x = tape.linear_to(&rows, "patch_embed.proj", Some(position), DType::F32)?;
        let token = class_token(tape, self.input_adapter)?;
        let first = kernel("position", || tape.parameters().fixed_tensor("pos_embed")?.narrow(1, 0, 1)?.contiguous())?;
        let first = tape.constant(first);
        let token = tape.add(&token, &first)?;
        Ok(tape.prepend_token(&token, &x)?)
    }

    /// Linear in, hidden patches filled with the mask token, shared blocks, norm, Linear out.
    fn decode(
        &self,
        tape: &mut Tape<'_>,
        latent: Var,
        head: Head,
        restore: &Rc<Restore>,
        again: Option<&Rc<VitConfig>>,
        hear: &mut Listener<'_>,
    ) -> Result<Var, StepError> {
        let name = |part: &str| format!("{}{part}", head.prefix);
        let x = tape.linear(&latent, &name("decoder_embed"))?;
        let mut x = tape.unshuffle(x, &name("mask_token"), "decoder_pos_embed", restore)?;
        for i in 0..self.decoder.depth {
            enter(Phase::Decoder { block: i, of: self.decoder.depth }, hear)?;
            let prefix = format!("decoder_blocks.{i}");
            let hidden = (head.hidden && i + 1 == self.decoder.depth).then_some(restore);
            x = match again {
                None => tape.block(x, &self.decoder, &prefix, hidden)?,
                Some(decoder) => tape.recomputed_block(x, decoder, &prefix, hidden)?,
            };
        }
        let x = tape.layer_norm(&x, &name("decoder_norm"), self.decoder.norm_eps)?;
        Ok(tape.linear(&x, &name(head.out))?)
    }

    /// How the attention's queries and keys lie in the prediction. The scale is the *whole* width's, not a head's: TEC scales
    /// by `pred_dim ** -0.5` (`models_tec_vit.py:159`); kept.
    pub(super) fn attention_logits(&self) -> RowLogits {
        let Predicted { width, heads } = self.predicted;
        RowLogits { heads, width, scale: (width as f64).powf(-0.5), prefix: 1 }
    }
}

fn layer_of(name: &str, [out, inner]: [usize; 2]) -> [ParameterSpec; 2] {
    [
        ParameterSpec { name: format!("{name}.weight"), shape: vec![out, inner] },
        ParameterSpec { name: format!("{name}.bias"), shape: vec![out] },
    ]
}
