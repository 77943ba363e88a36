//! `tec-zoo contract`.

use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

use super::hint::{self, Advised};
use super::{exit::Exit, output::Output, registry};
use crate::onnx::{CONSUMERS, Contract, Expectation};

/// What a graph or a model promises: levels, strides, norm, prefix tokens, mean and std, resampling, lineage
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tec-zoo contract ibot.onnx
  tec-zoo contract levels.onnx --diff mmseg-mae-upernet       exit 3 and the reasons, where it does not fit
  tec-zoo contract new.onnx --diff old.onnx

Consumers: detectron2-vitdet, ibot-cascade-mask-rcnn, ibot-upernet, mmdet-vitdet, mmseg-mae-upernet")]
pub(super) struct Args {
    /// A graph (.onnx), a directory in the common format, a pretraining's folder or checkpoint, or a name of the zoo
    what: String,
    /// Compare with what a consumer expects: one of those below, a .toml or .json file of fields, another graph, or a model
    #[arg(long, value_name = "OTHER")]
    diff: Option<String>,
    /// For machines: one object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, output: &mut Output) -> Result<Exit> {
    let contract = contract(&args.what, output)?;
    let Some(other) = &args.diff else {
        match args.json {
            true => output.json(&contract)?,
            false => {
                let rows: Vec<Vec<String>> =
                    contract.facts.iter().map(|(field, value)| vec![field.clone(), shown(value)]).collect();
                output.table(&["FIELD", "VALUE"], &rows, &[])?;
            }
        }
        return Ok(Exit::Done);
    };
    let expectation = expectation(other, output)?;
    let differences = contract.differences(&expectation);
    if args.json {
        let differences = differences.iter().map(|difference| {
            let mut value = serde_json::to_value(difference)?;
            value["next"] = hint::shown(&difference.next).into();
            Ok(value)
        });
        let differences = differences.collect::<Result<Vec<_>>>()?;
        output.json(&json!({ "of": contract.of, "expected_by": expectation.of, "differences": differences }))?;
    } else {
        for difference in &differences {
            let here = difference.here.as_ref().map_or_else(|| "nothing".to_owned(), shown);
            let expected = shown(&difference.expected);
            output.line(format_args!("{}: {here} here, {expected} expected", difference.field))?;
            output.line(format_args!("  {}\n  hint: {}", difference.why, hint::shown(&difference.next)))?;
        }
        if differences.is_empty() {
            output.line(format_args!("{} is what {} expects", contract.of, expectation.of))?;
        }
    }
    Ok(if differences.is_empty() { Exit::Done } else { Exit::NotHeld })
}

fn is_graph(what: &str) -> bool {
    Path::new(what).extension().is_some_and(|extension| extension.eq_ignore_ascii_case("onnx"))
}

fn contract(what: &str, output: &mut Output) -> Result<Contract> {
    if is_graph(what) {
        return Ok(Contract::of_graph(Path::new(what))?);
    }
    Ok(Contract::of_model(&registry::open(what, output)?))
}

fn expectation(other: &str, output: &mut Output) -> Result<Expectation> {
    if let Some(consumer) = Expectation::of_consumer(other) {
        return Ok(consumer?);
    }
    let path = Path::new(other);
    if path.extension().is_some_and(|extension| extension == "toml" || extension == "json") {
        return Ok(Expectation::of_file(path)?);
    }
    if !is_graph(other) && !registry::is_directory(other) && registry::zoo()?.get(other).is_err() {
        let text = format!("`{other}` is neither a consumer, nor a model, nor a file of fields");
        return Err(Advised::refusal(text, nearest(other)));
    }
    Ok(Expectation::of_contract(&contract(other, output)?))
}

/// The consumers that may be meant; all of them where none resembles what was asked for.
fn nearest(other: &str) -> String {
    let names = || CONSUMERS.iter().map(|(name, _)| *name);
    let near = |name: &&str| name.contains(other) || strsim::jaro_winkler(name, other) >= 0.85;
    let quoted = |names: &mut dyn Iterator<Item = &str>| names.map(|name| format!("`{name}`")).collect::<Vec<_>>();
    match quoted(&mut names().filter(near)).as_slice() {
        [] => format!("consumers are {}", quoted(&mut names()).join(", ")),
        near => format!("did you mean {}?", near.join(" or ")),
    }
}

/// A value as people write it.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(values) if values.iter().any(Value::is_object) => {
            values.iter().map(shown).collect::<Vec<_>>().join(", ")
        }
        Value::Object(fields) if fields.contains_key("shape") => {
            let field = |name: &str| fields.get(name).map(shown).unwrap_or_default();
            let shape = fields.get("shape").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            let shape: Vec<String> = shape.iter().map(shown).collect();
            format!("{} ({}) {}", field("name"), shape.join(", "), field("type"))
        }
        value => value.to_string(),
    }
}
