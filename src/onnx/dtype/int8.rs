//! Linears in eight bits: weights by one scale for each output channel, symmetric about zero; where a calibration says what
//! they take, that by one scale and a zero point as well, and the bias in whole steps of the product.

use std::collections::HashMap;

use super::calibration::{Calibration, Linear, linears};
use crate::onnx::ExportError;
use crate::onnx::event::{Event, Listener, tell};
use crate::onnx::graph::{Attribute, Element, FLOAT, Graph, Initializer, Node};
use crate::onnx::payload::{Payload, to_f32};
use crate::onnx::target::Dialect;

/// Steps on either side of zero.
const STEPS: f32 = 127.0;

/// Steps of an unsigned byte.
const UNSIGNED_STEPS: f32 = 255.0;

/// What stands for zero where the type has no sign.
const ZERO: f32 = 128.0;

/// Largest bias in steps: half of what 32 bits hold, so that the product's own sums fit beside it.
const MOST_BIAS: f32 = (1 << 30) as f32;

/// How numbers become bytes.
struct Quantization {
    /// Whether DequantizeLinear may be used.
    standard: bool,
    /// Rounded initializers: scale and, where there is one, zero point.
    scales: HashMap<String, [Option<String>; 2]>,
    /// What a Linear takes, by the name of its weight: the same.
    inputs: HashMap<String, [Option<String>; 2]>,
    nodes: Vec<Node>,
    /// The value that stands for an initializer, as f32 again.
    values: HashMap<String, String>,
}

/// Rewrites `graph`: each weight, and each value a Linear takes where its range is known, becomes steps times a scale.
pub(super) fn apply(
    graph: &mut Graph<'_>,
    dialect: Dialect,
    calibration: Option<&Calibration>,
    hear: Listener<'_>,
) -> Result<(), ExportError> {
    let mut quantization = Quantization {
        // Engines that compute in eight bits look for the standard operators, zero points and all.
        standard: dialect.dequantizes() || calibration.is_some(),
        scales: HashMap::new(),
        inputs: HashMap::new(),
        nodes: Vec::new(),
        values: HashMap::new(),
    };
    for linear in linears(graph) {
        tell(hear, Event::Working)?;
        let range = calibration.and_then(|calibration| calibration.range(&linear.weight));
        quantization.round(graph, &linear, range)?;
    }
    if !quantization.standard {
        let (name, payload) = ("/float/zero_point".to_owned(), Payload::f32(&[ZERO]));
        graph.initializers.push(Initializer { name, element: Element::F32, dims: vec![], payload });
    }
    for node in std::mem::take(&mut graph.nodes) {
        quantization.take(node);
    }
    graph.nodes = quantization.nodes;
    graph.prune();
    Ok(())
}

impl Quantization {
    /// Rounds the parameters of `linear`, which takes values of `range`.
    fn round(&mut self, graph: &mut Graph<'_>, linear: &Linear, range: Option<[f32; 2]>) -> Result<(), ExportError> {
        let stored = |name: &str| graph.initializers.iter().position(|initializer| initializer.name == name);
        let bias = linear.bias.as_deref().and_then(stored);
        let Some(weight) = stored(&linear.weight) else { return Ok(()) };
        let Payload::Transposed(view) = graph.initializers[weight].payload else { return Ok(()) };
        let &[out, inner] = view.shape else { return Ok(()) };
        for at in [Some(weight), bias].into_iter().flatten() {
            let Initializer { name, payload, .. } = &graph.initializers[at];
            let value = payload.largest();
            if !value.is_finite() {
                return Err(ExportError::NotFinite { name: name.clone(), value });
            }
        }
        let mut scales = scales(&to_f32(view), inner.max(1));
        let mut constants = Constants::default();
        if let Some([low, high]) = range {
            let (step, zero) = input_scale(low, high);
            let module = module(&linear.weight);
            let scale = constants.float(format!("{module}.input_scale"), vec![], &[step]);
            let zero = constants.bytes(format!("{module}.input_zero_point"), Element::U8, vec![], vec![zero]);
            self.inputs.insert(linear.weight.clone(), [Some(scale), Some(zero)]);
            if let Some(bias) = bias {
                let initializer = &mut graph.initializers[bias];
                let values: Vec<f32> = initializer.payload.values().collect();
                for (scale, value) in scales.iter_mut().zip(&values) {
                    *scale = scale.max(value.abs() / step / MOST_BIAS);
                }
                let steps: Vec<f32> = scales.iter().map(|scale| scale * step).collect();
                let rounded = values.iter().zip(&steps).map(|(value, step)| (value / step).round_ties_even() as i32);
                initializer.payload = Payload::Own(rounded.flat_map(i32::to_le_bytes).collect());
                initializer.element = Element::I32;
                let scale = constants.float(format!("{}_scale", initializer.name), vec![out], &steps);
                self.scales.insert(initializer.name.clone(), [Some(scale), None]);
            }
        }
        let scale = constants.float(format!("{}_scale", linear.weight), vec![out], &scales);
        let zero = format!("{}_zero_point", linear.weight);
        let zero = self.standard.then(|| constants.bytes(zero, Element::I8, vec![out], vec![0; out]));
        self.scales.insert(linear.weight.clone(), [Some(scale), zero]);
        let initializer = &mut graph.initializers[weight];
        initializer.element = if self.standard { Element::I8 } else { Element::U8 };
        initializer.payload = Payload::Quantized(view, scales);
        graph.initializers.extend(constants.0);
        Ok(())
    }

    fn take(&mut self, mut node: Node) {
        if let Some(weight) = node.inputs.get(1)
            && let Some(names) = self.inputs.get(weight).cloned()
        {
            let base = format!("/{}/input", module(weight));
            let steps = self.node(&base, "QuantizeLinear", &node.inputs[0], &names, vec![]);
            node.inputs[0] = self.node(&base, "DequantizeLinear", &steps, &names, vec![]);
        }
        for input in &mut node.inputs {
            if self.scales.contains_key(input) {
                *input = self.dequantized(input);
            }
        }
        self.nodes.push(node);
    }

    /// A rounded initializer as f32.
    fn dequantized(&mut self, name: &str) -> String {
        if let Some(known) = self.values.get(name) {
            return known.clone();
        }
        let names = self.scales.get(name).cloned().unwrap_or_default();
        let base =
            format!("/{}", name.rsplit_once('.').map_or(name.to_owned(), |(module, leaf)| format!("{module}/{leaf}")));
        let value = if self.standard {
            // The last axis, of a weight (in, out) and of a bias (out).
            let axis = i64::from(name.ends_with("weight"));
            self.node(&base, "DequantizeLinear", name, &names, vec![("axis", Attribute::Int(axis))])
        } else {
            let steps = self.node(&base, "Cast", name, &[], vec![("to", Attribute::Int(FLOAT))]);
            let steps = self.node(&base, "Sub", &steps, &[Some("/float/zero_point".to_owned())], vec![]);
            self.node(&base, "Mul", &steps, &names, vec![])
        };
        self.values.insert(name.to_owned(), value.clone());
        value
    }

    fn node(
        &mut self,
        base: &str,
        operator: &'static str,
        value: &str,
        others: &[Option<String>],
        attributes: Vec<(&'static str, Attribute)>,
    ) -> String {
        let name = format!("{base}/{operator}");
        let output = format!("{name}_output_0");
        let inputs = [value.to_owned()].into_iter().chain(others.iter().flatten().cloned()).collect();
        self.nodes.push(Node { name, operator, inputs, outputs: vec![output.clone()], attributes });
        output
    }
}

/// Initializers to be added.
#[derive(Default)]
struct Constants(Vec<Initializer<'static>>);

impl Constants {
    fn float(&mut self, name: String, dims: Vec<usize>, values: &[f32]) -> String {
        self.0.push(Initializer { name: name.clone(), element: Element::F32, dims, payload: Payload::f32(values) });
        name
    }

    fn bytes(&mut self, name: String, element: Element, dims: Vec<usize>, bytes: Vec<u8>) -> String {
        self.0.push(Initializer { name: name.clone(), element, dims, payload: Payload::Own(bytes) });
        name
    }
}

/// `blocks.0.attn.qkv.weight` → `blocks.0.attn.qkv`.
fn module(weight: &str) -> &str {
    weight.strip_suffix(".weight").unwrap_or(weight)
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
