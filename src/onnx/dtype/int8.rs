//! Linear weights in eight bits, one scale for each output channel, symmetric about zero.

use std::collections::{HashMap, HashSet};

use super::{Live, is_product};
use crate::onnx::ExportError;
use crate::onnx::graph::{Attribute, Element, FLOAT, Graph, Initializer, Node};
use crate::onnx::payload::{Payload, to_f32};
use crate::onnx::target::Dialect;

/// Steps on either side of zero.
const STEPS: f32 = 127.0;

/// What stands for zero where the type has no sign.
const ZERO: f32 = 128.0;

/// Rewrites `graph`: each weight becomes its steps times its scales; nothing else is rounded.
pub(super) fn apply(graph: &mut Graph<'_>, dialect: Dialect) -> Result<(), ExportError> {
    let mut live = Live::of_inputs(graph);
    let products = graph.nodes.iter().filter(|node| live.follow(node) && is_product(node));
    let weights: HashSet<String> = products.filter_map(|node| node.inputs.get(1).cloned()).collect();
    let mut constants = Vec::new();
    let mut written = HashMap::new();
    for initializer in graph.initializers.iter_mut().filter(|initializer| weights.contains(&initializer.name)) {
        // Linears alone: a patch embedding is a hundredth of the weights, and the first to suffer from rounding.
        let Payload::Transposed(view) = initializer.payload else { continue };
        let largest = initializer.payload.largest();
        if !largest.is_finite() {
            return Err(ExportError::NotFinite { name: initializer.name.clone(), value: largest });
        }
        let &[out, inner] = view.shape else { continue };
        let scales = scales(&to_f32(view), inner.max(1));
        let scale = format!("{}_scale", initializer.name);
        constants.push(Initializer {
            name: scale.clone(),
            element: Element::F32,
            dims: vec![out],
            payload: Payload::f32(&scales),
        });
        initializer.element = if dialect.dequantizes() { Element::I8 } else { Element::U8 };
        initializer.payload = Payload::Quantized(view, scales);
        written.insert(initializer.name.clone(), scale);
    }
    if !dialect.dequantizes() {
        let payload = Payload::f32(&[ZERO]);
        constants.push(Initializer {
            name: "/float/zero_point".to_owned(),
            element: Element::F32,
            dims: vec![],
            payload,
        });
    }
    graph.initializers.extend(constants);

    let mut nodes = Vec::with_capacity(graph.nodes.len() + 3 * written.len());
    let mut values: HashMap<String, String> = HashMap::new();
    for mut node in std::mem::take(&mut graph.nodes) {
        for input in &mut node.inputs {
            let Some(scale) = written.get(input) else { continue };
            let value = values.entry(input.clone()).or_insert_with(|| dequantize(&mut nodes, input, scale, dialect));
            input.clone_from(value);
        }
        nodes.push(node);
    }
    graph.nodes = nodes;
    graph.prune();
    Ok(())
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

/// The weight as f32: its name.
fn dequantize(nodes: &mut Vec<Node>, weight: &str, scale: &str, dialect: Dialect) -> String {
    let mut node = |operator: &'static str, inputs: [&str; 2], attributes: Vec<(&'static str, Attribute)>| {
        let name = format!("/{}/{operator}", weight.replace('.', "/"));
        let output = format!("{name}_output_0");
        nodes.push(Node {
            name,
            operator,
            inputs: inputs.iter().filter(|input| !input.is_empty()).map(|&input| input.to_owned()).collect(),
            outputs: vec![output.clone()],
            attributes,
        });
        output
    };
    if dialect.dequantizes() {
        return node("DequantizeLinear", [weight, scale], vec![("axis", Attribute::Int(1))]);
    }
    let steps = node("Cast", [weight, ""], vec![("to", Attribute::Int(FLOAT))]);
    let steps = node("Sub", [&steps, "/float/zero_point"], vec![]);
    node("Mul", [&steps, scale], vec![])
}
