//! The ranges of the values that Linears take, seen on images: what a scale for eight bits is made from.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use super::{Dtype, Live, is_product};
use crate::destination::Destination;
use crate::hint::Hint;
use crate::model::Canonical;
use crate::onnx::event::Listener;
use crate::onnx::export::{ExportError, ExportOptions, recorded};
use crate::onnx::graph::{Attribute, Element, Graph, Node, ValueInfo};
use crate::onnx::payload::Payload;
use crate::onnx::runtime::{Images, Runtime, RuntimeError, RuntimeOptions, Session};
use crate::onnx::target::{Dialect, Target};
use crate::onnx::write::{MESSAGE_LIMIT, Model};

/// Why no ranges were found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CalibrationError {
    /// The export is not possible.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// No runtime ran the graph.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// An image gave values that have no range.
    #[error("the values that `{weight}` takes are not finite")]
    NotFinite {
        /// The Linear's weight.
        weight: String,
    },
    /// Nothing was seen.
    #[error("there are no images to calibrate with")]
    NoImages,
}

impl CalibrationError {
    /// What to do next.
    pub fn hint(&self) -> Option<Hint> {
        match self {
            Self::Export(error) => error.hint(),
            Self::Runtime(error) => error.hint(),
            Self::NotFinite { .. } => Some("the images or the model are damaged".into()),
            Self::NoImages => Some("a folder of a few dozen that the model will meet is enough".into()),
        }
    }
}

/// Least and greatest value that each Linear of an export takes.
#[derive(Debug, Clone, PartialEq)]
pub struct Calibration {
    /// By the name of the Linear's weight.
    ranges: BTreeMap<String, [f32; 2]>,
    images: usize,
}

impl Calibration {
    /// Images it was made from.
    pub fn images(&self) -> usize {
        self.images
    }

    /// What the Linear of `weight` takes.
    pub fn range(&self, weight: &str) -> Option<[f32; 2]> {
        self.ranges.get(weight).copied()
    }
}

/// Runs images through an export in f32, whose outputs are the extremes of what each Linear takes: two numbers each, so that
/// no image's size matters.
#[derive(Debug)]
pub struct Calibrator {
    session: Session,
    ranges: BTreeMap<String, [f32; 2]>,
    images: usize,
}

impl Calibrator {
    /// For the export that `options` describe, of normalised images. Uses the folder `scratch`, and the first runtime at hand, or
    /// ONNX Runtime where its library is named.
    ///
    /// # Errors
    /// When the options do not fit the model, no runtime runs the graph, or `hear` ends it.
    pub fn new(
        model: &Canonical,
        options: &ExportOptions,
        scratch: &Path,
        runtime: &RuntimeOptions,
        hear: Listener<'_>,
    ) -> Result<Self, CalibrationError> {
        let options = ExportOptions { normalize_input: false, ..options.clone() };
        let dialect = Dialect::new(Target::Portable, None, Dtype::F32)?;
        let mut graph = recorded(model, &options, dialect)?.graph;
        observe_linears(&mut graph);
        let path = scratch.join("calibration.onnx");
        let file = Model {
            ir_version: dialect.ir_version(),
            opset: dialect.opset,
            graph_name: "calibration".to_owned(),
            description: String::new(),
            metadata: vec![],
            graph,
        };
        file.write(&Destination::new(&path).overwrite(true), MESSAGE_LIMIT, hear)?;
        model.release();
        let session = opened(&path, runtime, hear)?;
        Ok(Self { session, ranges: BTreeMap::new(), images: 0 })
    }

    /// Widens the ranges to what these images give.
    ///
    /// # Errors
    /// When the runtime fails, a value is not finite, or `hear` ends it.
    pub fn observe(&mut self, images: Images, hear: Listener<'_>) -> Result<(), CalibrationError> {
        let count = images.shape[0];
        let mut seen: BTreeMap<String, [f32; 2]> = BTreeMap::new();
        for output in self.session.run(images, hear)? {
            let Some((weight, greatest)) = observed(&output.name) else { continue };
            let extremes = seen.entry(weight.to_owned()).or_insert([f32::NAN; 2]);
            extremes[usize::from(greatest)] = output.values.first().copied().unwrap_or(f32::NAN);
        }
        for (weight, [least, greatest]) in seen {
            // Of values that are no numbers, a runtime gives as extremes what it began with: the wrong way round.
            if !(least.is_finite() && greatest.is_finite() && least <= greatest) {
                return Err(CalibrationError::NotFinite { weight });
            }
            // Zero is always among them: it has to be a step, for the zeros that padding adds.
            let [low, high] = self.ranges.entry(weight).or_default();
            (*low, *high) = (low.min(least), high.max(greatest));
        }
        self.images += count;
        Ok(())
    }

    /// What was seen.
    ///
    /// # Errors
    /// When nothing was.
    pub fn finish(self) -> Result<Calibration, CalibrationError> {
        match self.images {
            0 => Err(CalibrationError::NoImages),
            images => Ok(Calibration { ranges: self.ranges, images }),
        }
    }
}

/// The first runtime that takes the graph.
fn opened(path: &Path, options: &RuntimeOptions, hear: Listener<'_>) -> Result<Session, RuntimeError> {
    for runtime in Runtime::ALL {
        match Session::open(runtime, path, options, hear) {
            Err(RuntimeError::Interrupted(interrupted)) => return Err(interrupted.into()),
            // Another in place of the one that was named would be a silent choice.
            Err(error) if runtime == Runtime::Ort && options.ort_library.is_some() => return Err(error),
            Err(_) => {}
            Ok(session) => return Ok(session),
        }
    }
    // The built-in one's reason says more than that another was not found.
    Session::open(Runtime::Tract, path, options, hear)
}

const EXTREMES: [(&str, &str); 2] = [("ReduceMin", "/least"), ("ReduceMax", "/greatest")];

/// The weight an output is of, and whether it is the greatest value.
fn observed(output: &str) -> Option<(&str, bool)> {
    let [least, greatest] = EXTREMES.map(|(_, suffix)| output.strip_suffix(suffix));
    greatest.map(|weight| (weight, true)).or(least.map(|weight| (weight, false)))
}

/// Replaces the outputs by the extremes of what each Linear takes.
fn observe_linears(graph: &mut Graph<'_>) {
    graph.outputs.clear();
    for Linear { weight, value, .. } in linears(graph) {
        for (operator, suffix) in EXTREMES {
            let name = format!("{weight}{suffix}");
            graph.nodes.push(Node {
                name: format!("/{name}"),
                operator,
                inputs: vec![value.clone()],
                outputs: vec![name.clone()],
                attributes: vec![("keepdims", Attribute::Int(0))],
            });
            graph.outputs.push(ValueInfo { name, element: Element::F32, dims: vec![] });
        }
    }
    graph.prune();
}

/// A product of tokens with a stored matrix.
pub(super) struct Linear {
    /// Name of the weight, written (in, out).
    pub(super) weight: String,
    /// Name of the bias, where it has one that nothing else uses.
    pub(super) bias: Option<String>,
    /// What is multiplied.
    pub(super) value: String,
}

/// Every Linear of the backbone, in execution order.
pub(super) fn linears(graph: &Graph<'_>) -> Vec<Linear> {
    let weights = graph.initializers.iter().filter(|tensor| matches!(tensor.payload, Payload::Transposed(_)));
    let weights: HashSet<&str> = weights.map(|tensor| tensor.name.as_str()).collect();
    let vectors = graph.initializers.iter().filter(|tensor| tensor.dims.len() == 1);
    let vectors: HashSet<&str> = vectors.map(|tensor| tensor.name.as_str()).collect();
    let mut readers: HashMap<&str, Vec<&Node>> = HashMap::new();
    for node in &graph.nodes {
        for input in &node.inputs {
            readers.entry(input).or_default().push(node);
        }
    }
    // One of a Gemm's own inputs, or of the Add that alone reads the product.
    let bias = |node: &Node| {
        let add = match readers.get(node.outputs.first()?.as_str())?.as_slice() {
            [add] if add.operator == "Add" => Some(*add),
            _ => None,
        };
        let of_add = || add.and_then(|add| add.inputs.iter().find(|input| vectors.contains(input.as_str())));
        let bias = node.inputs.get(2).or_else(of_add)?;
        (readers.get(bias.as_str())?.len() == 1).then(|| bias.clone())
    };
    let mut live = Live::of_inputs(graph);
    let products = graph.nodes.iter().filter(|node| live.follow(node) && is_product(node));
    products
        .filter_map(|node| match node.inputs.as_slice() {
            [value, weight, ..] if weights.contains(weight.as_str()) => {
                Some(Linear { weight: weight.clone(), bias: bias(node), value: value.clone() })
            }
            _ => None,
        })
        .collect()
}
