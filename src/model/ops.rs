//! The few coarse operations a ViT needs.

use super::{Activation, Map, RelativeRequest, Resample};

/// Which position table is wanted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PositionRequest<G = [usize; 2]> {
    /// Grid `[rows, columns]` the stored table is for.
    pub native: [usize; 2],
    /// Grid of the image at hand.
    pub grid: G,
    /// The family's rule.
    pub resample: Resample,
    /// Whether a row for the class token is wanted; without, one that is stored is left out.
    pub class_row: bool,
}

/// The operations a forward pass is written in: [`crate::kernels::Eager`] computes them, [`crate::onnx::Record`]
/// writes them down as graph nodes.
///
/// Parameters are named, not passed, so that each implementation keeps them in the layout that serves it (a graph
/// stores a Linear's weight transposed, a trainer keeps variables). A name is a timm name or a prefix of one:
/// `linear(x, "blocks.0.attn.qkv")` uses `blocks.0.attn.qkv.weight` and `.bias`.
pub trait Ops {
    /// A tensor, or the name of one.
    type Value: Clone;
    /// Patches `[rows, columns]` of the images at hand, as this implementation knows them.
    type Grid: Copy;
    /// What can go wrong.
    type Error;

    /// The stored tensor itself.
    fn parameter(&mut self, name: &str) -> Result<Self::Value, Self::Error>;

    /// (B, 3, H, W) → (B, L, C): non-overlapping patches through the Linear that `name` stores as a convolution.
    fn patch_embed(&mut self, images: &Self::Value, name: &str, patch: usize) -> Result<Self::Value, Self::Error>;

    /// The position table (1, 1 + rows·columns, C), class row first, resampled where `native` and `grid` differ; or
    /// (1, rows·columns, C), without.
    fn position(&mut self, name: &str, request: &PositionRequest<Self::Grid>) -> Result<Self::Value, Self::Error>;

    /// Rows `start..start + len` of the token axis of (b, T, C).
    fn tokens(&mut self, x: &Self::Value, start: usize, len: Option<usize>) -> Result<Self::Value, Self::Error>;

    /// (1, n, C), (B, T, C) → (B, n + T, C): the class token, or the registers.
    fn prepend_token(&mut self, token: &Self::Value, x: &Self::Value) -> Result<Self::Value, Self::Error>;

    /// Elementwise sum with broadcasting over the batch.
    fn add(&mut self, a: &Self::Value, b: &Self::Value) -> Result<Self::Value, Self::Error>;

    /// (…, in) → (…, out).
    fn linear(&mut self, x: &Self::Value, name: &str) -> Result<Self::Value, Self::Error>;

    /// A residual branch's end: `residual` + linear(x).
    fn linear_add(&mut self, residual: &Self::Value, x: &Self::Value, name: &str) -> Result<Self::Value, Self::Error> {
        let h = self.linear(x, name)?;
        self.add(residual, &h)
    }

    /// The first half of an MLP: GELU of linear(x).
    fn linear_gelu(&mut self, x: &Self::Value, name: &str, kind: Activation) -> Result<Self::Value, Self::Error> {
        let h = self.linear(x, name)?;
        self.gelu(&h, kind)
    }

    /// LayerNorm over the last axis.
    fn layer_norm(&mut self, x: &Self::Value, name: &str, eps: f64) -> Result<Self::Value, Self::Error>;

    /// Elementwise GELU.
    fn gelu(&mut self, x: &Self::Value, kind: Activation) -> Result<Self::Value, Self::Error>;

    /// (…, 2·h), channels `[a | b]` → (…, h): silu(a)·b, with silu(a) = a / (1 + e^-a).
    fn swiglu(&mut self, x: &Self::Value) -> Result<Self::Value, Self::Error>;

    /// (…, C) times the stored vector `name` (C): LayerScale.
    fn layer_scale(&mut self, x: &Self::Value, name: &str) -> Result<Self::Value, Self::Error>;

    /// (B, T, 3·C), channels `[q | k | v]` each split in heads → (B, T, C): softmax(q·kᵀ·head_width^-0.5)·v.
    fn attention(&mut self, qkv: &Self::Value, heads: usize) -> Result<Self::Value, Self::Error>;

    /// A grid of a known size.
    fn fixed_grid(&self, sides: [usize; 2]) -> Self::Grid;

    /// [`Ops::attention`] whose logits depend on where queries and keys lie on `grid`, as `relative` says; (B, T, 3·C) →
    /// (B, T, C).
    fn relative_attention(
        &mut self,
        qkv: &Self::Value,
        heads: usize,
        grid: Self::Grid,
        relative: &RelativeRequest,
    ) -> Result<Self::Value, Self::Error>;

    /// A map cut in windows of `size` × `size`, after rows of zeros at its bottom and columns at its right made them whole:
    /// (B, rows·columns, C) → (B·windows, size², C).
    fn windows(&mut self, x: &Self::Value, grid: Self::Grid, size: usize) -> Result<Self::Value, Self::Error>;

    /// The way back, padding cut off: (B·windows, size², C) → (B, rows·columns, C).
    fn unwindow(&mut self, x: &Self::Value, grid: Self::Grid, size: usize) -> Result<Self::Value, Self::Error>;

    /// A 2×2 transposed convolution of stride 2, rows × columns → 2·rows × 2·columns, and then the BatchNorm `norm` (its name
    /// and epsilon) by its running statistics.
    fn upsample(
        &mut self,
        map: &Map<Self::Value, Self::Grid>,
        name: &str,
        norm: Option<(&str, f64)>,
    ) -> Result<Map<Self::Value, Self::Grid>, Self::Error>;

    /// A convolution without bias, of odd kernel, that keeps the map's size.
    fn conv(
        &mut self,
        map: &Map<Self::Value, Self::Grid>,
        name: &str,
    ) -> Result<Map<Self::Value, Self::Grid>, Self::Error>;

    /// Each place `factor` × `factor` times.
    fn repeat(
        &mut self,
        map: &Map<Self::Value, Self::Grid>,
        factor: usize,
    ) -> Result<Map<Self::Value, Self::Grid>, Self::Error>;

    /// Largest of each `side` × `side` places that begin at every second one: rows → (rows − side) / 2 + 1, rounded down.
    fn max_pool(
        &mut self,
        map: &Map<Self::Value, Self::Grid>,
        side: usize,
    ) -> Result<Map<Self::Value, Self::Grid>, Self::Error>;

    /// Concatenation along the last axis.
    fn concat_channels(&mut self, parts: &[Self::Value]) -> Result<Self::Value, Self::Error>;

    /// Channels `start..start + len` of the last axis.
    fn channels(&mut self, x: &Self::Value, start: usize, len: usize) -> Result<Self::Value, Self::Error>;

    /// (B, T, C) → (B, C): token `index`.
    fn select_token(&mut self, x: &Self::Value, index: usize) -> Result<Self::Value, Self::Error>;

    /// (B, T, C) → (B, C): mean of the tokens from `start` on.
    fn mean_tokens(&mut self, x: &Self::Value, start: usize) -> Result<Self::Value, Self::Error>;
}
