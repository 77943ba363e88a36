//! candle-onnx: evaluates the nodes one by one.
//!
//! Its evaluator keeps every value of a graph and every weight twice until the end, and cannot be stopped. So the graph is cut in
//! pieces of a few nodes; between two of them, what nothing needs any more is dropped, and the run can end.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use candle_onnx::onnx::{GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto};
use memmap2::Mmap;
use prost::Message;

use super::{Engine, Feed, Output, Stop};

/// Nodes of a piece: a few, so that little is alive at a time.
const PIECE: usize = 8;

pub(super) struct CandleOnnx {
    pieces: Vec<Piece>,
    /// Stored tensors that several pieces use.
    shared: HashMap<String, Tensor>,
    input: String,
    outputs: Vec<String>,
}

/// A few nodes in a row, as a graph of their own.
struct Piece {
    model: ModelProto,
    /// What comes from earlier pieces.
    takes: Vec<String>,
    /// Of what is alive then, what no later piece takes.
    drops: Vec<String>,
}

impl CandleOnnx {
    pub(super) fn open(path: &Path) -> Result<Self, String> {
        let io = |error: std::io::Error| error.to_string();
        let file = File::open(path).map_err(io)?;
        if file.metadata().map_err(io)?.len() == 0 {
            return Err("the file is empty".to_owned());
        }
        // SAFETY: the map is read-only and gone when this returns. A writer that shortens the file meanwhile ends the process
        // with SIGBUS, as with every mapped file; this tool only ever replaces files by rename.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        let model = ModelProto::decode(&map[..]).map_err(|error| error.to_string())?;
        drop(map);
        let opsets = model.opset_import.clone();
        let graph = model.graph.ok_or("the file has no graph")?;
        if graph.initializer.iter().any(|tensor| tensor.data_location == 1) {
            // It would read the absent raw data as an empty buffer.
            return Err("it does not read external data".to_owned());
        }
        let input = graph.input.first().ok_or("the graph has no input")?.clone();
        let outputs: Vec<String> = graph.output.iter().map(|output| output.name.clone()).collect();
        let mut out = Self { pieces: Vec::new(), shared: HashMap::new(), input: input.name.clone(), outputs };

        // A graph inside a node may use any value of the one around it; such a graph stays in one piece.
        let nested = |node: &NodeProto| node.attribute.iter().any(|one| one.g.is_some() || !one.graphs.is_empty());
        let count = graph.node.len().max(1);
        let piece = if graph.node.iter().any(nested) { count } else { PIECE };
        let mut parts: Vec<Vec<NodeProto>> = Vec::with_capacity(count.div_ceil(piece));
        for (i, node) in graph.node.into_iter().enumerate() {
            if i % piece == 0 {
                parts.push(Vec::with_capacity(piece));
            }
            if let Some(part) = parts.last_mut() {
                part.push(node);
            }
        }
        // The last piece that takes each value; outputs are taken at the end.
        let mut last: HashMap<&str, usize> = HashMap::new();
        let mut users: HashMap<&str, usize> = HashMap::new();
        for (at, part) in parts.iter().enumerate() {
            let taken: HashSet<&str> = part.iter().flat_map(|node| &node.input).map(String::as_str).collect();
            for name in taken {
                last.insert(name, at);
                *users.entry(name).or_default() += 1;
            }
        }
        for name in &out.outputs {
            last.insert(name, parts.len());
        }
        let mut stored: HashMap<String, TensorProto> = HashMap::new();
        for tensor in graph.initializer {
            let used_at_end = last.get(tensor.name.as_str()) == Some(&parts.len());
            if piece < count && (used_at_end || users.get(tensor.name.as_str()).copied().unwrap_or(0) > 1) {
                let value = candle_onnx::eval::get_tensor(&tensor, &tensor.name).map_err(words)?;
                out.shared.insert(tensor.name, value);
            } else {
                stored.insert(tensor.name.clone(), tensor);
            }
        }
        let ends: HashMap<String, usize> = last.into_iter().map(|(name, at)| (name.to_owned(), at)).collect();
        let mut alive: HashSet<String> = out.shared.keys().cloned().chain([input.name.clone()]).collect();
        for (at, nodes) in parts.into_iter().enumerate() {
            let mut graph = GraphProto::default();
            if at == 0 {
                graph.input.push(input.clone());
            }
            let mut takes = HashSet::new();
            for name in nodes.iter().flat_map(|node| &node.input).filter(|name| !name.is_empty()) {
                match stored.remove(name) {
                    Some(tensor) => graph.initializer.push(tensor),
                    None if alive.contains(name) => drop(takes.insert(name.clone())),
                    None => {}
                }
            }
            if piece == count {
                // Those a graph inside a node names.
                graph.initializer.extend(std::mem::take(&mut stored).into_values());
            }
            if at == 0 {
                takes.insert(input.name.clone());
            }
            for name in nodes.iter().flat_map(|node| &node.output) {
                if ends.get(name).is_some_and(|end| *end > at) {
                    graph.output.push(ValueInfoProto { name: name.clone(), ..Default::default() });
                    alive.insert(name.clone());
                }
            }
            let drops: Vec<String> =
                alive.iter().filter(|name| ends.get(*name).is_none_or(|end| *end <= at)).cloned().collect();
            for name in &drops {
                alive.remove(name);
            }
            graph.node = nodes;
            let model = ModelProto { opset_import: opsets.clone(), graph: Some(graph), ..Default::default() };
            out.pieces.push(Piece { model, takes: takes.into_iter().collect(), drops });
        }
        Ok(out)
    }
}

/// candle's errors quote the whole node and a backtrace; the first clause says what is wrong.
#[expect(clippy::needless_pass_by_value, reason = "map_err hands it over")]
fn words(error: candle_core::Error) -> String {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    line.split(" for op NodeProto").next().unwrap_or_default().chars().take(200).collect()
}

impl Engine for CandleOnnx {
    fn run(&mut self, feed: &Feed, stop: &Stop) -> Result<Vec<Output>, String> {
        let shape = feed.extent().0;
        let input = match feed {
            Feed::Images(images) => Tensor::from_slice(&images.values, &shape[..], &Device::Cpu),
            Feed::Pixels(pixels) => Tensor::from_slice(&pixels.values, &shape[..], &Device::Cpu),
        };
        let mut alive = self.shared.clone();
        alive.insert(self.input.clone(), input.map_err(words)?);
        for piece in &self.pieces {
            if stop.asked() {
                return Err("interrupted".to_owned());
            }
            let taken = piece.takes.iter().filter_map(|name| Some((name.clone(), alive.get(name)?.clone())));
            let made = candle_onnx::simple_eval(&piece.model, taken.collect()).map_err(words)?;
            alive.extend(made);
            for name in &piece.drops {
                alive.remove(name);
            }
        }
        let mut out = Vec::with_capacity(self.outputs.len());
        for name in &self.outputs {
            let value = alive.get(name).ok_or_else(|| format!("it gave no output `{name}`"))?;
            let shape = value.dims().to_vec();
            let flat = value.to_dtype(DType::F32).and_then(|value| value.flatten_all()?.to_vec1::<f32>());
            out.push(Output { name: name.clone(), shape, values: flat.map_err(words)? });
        }
        Ok(out)
    }
}
