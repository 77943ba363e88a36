//! Operators spelled out in smaller ones.

use super::layout::ROWS;
use super::{Record, Result};
use crate::onnx::graph::{Attribute, BATCH, Extent};

impl Record<'_> {
    pub(super) fn reduce_mean(&mut self, x: &str, axis: i64, keep: bool) -> String {
        let keep = ("keepdims", Attribute::Int(i64::from(keep)));
        if self.dialect.reduce_axes_are_an_input() {
            let axes = self.integers(&[axis], true);
            return self.node("ReduceMean", &[x, &axes], vec![keep]);
        }
        self.node("ReduceMean", &[x], vec![("axes", Attribute::Ints(vec![axis])), keep])
    }

    /// `start..end` of an axis; to its end, wherever that is, where `end` is `None`.
    pub(super) fn slice(&mut self, x: &str, axis: i64, start: usize, end: Option<usize>) -> String {
        let starts = self.integers(&[start as i64], true);
        let ends = self.integers(&[end.map_or(i64::from(i32::MAX), |end| end as i64)], true);
        let axes = self.integers(&[axis], true);
        self.node("Slice", &[x, &starts, &ends, &axes], vec![])
    }

    /// Equal parts of the last axis.
    pub(super) fn split(&mut self, x: &str, parts: usize) -> Vec<String> {
        let mut attributes = vec![("axis", Attribute::Int(-1))];
        if self.dialect.split_counts_outputs() {
            attributes.push(("num_outputs", Attribute::Int(parts as i64)));
        }
        self.nodes("Split", &[x], attributes, parts)
    }

    /// (n, in) · (in, out) + (out).
    pub(super) fn affine(&mut self, x: &str, weight: &str, bias: &str) -> String {
        if self.dialect.fused_linear() {
            return self.node("Gemm", &[x, weight, bias], vec![]);
        }
        let product = self.node("MatMul", &[x, weight], vec![]);
        self.node("Add", &[&product, bias], vec![])
    }

    /// Exactly the pattern ONNX Runtime recognises and fuses.
    pub(super) fn composed_layer_norm(&mut self, x: &str, weight: &str, bias: &str, eps: f64) -> String {
        let mean = self.reduce_mean(x, -1, true);
        let centred = self.node("Sub", &[x, &mean], vec![]);
        let two = self.scalar(2.0);
        let squared = self.node("Pow", &[&centred, &two], vec![]);
        let variance = self.reduce_mean(&squared, -1, true);
        let eps = self.scalar(eps as f32);
        let shifted = self.node("Add", &[&variance, &eps], vec![]);
        let deviation = self.node("Sqrt", &[&shifted], vec![]);
        let normed = self.node("Div", &[&centred, &deviation], vec![]);
        let scaled = self.node("Mul", &[&normed, weight], vec![]);
        self.node("Add", &[&scaled, bias], vec![])
    }

    /// 0.5·x·(1 + erf(x / √2)), in the order ONNX Runtime recognises and fuses.
    pub(super) fn composed_gelu_erf(&mut self, x: &str) -> String {
        let root = self.scalar(std::f32::consts::SQRT_2);
        let scaled = self.node("Div", &[x, &root], vec![]);
        let erf = self.node("Erf", &[&scaled], vec![]);
        self.gelu_tail(x, &erf)
    }

    /// 0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³))).
    pub(super) fn composed_gelu_tanh(&mut self, x: &str) -> String {
        let square = self.node("Mul", &[x, x], vec![]);
        let cube = self.node("Mul", &[&square, x], vec![]);
        let weight = self.scalar(0.044_715);
        let cube = self.node("Mul", &[&cube, &weight], vec![]);
        let sum = self.node("Add", &[x, &cube], vec![]);
        let root = self.scalar((2.0 / std::f64::consts::PI).sqrt() as f32);
        let scaled = self.node("Mul", &[&sum, &root], vec![]);
        let tanh = self.node("Tanh", &[&scaled], vec![]);
        self.gelu_tail(x, &tanh)
    }

    pub(super) fn gelu_tail(&mut self, x: &str, bounded: &str) -> String {
        let one = self.scalar(1.0);
        let raised = self.node("Add", &[bounded, &one], vec![]);
        let product = self.node("Mul", &[x, &raised], vec![]);
        let half = self.scalar(0.5);
        self.node("Mul", &[&product, &half], vec![])
    }

    /// Three (B·T, C) → (B·T, C) over heads of width `width`.
    pub(super) fn composed_attention(
        &mut self,
        qkv: &[String],
        tokens: Extent,
        heads: usize,
        width: usize,
    ) -> Result<String> {
        let split_heads = [BATCH, tokens, Extent::Fixed(heads), Extent::Fixed(width)];
        let mut turned = Vec::with_capacity(3);
        // (B, T, N, c) → (B, N, T, c), and the keys at once to (B, N, c, T).
        for (x, perm) in qkv.iter().zip([[0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]]) {
            let shape = self.shape(&split_heads)?;
            let x = self.node("Reshape", &[x, &shape], vec![]);
            turned.push(self.node("Transpose", &[&x], vec![("perm", Attribute::Ints(perm.to_vec()))]));
        }
        let scale = self.scalar((width as f32).powf(-0.5));
        let query = self.node("Mul", &[&turned[0], &scale], vec![]);
        let logits = self.node("MatMul", &[&query, &turned[1]], vec![]);
        let weights = self.node("Softmax", &[&logits], vec![("axis", Attribute::Int(-1))]);
        let mixed = self.node("MatMul", &[&weights, &turned[2]], vec![]);
        let mixed = self.node("Transpose", &[&mixed], vec![("perm", Attribute::Ints(vec![0, 2, 1, 3]))]);
        let shape = self.shape(&[ROWS, Extent::Fixed(heads * width)])?;
        Ok(self.node("Reshape", &[&mixed, &shape], vec![]))
    }
}
