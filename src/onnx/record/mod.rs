//! [`Ops`] as a recorder: each operation writes graph nodes instead of computing.
//!
//! Shape letters as in [`crate::model`]. Between embedding and outputs, tokens are kept flat, (B·T, C), wherever an
//! operation treats every token alone: a two-dimensional product is the case every runtime is fastest at.
//!
//! H, W, L and T are known when the graph is written, or [`Extent::Free`]; then shapes that two of them (the batch is
//! always free) make up are put together at run time.

mod compose;
mod layout;
mod maps;
mod names;
mod ops;
mod position;
mod relative;

pub(super) use layout::padded;

use std::collections::{HashMap, HashSet};

use super::ExportError;
use super::graph::{Attribute, BATCH, Element, Extent, FLOAT, Graph, ValueInfo};
use super::payload::Payload;
use super::target::Dialect;
use crate::model::{Canonical, Preprocessing};

/// How a value lies in the graph.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Form {
    /// (B, 3, H, W), followed by zeros until the sides are multiples of `padding`.
    Images { sides: [Extent; 2], padding: Option<usize> },
    /// (B, T, C).
    Tokens { tokens: Extent, channels: usize },
    /// (B·T, C).
    Flat { tokens: Extent, channels: usize },
    /// (1, T, C): a position table made in the graph.
    Table { tokens: Extent, channels: usize },
    /// (B, C).
    Pooled { channels: usize },
    /// An initializer of known shape.
    Stored { dims: Vec<usize> },
}

/// The name of a value in the graph, and its shape.
#[derive(Debug, Clone)]
pub struct Value {
    name: String,
    form: Form,
}

/// Writes down a forward pass as a graph.
#[derive(Debug)]
pub struct Record<'a> {
    model: &'a Canonical,
    dialect: Dialect,
    graph: Graph<'a>,
    /// Path of the parameter last used: nodes without one of their own are named after its surroundings.
    scope: Vec<String>,
    taken: HashMap<String, usize>,
    stored: HashSet<String>,
    /// The same value in its other layout, so that no conversion is written twice.
    relaid: HashMap<(String, bool), String>,
    /// The values that hold the lengths of free axes, each a vector of one.
    lengths: HashMap<Extent, String>,
    /// Shapes put together at run time.
    shapes: HashMap<Vec<Extent>, String>,
    /// Values that depend on lengths alone, which every block needs: by what they are.
    shared: HashMap<String, String>,
}

type Result<T> = std::result::Result<T, ExportError>;

impl<'a> Record<'a> {
    pub(super) fn new(model: &'a Canonical, dialect: Dialect) -> Self {
        Self {
            model,
            dialect,
            graph: Graph::default(),
            scope: Vec::new(),
            taken: HashMap::new(),
            stored: HashSet::new(),
            relaid: HashMap::new(),
            lengths: HashMap::new(),
            shapes: HashMap::new(),
            shared: HashMap::new(),
        }
    }

    /// The graph's input, (B, 3, H, W), normalised; its sides are brought to multiples of `padding`.
    pub(super) fn input(&mut self, name: &str, sides: [Extent; 2], padding: Option<usize>) -> Value {
        let dims = vec![BATCH, Extent::Fixed(3), sides[0], sides[1]];
        self.graph.inputs.push(ValueInfo { name: name.to_owned(), element: Element::F32, dims });
        Value { name: name.to_owned(), form: Form::Images { sides, padding } }
    }

    /// The same of pixels as they are in a picture: u8, (B, H, W, 3), which the graph normalises.
    pub(super) fn bytes_input(
        &mut self,
        name: &str,
        sides: [Extent; 2],
        padding: Option<usize>,
        preprocessing: &Preprocessing,
    ) -> Value {
        let dims = vec![BATCH, sides[0], sides[1], Extent::Fixed(3)];
        self.graph.inputs.push(ValueInfo { name: name.to_owned(), element: Element::U8, dims });
        self.scope = vec!["normalize".to_owned()];
        let pixels = self.node("Cast", &[name], vec![("to", Attribute::Int(FLOAT))]);
        // (x / 255 − mean) / std, as one product and one sum; by channel, which is still the last axis.
        let [scale, shift] = preprocessing.affine().map(|values| values.map(|value| value as f32));
        let scale = self.store("/normalize/scale", Element::F32, vec![3], Payload::f32(&scale));
        let shift = self.store("/normalize/shift", Element::F32, vec![3], Payload::f32(&shift));
        let pixels = self.node("Mul", &[&pixels, &scale], vec![]);
        let pixels = self.node("Add", &[&pixels, &shift], vec![]);
        let name = self.node("Transpose", &[&pixels], vec![("perm", Attribute::Ints(vec![0, 3, 1, 2]))]);
        Value { name, form: Form::Images { sides, padding } }
    }

    /// Patch tokens (B, L, C) as a map (B, C, rows, columns).
    pub(super) fn map_output(&mut self, name: &str, x: &Value, grid: [Extent; 2]) -> Result<()> {
        let (tokens, channels) = self.tokens_of(x)?;
        if tokens != layout::patches(grid) {
            let [rows, columns] = grid;
            return Err(ExportError::unrecordable(
                "map",
                format!("{tokens} tokens are not {rows} × {columns} patches"),
            ));
        }
        let x = self.stacked(x)?;
        self.scope = vec![name.to_owned()];
        let map = self.map(&x, grid)?;
        self.name_output(name, &map, vec![BATCH, Extent::Fixed(channels), grid[0], grid[1]]);
        Ok(())
    }

    /// A value as an output of the graph: (B, T, C) or (B, C).
    pub(super) fn output(&mut self, name: &str, x: &Value) -> Result<()> {
        if let Form::Pooled { channels } = x.form {
            self.name_output(name, &x.name, vec![BATCH, Extent::Fixed(channels)]);
            return Ok(());
        }
        let (tokens, channels) = self.tokens_of(x)?;
        self.scope = vec![name.to_owned()];
        let x = self.stacked(x)?;
        self.name_output(name, &x.name, vec![BATCH, tokens, Extent::Fixed(channels)]);
        Ok(())
    }

    fn name_output(&mut self, name: &str, value: &str, dims: Vec<Extent>) {
        self.graph.rename(value, name);
        let renamed = |known: String| if known == value { name.to_owned() } else { known };
        self.relaid = std::mem::take(&mut self.relaid)
            .into_iter()
            .map(|((from, flat), to)| ((renamed(from), flat), renamed(to)))
            .collect();
        self.graph.outputs.push(ValueInfo { name: name.to_owned(), element: Element::F32, dims });
    }

    /// The finished graph, without what no output needs.
    pub(super) fn finish(mut self) -> Graph<'a> {
        self.graph.prune();
        self.graph
    }
}
