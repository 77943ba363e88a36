//! `tec-zoo embed`.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};

use super::hint::Advised;
use super::{exit::Exit, exit::Usage, interrupt, out, output::Output, registry, runtimes};
use crate::data::{Batch, FeatureFile, ImageBatches, Input};
use crate::hint::Hint;
use crate::kernels::Eager;
use crate::model::{Canonical, FeatureOutput, Vit};
use crate::onnx::runtime::{Images, Runtime, Session};
use crate::onnx::{ExportOptions, Purpose, Size, Target, export};

/// Features of images, as a safetensors file
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tec-zoo embed ibot photos/ --out features.safetensors --outputs cls,mean
  tec-zoo embed mae images.safetensors --out blocks.safetensors --outputs block0,block11,norm --runtime ort

Outputs: cls (B, C), mean (B, C), norm (B, 1+L, C), block0, block1, … (B, 1+L, C), adapted (B, 1+L, C).
For image files the metadata key `paths` lists them, one a row.")]
pub(super) struct Args {
    /// A directory in the common format, a pretraining's folder or checkpoint, or a name of the zoo
    model: String,
    /// An image (jpeg, png, webp), a folder, a text file with one path a line, or a .safetensors file whose tensor
    /// `images` (B, 3, H, W) is already normalised
    input: PathBuf,
    /// The file to write; `-` for standard output
    #[arg(long)]
    out: PathBuf,
    /// Replace a file that is already there
    #[arg(long)]
    overwrite: bool,
    /// Which outputs
    #[arg(long, value_delimiter = ',', default_value = "cls")]
    outputs: Vec<FeatureOutput>,
    /// Who computes
    #[arg(long, value_parser = runtimes::parse, default_value = "candle")]
    runtime: Runtime,
    /// Images at a time
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..))]
    batch: u16,
    /// Size image files are brought to; the model's own when left out
    #[arg(long, value_name = "HxW", value_parser = super::size::parse)]
    size: Option<[usize; 2]>,
    /// The processor; graphics cards are not used here
    #[arg(long, hide = true)]
    device: Option<String>,
    /// Go on past images that cannot be read, and name them at the end
    #[arg(long)]
    skip_broken: bool,
}

pub(super) fn run(args: &Args, output: &mut Output) -> Result<Exit> {
    if args.device.as_ref().is_some_and(|device| device != "cpu") {
        return Err(Usage("embed computes on the processor: there is no other device".into()).into());
    }
    let out = out::file(&args.out, args.overwrite, false, output)?;
    let model = registry::open(&args.model, output)?;
    let config = model.config();
    for wanted in &args.outputs {
        wanted.validate(&config.vit).map_err(Usage)?;
    }
    let size = args.size.unwrap_or(config.vit.image_size);
    let patch = config.vit.patch_size;
    if size.iter().any(|side| !side.is_multiple_of(patch)) {
        let near = size.map(|side| ((side + patch / 2) / patch).max(1) * patch);
        let text = format!("images of {}x{} are no whole patches of {patch} pixels", size[0], size[1]);
        return Err(Advised::usage(Usage(text), Hint::new().set("size", format!("{}x{}", near[0], near[1]))));
    }
    let input = Input::resolve(&args.input)?;
    let mut batches = ImageBatches::new(input, config.preprocessing, size, args.batch.into(), args.skip_broken)?;
    let bar = output.images_bar(batches.total() as u64);
    let mut engine = Engine::new(args, &model);
    let mut features = FeatureFile::new(out.clone())?;
    let mut paths = Vec::new();
    while let Some(batch) = batches.next_batch()? {
        interrupt::check()?;
        paths.extend(batch.paths.iter().map(|path| path.display().to_string()));
        let count = batch.shape[0] as u64;
        for (name, shape, values) in engine.run(batch)? {
            features.append(&name, &shape, &values)?;
        }
        bar.inc(count);
    }
    bar.finish_and_clear();
    for skipped in batches.skipped() {
        output.warn(skipped);
    }
    let mut metadata = vec![
        ("model", args.model.clone()),
        ("source_sha256", config.provenance.source_sha256.clone()),
        ("tool", format!("tec-zoo {}", env!("CARGO_PKG_VERSION"))),
    ];
    if !paths.is_empty() {
        metadata.push(("paths", serde_json::to_string(&paths)?));
    }
    features.finish(&metadata)?;
    let names: Vec<String> = args.outputs.iter().map(FeatureOutput::to_string).collect();
    output.line(format_args!("{out}: {}", names.join(", ")))?;
    Ok(Exit::Done)
}

/// A named output: shape and row-major values.
type Named = (String, Vec<usize>, Vec<f32>);

/// The eager pass, which asks the user at each layer whether to go on.
type Attended<'a> = Eager<'a, fn(&str) -> ControlFlow<()>>;

fn ask(_: &str) -> ControlFlow<()> {
    interrupt::flow()
}

/// Who computes: the eager pass, or a runtime on a graph exported for this size.
enum Engine<'a> {
    Eager(Box<Attended<'a>>, &'a [FeatureOutput]),
    Graph { args: &'a Args, model: &'a Canonical, session: Option<(Session, [usize; 2], tempfile::TempDir)> },
}

impl<'a> Engine<'a> {
    fn new(args: &'a Args, model: &'a Canonical) -> Self {
        match args.runtime {
            Runtime::Candle => Self::Eager(Box::new(Eager::new(model).attended(ask)), &args.outputs),
            Runtime::Ort | Runtime::Tract => Self::Graph { args, model, session: None },
        }
    }

    fn run(&mut self, batch: Batch) -> Result<Vec<Named>> {
        match self {
            Self::Eager(eager, wanted) => run_eager(eager, wanted, &batch),
            Self::Graph { args, model, session } => {
                let [_, _, height, width] = batch.shape;
                let size = [height, width];
                if session.as_ref().is_none_or(|(_, of, _)| *of != size) {
                    *session = Some(open(args, model, size)?);
                }
                let (session, ..) = session.as_mut().context("no graph is open")?;
                let outputs =
                    session.run(Images { shape: batch.shape, values: batch.values }, &mut |_| interrupt::flow())?;
                Ok(outputs.into_iter().map(|output| (output.name, output.shape, output.values)).collect())
            }
        }
    }
}

fn run_eager(eager: &mut Attended<'_>, wanted: &[FeatureOutput], batch: &Batch) -> Result<Vec<Named>> {
    let images = Tensor::from_slice(&batch.values, &batch.shape[..], &Device::Cpu)?;
    let features = eager.features(&images)?;
    let vit = Vit::new(&eager.model().config().vit);
    let mut out = Vec::with_capacity(wanted.len());
    for output in wanted {
        if let Some(value) = output.of(&vit, eager, &features)? {
            let values = value.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
            out.push((output.to_string(), value.dims().to_vec(), values));
        }
    }
    Ok(out)
}

/// The graph lives in a temporary folder as long as its session does.
fn open(args: &Args, model: &Canonical, size: [usize; 2]) -> Result<(Session, [usize; 2], tempfile::TempDir)> {
    let folder = tempfile::tempdir()?;
    let path: &Path = &folder.path().join("embed.onnx");
    let options = ExportOptions {
        target: if args.runtime == Runtime::Ort { Target::Ort } else { Target::Portable },
        purpose: Purpose::Features(args.outputs.clone()),
        size: Size::Fixed(size),
        ..ExportOptions::default()
    };
    export(model, path, &options, &mut |_| interrupt::flow())?;
    let session = Session::open(args.runtime, path, &runtimes::options(None), &mut |_| interrupt::flow())?;
    Ok((session, size, folder))
}
