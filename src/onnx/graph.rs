//! A graph to be written: nodes, initializers and value descriptions, with their ONNX encoding.
//! Field numbers are those of `onnx.proto3`.

use std::collections::{HashMap, HashSet};

use super::payload::Payload;
use crate::wire::Message;

/// An attribute's value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Attribute {
    Int(i64),
    Float(f32),
    Ints(Vec<i64>),
    Text(&'static str),
}

/// One operator. All are of the standard domain: every runtime looks there first.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) name: String,
    pub(super) operator: &'static str,
    pub(super) inputs: Vec<String>,
    pub(super) outputs: Vec<String>,
    pub(super) attributes: Vec<(&'static str, Attribute)>,
}

/// The length of an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Extent {
    /// Known when the graph is written.
    Fixed(usize),
    /// Chosen at run time; axes of one name have one length.
    Free(&'static str),
}

/// The batch, in every graph.
pub(super) const BATCH: Extent = Extent::Free("batch");
/// An image's sides in pixels.
pub(super) const SIDES: [Extent; 2] = [Extent::Free("height"), Extent::Free("width")];
/// An image's sides in patches.
pub(super) const GRID: [Extent; 2] = [Extent::Free("rows"), Extent::Free("columns")];
/// Rows times columns.
pub(super) const PATCHES: Extent = Extent::Free("patches");
/// Prefix tokens and patches.
pub(super) const TOKENS: Extent = Extent::Free("tokens");

impl std::fmt::Display for Extent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fixed(length) => write!(f, "{length}"),
            Self::Free(name) => f.write_str(name),
        }
    }
}

/// An input or output of the graph.
#[derive(Debug, Clone)]
pub(super) struct ValueInfo {
    pub(super) name: String,
    pub(super) element: Element,
    pub(super) dims: Vec<Extent>,
}

/// Element types of what this tool writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Element {
    F32,
    F16,
    U8,
    I8,
    I32,
    I64,
}

impl Element {
    /// `TensorProto.DataType`.
    pub(super) const fn code(self) -> u64 {
        match self {
            Self::F32 => 1,
            Self::U8 => 2,
            Self::I8 => 3,
            Self::I32 => 6,
            Self::I64 => 7,
            Self::F16 => 10,
        }
    }

    /// Bytes of one.
    pub(super) const fn bytes(self) -> usize {
        match self {
            Self::U8 | Self::I8 => 1,
            Self::F16 => 2,
            Self::F32 | Self::I32 => 4,
            Self::I64 => 8,
        }
    }
}

/// f32, as Cast names it.
pub(super) const FLOAT: i64 = Element::F32.code() as i64;

/// A stored tensor.
#[derive(Debug, Clone)]
pub(super) struct Initializer<'a> {
    pub(super) name: String,
    pub(super) element: Element,
    pub(super) dims: Vec<usize>,
    pub(super) payload: Payload<'a>,
}

/// Everything between a model's inputs and outputs.
#[derive(Debug, Clone, Default)]
pub(super) struct Graph<'a> {
    pub(super) nodes: Vec<Node>,
    pub(super) initializers: Vec<Initializer<'a>>,
    pub(super) inputs: Vec<ValueInfo>,
    pub(super) outputs: Vec<ValueInfo>,
}

impl Graph<'_> {
    /// Drops what no output needs, then puts initializers in the order nodes first use them.
    pub(super) fn prune(&mut self) {
        let mut needed: HashSet<&str> = self.outputs.iter().map(|output| output.name.as_str()).collect();
        let mut keep = vec![false; self.nodes.len()];
        // Nodes are in execution order, so one walk backwards finds every ancestor.
        for (node, keep) in self.nodes.iter().zip(&mut keep).rev() {
            if node.outputs.iter().any(|output| needed.contains(output.as_str())) {
                *keep = true;
                needed.extend(node.inputs.iter().map(String::as_str));
            }
        }
        let mut keep = keep.into_iter();
        self.nodes.retain(|_| keep.next().unwrap_or(false));
        let mut order = HashMap::new();
        for input in self.nodes.iter().flat_map(|node| &node.inputs) {
            let next = order.len();
            order.entry(input.as_str()).or_insert(next);
        }
        self.initializers.retain(|initializer| order.contains_key(initializer.name.as_str()));
        self.initializers.sort_by_key(|initializer| order.get(initializer.name.as_str()).copied());
    }

    /// Calls the value `from` by the name `to`, everywhere.
    pub(super) fn rename(&mut self, from: &str, to: &str) {
        for node in &mut self.nodes {
            for value in node.inputs.iter_mut().chain(&mut node.outputs).filter(|value| *value == from) {
                *value = to.to_owned();
            }
        }
    }
}

impl Node {
    pub(super) fn encode(&self) -> Message {
        let mut out = Message::default();
        for input in &self.inputs {
            out.string(1, input);
        }
        for output in &self.outputs {
            out.string(2, output);
        }
        out.string(3, &self.name);
        out.string(4, self.operator);
        for (name, value) in &self.attributes {
            out.message(5, &value.encode(name));
        }
        out
    }
}

impl Attribute {
    fn encode(&self, name: &str) -> Message {
        let mut out = Message::default();
        out.string(1, name);
        let kind = match self {
            Self::Float(value) => {
                out.float(2, *value);
                1
            }
            Self::Int(value) => {
                out.int64(3, *value);
                2
            }
            Self::Text(value) => {
                out.string(4, value);
                3
            }
            Self::Ints(values) => {
                for value in values {
                    out.int64(8, *value);
                }
                7
            }
        };
        out.varint(20, kind);
        out
    }
}

impl ValueInfo {
    pub(super) fn encode(&self) -> Message {
        let mut shape = Message::default();
        for dim in &self.dims {
            let mut out = Message::default();
            match dim {
                Extent::Fixed(length) => out.varint(1, *length as u64),
                Extent::Free(name) => out.string(2, name),
            }
            shape.message(1, &out);
        }
        let mut tensor = Message::default();
        tensor.varint(1, self.element.code());
        tensor.message(2, &shape);
        let mut kind = Message::default();
        kind.message(1, &tensor);
        let mut out = Message::default();
        out.string(1, &self.name);
        out.message(2, &kind);
        out
    }
}

impl Initializer<'_> {
    /// Bytes of its values in the file.
    pub(super) fn bytes(&self) -> u64 {
        self.payload.len(self.element)
    }

    /// The `TensorProto` up to its data.
    pub(super) fn encode_header(&self) -> Message {
        let mut out = Message::default();
        for dim in &self.dims {
            out.varint(1, *dim as u64);
        }
        out.varint(2, self.element.code());
        out.string(8, &self.name);
        out
    }
}
