//! `tec-zoo verify`.

use std::path::PathBuf;

use anyhow::Result;

use super::hint::{self, Advised};
use super::{exit::Exit, exit::Usage, interrupt, output::Output, output::Paint, registry};
use crate::destination::Destination;
use crate::hint::{Command, Hint};
use crate::model::{Canonical, ModelFile};
use crate::verify::{Golden, Options, Origin, Outcome, Report, make_golden, verify};

/// Replay stored activations; on divergence, name the first block and the likely cause
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tec-zoo verify ibot --golden activations.safetensors          numbers the authors' code made
  tec-zoo verify ibot --record && tec-zoo verify ibot           the model still says what it said
  tec-zoo verify student --golden g.safetensors --alternative teacher

A record is a .safetensors file with `images` (B, 3, H, W), `block0`, `block1`, … (B, 1+L, C) and `norm`.
Exit code 3: the numbers do not hold.")]
pub(super) struct Args {
    /// A directory in the common format, a pretraining's folder or checkpoint, or a name of the zoo
    model: String,
    /// The record to replay; the model directory's own golden.safetensors when left out
    #[arg(long, value_name = "FILE")]
    golden: Option<PathBuf>,
    /// Greatest max |Δ| / max |reference| of a stage; 1e-5 up to 12 blocks when left out
    #[arg(long, value_name = "X")]
    tolerance: Option<f64>,
    /// Another model the weights might have been meant to be: replayed when nothing else explains a divergence
    #[arg(long, value_name = "MODEL")]
    alternative: Vec<String>,
    /// Record this tool's own activations in the model directory, for later runs without --golden
    #[arg(long, conflicts_with_all = ["golden", "tolerance", "alternative", "json"])]
    record: bool,
    /// With --record: replace the record that is already there
    #[arg(long, requires = "record")]
    overwrite: bool,
    /// For machines: one object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, output: &mut Output) -> Result<Exit> {
    let model = registry::open(&args.model, output)?;
    let own = model.dir().join(ModelFile::Golden.name());
    if args.record && !model.has_files() {
        let text = format!("`{}` is a run's checkpoint, which holds no record", args.model);
        let convert = Command::new("convert").word(args.model.clone()).set("out", "DIR");
        return Err(Advised::refusal(text, Hint::new().command(convert).words(" makes a model of it that does")));
    }
    if args.record {
        make_golden(&model, Destination::new(&own).overwrite(args.overwrite), &mut |_| interrupt::flow())?;
        output.line(own.display())?;
        return Ok(Exit::Done);
    }
    if args.tolerance.is_some_and(|tolerance| tolerance.is_nan() || tolerance <= 0.0) {
        return Err(Usage("--tolerance is a positive number".into()).into());
    }
    let path = args.golden.as_ref().unwrap_or(&own);
    if args.golden.is_none() && !path.exists() {
        let hint = Hint::new().set("golden", "FILE").words(" replays somebody else's, ").option("record");
        let text = format!("`{}` carries no activations to replay", args.model);
        return Err(Advised::refusal(text, hint.words(" stores its own")));
    }
    let alternatives = args.alternative.iter().map(|name| {
        let model = registry::open(name, output)?;
        let label = model.config().provenance.branch.clone().unwrap_or_else(|| name.clone());
        Ok((label, model))
    });
    let options = Options { tolerance: args.tolerance, alternatives: alternatives.collect::<Result<Vec<_>>>()? };
    let report = replay(&model, &Golden::open(path)?, &options, args.json, output)?;
    Ok(if report.holds == Some(true) { Exit::Done } else { Exit::NotHeld })
}

/// Replays and prints.
pub(super) fn replay(
    model: &Canonical,
    golden: &Golden,
    options: &Options,
    json: bool,
    output: &mut Output,
) -> Result<Report> {
    let report = verify(model, golden, options, &mut |_| interrupt::flow())?;
    let hint = report.diagnosis.as_ref().map(|diagnosis| hint::shown(&diagnosis.action));
    if json {
        let mut value = serde_json::to_value(&report)?;
        if let Some(hint) = hint {
            value["diagnosis"]["action"] = hint.into();
        }
        output.json(&value)?;
        return Ok(report);
    }
    let rows: Vec<Vec<String>> = report
        .stages
        .iter()
        .map(|stage| {
            let number = |value: Option<String>| value.unwrap_or_default();
            vec![
                stage.stage.to_string(),
                number(stage.difference.map(|difference| format!("{:.1e}", difference.max_abs))),
                number(stage.difference.map(|difference| format!("{:.1e}", difference.relative))),
                number(stage.difference.map(|difference| format!("{:.9}", difference.cosine))),
                match stage.outcome {
                    Outcome::Holds => "ok",
                    Outcome::Diverges => "DIVERGES",
                    Outcome::Missing => "MISSING",
                    Outcome::Skipped => "not in this model",
                }
                .to_owned(),
            ]
        })
        .collect();
    output.table(&["STAGE", "MAX |Δ|", "RELATIVE", "COSINE", "VERDICT"], &rows, &[1, 2, 3])?;
    let verdict = if report.holds == Some(true) { Paint::Good } else { Paint::Bad };
    let text = output.paint_out(verdict, &report.to_string());
    output.line(text)?;
    if let Some(hint) = hint {
        output.line(format_args!("hint: {hint}"))?;
    }
    if report.origin == Origin::Own {
        output.say(
            "the record is this tool's own: it proves that nothing changed since, not that the conversion was right",
        );
    }
    Ok(report)
}
