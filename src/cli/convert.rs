//! `tec-zoo convert`: into the common format, and back.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::Result;
use indicatif::ProgressBar;

use super::hint::Advised;
use super::{exit::Exit, exit::Usage, fetch, interrupt, out, output::Output, registry};
use crate::checkpoint::Checkpoint;
use crate::convert::{Action, Conversion, Layout, Plan, Progress, Request, Sidecar, emit};
use crate::fetch::{Store, convert_remote};
use crate::model::ModelFile;
use crate::train::{CheckpointModel, is_run};

/// Bring a checkpoint into the common format; or, with --to, a model into another layout
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tec-zoo convert ibot/checkpoint.pth --branch teacher --out ibot
  tec-zoo convert https://example.org/checkpoint.pth --branch teacher --out ibot     fetches that branch only
  tec-zoo convert tiny.pth --heads 4 --out tiny --dry-run
  tec-zoo convert run/checkpoints/step-00000120 --out at-120      the model a training had made by then
  tec-zoo convert ibot --to hf --out ibot-hf
  tec-zoo convert ibot --to timm --out ibot.safetensors
  tec-zoo convert ibot --to mmseg --out ibot-mmseg.pth      with ibot-mmseg.py, a configuration of UperNet, beside it
  tec-zoo convert ibot --to detectron2 --size 1024 --out ibot-vitdet.pth")]
pub(super) struct Args {
    /// A checkpoint, the address of a torch zip, of which only what becomes part of the model is fetched, or a pretraining's folder or one of its checkpoints; with --to, a model: a directory in the common format or a name of the zoo
    input: String,
    /// The model directory to make; with --to timm, a directory or a .safetensors file; with --to mmseg, mmdet, mmpretrain, detectron2 or ibot, a .pth file, which gets a configuration beside it
    #[arg(long)]
    out: PathBuf,
    /// The converter: mae, ibot, moco-v3, tec, dino, dinov2, timm, hf-vit, hf-dinov2, mmseg, mmpretrain, vitdet; detected when left out
    #[arg(long)]
    family: Option<String>,
    /// Which network of a file that holds several: teacher, student, base, momentum
    #[arg(long)]
    branch: Option<String>,
    /// Attention heads, where neither tensors nor the family's published table say
    #[arg(long)]
    heads: Option<usize>,
    /// Epsilon of the encoder's LayerNorms, where the family's own is not it
    #[arg(long)]
    eps: Option<f64>,
    /// Native image size in pixels, where the position table is not square
    #[arg(long, value_name = "HxW", value_parser = super::size::parse)]
    image_size: Option<[usize; 2]>,
    /// Go the other way: from the common format to this layout (timm, hf, mmseg, mmdet, mmpretrain, detectron2, ibot)
    #[arg(long, value_name = "LAYOUT", conflicts_with_all = ["family", "branch", "heads", "eps", "image_size", "dry_run"])]
    to: Option<String>,
    /// Input size in pixels that the framework's configuration is for; its position table gets that grid [default: the framework's own: mmseg 512, mmdet and detectron2 1024, ibot 672x1092]
    #[arg(long, value_name = "HxW", value_parser = super::size::parse, requires = "to")]
    size: Option<[usize; 2]>,
    /// Replace the model directory, or with --to the file, that is already there
    #[arg(long)]
    overwrite: bool,
    /// Decide every key and show the plan; write nothing
    #[arg(long)]
    dry_run: bool,
    /// For machines: the plan (--dry-run) or the report
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, output: &mut Output) -> Result<Exit> {
    if let Some(layout) = &args.to {
        return back(args, layout, output);
    }
    if is_run(Path::new(&args.input)) {
        return of_run(args, output);
    }
    let mut request = Request {
        family: args.family.clone(),
        branch: args.branch.clone(),
        heads: args.heads,
        norm_eps: args.eps,
        image_size: args.image_size,
        sidecar: None,
    };
    if fetch::is_address(&args.input)? {
        return from_address(args, &request, output);
    }
    let path = Path::new(&args.input);
    let out = out::destination(&args.out, args.overwrite);
    if !args.dry_run {
        out.check_directory(&ModelFile::ALL.map(ModelFile::name))?;
    }
    let checkpoint = Checkpoint::open(path)?;
    request.sidecar = Sidecar::beside(path);
    let plan = Plan::new(&checkpoint, &request)?;
    if args.dry_run {
        show(&plan, args.json, output)?;
        return Ok(Exit::Done);
    }
    let bar = output.bytes_bar(plan.bytes());
    let mut watch = |progress| watch(&bar, progress);
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    let made = plan.apply(&checkpoint, &name, out, &mut watch);
    bar.finish_and_clear();
    report(args, &made?, output)
}

/// Writes the model of a run out.
fn of_run(args: &Args, output: &mut Output) -> Result<Exit> {
    let Args { family, branch, heads, eps, image_size, dry_run, .. } = args;
    if family.is_some() || branch.is_some() || heads.is_some() || eps.is_some() || image_size.is_some() || *dry_run {
        let reason = "a run says itself what its model is: it takes --out, --overwrite and --to";
        return Err(Usage(reason.into()).into());
    }
    let model = registry::run_model(Path::new(&args.input), output)?;
    let bar = output.bytes_bar(0);
    let written = model.write(out::destination(&args.out, args.overwrite), &mut |progress| watch(&bar, progress));
    bar.finish_and_clear();
    let written = written?;
    match args.json {
        true => output.json(&serde_json::json!({
            "dir": written.dir(), "checkpoint": model.checkpoint().map(CheckpointModel::path),
            "step": model.checkpoint().map(CheckpointModel::step), "config": written.config(),
        }))?,
        false => output.line(written.dir().display())?,
    }
    Ok(Exit::Done)
}

/// Converts what is fetched of a file on a server.
fn from_address(args: &Args, request: &Request, output: &mut Output) -> Result<Exit> {
    if args.dry_run {
        return Err(Usage("--dry-run needs a file on this machine".into()).into());
    }
    let out = out::destination(&args.out, args.overwrite);
    let store = Store::open(&registry::home()?)?;
    let options = fetch::options();
    let mut news = fetch::News::new(output);
    let made = convert_remote(&store, &args.input, out, request, &options, &mut |event| news.hear(event));
    news.bar.finish_and_clear();
    let made = made?;
    output.say(format_args!("fetched {} of {} bytes", made.fetched, made.total));
    report(args, &made.conversion, output)
}

fn report(args: &Args, made: &Conversion, output: &mut Output) -> Result<Exit> {
    if args.json {
        let mut report = made.plan.to_json();
        if let serde_json::Value::Object(report) = &mut report {
            report.insert("dir".into(), serde_json::to_value(&made.dir)?);
            report.insert("bytes".into(), made.bytes.into());
            report.insert("config".into(), serde_json::to_value(&made.config)?);
        }
        output.json(&report)?;
        return Ok(Exit::Done);
    }
    facts(&made.plan, output);
    let files: Vec<String> = made
        .files
        .iter()
        .map(|(file, tensors)| match tensors {
            0 => file.name().to_owned(),
            1 => format!("{} (1 tensor)", file.name()),
            tensors => format!("{} ({tensors} tensors)", file.name()),
        })
        .collect();
    output.line(format_args!("{}: {}", made.dir.display(), files.join(", ")))?;
    Ok(Exit::Done)
}

fn watch(bar: &ProgressBar, progress: Progress) -> ControlFlow<()> {
    bar.set_length(progress.total);
    bar.set_position(progress.done);
    interrupt::flow()
}

fn facts(plan: &Plan, output: &mut Output) {
    for fact in plan.facts() {
        output.say(format_args!("{:<12} {} ({})", fact.name, fact.value, fact.origin));
    }
    let count = |action: Action| plan.decisions().iter().filter(|decision| decision.action == action).count();
    output.say(format_args!(
        "{:<12} {} copied, {} joined, {} computed, {} of other branches, {} beside the weights, {} ignored by name",
        "tensors",
        count(Action::Copy) + count(Action::Fold),
        count(Action::Join),
        plan.computed().len(),
        count(Action::OtherBranch),
        count(Action::Beside),
        count(Action::Ignore)
    ));
}

fn show(plan: &Plan, json: bool, output: &mut Output) -> Result<()> {
    if json {
        return output.json(&plan.to_json());
    }
    facts(plan, output);
    let rows: Vec<Vec<String>> = plan
        .decisions()
        .iter()
        .map(|decision| {
            let action = match decision.action {
                Action::Copy => "copy",
                Action::Join => "join",
                Action::Fold => "fold",
                Action::Shorten => "shorten",
                Action::Ignore => "ignore",
                Action::OtherBranch => "other branch",
                Action::Beside => "beside",
            };
            let target = match (&decision.target, decision.file) {
                (Some(target), Some(file)) => format!("{target} ({file})"),
                _ => String::new(),
            };
            let kind = format!("{} {:?}", decision.dtype, decision.shape);
            vec![decision.source.clone(), action.to_owned(), target, kind]
        })
        .collect();
    output.table(&["SOURCE", "ACTION", "TARGET", "TYPE"], &rows, &[])
}

fn back(args: &Args, layout: &str, output: &mut Output) -> Result<Exit> {
    let known = Layout::ALL.map(Layout::name);
    let Some(layout) = Layout::ALL.into_iter().find(|known| known.name() == layout) else {
        let text = format!("there is no layout `{layout}`");
        return Err(Advised::usage(Usage(text), format!("there are {}", known.join(", "))));
    };
    let model = registry::open(&args.input, output)?;
    let bar = output.bytes_bar(0);
    let made = emit(&model, layout, args.size, out::destination(&args.out, args.overwrite), &mut |progress| {
        watch(&bar, progress)
    });
    bar.finish_and_clear();
    let made = made?;
    if args.json {
        output.json(&serde_json::json!({
            "path": made.path, "config": made.config, "tensors": made.tensors, "bytes": made.bytes,
            "left_out": made.left_out, "added": made.added,
        }))?;
        return Ok(Exit::Done);
    }
    output.line(format_args!("{}: {} tensors, {} bytes", made.path.display(), made.tensors, made.bytes))?;
    if let Some(config) = &made.config {
        output.line(format_args!("{}: a configuration that loads it", config.display()))?;
    }
    for added in &made.added {
        output.say(format_args!("made for {}: {added}", layout.name()));
    }
    for left_out in &made.left_out {
        output.warn(format_args!("{} has no place for {left_out}; it stays in `{}`", layout.name(), args.input));
    }
    Ok(Exit::Done)
}
