//! `tec-zoo export`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde_json::json;

use super::calibrate::calibrate;
use super::hint::Advised;
use super::{exit::Exit, exit::Usage, identity::Identity, out, output::Output, registry, runtimes};
use crate::destination::Destination;
use crate::hint::Hint;
use crate::memory;
use crate::model::{Canonical, Resample};
use crate::onnx::runtime::Runtime;
use crate::onnx::{
    Adapters, CheckOptions, Dtype, ExportOptions, ExportReport, LevelNorm, MapOptions, Purpose, Reference, Size,
    Target, check, export,
};

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum For {
    /// All tokens: `last_hidden_state`
    Tokens,
    /// The pooled feature, and logits where the model has a head
    Classification,
    /// Maps of the blocks in --levels: `level0`, `level1`, …
    Levels,
    /// What UperNet reads: `p2` to `p5` at strides 4 to 32 through the model's own neck, or four maps for a neck downstream
    Upernet,
    /// What iBOT's Cascade Mask R-CNN reads: the same
    CascadeMaskRcnn,
    /// What ViTDet reads: `last_feat` of a backbone with windows, and `p2` to `p6` where the model carries the pyramid
    Vitdet,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum NormArg {
    /// Outputs of blocks
    Raw,
    /// Those through the encoder's final norm
    Final,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PyramidArg {
    /// Strides 4, 8, 16 and 32 by repetition and 2×2 maxima
    ParameterFree,
}

impl For {
    pub(super) fn purpose(self, maps: MapOptions) -> Purpose {
        match self {
            Self::Tokens => Purpose::Tokens,
            Self::Classification => Purpose::Classification,
            Self::Levels => Purpose::Levels(maps.levels),
            Self::Upernet => Purpose::UperNet(maps),
            Self::CascadeMaskRcnn => Purpose::CascadeMaskRcnn(maps),
            Self::Vitdet => Purpose::VitDet,
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum AdaptersArg {
    Drop,
    Keep,
}

impl AdaptersArg {
    pub(super) fn adapters(self) -> Adapters {
        match self {
            Self::Drop => Adapters::Drop,
            Self::Keep => Adapters::Keep,
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Rule {
    /// Bicubic to the size: MAE, TEC, MoCo v3, mmsegmentation
    Size,
    /// Bicubic by a scale 0.1 patches off: DINO, iBOT
    ScaleOffset,
    /// Bicubic to the size with antialiasing: timm, DINOv2 with registers
    Antialias,
}

impl Rule {
    fn resample(self) -> Resample {
        match self {
            Self::Size => Resample::Size,
            Self::ScaleOffset => Resample::ScaleOffset { offset: 0.1 },
            Self::Antialias => Resample::SizeAntialias,
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum DtypeArg {
    /// Single precision
    F32,
    /// Products in f16; norms, softmax, activations and the residual sum stay f32
    F16,
    /// Weights in eight bits; with --calibrate, what Linears take as well
    Int8,
}

impl DtypeArg {
    pub(super) fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::F16 => Dtype::F16,
            Self::Int8 => Dtype::Int8,
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum TargetArg {
    /// Elementary operators every runtime has
    Portable,
    /// Fused operators, for ONNX Runtime
    Ort,
}

const EXAMPLES: &str = "Examples:
  tec-zoo export ibot --out ibot.onnx
  tec-zoo export tec --out tec.onnx --adapters keep --target ort
  tec-zoo export mae --out levels.onnx --for levels --levels 3,5,7,11 --size 512x512
  tec-zoo export upernet-mae --out segmenter.onnx --for upernet
  tec-zoo export mae --out detector.onnx --for vitdet --size 1024x1024
  tec-zoo export ibot --out any.onnx --dynamic --pad
  tec-zoo export ibot --out half.onnx --dtype f16
  tec-zoo export ibot --out small.onnx --dtype int8 --calibrate photos/
  tec-zoo export mae --out camera.onnx --size 480x640 --normalize-input
  tec-zoo export ibot --out ibot.onnx --runtimes ort,tract

Exit code 3: the file is written and the check does not hold: an output differs,
or a runtime of --runtimes did not run it.
";

/// Write an ONNX backbone, and check it in every runtime found
#[derive(Debug, clap::Args)]
#[command(after_help = format!("{EXAMPLES}\n{}", runtimes::FOUND))]
pub(super) struct Args {
    /// A directory in the common format, a pretraining's folder or checkpoint, or a name of the zoo
    model: String,
    /// The file to write; `-` for standard output
    #[arg(long)]
    out: PathBuf,
    /// Replace a file that is already there
    #[arg(long)]
    overwrite: bool,
    /// What the graph gives
    #[arg(long = "for", value_enum, default_value = "tokens")]
    purpose: For,
    /// Blocks whose maps are given; --for upernet and cascade-mask-rcnn have their own: 3,5,7,11 of twelve
    #[arg(long, value_delimiter = ',', value_name = "BLOCKS")]
    levels: Vec<usize>,
    /// Whether levels go through the final norm; --for upernet and cascade-mask-rcnn do as their authors do for the family
    #[arg(long, value_enum)]
    norm: Option<NormArg>,
    /// Scale the levels without learned layers: places repeated, maxima
    #[arg(long, value_enum)]
    pyramid: Option<PyramidArg>,
    /// TEC's encoder adapter: left out, or kept, with outputs `adapted` (Z_e) and `adapted_group0`, … (Z'_n)
    #[arg(long, value_enum, default_value = "drop")]
    adapters: AdaptersArg,
    /// Image size in pixels; the position table is resampled for it, once
    #[arg(long, value_name = "HxW", value_parser = super::size::parse)]
    size: Option<[usize; 2]>,
    /// Any image size: batch, height and width are free, and the graph resamples the position table
    #[arg(long, conflicts_with = "size")]
    dynamic: bool,
    /// Zeros below and right of the normalised image up to whole patches, or to multiples of PIXELS (32 for MMDetection);
    /// without it a --size that is no whole number of patches is refused, and --dynamic cuts the rest off
    #[arg(long, value_name = "PIXELS", num_args = 0..=1, require_equals = true)]
    pad: Option<Option<usize>>,
    /// How the position table is resampled; the family's rule when left out
    #[arg(long, value_enum)]
    resample: Option<Rule>,
    /// Take pixels, u8 (batch, H, W, 3), and normalise them in the graph
    #[arg(long)]
    normalize_input: bool,
    /// What products are computed in, or weights stored in; inputs and outputs stay f32
    #[arg(long, value_enum, default_value = "f32")]
    dtype: DtypeArg,
    /// Images to calibrate --dtype int8 with, so that what Linears take is in eight bits too: a folder, an image, a list of paths, or a
    /// .safetensors file whose tensor `images` (B, 3, H, W) is already normalised; 256 at most are looked at
    #[arg(long, value_name = "IMAGES")]
    calibrate: Option<PathBuf>,
    /// How others spell --dtype f16
    #[arg(long, aliases = ["f16", "half"], hide = true)]
    fp16: bool,
    /// How others spell --dtype int8
    #[arg(long, aliases = ["quantize"], hide = true)]
    int8: bool,
    /// Who will run it
    #[arg(long, value_enum, default_value = "portable")]
    target: TargetArg,
    /// Operator set; the target's own when left out
    #[arg(long)]
    opset: Option<u32>,
    /// Runtimes that have to run it: ort, tract, candle; every one that is found when left out
    #[arg(long, value_delimiter = ',', value_parser = runtimes::parse, conflicts_with = "no_check")]
    runtimes: Vec<Runtime>,
    /// Do not run the graph after writing it
    #[arg(long)]
    no_check: bool,
    /// For machines: what was written and how the check went
    #[arg(long)]
    json: bool,
}

fn purpose(args: &Args) -> Result<Purpose, Usage> {
    let maps = MapOptions {
        levels: args.levels.clone(),
        norm: args.norm.map(|norm| match norm {
            NormArg::Raw => LevelNorm::Raw,
            NormArg::Final => LevelNorm::Final,
        }),
        parameter_free: args.pyramid.is_some(),
    };
    let purpose = args.purpose.purpose(maps);
    let pyramids = matches!(purpose, Purpose::UperNet(_) | Purpose::CascadeMaskRcnn(_));
    for (flag, given, means) in [
        ("--levels", !args.levels.is_empty(), pyramids || matches!(purpose, Purpose::Levels(_))),
        ("--norm", args.norm.is_some(), pyramids),
        ("--pyramid", args.pyramid.is_some(), pyramids),
    ] {
        if given && !means {
            return Err(Usage(format!("{flag} means nothing with --for {}", purpose.name())));
        }
    }
    Ok(purpose)
}

pub(super) fn run(args: &Args, output: &mut Output) -> Result<Exit> {
    for (spelled, dtype) in [(args.fp16, "f16"), (args.int8, "int8")] {
        if spelled {
            let text = format!("the type of numbers {dtype} is asked for otherwise here");
            return Err(Advised::usage(Usage(text), Hint::new().set("dtype", dtype)));
        }
    }
    let purpose = purpose(args)?;
    let out = out::file(&args.out, args.overwrite, args.json, output)?;
    let model = registry::open(&args.model, output)?;
    let mut options = ExportOptions {
        target: match args.target {
            TargetArg::Portable => Target::Portable,
            TargetArg::Ort => Target::Ort,
        },
        opset: args.opset,
        adapters: args.adapters.adapters(),
        purpose,
        size: match (args.size, args.dynamic) {
            (_, true) => Size::Dynamic,
            (Some(size), false) => Size::Fixed(size),
            (None, false) => Size::Native,
        },
        pad: args.pad.map(|multiple| multiple.unwrap_or(model.config().vit.patch_size)),
        resample: args.resample.map(Rule::resample),
        normalize_input: args.normalize_input,
        dtype: args.dtype.dtype(),
        model_id: Some(Identity::of(&args.model, &model)?.name),
        ..ExportOptions::default()
    };
    if let Some(images) = &args.calibrate {
        if options.dtype != Dtype::Int8 {
            return Err(Usage(format!("--calibrate means nothing with --dtype {}", options.dtype)).into());
        }
        output.say("calibrating …");
        options.calibration = Some(calibrate(&model, &options, images, output)?);
    }
    // A check reads the file, which cannot be done with what was sent to a stream: there it comes first.
    let scratch = out.is_stream().then(tempfile::tempdir).transpose()?;
    let file = match &scratch {
        Some(scratch) => Destination::new(scratch.path().join("export.onnx")),
        None => out.clone(),
    };
    let mut progress = runtimes::Progress::new(output);
    let written = export(&model, file, &options, &mut |event| progress.hear(event))?;
    drop(progress);
    if scratch.is_some() && written.data.is_some() {
        let text = format!("{out} takes one file, and this model's weights need a second one beside it");
        return Err(Advised::refusal(text, "give the name of a file"));
    }
    let exit = report(args, &model, &written, &out, output)?;
    if scratch.is_some() {
        out.send(&written.path)?;
    }
    Ok(exit)
}

/// Says what was written to `out`, and checks it.
fn report(
    args: &Args,
    model: &Canonical,
    written: &ExportReport,
    out: &Destination,
    output: &mut Output,
) -> Result<Exit> {
    if !args.json {
        output.line(format_args!(
            "{}: {} bytes, {} nodes, opset {}, IR {}",
            if out.is_stream() { out.to_string() } else { written.path.display().to_string() },
            written.bytes,
            written.nodes,
            written.opset,
            written.ir_version
        ))?;
        if let Some(data) = &written.data {
            output.line(format_args!("weights beside it: {}", data.display()))?;
        }
        for info in &written.outputs {
            output.line(format_args!("  {} ({})", info.name, info.shape.join(", ")))?;
        }
    }
    if args.no_check {
        if args.json {
            output.json(&json!({ "holds": null, "export": written, "check": null, "peak_memory": memory::peak() }))?;
        }
        return Ok(Exit::Done);
    }
    let options =
        CheckOptions { runtimes: args.runtimes.clone(), runtime: runtimes::options(None), ..CheckOptions::default() };
    let mut progress = runtimes::Progress::new(output);
    let report = check(&written.path, Reference::Model(model), &options, &mut |event| progress.hear(event))
        .with_context(|| format!("{out} is written, and not checked"))?;
    drop(progress);
    let peak = memory::peak();
    match args.json {
        true => {
            let report = json!({ "holds": report.holds, "export": written, "check": report, "peak_memory": peak });
            output.json(&report)?;
        }
        false => {
            runtimes::print(&report, output)?;
            if let Some(peak) = peak {
                output.line(format_args!("peak memory: {}", indicatif::HumanBytes(peak)))?;
            }
        }
    }
    Ok(if report.holds == Some(true) { Exit::Done } else { Exit::NotHeld })
}
