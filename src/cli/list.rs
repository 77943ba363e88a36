//! `tec-zoo list`.

use anyhow::Result;

use super::{exit::Exit, exit::Usage, hint::Advised, output::Output, registry};
use crate::zoo::{Status, Summary, Terms};

/// What can be had: architecture, parameters, licence, source, published metrics
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tec-zoo list --family tec
  tec-zoo list --json | jq -r '.[] | select(.terms == \"permissive\") | .name'")]
pub(super) struct Args {
    /// Models of one family only (mae, ibot, moco-v3, tec, dino, dinov2)
    #[arg(long)]
    family: Option<String>,
    /// Models whose weights are on this machine only
    #[arg(long)]
    cached: bool,
    /// For machines: an array of objects
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, output: &mut Output) -> Result<Exit> {
    let zoo = registry::zoo()?;
    if let Some(family) = &args.family {
        let families = zoo.families();
        if !families.contains(&family.as_str()) {
            let text = format!("no family is called `{family}`");
            return Err(Advised::usage(Usage(text), format!("there are {}", families.join(", "))));
        }
    }
    let mut models = zoo.list(args.family.as_deref());
    for model in &mut models {
        model.cached = registry::present(zoo.get(&model.name)?)?.is_some();
    }
    models.retain(|model| model.cached || !args.cached);
    if args.json {
        output.json(&models)?;
        return Ok(Exit::Done);
    }
    let rows: Vec<Vec<String>> = models.iter().map(row).collect();
    output.table(&["MODEL", "ARCH", "PARAMS", "LICENCE", "SOURCE", "CACHED", "FINE-TUNED TOP-1"], &rows, &[2])?;
    let listed = models.iter().filter(|model| model.status == Status::Listed).count();
    if listed > 0 {
        output.say(format_args!(
            "{listed} marked * are known, but this version cannot run them; `tec-zoo info` says why"
        ));
    }
    Ok(Exit::Done)
}

fn row(model: &Summary) -> Vec<String> {
    let mark = if model.status == Status::Listed { "*" } else { "" };
    let licence = match model.terms {
        Terms::Permissive => model.licence.clone(),
        Terms::NonCommercial => format!("{} (non-commercial)", model.licence),
        Terms::TreatAsNonCommercial => format!("{} (treat as non-commercial)", model.licence),
    };
    let metric = model.metrics.iter().find(|metric| metric.task.contains("fine-tuning top-1"));
    vec![
        format!("{}{mark}", model.name),
        model.architecture.clone(),
        format!("{:.1}M", model.parameters as f64 / 1e6),
        licence,
        model.source.clone(),
        if model.cached { "yes" } else { "" }.to_owned(),
        metric.map_or(String::new(), |metric| format!("{:.1}", metric.value)),
    ]
}
