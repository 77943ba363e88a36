//! `tec-zoo identify`.

use std::path::PathBuf;

use anyhow::Result;
use serde_json::json;

use super::{exit::Exit, interrupt, output::Output, output::Paint, registry};
use crate::fetch::Store;
use crate::identify::{Finding, IdentifyError, Match, Progress, Relation, Sameness, identify, known, remember};
use crate::train::{RunModel, is_run};
use crate::zoo::Zoo;

/// Tell which known weights a file holds, whatever its tensors are called, or their nearest relative
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tec-zoo identify checkpoint.pth
  tec-zoo identify backbone.safetensors --json | jq -r '.networks[].is.model'

Known is what was fetched or registered here, and every fingerprint in the folder `fingerprints` of TEC_ZOO_HOME. Nobody published
fingerprints of the released weights, so none come with the program. Exit code 3: nothing known resembles any of it.")]
pub(super) struct Args {
    /// A checkpoint in any container, a model directory, or a pretraining's folder or checkpoint; no converter need know it
    file: PathBuf,
    /// For machines: one object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, output: &mut Output) -> Result<Exit> {
    let zoo = registry::zoo()?;
    let store = Store::open(&registry::home()?)?;
    let folder = store.fingerprints();
    let bar = output.bytes_bar(0);
    let mut watch = |progress: Progress| {
        bar.set_length(progress.total);
        bar.set_position(progress.done);
        interrupt::flow()
    };
    for manifest in zoo.iter() {
        if let Some(directory) = registry::present(manifest)?
            && !folder.join(format!("{}.json", manifest.name)).exists()
            && let Err(error) = remember(&folder, &manifest.name, &directory, &mut watch)
        {
            if matches!(error, IdentifyError::Interrupted) {
                return Err(error.into());
            }
            output.warn(format_args!("`{}` is left out: {error}", manifest.name));
        }
    }
    let known = known(&folder)?;
    // A run's model is written out to be read: what is hashed are a file's tensors.
    let scratch = tempfile::tempdir()?;
    let file = match is_run(&args.file).then(|| registry::run_model(&args.file, output)).transpose()? {
        None => args.file.clone(),
        Some(RunModel::Result(directory)) => directory,
        Some(model) => {
            let directory = scratch.path().join("model");
            model.write(&directory, &mut |_| interrupt::flow())?;
            directory
        }
    };
    let found = identify(&file, &known, &mut watch);
    bar.finish_and_clear();
    let found = found?;
    let exit = match found.findings.iter().any(|finding| finding.is.is_some()) {
        true => Exit::Done,
        false => Exit::NotHeld,
    };
    if args.json {
        let networks: Vec<_> = found.findings.iter().map(|finding| as_json(finding, &zoo)).collect();
        output.json(&json!({ "container": found.container, "known": known.len(), "networks": networks }))?;
        return Ok(exit);
    }
    for finding in &found.findings {
        show(finding, &zoo, output)?;
    }
    if exit == Exit::NotHeld {
        let names = known.len();
        output.say(format_args!("compared with {names} known models; `tec-zoo fetch` and `register` make more known"));
    }
    Ok(exit)
}

/// The finding with what only the catalogue knows.
fn as_json(finding: &Finding, zoo: &Zoo) -> serde_json::Value {
    let mut value = json!(finding);
    if let (Some(is), Some(object)) = (&finding.is, value["is"].as_object_mut()) {
        object.insert("terms_with_lineage".into(), json!(zoo.terms(&is.model).ok()));
    }
    value
}

fn show(finding: &Finding, zoo: &Zoo, output: &mut Output) -> Result<()> {
    let place = if finding.place.is_empty() { "the file" } else { &finding.place };
    let Some(is) = &finding.is else {
        return output.line(format_args!(
            "{place}: nothing known resembles it ({} tensors, {} parameters)",
            finding.tensors, finding.parameters
        ));
    };
    let verb = match is.relation {
        Relation::Same => "is",
        Relation::PartOf => "is part of",
        Relation::Shares => "is partly",
        Relation::Relative => "is related to",
    };
    let paint = if is.relation == Relation::Same { Paint::Good } else { Paint::Note };
    let model = output.paint_out(paint, &is.model);
    output.line(format_args!("{place} {verb} {model}: {}", is.reading))?;
    output.line(format_args!("  {}", evidence(is)))?;
    if !finding.also.is_empty() {
        output.line(format_args!("  the same can be said of {}", finding.also.join(", ")))?;
    }
    let terms = match zoo.terms(&is.model) {
        Ok(terms) => format!(" (with its lineage: {})", json!(terms).as_str().unwrap_or_default()),
        Err(_) => String::new(),
    };
    output.line(format_args!("  licence {}{terms}", is.licence.spdx))?;
    if !is.lineage.is_empty() {
        output.line(format_args!("  trained from {}", is.lineage.join(", from ")))?;
    }
    Ok(())
}

fn evidence(is: &Match) -> String {
    let kind = match is.sameness {
        Some(Sameness::Half) => ", as f16",
        Some(Sameness::Brain) => ", as bf16",
        Some(Sameness::Exact) | None => "",
    };
    let likeness = match (is.relation, is.likeness) {
        (Relation::Same | Relation::PartOf, _) | (_, None) => String::new(),
        (_, Some(likeness)) => format!("; correlation of its matrices about {likeness:.3}"),
    };
    let share = is.share * 100.0;
    format!("{} of {} tensors are equal{kind}, {share:.1} % of the parameters{likeness}", is.equal, is.of)
}
