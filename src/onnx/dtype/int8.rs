//! Linears in eight bits: weights by one scale for each output channel, symmetric about zero; where a calibration says what
//! they take, that by one scale and a zero point as well.

use std::collections::HashMap;

use super::calibration::{Calibration, linears};
use crate::onnx::ExportError;
use crate::onnx::graph::{Attribute, Element, FLOAT, Graph, Initializer, Node};
use crate::onnx::payload::{Payload, to_f32};
use crate::onnx::target::Dialect;

/// Steps on either side of zero.
const STEPS: f32 = 127.0;

/// Steps of an unsigned byte.
const UNSIGNED_STEPS: f32 = 255.0;

/// What stands for zero where the type has no sign.
const ZERO: f32 = 128.0;

/// What is known of how numbers become bytes.
struct Quantization<'c> {
    calibration: Option<&'c Calibration>,
    /// Whether DequantizeLinear may be used.
    standard: bool,
    nodes: Vec<Node>,
    /// The value that stands for a weight, or for what a Linear takes, as f32 again.
    values: HashMap<String, String>,
}

/// Rewrites `graph`: each weight, and each value a Linear takes where its range is known, becomes steps times a scale.
pub(super) fn apply(
    graph: &mut Graph<'_>,
    dialect: Dialect,
    calibration: Option<&Calibration>,
) -> Result<(), ExportError> {
    // Engines that compute in eight bits look for the standard operators.
    let standard = dialect.dequantizes() || calibration.is_some();
    let mut quantization = Quantization { calibration, standard, nodes: Vec::new(), values: HashMap::new() };
    let taken: HashMap<String, String> = linears(graph).into_iter().collect();
    let mut constants = Vec::new();
    // Linears alone: a patch embedding is a hundredth of the weights, and the first to suffer from rounding.
    for initializer in graph.initializers.iter_mut().filter(|initializer| taken.contains_key(&initializer.name)) {
        let Payload::Transposed(view) = initializer.payload else { continue };
        let largest = initializer.payload.largest();
        if !largest.is_finite() {
            return Err(ExportError::NotFinite { name: initializer.name.clone(), value: largest });
        }
        let &[out, inner] = view.shape else { continue };
        let scales = scales(&to_f32(view), inner.max(1));
        let name = weight_scale(&initializer.name);
        constants.push(Initializer { name, element: Element::F32, dims: vec![out], payload: Payload::f32(&scales) });
        initializer.element = if standard { Element::I8 } else { Element::U8 };
        initializer.payload = Payload::Quantized(view, scales);
        if let Some([low, high]) = calibration.and_then(|calibration| calibration.range(&initializer.name)) {
            let [scale, zero] = input_names(&initializer.name);
            let (step, zero_point) = input_scale(low, high);
            let payload = Payload::f32(&[step]);
            constants.push(Initializer { name: scale, element: Element::F32, dims: vec![], payload });
            let payload = Payload::Own(vec![zero_point]);
            constants.push(Initializer { name: zero, element: Element::U8, dims: vec![], payload });
        }
    }
    if !standard {
        let (name, payload) = ("/float/zero_point".to_owned(), Payload::f32(&[ZERO]));
        constants.push(Initializer { name, element: Element::F32, dims: vec![], payload });
    }
    graph.initializers.extend(constants);
    for node in std::mem::take(&mut graph.nodes) {
        quantization.take(node, &taken);
    }
    graph.nodes = quantization.nodes;
    graph.prune();
    Ok(())
}

impl Quantization<'_> {
    fn take(&mut self, mut node: Node, taken: &HashMap<String, String>) {
        if let [value, weight, ..] = node.inputs.as_mut_slice()
            && taken.contains_key(weight)
        {
            if self.calibration.is_some_and(|calibration| calibration.range(weight).is_some()) {
                *value = self.rounded(value, weight);
            }
            *weight = self.dequantized(weight);
        }
        self.nodes.push(node);
    }

    /// What the Linear of `weight` takes, on its steps.
    fn rounded(&mut self, value: &str, weight: &str) -> String {
        let [scale, zero] = input_names(weight);
        let base = format!("/{}/input", module(weight));
        let steps = self.node(&base, "QuantizeLinear", &[value, &scale, &zero], vec![]);
        self.node(&base, "DequantizeLinear", &[&steps, &scale, &zero], vec![])
    }

    /// The weight as f32.
    fn dequantized(&mut self, weight: &str) -> String {
        if let Some(known) = self.values.get(weight) {
            return known.clone();
        }
        let (scale, base) = (weight_scale(weight), format!("/{}/weight", module(weight)));
        let value = if self.standard {
            self.node(&base, "DequantizeLinear", &[weight, &scale], vec![("axis", Attribute::Int(1))])
        } else {
            let steps = self.node(&base, "Cast", &[weight], vec![("to", Attribute::Int(FLOAT))]);
            let steps = self.node(&base, "Sub", &[&steps, "/float/zero_point"], vec![]);
            self.node(&base, "Mul", &[&steps, &scale], vec![])
        };
        self.values.insert(weight.to_owned(), value.clone());
        value
    }

    fn node(
        &mut self,
        base: &str,
        operator: &'static str,
        inputs: &[&str],
        attributes: Vec<(&'static str, Attribute)>,
    ) -> String {
        let name = format!("{base}/{operator}");
        let output = format!("{name}_output_0");
        let inputs = inputs.iter().map(|&input| input.to_owned()).collect();
        self.nodes.push(Node { name, operator, inputs, outputs: vec![output.clone()], attributes });
        output
    }
}

/// `blocks.0.attn.qkv.weight` → `blocks.0.attn.qkv`.
fn module(weight: &str) -> &str {
    weight.strip_suffix(".weight").unwrap_or(weight)
}

fn weight_scale(weight: &str) -> String {
    format!("{weight}_scale")
}

/// Scale and zero point of what a Linear takes.
fn input_names(weight: &str) -> [String; 2] {
    ["input_scale", "input_zero_point"].map(|name| format!("{}.{name}", module(weight)))
}

/// What one step is for each row of a (rows, `columns`) matrix.
fn scales(values: &[f32], columns: usize) -> Vec<f32> {
    let largest = |row: &[f32]| row.iter().fold(0_f32, |largest, value| largest.max(value.abs()));
    let scale = |row: &[f32]| match largest(row) / STEPS {
        // Any will do for a row of zeros.
        0.0 => 1.0,
        scale => scale,
    };
    values.chunks_exact(columns).map(scale).collect()
}

/// One step, and the one that is zero, for values from `low` ≤ 0 to `high` ≥ 0.
fn input_scale(low: f32, high: f32) -> (f32, u8) {
    match (high - low) / UNSIGNED_STEPS {
        scale if scale > 0.0 && scale.is_finite() => (scale, (-low / scale).round_ties_even() as u8),
        _ => (1.0, 0),
    }
}
