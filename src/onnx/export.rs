//! From a model directory to an ONNX file: which outputs, in which size, for whom.

use std::path::PathBuf;

use serde::Serialize;

use super::dtype::{Calibration, Dtype};
use super::event::{Interrupted, Listener};
use super::graph::{Extent, GRID, Graph, SIDES};
use super::metadata;
use super::purpose::{MapContract, Purpose, outputs};
use super::record::{Record, padded};
use super::target::{Dialect, Target};
use super::write::{MESSAGE_LIMIT, Model};
use crate::destination::{Destination, DestinationError};
use crate::hint::Hint;
use crate::model::{Canonical, ModelConfig, Resample, VitConfig};

/// Name of the graph's input: (B, 3, H, W), normalised as the metadata says.
pub const INPUT: &str = "pixel_values";

/// Its name where the graph normalises: u8, (B, H, W, 3).
pub const BYTES_INPUT: &str = "images";

/// Largest side of an exported image: beyond it attention alone would exhaust a machine.
const MAX_SIDE: usize = 1 << 14;

/// Whether TEC's adapters are part of the graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Adapters {
    /// The plain backbone.
    #[default]
    Drop,
    /// The backbone and its encoder adapter, whose parameters keep their names (`encoder_adapter.…`).
    Keep,
}

/// Which images a graph takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Size {
    /// The purpose's own ([`Purpose::size`]): the size the model's position table was made for, or the consumer's.
    #[default]
    Native,
    /// `[H, W]` in pixels; the position table is resampled once, for this size.
    Fixed([usize; 2]),
    /// Any height and width: the graph resamples the position table itself. A rest that is no whole patch is cut off, as
    /// the patch convolution of every family does, unless [`ExportOptions::pad`] keeps it.
    Dynamic,
}

/// What to export.
#[derive(Debug, Clone)]
pub struct ExportOptions {
    /// Who will run it.
    pub target: Target,
    /// Operator set; `None` for the target's own.
    pub opset: Option<u32>,
    /// TEC's adapters.
    pub adapters: Adapters,
    /// Outputs.
    pub purpose: Purpose,
    /// Image size.
    pub size: Size,
    /// Zeros below and to the right of the normalised image until its sides are multiples of this many pixels, itself a
    /// multiple of the patch: the patch for mmsegmentation's and detectron2's models, 32 for MMDetection's.
    pub pad: Option<usize>,
    /// How the position table is resampled; `None` for the family's rule.
    pub resample: Option<Resample>,
    /// Whether the input is pixels, u8 (B, H, W, 3) RGB, which the graph normalises.
    pub normalize_input: bool,
    /// What products are computed in, or weights stored in.
    pub dtype: Dtype,
    /// What Linears take, for [`Dtype::Int8`]; `None` for weights alone in eight bits.
    pub calibration: Option<Calibration>,
    /// The model's name in the metadata; `None` for the directory's.
    pub model_id: Option<String>,
    /// Bytes of weights above which they go to `FILE.onnx.data`.
    pub external_above: u64,
}

impl Default for ExportOptions {
    fn default() -> Self {
        Self {
            target: Target::default(),
            opset: None,
            adapters: Adapters::default(),
            purpose: Purpose::default(),
            size: Size::default(),
            pad: None,
            resample: None,
            normalize_input: false,
            dtype: Dtype::default(),
            calibration: None,
            model_id: None,
            external_above: MESSAGE_LIMIT,
        }
    }
}

/// Why a model could not be exported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The image does not fall apart into patches.
    #[error("an image of {height}×{width} cannot be exported: {reason}")]
    Size {
        /// Pixels.
        height: usize,
        /// Pixels.
        width: usize,
        /// The model's.
        patch: usize,
        /// What is wrong.
        reason: &'static str,
        /// The nearest size that works, HxW.
        suggestion: String,
    },
    /// Padding that would not give whole patches.
    #[error("padding to {multiple} pixels is not possible: they are no multiple of the patch side {patch}")]
    Padding {
        /// Asked for.
        multiple: usize,
        /// The model's.
        patch: usize,
    },
    /// The operator set does not fit the target.
    #[error("opset {opset} is not possible for the target `{target}`: {reason}")]
    Opset {
        /// Asked for.
        target: Target,
        /// Asked for.
        opset: u32,
        /// Oldest possible.
        oldest: u32,
        /// Newest possible.
        newest: u32,
        /// What stands in the way.
        reason: &'static str,
    },
    /// A level is no block, or the list is empty, repeated or out of order.
    #[error("levels {levels:?} are not possible: {reason}")]
    Levels {
        /// Asked for.
        levels: Vec<usize>,
        /// What is wrong.
        reason: &'static str,
        /// The last block.
        last: usize,
        /// Levels that work.
        suggestion: String,
    },
    /// The maps asked for are not the model's to give.
    #[error("the maps are not possible: {reason}")]
    Neck {
        /// Why.
        reason: &'static str,
        /// What next.
        hint: Hint,
    },
    /// Adapters were asked for and there are none, or the outputs have no use for them.
    #[error("adapters cannot be kept: {reason}")]
    NoAdapters {
        /// Why.
        reason: &'static str,
        /// What next.
        hint: Hint,
    },
    /// A weight is too large for f16.
    #[error("`{name}` cannot be f16: it holds {largest}, and f16 ends at 65504")]
    BeyondHalf {
        /// The parameter.
        name: String,
        /// Its largest magnitude.
        largest: f32,
    },
    /// A weight is no number.
    #[error("`{name}` cannot be rounded: it holds {value}")]
    NotFinite {
        /// The parameter.
        name: String,
        /// What it holds.
        value: f32,
    },
    /// The forward pass names a parameter the model does not have.
    #[error("the model has no parameter `{name}`")]
    MissingParameter {
        /// Its name.
        name: String,
    },
    /// The forward pass does something this recorder has no nodes for.
    #[error("cannot write `{operation}` as a graph: {reason}")]
    Unrecordable {
        /// The operation.
        operation: &'static str,
        /// Why.
        reason: String,
    },
    /// The file cannot go where it was meant to.
    #[error(transparent)]
    Destination(#[from] DestinationError),
    /// The file could not be written.
    #[error("cannot write `{path}`")]
    Write {
        /// The file.
        path: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The listener ended it.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

impl ExportError {
    /// Whether what was asked for makes no sense for the model, whatever its weights: other options do.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Size { .. } | Self::Padding { .. } | Self::Opset { .. } | Self::Levels { .. })
    }

    pub(super) fn unrecordable(operation: &'static str, reason: String) -> Self {
        Self::Unrecordable { operation, reason }
    }

    /// What to do next.
    pub fn hint(&self) -> Option<Hint> {
        Some(match self {
            Self::Size { patch, suggestion, .. } => {
                let sides = format!("sides are multiples of the patch side {patch}, such as ");
                Hint::new().words(sides).set("size", suggestion.clone()).words(", or made so by ").option("pad")
            }
            Self::Padding { .. } => Hint::new().option("pad").words(" alone pads to whole patches"),
            Self::Opset { oldest, newest, .. } => format!("{oldest} to {newest} are").into(),
            Self::Levels { last, suggestion, .. } => {
                let levels = format!("increasing block numbers from 0 to {last}, such as ");
                Hint::new().words(levels).set("levels", suggestion.clone())
            }
            Self::Neck { hint, .. } | Self::NoAdapters { hint, .. } => hint.clone(),
            Self::Destination(error) => return error.hint(),
            Self::BeyondHalf { .. } => Hint::new().words("export it with ").one_of("dtype", ["f32", "int8"]),
            Self::NotFinite { .. } => "the checkpoint is damaged; fetch or convert it anew".into(),
            _ => return None,
        })
    }
}

/// One output of an exported graph.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OutputInfo {
    /// Name.
    pub name: String,
    /// Shape; an axis with a name is chosen at run time.
    pub shape: Vec<String>,
}

/// What was exported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExportReport {
    /// The model file, links followed.
    pub path: PathBuf,
    /// The weights beside it, when they did not fit in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<PathBuf>,
    /// Bytes of the model file.
    pub bytes: u64,
    /// For whom.
    pub target: Target,
    /// Operator set.
    pub opset: u32,
    /// Format version.
    pub ir_version: u64,
    /// Number of nodes.
    pub nodes: usize,
    /// Outputs.
    pub outputs: Vec<OutputInfo>,
}

/// Writes `model` to `out`.
///
/// The same model, options and version of this tool give the same bytes. Weights are streamed from the mapped directory;
/// the file appears whole or not at all.
///
/// # Errors
/// When the options do not fit the model, the file cannot be written, or `hear` ends it.
pub fn export(
    model: &Canonical,
    out: impl Into<Destination>,
    options: &ExportOptions,
    hear: Listener<'_>,
) -> Result<ExportReport, ExportError> {
    let out = out.into();
    out.check_file()?;
    let dialect = Dialect::new(options.target, options.opset, options.dtype)?;
    let Recorded { config, sides, maps, mut graph } = recorded(model, options, dialect)?;
    options.dtype.apply(&mut graph, dialect, options.calibration.as_ref(), hear)?;

    let report = ExportReport {
        path: PathBuf::new(),
        data: None,
        bytes: 0,
        target: dialect.target,
        opset: dialect.opset,
        ir_version: dialect.ir_version(),
        nodes: graph.nodes.len(),
        outputs: graph
            .outputs
            .iter()
            .map(|output| {
                let shape = output.dims.iter().map(Extent::to_string).collect();
                OutputInfo { name: output.name.clone(), shape }
            })
            .collect(),
    };
    let file = Model {
        ir_version: dialect.ir_version(),
        opset: dialect.opset,
        graph_name: metadata::model_id(model, options),
        description: metadata::description(model, options),
        metadata: metadata::entries(model, &config, options, dialect, sides, maps.as_ref()),
        graph,
    };
    let written = file.write(&out, options.external_above, hear);
    model.release();
    let written = written?;
    Ok(ExportReport { path: written.path, bytes: written.bytes, data: written.data, ..report })
}

/// A graph in f32, and what is said about it.
pub(super) struct Recorded<'a> {
    config: ModelConfig,
    sides: [Extent; 2],
    maps: Option<MapContract>,
    pub(super) graph: Graph<'a>,
}

/// The forward pass that `options` ask for, as a graph.
pub(super) fn recorded<'a>(
    model: &'a Canonical,
    options: &ExportOptions,
    dialect: Dialect,
) -> Result<Recorded<'a>, ExportError> {
    let mut config = model.config().clone();
    if let Some(rule) = options.resample {
        config.vit.position.resample = rule;
    }
    let (purpose, pad) = (&options.purpose, options.pad);
    let vit = &config.vit;
    if let Some(multiple) = pad
        && (multiple == 0 || multiple > MAX_SIDE || !multiple.is_multiple_of(vit.patch_size))
    {
        return Err(ExportError::Padding { multiple, patch: vit.patch_size });
    }
    let (sides, grid) = match options.size {
        Size::Native => fixed(vit, purpose.size(vit), pad)?,
        Size::Fixed(size) => fixed(vit, size, pad)?,
        Size::Dynamic => (SIDES, GRID),
    };
    purpose.validate(&config, options.adapters)?;
    let maps = purpose.maps(&config)?;

    let mut record = Record::new(model, dialect);
    let images = match options.normalize_input {
        true => record.bytes_input(BYTES_INPUT, sides, pad, &config.preprocessing),
        false => record.input(INPUT, sides, pad),
    };
    for output in outputs(&config, &mut record, &images, grid, purpose, maps.as_ref(), options.adapters)? {
        match output.grid {
            Some(grid) => record.map_output(&output.name, &output.value, grid)?,
            None => record.output(&output.name, &output.value)?,
        }
    }
    Ok(Recorded { config, sides, maps, graph: record.finish() })
}

/// The sides of images of one size, and their patches.
fn fixed(vit: &VitConfig, size: [usize; 2], pad: Option<usize>) -> Result<([Extent; 2], [Extent; 2]), ExportError> {
    let grid = grid(vit, size.map(|side| if side > MAX_SIDE { side } else { padded(side, pad) }))?;
    Ok((size.map(Extent::Fixed), grid.map(Extent::Fixed)))
}

/// Patches `[rows, columns]` of an image of `size`.
fn grid(vit: &VitConfig, [height, width]: [usize; 2]) -> Result<[usize; 2], ExportError> {
    let patch = vit.patch_size;
    let reason = match [height, width] {
        sides if sides.contains(&0) => "a side is 0",
        sides if sides.iter().any(|side| *side > MAX_SIDE) => "a side is beyond 16384 pixels",
        sides if sides.iter().any(|side| side % patch != 0) => "its sides are not whole patches",
        _ => return Ok([height / patch, width / patch]),
    };
    let near = |side: usize| ((side.min(MAX_SIDE) + patch / 2) / patch).max(1) * patch;
    let suggestion = format!("{}x{}", near(height), near(width));
    Err(ExportError::Size { height, width, patch, reason, suggestion })
}
