//! Products in f16, with the rest of the graph as f32 islands between them.

use std::collections::{HashMap, HashSet};

use half::f16;

use super::{Live, is_product};
use crate::onnx::ExportError;
use crate::onnx::event::{Event, Listener, tell};
use crate::onnx::graph::{Attribute, Element, FLOAT, Graph, Initializer, Node};

/// Operators that move values without computing: they take what they are given.
const MOVES: [&str; 7] = ["Reshape", "Transpose", "Slice", "Split", "Gather", "Expand", "Concat"];

/// What becomes of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// All of it in f16.
    Product,
    /// Its values as they come: the first input alone is a value, or all of a Concat's.
    Move,
    /// A product's bias or an attention's scale, in the product's type.
    Affine,
    /// f32.
    Island,
}

struct Halving<'g> {
    /// Rank of each float initializer.
    ranks: HashMap<&'g str, usize>,
    live: Live,
    /// Values in f16.
    half: HashSet<String>,
    /// A value in its other type.
    casts: HashMap<String, String>,
    /// Initializers that f16 nodes use, and those that others do.
    used: [HashSet<String>; 2],
    nodes: Vec<Node>,
}

/// Rewrites `graph`.
pub(super) fn apply(graph: &mut Graph<'_>, hear: Listener<'_>) -> Result<(), ExportError> {
    let nodes = std::mem::take(&mut graph.nodes);
    let float = graph.initializers.iter().filter(|initializer| initializer.element == Element::F32);
    let mut halving = Halving {
        ranks: float.map(|initializer| (initializer.name.as_str(), initializer.dims.len())).collect(),
        live: Live::of_inputs(graph),
        half: HashSet::new(),
        casts: HashMap::new(),
        used: Default::default(),
        nodes: Vec::with_capacity(nodes.len() * 3 / 2),
    };
    for node in nodes {
        halving.take(node);
    }
    let Halving { half, casts, used, nodes, .. } = halving;
    graph.nodes = nodes;
    let [in_half, in_full] = used;
    store(graph, &in_half, &in_full, hear)?;
    let outputs: Vec<String> = graph.outputs.iter().map(|output| output.name.clone()).collect();
    for output in outputs.into_iter().filter(|output| half.contains(output)) {
        widen_output(graph, &output, casts.get(&output));
    }
    graph.prune();
    Ok(())
}

impl Halving<'_> {
    fn take(&mut self, mut node: Node) {
        let live = self.live.follow(&node);
        let part = self.part(&node, live);
        let values = match (part, node.operator) {
            (Part::Move, operator) if operator != "Concat" => 1,
            _ => node.inputs.len(),
        };
        for input in &mut node.inputs[..values] {
            *input = if part == Part::Island { self.full(input) } else { self.halved(input) };
        }
        for input in &node.inputs[values..] {
            self.used[1].insert(input.clone());
        }
        if part != Part::Island {
            self.half.extend(node.outputs.iter().cloned());
        }
        if part == Part::Product && node.operator == "Attention" {
            node.attributes.push(("softmax_precision", Attribute::Int(FLOAT)));
        }
        self.nodes.push(node);
    }

    fn part(&self, node: &Node, live: bool) -> Part {
        let is_half = |input: &String| self.half.contains(input);
        let rank = |input: &String| self.ranks.get(input.as_str()).copied();
        match node.operator {
            _ if !live => Part::Island,
            _ if is_product(node) => Part::Product,
            // What joins them and is no value of the images (a class token, a table's ones) was a parameter: as exact as
            // the weights.
            "Concat" if node.inputs.iter().all(|input| is_half(input) || !self.live.contains(input)) => Part::Move,
            operator
                if operator != "Concat" && MOVES.contains(&operator) && node.inputs.first().is_some_and(is_half) =>
            {
                Part::Move
            }
            "Add" | "Mul" => {
                let most = usize::from(node.operator == "Add");
                let small = |input: &String| rank(input).is_some_and(|rank| rank <= most);
                match node.inputs.as_slice() {
                    [a, b] if is_half(a) && small(b) || is_half(b) && small(a) => Part::Affine,
                    _ => Part::Island,
                }
            }
            _ => Part::Island,
        }
    }

    /// `value` as f16.
    fn halved(&mut self, value: &str) -> String {
        if self.half.contains(value) {
            return value.to_owned();
        }
        if self.ranks.contains_key(value) {
            self.used[0].insert(value.to_owned());
            return halved_name(value);
        }
        self.cast(value, Element::F16)
    }

    /// `value` as it was in f32; whole numbers and texts too.
    fn full(&mut self, value: &str) -> String {
        if self.half.contains(value) {
            return self.cast(value, Element::F32);
        }
        self.used[1].insert(value.to_owned());
        value.to_owned()
    }

    fn cast(&mut self, value: &str, element: Element) -> String {
        if let Some(known) = self.casts.get(value) {
            return known.clone();
        }
        let kind = if element == Element::F16 { "f16" } else { "f32" };
        let name = format!("/{}/to_{kind}", value.trim_start_matches('/'));
        let output = format!("{name}_output_0");
        self.nodes.push(Node {
            name,
            operator: "Cast",
            inputs: vec![value.to_owned()],
            outputs: vec![output.clone()],
            attributes: vec![("to", Attribute::Int(element.code() as i64))],
        });
        self.casts.insert(value.to_owned(), output.clone());
        output
    }
}

/// Of an initializer that is needed in both types.
fn halved_name(name: &str) -> String {
    format!("{name}/f16")
}

/// Turns the initializers that f16 nodes use, under their own names where nothing else uses them.
fn store(
    graph: &mut Graph<'_>,
    in_half: &HashSet<String>,
    in_full: &HashSet<String>,
    hear: Listener<'_>,
) -> Result<(), ExportError> {
    let mut more = Vec::new();
    let mut names = HashMap::new();
    for initializer in graph.initializers.iter_mut().filter(|initializer| in_half.contains(&initializer.name)) {
        tell(hear, Event::Working)?;
        let largest = initializer.payload.largest();
        let name = initializer.name.clone();
        if !largest.is_finite() {
            return Err(ExportError::NotFinite { name, value: largest });
        }
        if largest > f16::MAX.to_f32() {
            return Err(ExportError::BeyondHalf { name, largest });
        }
        let payload = initializer.payload.halved();
        if in_full.contains(&initializer.name) {
            let dims = initializer.dims.clone();
            more.push(Initializer { name: halved_name(&name), element: Element::F16, dims, payload });
        } else {
            (initializer.element, initializer.payload) = (Element::F16, payload);
            names.insert(halved_name(&name), name);
        }
    }
    graph.initializers.extend(more);
    for input in graph.nodes.iter_mut().flat_map(|node| &mut node.inputs) {
        if let Some(name) = names.get(input) {
            input.clone_from(name);
        }
    }
    Ok(())
}

/// Gives the output `name`, which is f16, as f32; `cast` is the value that already is it as f32.
fn widen_output(graph: &mut Graph<'_>, name: &str, cast: Option<&String>) {
    let half = halved_name(name);
    graph.rename(name, &half);
    match cast {
        Some(cast) => graph.rename(cast, name),
        None => graph.nodes.push(Node {
            name: format!("/{name}/to_f32"),
            operator: "Cast",
            inputs: vec![half],
            outputs: vec![name.to_owned()],
            attributes: vec![("to", Attribute::Int(FLOAT))],
        }),
    }
}
