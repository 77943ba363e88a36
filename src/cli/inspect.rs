//! `tec-zoo inspect`.

use std::path::Path;

use anyhow::Result;
use serde_json::json;

use super::{exit::Exit, fetch, output::Output, output::Paint, registry};
use crate::checkpoint::{Checkpoint, Survey, TensorEntry};
use crate::convert::{Candidate, Sidecar, detect};
use crate::fetch::{Remote, Store};

/// What a checkpoint holds: container, tensors, pickled names, likely family; runs nothing in it
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tec-zoo inspect checkpoint.pth
  tec-zoo inspect checkpoint.pth --json | jq '.globals[] | select(.known | not)'")]
pub(super) struct Args {
    /// A checkpoint, an index of a sharded one, a folder with one, or the address of a torch zip, of which only the
    /// directory and the pickle are fetched
    #[arg(value_name = "FILE|URL")]
    file: String,
    /// Every tensor, not only the first of each group
    #[arg(long)]
    all: bool,
    /// For machines: one object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, output: &mut Output) -> Result<Exit> {
    if !fetch::is_address(&args.file)? {
        let path = Path::new(&args.file);
        let survey = Checkpoint::survey(path)?;
        let candidates = detect(&survey.checkpoint, Sidecar::beside(path).as_ref())?;
        return show(args, &survey, &candidates, output);
    }
    let options = fetch::options();
    let store = Store::open(&registry::home()?)?;
    let mut news = fetch::News::new(output);
    let remote = Remote::open(&store, &args.file, &options, &mut |event| news.hear(event)).and_then(|mut remote| {
        // The one tensor whose values tell families apart.
        let position = |path: &[String]| path.last().is_some_and(|name| name.contains("pos"));
        remote.bring(position, &mut |event| news.hear(event))?;
        Ok(remote)
    });
    news.bar.finish_and_clear();
    let remote = remote?;
    let survey = Checkpoint::survey(remote.path())?;
    let candidates = detect(&survey.checkpoint, None)?;
    let (fetched, total) = remote.fetched();
    output.say(format_args!("fetched {fetched} of {total} bytes"));
    show(args, &survey, &candidates, output)
}

fn show(args: &Args, survey: &Survey, candidates: &[Candidate], output: &mut Output) -> Result<Exit> {
    if args.json {
        output.json(&as_json(survey, candidates))?;
        return Ok(Exit::Done);
    }
    let tensors = survey.checkpoint.tensors();
    let bytes: u64 = tensors.iter().map(bytes).sum();
    let protocol = survey.protocol.map(|protocol| format!(", pickle protocol {protocol}")).unwrap_or_default();
    let container = survey.checkpoint.container().name();
    output.line(format_args!("{}: {container}{protocol}", args.file))?;
    output.line(format_args!("{} tensors, {bytes} bytes", tensors.len()))?;

    section(output, "family")?;
    for candidate in candidates {
        let branches = match candidate.branches.as_slice() {
            [] => String::new(),
            branches => format!(" (--branch {})", branches.join(" or ")),
        };
        let verdict = if candidate.fits { output.paint_out(Paint::Good, "fits") } else { "no".to_owned() };
        output.line(format_args!("  {:<8} {verdict}{branches}: {}", candidate.family, candidate.reasons.join("; ")))?;
    }
    if !survey.globals.is_empty() {
        section(output, "names in the pickle (none is run)")?;
        for global in &survey.globals {
            let mark = if global.known {
                String::new()
            } else {
                output.paint_out(Paint::Bad, "  UNKNOWN: convert refuses it")
            };
            output.line(format_args!("  {:>6} × {}{mark}", global.count, global.name))?;
        }
    }
    if !survey.leaves.is_empty() {
        section(output, "values")?;
        for leaf in &survey.leaves {
            output.line(format_args!("  {} = {}", leaf.path.join("."), leaf.value))?;
        }
    }
    section(output, "tensors")?;
    let shown: Vec<&TensorEntry> = tensors.iter().filter(|tensor| args.all || is_first_of_group(tensor)).collect();
    let rows: Vec<Vec<String>> = shown
        .iter()
        .map(|tensor| vec![tensor.path.join("."), tensor.dtype.to_string(), format!("{:?}", tensor.shape)])
        .collect();
    output.table(&["NAME", "TYPE", "SHAPE"], &rows, &[])?;
    if shown.len() < tensors.len() {
        output.say(format_args!("{} more in further blocks and groups; --all shows them", tensors.len() - shown.len()));
    }
    for warning in &survey.warnings {
        output.warn(warning);
    }
    Ok(Exit::Done)
}

fn section(output: &mut Output, title: &str) -> Result<()> {
    let title = output.paint_out(Paint::Note, title);
    output.line(format_args!("\n{title}"))
}

/// Block 0 stands for all blocks: a number above 0 anywhere in the name is one of the others.
fn is_first_of_group(tensor: &TensorEntry) -> bool {
    let parts = tensor.path.iter().flat_map(|key| key.split('.'));
    parts.filter_map(|part| part.parse::<u64>().ok()).all(|number| number == 0)
}

fn bytes(tensor: &TensorEntry) -> u64 {
    let elements: usize = tensor.shape.iter().product();
    (elements * tensor.dtype.bitsize() / 8) as u64
}

fn as_json(survey: &Survey, candidates: &[Candidate]) -> serde_json::Value {
    let tensors: Vec<serde_json::Value> = survey
        .checkpoint
        .tensors()
        .iter()
        .map(|tensor| {
            json!({ "path": tensor.path, "dtype": tensor.dtype.to_string(), "shape": tensor.shape, "bytes": bytes(tensor) })
        })
        .collect();
    json!({
        "container": survey.checkpoint.container(),
        "protocol": survey.protocol,
        "candidates": candidates,
        "globals": survey.globals,
        "values": survey.leaves,
        "warnings": survey.warnings,
        "tensors": tensors,
    })
}
