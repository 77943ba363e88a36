//! Does a graph compute what the model computes? Every runtime at hand is asked, and every output compared.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::dtype::Dtype;
use super::event::{Interrupted, Listener};
use super::export::{Adapters, ExportError, ExportOptions, ExportReport, export};
use super::feed::Interface;
use super::purpose::{LevelNorm, MapOptions, NeckUse, Purpose};
use super::read::{ModelInfo, ReadError};
use super::runtime::{Feed, Images, Output, Runtime, RuntimeError, RuntimeOptions, Session};
use super::verdict::{CheckReport, OutputCheck, RuntimeCheck, RuntimeVerdict};
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
#[derive(Debug, Clone, Default)]
pub struct CheckOptions {
    /// Runtimes that have to run the graph, asked in this order; when empty, every one is asked that is found, and none has to
    /// but an ONNX Runtime whose library [`RuntimeOptions`] names.
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

impl CheckOptions {
    /// The runtimes to ask, each once.
    pub(super) fn asked(&self) -> Vec<Runtime> {
        let mut asked = Vec::new();
        for &runtime in if self.runtimes.is_empty() { Runtime::ALL.as_slice() } else { &self.runtimes } {
            if !asked.contains(&runtime) {
                asked.push(runtime);
            }
        }
        asked
    }

    /// Those of them that have to run.
    pub(super) fn named(&self) -> Vec<Runtime> {
        let told = self.runtime.ort_library.is_some();
        self.asked().into_iter().filter(|one| !self.runtimes.is_empty() || (*one == Runtime::Ort && told)).collect()
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
    /// The listener ended it.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
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

/// Exports, then checks the file against the model it came from.
///
/// # Errors
/// When the export fails, or nothing can be checked. A check that finds differences is a report, not an error. After an
/// interruption the file is whole or absent, and not checked.
pub fn export_checked(
    model: &Canonical,
    path: &Path,
    options: &ExportOptions,
    check_options: &CheckOptions,
    hear: Listener<'_>,
) -> Result<(ExportReport, CheckReport), CheckError> {
    let exported = export(model, path, options, hear)?;
    let checked = check(path, Reference::Model(model), check_options, hear)?;
    Ok((exported, checked))
}

/// Runs the graph `path` in every runtime asked for, at every size, and compares every output with the reference.
///
/// The reference is computed first and its weights are let go; then each runtime is freed before the next one is opened.
///
/// # Errors
/// When the file is no image backbone, or the reference cannot be computed. A runtime that cannot run the file is a report.
pub fn check(
    path: &Path,
    reference: Reference<'_>,
    options: &CheckOptions,
    hear: Listener<'_>,
) -> Result<CheckReport, CheckError> {
    let info = ModelInfo::open(path)?;
    let interface = Interface::of(&info, path)?;
    let inputs = interface.inputs(options, path, hear)?;
    let dtype = info.metadata.get("dtype").and_then(|name| serde_json::from_value(name.as_str().into()).ok());
    let calibrated = info.metadata.contains_key("calibration");
    let tolerance = options.tolerance.unwrap_or_else(|| Tolerance::of(dtype.unwrap_or_default(), calibrated));
    let mut name = "eager".to_owned();
    let mut expected = match reference {
        Reference::Model(model) => {
            let outputs = inputs.iter().map(|input| expected(&info, path, model, input, hear));
            let outputs = outputs.collect::<Result<Vec<_>, _>>();
            model.release();
            Some(outputs?)
        }
        Reference::FirstRuntime => None,
    };
    let alone = expected.is_none();
    // By runtime, then by size.
    let mut found: Vec<Vec<RuntimeCheck>> = Vec::new();
    for runtime in options.asked() {
        let ran = run(runtime, path, options, &inputs, hear)?;
        if expected.is_none() && ran.iter().all(Result::is_ok) {
            runtime.name().clone_into(&mut name);
            expected = Some(ran.iter().flatten().cloned().collect());
        }
        let mut checks = Vec::with_capacity(ran.len());
        for (at, (ran, input)) in ran.into_iter().zip(&inputs).enumerate() {
            let verdict = match (ran, expected.as_ref().and_then(|expected| expected.get(at))) {
                (Err(reason), _) => RuntimeVerdict::CouldNotRun { reason },
                (Ok(outputs), Some(expected)) => RuntimeVerdict::Ran { outputs: compare(expected, outputs, tolerance) },
                (Ok(_), None) => RuntimeVerdict::Ran { outputs: vec![] },
            };
            checks.push(RuntimeCheck { runtime, size: input.size(), verdict });
        }
        found.push(checks);
    }
    if expected.is_none() {
        "none".clone_into(&mut name);
    }
    let by_size = |at: usize| found.iter().map(move |checks: &Vec<RuntimeCheck>| checks[at].clone());
    let runtimes = (0..inputs.len()).flat_map(by_size).collect();
    let report =
        CheckReport { path: path.to_path_buf(), holds: None, problem: None, reference: name, tolerance, runtimes };
    Ok(report.conclude(&options.named(), alone))
}

/// What one runtime makes of each input, or its reason; it is gone when this returns.
fn run(
    runtime: Runtime,
    path: &Path,
    options: &CheckOptions,
    inputs: &[Feed],
    hear: Listener<'_>,
) -> Result<Vec<Result<Vec<Output>, String>>, Interrupted> {
    let mut session = match Session::open(runtime, path, &options.runtime, hear) {
        Ok(session) => session,
        Err(RuntimeError::Interrupted(interrupted)) => return Err(interrupted),
        Err(error) => return Ok(vec![Err(reason(&error)); inputs.len()]),
    };
    let mut ran = Vec::with_capacity(inputs.len());
    for input in inputs {
        ran.push(match session.feed(input.clone(), hear) {
            Ok(outputs) => Ok(outputs),
            Err(RuntimeError::Interrupted(interrupted)) => return Err(interrupted),
            Err(error) => Err(reason(&error)),
        });
    }
    Ok(ran)
}

/// What the model itself makes of the images, for the outputs the graph has: in the graph's resampling rule, with the
/// graph's padding, or without the rest of a patch that the graph cuts off.
fn expected(
    info: &ModelInfo,
    path: &Path,
    model: &Canonical,
    input: &Feed,
    hear: Listener<'_>,
) -> Result<Vec<Output>, CheckError> {
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
        Feed::Images(images) => images.as_ref(),
        Feed::Pixels(pixels) => {
            normalized = pixels.normalized(&config.preprocessing);
            &normalized
        }
    };
    let images = images.resized(|side| match padding {
        Some(multiple) => side.next_multiple_of(multiple),
        None => side / config.vit.patch_size * config.vit.patch_size,
    });
    reference_outputs(model, &config, &images, &purpose, adapters, hear)
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
    _: Listener<'_>,
) -> Result<Vec<Output>, CheckError> {
    Err(CheckError::Reference { reason: "this build has no eager forward pass: that is the feature `candle`".into() })
}

/// Why a runtime did not run, with what to do about it.
fn reason(error: &RuntimeError) -> String {
    let hint = error.hint().map(|hint| format!("; {hint}"));
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
