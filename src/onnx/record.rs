//! [`Ops`] as a recorder: each operation writes graph nodes instead of computing.
//!
//! Shape letters as in [`crate::model`]. Between embedding and outputs, tokens are kept flat, (B·T, C), wherever an
//! operation treats every token alone: a two-dimensional product is the case every runtime is fastest at.

use std::collections::{HashMap, HashSet};

use super::ExportError;
use super::graph::{Attribute, Dim, Element, Graph, Initializer, Node, ValueInfo};
use super::payload::{Payload, to_f32};
use super::target::Dialect;
use crate::model::{Activation, Canonical, Ops, PositionRequest, TensorView, position};

/// How a value lies in the graph.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Form {
    /// (B, 3, H, W).
    Images { height: usize, width: usize },
    /// (B, T, C).
    Tokens { tokens: usize, channels: usize },
    /// (B·T, C).
    Flat { tokens: usize, channels: usize },
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
        }
    }

    /// The graph's input, (B, 3, H, W).
    pub(super) fn input(&mut self, name: &str, [height, width]: [usize; 2]) -> Value {
        let dims = vec![Dim::Batch, Dim::Fixed(3), Dim::Fixed(height), Dim::Fixed(width)];
        self.graph.inputs.push(ValueInfo { name: name.to_owned(), dims });
        Value { name: name.to_owned(), form: Form::Images { height, width } }
    }

    /// Patch tokens (B, L, C) as a map (B, C, rows, columns).
    pub(super) fn map_output(&mut self, name: &str, x: &Value, [rows, columns]: [usize; 2]) -> Result<()> {
        let (tokens, channels) = self.tokens_of(x)?;
        if tokens != rows * columns {
            return Err(ExportError::unrecordable(
                "map",
                format!("{tokens} tokens are not {rows} × {columns} patches"),
            ));
        }
        let x = self.stacked(x)?;
        self.scope = vec![name.to_owned()];
        let turned = self.node("Transpose", &[&x.name], vec![("perm", Attribute::Ints(vec![0, 2, 1]))]);
        let shape = self.integers(&[-1, channels as i64, rows as i64, columns as i64], true);
        let map = self.node("Reshape", &[&turned, &shape], vec![]);
        self.name_output(name, &map, vec![Dim::Batch, Dim::Fixed(channels), Dim::Fixed(rows), Dim::Fixed(columns)]);
        Ok(())
    }

    /// A value as an output of the graph: (B, T, C) or (B, C).
    pub(super) fn output(&mut self, name: &str, x: &Value) -> Result<()> {
        if let Form::Pooled { channels } = x.form {
            self.name_output(name, &x.name, vec![Dim::Batch, Dim::Fixed(channels)]);
            return Ok(());
        }
        let (tokens, channels) = self.tokens_of(x)?;
        self.scope = vec![name.to_owned()];
        let x = self.stacked(x)?;
        self.name_output(name, &x.name, vec![Dim::Batch, Dim::Fixed(tokens), Dim::Fixed(channels)]);
        Ok(())
    }

    fn name_output(&mut self, name: &str, value: &str, dims: Vec<Dim>) {
        self.graph.rename(value, name);
        let renamed = |known: String| if known == value { name.to_owned() } else { known };
        self.relaid = std::mem::take(&mut self.relaid)
            .into_iter()
            .map(|((from, flat), to)| ((renamed(from), flat), renamed(to)))
            .collect();
        self.graph.outputs.push(ValueInfo { name: name.to_owned(), dims });
    }

    /// The finished graph, without what no output needs.
    pub(super) fn finish(mut self) -> Graph<'a> {
        self.graph.prune();
        self.graph
    }

    // Names and storage ------------------------------------------------------------------------------------------------

    /// `blocks.0.attn.qkv` → `blocks.0`, `attn`, `qkv`: an index belongs to the list it indexes.
    fn enter(&mut self, parameter: &str) {
        self.scope.clear();
        for part in parameter.split('.') {
            match self.scope.last_mut() {
                Some(list) if part.bytes().all(|byte| byte.is_ascii_digit()) => {
                    list.push('.');
                    list.push_str(part);
                }
                _ => self.scope.push(part.to_owned()),
            }
        }
    }

    fn leave_to(&mut self, depth: usize) {
        self.scope.truncate(depth.max(1));
    }

    fn nodes(
        &mut self,
        operator: &'static str,
        inputs: &[&str],
        attributes: Vec<(&'static str, Attribute)>,
        outputs: usize,
    ) -> Vec<String> {
        let base = format!("/{}/{operator}", self.scope.join("/"));
        let count = self.taken.entry(base.clone()).or_insert(0);
        let name = if *count == 0 { base } else { format!("{base}_{count}") };
        *count += 1;
        let outputs: Vec<String> = (0..outputs).map(|i| format!("{name}_output_{i}")).collect();
        self.graph.nodes.push(Node {
            name,
            operator,
            inputs: inputs.iter().map(|&input| input.to_owned()).collect(),
            outputs: outputs.clone(),
            attributes,
        });
        outputs
    }

    fn node(&mut self, operator: &'static str, inputs: &[&str], attributes: Vec<(&'static str, Attribute)>) -> String {
        self.nodes(operator, inputs, attributes, 1).swap_remove(0)
    }

    fn view(&self, name: &str) -> Result<TensorView<'a>> {
        self.model.get(name).ok_or_else(|| ExportError::MissingParameter { name: name.to_owned() })
    }

    fn store(&mut self, name: &str, element: Element, dims: Vec<usize>, payload: Payload<'a>) -> String {
        if self.stored.insert(name.to_owned()) {
            self.graph.initializers.push(Initializer { name: name.to_owned(), element, dims, payload });
        }
        name.to_owned()
    }

    fn stored(&mut self, name: &str) -> Result<String> {
        let view = self.view(name)?;
        Ok(self.store(name, Element::F32, view.shape.to_vec(), Payload::Stored(view)))
    }

    /// A constant shared by all who need it: `vector` or a scalar.
    fn integers(&mut self, values: &[i64], vector: bool) -> String {
        let text: Vec<String> = values.iter().map(i64::to_string).collect();
        let (kind, dims) = if vector { ("ints", vec![values.len()]) } else { ("int", vec![]) };
        self.store(&format!("/{kind}/{}", text.join("_")), Element::I64, dims, Payload::i64(values))
    }

    fn scalar(&mut self, value: f32) -> String {
        self.store(&format!("/float/{value:e}"), Element::F32, vec![], Payload::f32(&[value]))
    }

    // Layouts ----------------------------------------------------------------------------------------------------------

    fn tokens_of(&self, x: &Value) -> Result<(usize, usize)> {
        match x.form {
            Form::Tokens { tokens, channels } | Form::Flat { tokens, channels } => Ok((tokens, channels)),
            _ => Err(ExportError::unrecordable("tokens", format!("`{}` is not a sequence of tokens", x.name))),
        }
    }

    fn relay(&mut self, x: &Value, flat: bool, shape: &[i64]) -> String {
        let key = (x.name.clone(), flat);
        if let Some(name) = self.relaid.get(&key) {
            return name.clone();
        }
        let shape = self.integers(shape, true);
        let name = self.node("Reshape", &[&x.name, &shape], vec![]);
        self.relaid.insert(key, name.clone());
        // The way back is known as well.
        self.relaid.insert((name.clone(), !flat), x.name.clone());
        name
    }

    fn flat(&mut self, x: &Value) -> Value {
        match x.form {
            Form::Tokens { tokens, channels } => {
                let name = self.relay(x, true, &[-1, channels as i64]);
                Value { name, form: Form::Flat { tokens, channels } }
            }
            _ => x.clone(),
        }
    }

    fn stacked(&mut self, x: &Value) -> Result<Value> {
        match x.form {
            Form::Flat { tokens, channels } => {
                let name = self.relay(x, false, &[-1, tokens as i64, channels as i64]);
                Ok(Value { name, form: Form::Tokens { tokens, channels } })
            }
            Form::Tokens { .. } => Ok(x.clone()),
            _ => Err(ExportError::unrecordable("tokens", format!("`{}` is not a sequence of tokens", x.name))),
        }
    }

    fn channels_of(&self, x: &Value) -> Result<usize> {
        match x.form {
            Form::Tokens { channels, .. } | Form::Flat { channels, .. } | Form::Pooled { channels } => Ok(channels),
            _ => Err(ExportError::unrecordable("channels", format!("`{}` has no channel axis", x.name))),
        }
    }

    fn with_channels(x: &Value, name: String, channels: usize) -> Value {
        let form = match x.form {
            Form::Tokens { tokens, .. } => Form::Tokens { tokens, channels },
            Form::Flat { tokens, .. } => Form::Flat { tokens, channels },
            _ => Form::Pooled { channels },
        };
        Value { name, form }
    }

    // Composed operators -----------------------------------------------------------------------------------------------

    fn reduce_mean(&mut self, x: &str, axis: i64, keep: bool) -> String {
        let keep = ("keepdims", Attribute::Int(i64::from(keep)));
        if self.dialect.reduce_axes_are_an_input() {
            let axes = self.integers(&[axis], true);
            return self.node("ReduceMean", &[x, &axes], vec![keep]);
        }
        self.node("ReduceMean", &[x], vec![("axes", Attribute::Ints(vec![axis])), keep])
    }

    fn slice(&mut self, x: &str, axis: i64, start: usize, end: usize) -> String {
        let starts = self.integers(&[start as i64], true);
        let ends = self.integers(&[end as i64], true);
        let axes = self.integers(&[axis], true);
        self.node("Slice", &[x, &starts, &ends, &axes], vec![])
    }

    /// Equal parts of the last axis.
    fn split(&mut self, x: &str, parts: usize) -> Vec<String> {
        let mut attributes = vec![("axis", Attribute::Int(-1))];
        if self.dialect.split_counts_outputs() {
            attributes.push(("num_outputs", Attribute::Int(parts as i64)));
        }
        self.nodes("Split", &[x], attributes, parts)
    }

    /// Exactly the pattern ONNX Runtime recognises and fuses.
    fn composed_layer_norm(&mut self, x: &str, weight: &str, bias: &str, eps: f64) -> String {
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
    fn composed_gelu_erf(&mut self, x: &str) -> String {
        let root = self.scalar(std::f32::consts::SQRT_2);
        let scaled = self.node("Div", &[x, &root], vec![]);
        let erf = self.node("Erf", &[&scaled], vec![]);
        self.gelu_tail(x, &erf)
    }

    /// 0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³))).
    fn composed_gelu_tanh(&mut self, x: &str) -> String {
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

    fn gelu_tail(&mut self, x: &str, bounded: &str) -> String {
        let one = self.scalar(1.0);
        let raised = self.node("Add", &[bounded, &one], vec![]);
        let product = self.node("Mul", &[x, &raised], vec![]);
        let half = self.scalar(0.5);
        self.node("Mul", &[&product, &half], vec![])
    }

    /// Three (B·T, C) → (B·T, C) over heads of width `width`.
    fn composed_attention(&mut self, qkv: &[String], tokens: usize, heads: usize, width: usize) -> String {
        let split_heads = [-1, tokens as i64, heads as i64, width as i64];
        let mut turned = Vec::with_capacity(3);
        // (B, T, N, c) → (B, N, T, c), and the keys at once to (B, N, c, T).
        for (x, perm) in qkv.iter().zip([[0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]]) {
            let shape = self.integers(&split_heads, true);
            let x = self.node("Reshape", &[x, &shape], vec![]);
            turned.push(self.node("Transpose", &[&x], vec![("perm", Attribute::Ints(perm.to_vec()))]));
        }
        let scale = self.scalar((width as f32).powf(-0.5));
        let query = self.node("Mul", &[&turned[0], &scale], vec![]);
        let logits = self.node("MatMul", &[&query, &turned[1]], vec![]);
        let weights = self.node("Softmax", &[&logits], vec![("axis", Attribute::Int(-1))]);
        let mixed = self.node("MatMul", &[&weights, &turned[2]], vec![]);
        let mixed = self.node("Transpose", &[&mixed], vec![("perm", Attribute::Ints(vec![0, 2, 1, 3]))]);
        let shape = self.integers(&[-1, (heads * width) as i64], true);
        self.node("Reshape", &[&mixed, &shape], vec![])
    }
}

impl Ops for Record<'_> {
    type Value = Value;
    type Error = ExportError;

    fn parameter(&mut self, name: &str) -> Result<Value> {
        let dims = self.view(name)?.shape.to_vec();
        Ok(Value { name: self.stored(name)?, form: Form::Stored { dims } })
    }

    fn patch_embed(&mut self, images: &Value, name: &str, patch: usize) -> Result<Value> {
        let Form::Images { height, width } = images.form else {
            return Err(ExportError::unrecordable("patch_embed", format!("`{}` is not an image", images.name)));
        };
        let patches = (height / patch) * (width / patch);
        let weight = self.stored(&format!("{name}.weight"))?;
        let bias = self.stored(&format!("{name}.bias"))?;
        let channels = self.view(&format!("{name}.bias"))?.shape.iter().product::<usize>();
        self.enter(name);
        let side = Attribute::Ints(vec![patch as i64; 2]);
        let attributes = vec![("kernel_shape", side.clone()), ("strides", side)];
        let map = self.node("Conv", &[&images.name, &weight, &bias], attributes);
        self.leave_to(1);
        let shape = self.integers(&[-1, channels as i64, patches as i64], true);
        let rows = self.node("Reshape", &[&map, &shape], vec![]);
        let name = self.node("Transpose", &[&rows], vec![("perm", Attribute::Ints(vec![0, 2, 1]))]);
        Ok(Value { name, form: Form::Tokens { tokens: patches, channels } })
    }

    fn position(&mut self, name: &str, request: &PositionRequest) -> Result<Value> {
        let view = self.view(name)?;
        if position::is_native(request.native, request.grid) {
            return self.parameter(name);
        }
        let [rows, columns] = request.grid;
        let width = view.shape.last().copied().unwrap_or(0);
        let table = position::resample(&to_f32(view), width, request.native, request.grid, request.resample)
            .map_err(|error| ExportError::unrecordable("position", error.to_string()))?;
        // As many rows more as the stored table has: a class row, or none.
        let [native_rows, native_columns] = request.native;
        let class_row = view.shape.iter().product::<usize>() > native_rows * native_columns * width;
        let dims = vec![1, usize::from(class_row) + rows * columns, width];
        let name = self.store(name, Element::F32, dims.clone(), Payload::f32(&table));
        Ok(Value { name, form: Form::Stored { dims } })
    }

    fn tokens(&mut self, x: &Value, start: usize, len: Option<usize>) -> Result<Value> {
        let (tokens, channels) = self.tokens_of(x)?;
        let end = len.map_or(tokens, |len| start.saturating_add(len));
        if start >= end || end > tokens {
            return Err(ExportError::unrecordable("tokens", format!("{start}..{end} is outside {tokens} tokens")));
        }
        let x = self.stacked(x)?;
        if (start, end) == (0, tokens) {
            return Ok(x);
        }
        let name = self.slice(&x.name, 1, start, end);
        Ok(Value { name, form: Form::Tokens { tokens: end - start, channels } })
    }

    fn prepend_token(&mut self, token: &Value, x: &Value) -> Result<Value> {
        let (tokens, channels) = self.tokens_of(x)?;
        let more = match &token.form {
            Form::Stored { dims } if dims.len() == 3 => dims[1],
            _ => return Err(ExportError::unrecordable("prepend_token", format!("`{}` is not stored", token.name))),
        };
        let x = self.stacked(x)?;
        self.scope = vec!["embed".to_owned()];
        // Not Pad, Shape(start, end) or a broadcasting Concat: candle-onnx has none of them.
        let shape = self.node("Shape", &[&x.name], vec![]);
        let first = self.integers(&[0], true);
        let batch = self.node("Gather", &[&shape, &first], vec![("axis", Attribute::Int(0))]);
        let row = self.integers(&[more as i64, channels as i64], true);
        let shape = self.node("Concat", &[&batch, &row], vec![("axis", Attribute::Int(0))]);
        let token = self.node("Expand", &[&token.name, &shape], vec![]);
        let name = self.node("Concat", &[&token, &x.name], vec![("axis", Attribute::Int(1))]);
        Ok(Value { name, form: Form::Tokens { tokens: more + tokens, channels } })
    }

    fn add(&mut self, a: &Value, b: &Value) -> Result<Value> {
        let (a, b) = match (&a.form, &b.form) {
            (Form::Stored { .. }, Form::Stored { .. }) => {
                return Err(ExportError::unrecordable("add", "both sides are constant".to_owned()));
            }
            (Form::Stored { .. }, _) => (self.stacked(b)?, a.clone()),
            (_, Form::Stored { .. }) => (self.stacked(a)?, b.clone()),
            _ => (self.flat(a), self.flat(b)),
        };
        self.leave_to(1);
        let name = self.node("Add", &[&a.name, &b.name], vec![]);
        Ok(Value { name, form: a.form })
    }

    fn linear(&mut self, x: &Value, name: &str) -> Result<Value> {
        let view = self.view(&format!("{name}.weight"))?;
        let &[out, width] = view.shape else {
            return Err(ExportError::unrecordable("linear", format!("`{name}.weight` is not a matrix")));
        };
        if self.channels_of(x)? != width {
            return Err(ExportError::unrecordable("linear", format!("`{name}` does not take `{}`", x.name)));
        }
        let weight = self.store(&format!("{name}.weight"), Element::F32, vec![width, out], Payload::Transposed(view));
        let bias = self.stored(&format!("{name}.bias"))?;
        self.enter(name);
        let x = self.flat(x);
        let y = if self.dialect.fused_linear() {
            self.node("Gemm", &[&x.name, &weight, &bias], vec![])
        } else {
            let product = self.node("MatMul", &[&x.name, &weight], vec![]);
            self.node("Add", &[&product, &bias], vec![])
        };
        Ok(Self::with_channels(&x, y, out))
    }

    fn layer_norm(&mut self, x: &Value, name: &str, eps: f64) -> Result<Value> {
        let channels = self.channels_of(x)?;
        let weight = self.stored(&format!("{name}.weight"))?;
        let bias = self.stored(&format!("{name}.bias"))?;
        self.enter(name);
        let x = self.flat(x);
        let y = if self.dialect.fused_layer_norm() {
            let attributes = vec![("axis", Attribute::Int(-1)), ("epsilon", Attribute::Float(eps as f32))];
            self.node("LayerNormalization", &[&x.name, &weight, &bias], attributes)
        } else {
            self.composed_layer_norm(&x.name, &weight, &bias, eps)
        };
        Ok(Self::with_channels(&x, y, channels))
    }

    fn gelu(&mut self, x: &Value, kind: Activation) -> Result<Value> {
        let depth = self.scope.len() - 1;
        self.leave_to(depth);
        let y = match kind {
            Activation::GeluErf if self.dialect.fused_gelu() => self.node("Gelu", &[&x.name], vec![]),
            Activation::GeluTanh if self.dialect.fused_gelu() => {
                self.node("Gelu", &[&x.name], vec![("approximate", Attribute::Text("tanh"))])
            }
            Activation::GeluErf => self.composed_gelu_erf(&x.name),
            Activation::GeluTanh => self.composed_gelu_tanh(&x.name),
        };
        Ok(Value { name: y, form: x.form.clone() })
    }

    fn swiglu(&mut self, x: &Value) -> Result<Value> {
        let channels = self.channels_of(x)?;
        if channels == 0 || !channels.is_multiple_of(2) {
            return Err(ExportError::unrecordable("swiglu", format!("{channels} channels have no halves")));
        }
        let depth = self.scope.len() - 1;
        self.leave_to(depth);
        let halves = self.split(&x.name, 2);
        let sigmoid = self.node("Sigmoid", &[&halves[0]], vec![]);
        let silu = self.node("Mul", &[&halves[0], &sigmoid], vec![]);
        let gated = self.node("Mul", &[&silu, &halves[1]], vec![]);
        Ok(Self::with_channels(x, gated, channels / 2))
    }

    fn layer_scale(&mut self, x: &Value, name: &str) -> Result<Value> {
        let channels = self.channels_of(x)?;
        let gamma = self.stored(name)?;
        self.enter(name);
        let depth = self.scope.len() - 1;
        self.leave_to(depth);
        let scaled = self.node("Mul", &[&x.name, &gamma], vec![]);
        Ok(Self::with_channels(x, scaled, channels))
    }

    fn attention(&mut self, qkv: &Value, heads: usize) -> Result<Value> {
        let (tokens, channels) = self.tokens_of(qkv)?;
        let width = channels / 3;
        if heads == 0 || width % heads != 0 || channels % 3 != 0 {
            return Err(ExportError::unrecordable("attention", format!("{channels} channels for {heads} heads")));
        }
        let depth = self.scope.len() - 1;
        self.leave_to(depth);
        let fused = self.dialect.fused_attention();
        let qkv = if fused { self.stacked(qkv)? } else { self.flat(qkv) };
        let parts = self.split(&qkv.name, 3);
        if fused {
            let heads = Attribute::Int(heads as i64);
            let attributes = vec![("kv_num_heads", heads.clone()), ("q_num_heads", heads)];
            let name = self.node("Attention", &[&parts[0], &parts[1], &parts[2]], attributes);
            return Ok(Value { name, form: Form::Tokens { tokens, channels: width } });
        }
        let name = self.composed_attention(&parts, tokens, heads, width / heads);
        Ok(Value { name, form: Form::Flat { tokens, channels: width } })
    }

    fn concat_channels(&mut self, parts: &[Value]) -> Result<Value> {
        let parts: Vec<Value> = parts.iter().map(|part| self.flat(part)).collect();
        let Some(first) = parts.first() else {
            return Err(ExportError::unrecordable("concat_channels", "there is nothing to concatenate".to_owned()));
        };
        let mut channels = 0;
        for part in &parts {
            channels += self.channels_of(part)?;
        }
        let names: Vec<&str> = parts.iter().map(|part| part.name.as_str()).collect();
        self.leave_to(1);
        let name = self.node("Concat", &names, vec![("axis", Attribute::Int(-1))]);
        Ok(Self::with_channels(first, name, channels))
    }

    fn channels(&mut self, x: &Value, start: usize, len: usize) -> Result<Value> {
        let all = self.channels_of(x)?;
        let end = start.saturating_add(len);
        if len == 0 || end > all {
            return Err(ExportError::unrecordable("channels", format!("{start}..{end} is outside {all} channels")));
        }
        if len == all {
            return Ok(x.clone());
        }
        self.leave_to(1);
        let name = self.slice(&x.name, -1, start, end);
        Ok(Self::with_channels(x, name, len))
    }

    fn select_token(&mut self, x: &Value, index: usize) -> Result<Value> {
        let (tokens, channels) = self.tokens_of(x)?;
        if index >= tokens {
            return Err(ExportError::unrecordable("select_token", format!("token {index} of {tokens}")));
        }
        let x = self.stacked(x)?;
        let index = self.integers(&[index as i64], false);
        let name = self.node("Gather", &[&x.name, &index], vec![("axis", Attribute::Int(1))]);
        Ok(Value { name, form: Form::Pooled { channels } })
    }

    fn mean_tokens(&mut self, x: &Value, start: usize) -> Result<Value> {
        let (_, channels) = self.tokens_of(x)?;
        let x = self.tokens(x, start, None)?;
        let name = self.reduce_mean(&x.name, 1, false);
        Ok(Value { name, form: Form::Pooled { channels } })
    }
}
