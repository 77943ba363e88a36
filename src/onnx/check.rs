//! Does a graph compute what the model computes? Every runtime at hand is asked, and every output compared.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::dtype::Dtype;
use super::export::{Adapters, ExportError, ExportOptions, ExportReport, export};
use super::feed::{Feed, Interface};
use super::purpose::{LevelNorm, MapOptions, NeckUse, Purpose};
use super::read::{ModelInfo, ReadError};
use super::runtime::{Images, Output, Runtime, RuntimeError, RuntimeOptions, Session};
use crate::causes::in_full;
use crate::hint::Hint;
#[cfg(not(feature = "candle"))]
use crate::model::ModelConfig;
use crate::model::{Canonical, FeatureOutput};

/// Largest |Δ| that passes: sums over 3,072 products in f32, in another order, through twelve blocks, differ by a few
/// 1e-6 at ViT-B; a wrong operator shows at 1e-3 and more.
pub const DEFAULT_ATOL: f32 = 1e-4;

/// Smallest cosine that passes for a graph whose products are f16: a rounding of 2⁻¹¹ in each of a few dozen products in a row
/// leaves 1 − 1e-5; one value that overflowed, or a norm computed in f16, leaves less than this.
pub const HALF_COSINE: f64 = 0.9995;

/// The same for weights in eight bits: half a step is 1/254 of a channel's largest weight, so each product is off by about a
/// hundredth, which averages out over its terms and blocks: 0.9997 is seen at ViT-B.
pub const INT8_COSINE: f64 = 0.999;

/// The same where a calibration has what Linears take in eight bits too.
pub const CALIBRATED_COSINE: f64 = 0.99;

/// Part of the values that `cosine_of_bulk` looks at: the smaller ones.
const BULK: f64 = 0.99;

/// How far a graph may be from its reference.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Tolerance {
    /// Largest |Δ| of any value.
    MaxAbsDiff(f32),
    /// Smallest cosine of an output and its reference, of all values and of all but the largest.
    Cosine(f64),
}

impl Tolerance {
    /// What numbers of this type can hold.
    pub fn of(dtype: Dtype, calibrated: bool) -> Self {
        match (dtype, calibrated) {
            (Dtype::F32, _) => Self::MaxAbsDiff(DEFAULT_ATOL),
            (Dtype::F16, _) => Self::Cosine(HALF_COSINE),
            (Dtype::Int8, false) => Self::Cosine(INT8_COSINE),
            (Dtype::Int8, true) => Self::Cosine(CALIBRATED_COSINE),
        }
    }
}

impl std::fmt::Display for Tolerance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::MaxAbsDiff(atol) => write!(f, "|Δ| ≤ {atol:.0e}"),
            Self::Cosine(cosine) => write!(f, "cosine ≥ {cosine}"),
        }
    }
}

/// Images a check uses when it is given none: more than one, so that an output that mixes images up is noticed.
pub const DEFAULT_BATCH: usize = 2;

/// What the outputs are compared with.
#[derive(Debug, Clone, Copy)]
pub enum Reference<'a> {
    /// The eager forward pass of this model.
    Model(&'a Canonical),
    /// The first runtime that runs the graph: shows that runtimes agree, not that they are right.
    FirstRuntime,
}

/// What to check with.
#[derive(Debug, Clone)]
pub struct CheckOptions {
    /// Runtimes to ask, in this order.
    pub runtimes: Vec<Runtime>,
    /// Where they are.
    pub runtime: RuntimeOptions,
    /// How far outputs may be from the reference; `None` for what the file's `dtype` can hold.
    pub tolerance: Option<Tolerance>,
    /// Input; synthetic when `None`.
    pub images: Option<Images>,
    /// Sizes `[H, W]` of synthetic images; when empty, the graph's own, and three of a graph that takes any: the model's
    /// native one, a larger square, and a rectangle.
    pub sizes: Vec<[usize; 2]>,
}

impl Default for CheckOptions {
    fn default() -> Self {
        let (runtimes, runtime) = (Runtime::ALL.to_vec(), RuntimeOptions::default());
        Self { runtimes, runtime, tolerance: None, images: None, sizes: vec![] }
    }
}

/// Why no check could be made at all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// The file is no ONNX model.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The export before the check failed.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// The graph's interface is not an image backbone's.
    #[error("`{path}` cannot be checked: {reason}")]
    Interface {
        /// The file.
        path: String,
        /// What is unexpected.
        reason: String,
    },
    /// The eager forward pass failed.
    #[error("the reference could not be computed: {reason}")]
    Reference {
        /// Why.
        reason: String,
    },
}

impl CheckError {
    /// What to do next.
    pub fn hint(&self) -> Option<Hint> {
        match self {
            Self::Export(error) => error.hint(),
            _ => None,
        }
    }
}

/// One output compared.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OutputCheck {
    /// Name.
    pub name: String,
    /// Shape the runtime gave.
    pub shape: Vec<usize>,
    /// Largest difference.
    pub max_abs_diff: f32,
    /// Mean difference.
    pub mean_abs_diff: f32,
    /// Cosine of the two outputs as vectors.
    pub cosine: f64,
    /// The same without the hundredth of the values that are largest in the reference: trained ViTs have a few values a
    /// thousand times as large as the rest, and a cosine of all sees nothing but those.
    pub cosine_of_bulk: f64,
    /// Within the tolerance, of the right shape, and finite.
    pub passed: bool,
    /// What is wrong beyond a difference.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// What became of a graph in one runtime.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "verdict", rename_all = "kebab-case")]
pub enum RuntimeVerdict {
    /// It ran, and this is how its outputs compare.
    Ran {
        /// One for each output.
        outputs: Vec<OutputCheck>,
    },
    /// It did not.
    CouldNotRun {
        /// The runtime's reason.
        reason: String,
    },
}

/// One runtime's part of a report, at one size.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RuntimeCheck {
    /// The runtime.
    pub runtime: Runtime,
    /// Height and width of the images.
    pub size: [usize; 2],
    /// What it did.
    #[serde(flatten)]
    pub verdict: RuntimeVerdict,
}

/// The outcome of a check.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CheckReport {
    /// The file.
    pub path: PathBuf,
    /// What the outputs were compared with: `eager`, or a runtime's name.
    pub reference: String,
    /// How far outputs may be from the reference.
    pub tolerance: Tolerance,
    /// One for each size and runtime asked.
    pub runtimes: Vec<RuntimeCheck>,
}

impl CheckReport {
    /// Number of runtimes that ran the graph, at every size.
    pub fn ran(&self) -> usize {
        let could_not = |runtime: &Runtime| {
            let of_it = |check: &&RuntimeCheck| check.runtime == *runtime;
            self.runtimes.iter().filter(of_it).any(|check| !matches!(check.verdict, RuntimeVerdict::Ran { .. }))
        };
        let mut runtimes: Vec<Runtime> = Vec::new();
        for check in &self.runtimes {
            if !runtimes.contains(&check.runtime) {
                runtimes.push(check.runtime);
            }
        }
        runtimes.iter().filter(|runtime| !could_not(runtime)).count()
    }

    /// Whether at least one runtime ran it and none ran it wrong.
    pub fn passed(&self) -> bool {
        let right = |check: &RuntimeCheck| match &check.verdict {
            RuntimeVerdict::Ran { outputs } => outputs.iter().all(|output| output.passed),
            RuntimeVerdict::CouldNotRun { .. } => true,
        };
        self.ran() > 0 && self.runtimes.iter().all(right)
    }
}

/// Exports, then checks the file against the model it came from.
///
/// # Errors
/// When the export fails, or nothing can be checked. A check that finds differences is a report, not an error.
pub fn export_checked(
    model: &Canonical,
    path: &Path,
    options: &ExportOptions,
    check_options: &CheckOptions,
) -> Result<(ExportReport, CheckReport), CheckError> {
    let exported = export(model, path, options)?;
    let checked = check(path, Reference::Model(model), check_options)?;
    Ok((exported, checked))
}

/// Runs the graph `path` in every runtime asked for, at every size, and compares every output with the reference.
///
/// # Errors
/// When the file is no image backbone, or the reference cannot be computed.
pub fn check(path: &Path, reference: Reference<'_>, options: &CheckOptions) -> Result<CheckReport, CheckError> {
    let info = ModelInfo::open(path)?;
    let interface = Interface::of(&info, path)?;
    let mut sessions = Vec::with_capacity(options.runtimes.len());
    for &runtime in &options.runtimes {
        sessions.push((runtime, Session::open(runtime, path, &options.runtime)));
    }
    let dtype = info.metadata.get("dtype").and_then(|name| serde_json::from_value(name.as_str().into()).ok());
    let calibrated = info.metadata.contains_key("calibration");
    let tolerance = options.tolerance.unwrap_or_else(|| Tolerance::of(dtype.unwrap_or_default(), calibrated));
    let mut name = "eager".to_owned();
    let mut runtimes = Vec::new();
    for input in interface.inputs(options, path)? {
        let mut expected = match reference {
            Reference::Model(model) => Some(expected(&info, path, model, &input)?),
            Reference::FirstRuntime => None,
        };
        for (runtime, session) in &mut sessions {
            let ran = match session {
                Ok(session) => input.run(session).map_err(|error| reason(&error)),
                Err(error) => Err(reason(error)),
            };
            let verdict = match ran {
                Err(reason) => RuntimeVerdict::CouldNotRun { reason },
                Ok(outputs) => {
                    let expected = expected.get_or_insert_with(|| {
                        name = runtime.name().to_owned();
                        outputs.clone()
                    });
                    RuntimeVerdict::Ran { outputs: compare(expected, outputs, tolerance) }
                }
            };
            runtimes.push(RuntimeCheck { runtime: *runtime, size: input.size(), verdict });
        }
    }
    Ok(CheckReport { path: path.to_path_buf(), reference: name, tolerance, runtimes })
}

/// What the model itself makes of the images, for the outputs the graph has: in the graph's resampling rule, with the
/// graph's padding, or without the rest of a patch that the graph cuts off.
fn expected(info: &ModelInfo, path: &Path, model: &Canonical, input: &Feed) -> Result<Vec<Output>, CheckError> {
    let names: Vec<&str> = info.outputs.iter().map(|output| output.name.as_str()).collect();
    let text = |key: &str| info.metadata.get(key).map(String::as_str);
    let adapters = if text("adapters") == Some("kept") { Adapters::Keep } else { Adapters::Drop };
    let purpose = match (text("for"), names.first()) {
        (Some("upernet"), _) => Purpose::UperNet(map_options(&info.metadata)),
        (Some("cascade-mask-rcnn"), _) => Purpose::CascadeMaskRcnn(map_options(&info.metadata)),
        (Some("vitdet"), _) => Purpose::VitDet,
        (_, Some(&"last_hidden_state")) => Purpose::Tokens,
        (_, Some(&"feature")) => Purpose::Classification,
        (_, Some(&"level0")) => Purpose::Levels(levels(&info.metadata)),
        (_, Some(_)) if names.iter().all(|name| name.parse::<FeatureOutput>().is_ok()) => {
            Purpose::Features(names.iter().filter_map(|name| name.parse().ok()).collect())
        }
        _ => {
            let reason = format!("its outputs ({}) are not an exported backbone's", names.join(", "));
            return Err(CheckError::Interface { path: path.display().to_string(), reason });
        }
    };
    let mut config = model.config().clone();
    if let Some(rule) = info.metadata.get("resample").and_then(|rule| serde_json::from_str(rule).ok()) {
        config.vit.position.resample = rule;
    }
    let padding = info.metadata.get("padding").and_then(|multiple| multiple.parse().ok()).filter(|n| *n > 0);
    let normalized;
    let images = match input {
        Feed::Images(images) => images,
        Feed::Pixels(pixels) => {
            normalized = pixels.normalized(&config.preprocessing);
            &normalized
        }
    };
    let images = images.resized(|side| match padding {
        Some(multiple) => side.next_multiple_of(multiple),
        None => side / config.vit.patch_size * config.vit.patch_size,
    });
    reference_outputs(model, &config, &images, &purpose, adapters)
}

/// The blocks behind `level0`, `level1`, …; empty, and refused later, when the file does not say.
fn levels(metadata: &BTreeMap<String, String>) -> Vec<usize> {
    metadata.get("levels").and_then(|levels| serde_json::from_str(levels).ok()).unwrap_or_default()
}

/// What the file says about its maps.
fn map_options(metadata: &BTreeMap<String, String>) -> MapOptions {
    let is = |key: &str, value: &str| metadata.get(key).is_some_and(|text| text == value);
    let norm = if is("level_norm", "final") { LevelNorm::Final } else { LevelNorm::Raw };
    let parameter_free = is("neck", NeckUse::ParameterFree.name());
    MapOptions { levels: levels(metadata), norm: Some(norm), parameter_free }
}

#[cfg(feature = "candle")]
use super::reference::eager as reference_outputs;

#[cfg(not(feature = "candle"))]
fn reference_outputs(
    _: &Canonical,
    _: &ModelConfig,
    _: &Images,
    _: &Purpose,
    _: Adapters,
) -> Result<Vec<Output>, CheckError> {
    Err(CheckError::Reference { reason: "this build has no eager forward pass: that is the feature `candle`".into() })
}

/// Why a runtime did not run, with what to do about it.
fn reason(error: &RuntimeError) -> String {
    let hint = error.hint().map(|hint| format!("\nhint: {hint}"));
    in_full(error) + &hint.unwrap_or_default()
}

fn compare(expected: &[Output], outputs: Vec<Output>, tolerance: Tolerance) -> Vec<OutputCheck> {
    let mut outputs: BTreeMap<String, Output> =
        outputs.into_iter().map(|output| (output.name.clone(), output)).collect();
    let mut checks: Vec<OutputCheck> = expected
        .iter()
        .map(|expected| match outputs.remove(&expected.name) {
            Some(output) => compare_one(expected, &output, tolerance),
            None => failure(&expected.name, vec![], "the graph does not have it".to_owned()),
        })
        .collect();
    checks.extend(
        outputs
            .into_values()
            .map(|output| failure(&output.name, output.shape, "there is nothing to compare it with".to_owned())),
    );
    checks
}

fn failure(name: &str, shape: Vec<usize>, problem: String) -> OutputCheck {
    let nan = f32::NAN;
    let cosine = f64::NAN;
    OutputCheck {
        name: name.to_owned(),
        shape,
        max_abs_diff: nan,
        mean_abs_diff: nan,
        cosine,
        cosine_of_bulk: cosine,
        passed: false,
        problem: Some(problem),
    }
}

fn compare_one(expected: &Output, output: &Output, tolerance: Tolerance) -> OutputCheck {
    if output.shape != expected.shape || output.values.len() != expected.values.len() {
        return failure(&output.name, output.shape.clone(), format!("its shape is not {:?}", expected.shape));
    }
    let (mut max, mut sum) = (0_f32, 0_f64);
    let mut non_finite = 0_usize;
    for (&a, &b) in expected.values.iter().zip(&output.values) {
        if !(a.is_finite() && b.is_finite()) {
            non_finite += 1;
            continue;
        }
        let difference = (a - b).abs();
        max = max.max(difference);
        sum += f64::from(difference);
    }
    let compared = (expected.values.len() - non_finite).max(1);
    let pairs = || expected.values.iter().copied().zip(output.values.iter().copied());
    let most = quantile(&expected.values, BULK);
    let (all, bulk) = (cosine(pairs()), cosine(pairs().filter(|(a, _)| a.abs() <= most)));
    let near = match tolerance {
        Tolerance::MaxAbsDiff(atol) => max <= atol,
        Tolerance::Cosine(least) => all >= least && bulk >= least,
    };
    OutputCheck {
        name: output.name.clone(),
        shape: output.shape.clone(),
        max_abs_diff: max,
        mean_abs_diff: (sum / compared as f64) as f32,
        cosine: all,
        cosine_of_bulk: bulk,
        passed: non_finite == 0 && near,
        problem: (non_finite > 0).then(|| format!("{non_finite} values are not finite")),
    }
}

/// Cosine of two vectors, given in pairs; what is not finite does not count.
fn cosine(pairs: impl Iterator<Item = (f32, f32)>) -> f64 {
    let (mut dot, mut left, mut right) = (0_f64, 0_f64, 0_f64);
    for (a, b) in pairs.filter(|(a, b)| a.is_finite() && b.is_finite()).map(|(a, b)| (f64::from(a), f64::from(b))) {
        dot += a * b;
        left += a * a;
        right += b * b;
    }
    let norm = (left * right).sqrt();
    // Two outputs of zeros are equal.
    if norm > 0.0 { dot / norm } else { f64::from(u8::from(left == right)) }
}

/// The magnitude that `part` of the values do not exceed.
fn quantile(values: &[f32], part: f64) -> f32 {
    let mut sizes: Vec<f32> = values.iter().map(|value| value.abs()).filter(|size| size.is_finite()).collect();
    let Some(last) = sizes.len().checked_sub(1) else { return 0.0 };
    let (_, at, _) = sizes.select_nth_unstable_by((last as f64 * part) as usize, f32::total_cmp);
    *at
}
