//! `tec-zoo check`.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use super::{exit::Exit, output::Output, registry, runtimes};
use crate::data::{DataError, ImageBatches, Input};
use crate::model::Preprocessing;
use crate::onnx::runtime::{Images, Runtime};
use crate::onnx::{CheckOptions, Reference, Tolerance, check};

const EXAMPLES: &str = "Examples:
  tec-zoo check ibot.onnx --against ibot
  tec-zoo check ibot.onnx --runtimes ort,tract --atol 1e-5 --json
  tec-zoo check any.onnx --against ibot --size 224,512,480x640

Exit code 3: an output differs, a runtime of --runtimes did not run it, or
nothing could be said, as of a file that would be compared with itself.
";

/// Run an exported graph in several runtimes and compare every output
#[derive(Debug, clap::Args)]
#[command(after_help = format!("{EXAMPLES}\n{}", runtimes::FOUND))]
pub(super) struct Args {
    /// The graph
    file: PathBuf,
    /// The model it came from; without it, runtimes are compared with one another
    #[arg(long, value_name = "MODEL")]
    against: Option<String>,
    /// A .safetensors file whose tensor `images` (B, 3, H, W) is already normalised; synthetic images when left out
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Sizes of synthetic images, for a graph that takes any; three by default
    #[arg(long, value_name = "HxW", value_delimiter = ',', value_parser = super::size::parse, conflicts_with = "input")]
    size: Vec<[usize; 2]>,
    /// Runtimes that have to run it: ort, tract, candle; every one that is found when left out
    #[arg(long, value_delimiter = ',', value_parser = runtimes::parse)]
    runtimes: Vec<Runtime>,
    /// Threads for one run; as many as the machine has when left out
    #[arg(long)]
    threads: Option<usize>,
    /// Largest |Δ| that passes; 1e-4 for a file in f32
    #[arg(long)]
    atol: Option<f32>,
    /// Smallest cosine that passes, of all values and of all but the largest hundredth; 0.9995 for a file in f16, 0.999 in int8
    #[arg(long, conflicts_with = "atol")]
    cosine: Option<f64>,
    /// For machines: one object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, output: &mut Output) -> Result<Exit> {
    let model = args.against.as_deref().map(|model| registry::open(model, output)).transpose()?;
    let options = CheckOptions {
        runtimes: args.runtimes.clone(),
        runtime: runtimes::options(args.threads),
        tolerance: args.atol.map(Tolerance::MaxAbsDiff).or(args.cosine.map(Tolerance::Cosine)),
        images: args.input.as_deref().map(images).transpose()?,
        sizes: args.size.clone(),
    };
    let reference = model.as_ref().map_or(Reference::FirstRuntime, Reference::Model);
    let mut progress = runtimes::Progress::new(output);
    let report = check(&args.file, reference, &options, &mut |event| progress.hear(event))?;
    drop(progress);
    match args.json {
        true => output.json(&report)?,
        false => runtimes::print(&report, output)?,
    }
    Ok(if report.holds == Some(true) { Exit::Done } else { Exit::NotHeld })
}

/// Largest number of images of an input that is used.
const MOST: usize = 64;

fn images(path: &Path) -> Result<Images> {
    let input = Input::resolve(path)?;
    if matches!(input, Input::Images(_)) {
        let reason = "it is not a .safetensors file with a tensor `images`".to_owned();
        return Err(DataError::Tensors { path: path.display().to_string(), reason }.into());
    }
    // Tensors are taken as they are; no preprocessing applies.
    let none = Preprocessing {
        mean: [0.0; 3],
        std: [1.0; 3],
        interpolation: crate::model::Interpolation::Bicubic,
        crop_pct: 1.0,
    };
    let mut batches = ImageBatches::new(input, none, [1, 1], MOST, false)?;
    match batches.next_batch()? {
        Some(batch) => Ok(Images { shape: batch.shape, values: batch.values }),
        None => bail!("`{}` holds no images", path.display()),
    }
}
