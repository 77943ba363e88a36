//! From a model directory to an ONNX file: which outputs, in which size, for whom.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::graph::{Extent, GRID, SIDES};
use super::metadata;
use super::record::Record;
use super::target::{Dialect, Target};
use super::write::{MESSAGE_LIMIT, Model};
use crate::model::{Canonical, Feature, FeatureOutput, ModelConfig, Ops, Vit, VitConfig};

/// Name of the graph's input: (B, 3, H, W), normalised as the metadata says.
pub const INPUT: &str = "pixel_values";

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

/// What the graph is for, which decides its outputs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// `last_hidden_state` (B, 1 + R + L, C), and `adapted` of the same shape where adapters are kept.
    #[default]
    Tokens,
    /// `feature` (B, C): what the model's configuration calls its feature; `logits` (B, classes) where there is a head.
    Classification,
    /// `level{j}` (B, C, H/p, W/p): raw outputs of these blocks, shallowest first, class token and registers dropped.
    Levels(Vec<usize>),
    /// Outputs by name: what `embed` runs in a runtime.
    Features(Vec<FeatureOutput>),
}

/// Which images a graph takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Size {
    /// The size the model's position table was made for.
    #[default]
    Native,
    /// `[H, W]` in pixels, whole patches both; the position table is resampled once, for this size.
    Fixed([usize; 2]),
    /// Any height and width: the graph resamples the position table itself. A rest that is no whole patch is cut off, as
    /// the patch convolution does.
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
    #[error(
        "an image of {height}×{width} cannot be exported: {reason}\nhint: sides are multiples of the patch side {patch}, such as --size {suggestion}"
    )]
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
    /// The operator set does not fit the target.
    #[error("--opset {opset} is not possible for --target {target}: {reason}\nhint: {oldest} to {newest} are")]
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
    #[error(
        "levels {levels:?} are not possible: {reason}\nhint: increasing block numbers from 0 to {last}, such as --levels {suggestion}"
    )]
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
    /// Adapters were asked for and there are none, or the outputs have no use for them.
    #[error("adapters cannot be kept: {reason}\nhint: {hint}")]
    NoAdapters {
        /// Why.
        reason: &'static str,
        /// What next.
        hint: &'static str,
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
    /// The file could not be written.
    #[error("cannot write `{path}`: {source}")]
    Write {
        /// The file.
        path: String,
        /// The system's reason.
        source: std::io::Error,
    },
}

impl ExportError {
    pub(super) fn unrecordable(operation: &'static str, reason: String) -> Self {
        Self::Unrecordable { operation, reason }
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
    /// The model file.
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

/// Writes `model` as `path`.
///
/// The same model, options and version of this tool give the same bytes. Weights are streamed from the mapped directory;
/// the file appears whole or not at all.
///
/// # Errors
/// When the options do not fit the model, or the file cannot be written.
pub fn export(model: &Canonical, path: &Path, options: &ExportOptions) -> Result<ExportReport, ExportError> {
    let dialect = Dialect::new(options.target, options.opset)?;
    let vit = &model.config().vit;
    let (sides, grid) = match options.size {
        Size::Native => fixed(vit, vit.image_size)?,
        Size::Fixed(size) => fixed(vit, size)?,
        Size::Dynamic => (SIDES, GRID),
    };
    validate(vit, &options.purpose, options.adapters)?;

    let mut record = Record::new(model, dialect);
    let images = record.input(INPUT, sides);
    let outputs = outputs(model.config(), &mut record, &images, grid, &options.purpose, options.adapters)?;
    for (name, value) in &outputs {
        match options.purpose {
            Purpose::Levels(_) => record.map_output(name, value, grid)?,
            Purpose::Tokens | Purpose::Classification | Purpose::Features(_) => record.output(name, value)?,
        }
    }
    let graph = record.finish();

    let report = ExportReport {
        path: path.to_path_buf(),
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
        metadata: metadata::entries(model, options, dialect, sides),
        graph,
    };
    let written = file
        .write(path, options.external_above)
        .map_err(|source| ExportError::Write { path: path.display().to_string(), source })?;
    Ok(ExportReport { bytes: written.bytes, data: written.data, ..report })
}

/// The sides of images of one size, and their patches.
fn fixed(vit: &VitConfig, size: [usize; 2]) -> Result<([Extent; 2], [Extent; 2]), ExportError> {
    Ok((size.map(Extent::Fixed), grid(vit, size)?.map(Extent::Fixed)))
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

/// The named outputs of a purpose, by whichever `Ops`: the recorder writes them, the eager forward computes what they
/// are compared with. Levels are (B, L, C) here; only their layout differs in the file.
pub(super) fn outputs<O: Ops>(
    config: &ModelConfig,
    ops: &mut O,
    images: &O::Value,
    grid: O::Grid,
    purpose: &Purpose,
    adapters: Adapters,
) -> Result<Vec<(String, O::Value)>, O::Error> {
    let vit = Vit::new(&config.vit);
    let features = vit.encode(ops, images, grid)?;
    let prefix = config.vit.prefix_tokens();
    match purpose {
        Purpose::Tokens => {
            let mut out = vec![("last_hidden_state".to_owned(), features.last().clone())];
            if adapters == Adapters::Keep {
                out.extend(vit.adapt(ops, &features)?.map(|adapted| ("adapted".to_owned(), adapted.adapted)));
            }
            Ok(out)
        }
        Purpose::Classification => {
            let feature = match config.feature {
                Feature::Cls => vit.class_token(ops, &features)?,
                Feature::Mean => vit.mean(ops, &features)?,
            };
            let mut out = vec![("feature".to_owned(), feature)];
            if let Some(logits) = vit.classify(ops, &features)? {
                out.push(("logits".to_owned(), logits));
            }
            Ok(out)
        }
        Purpose::Levels(levels) => levels
            .iter()
            .enumerate()
            .map(|(j, block)| Ok((format!("level{j}"), ops.tokens(&features.blocks[*block], prefix, None)?)))
            .collect(),
        Purpose::Features(wanted) => {
            let mut out = Vec::with_capacity(wanted.len());
            for output in wanted {
                out.extend(output.of(&vit, ops, &features)?.map(|value| (output.to_string(), value)));
            }
            Ok(out)
        }
    }
}

/// Whether the outputs asked for exist.
pub(super) fn validate(vit: &VitConfig, purpose: &Purpose, adapters: Adapters) -> Result<(), ExportError> {
    if adapters == Adapters::Keep && vit.adapters.is_none() {
        let hint = "convert a TEC training checkpoint; released TEC files and other families have none";
        return Err(ExportError::NoAdapters { reason: "this model has none", hint });
    }
    if adapters == Adapters::Keep && *purpose != Purpose::Tokens {
        let hint = "use --for tokens, or --adapters drop";
        return Err(ExportError::NoAdapters { reason: "only token outputs include the adapted feature", hint });
    }
    match purpose {
        Purpose::Levels(levels) => check_levels(levels, vit.depth),
        Purpose::Features(wanted) => check_features(wanted, vit),
        Purpose::Tokens | Purpose::Classification => Ok(()),
    }
}

fn check_features(wanted: &[FeatureOutput], vit: &VitConfig) -> Result<(), ExportError> {
    let twice = |(i, output): (usize, &FeatureOutput)| wanted[..i].contains(output);
    let checked = match wanted {
        [] => Err("no output was asked for".to_owned()),
        wanted if wanted.iter().enumerate().any(twice) => Err("an output was asked for twice".to_owned()),
        wanted => wanted.iter().try_for_each(|output| output.validate(vit)),
    };
    checked.map_err(|reason| ExportError::unrecordable("features", reason))
}

fn check_levels(levels: &[usize], depth: usize) -> Result<(), ExportError> {
    let reason = match levels {
        [] => "the list is empty",
        levels if levels.iter().any(|level| *level >= depth) => "one is beyond the last block",
        levels if levels.windows(2).any(|pair| pair[0] >= pair[1]) => "they do not increase",
        _ => return Ok(()),
    };
    let quarters: Vec<String> =
        (1..=4).map(|i| depth * i / 4).filter(|i| *i > 0).map(|i| (i - 1).to_string()).collect();
    let suggestion = quarters.join(",");
    Err(ExportError::Levels { levels: levels.to_vec(), reason, last: depth - 1, suggestion })
}
