//! `tec-zoo info`.

use anyhow::Result;
use serde::Serialize;
use serde_json::Value;

use super::{exit::Exit, output::Output, registry};

/// Everything the manifest or the directory knows, licence lineage included
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tec-zoo info tec-ibot-vitb-800ep
  tec-zoo info out/ibot --json")]
pub(super) struct Args {
    /// A name of the zoo, a directory in the common format, or a pretraining's folder or checkpoint
    model: String,
    /// For machines: one object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, output: &mut Output) -> Result<Exit> {
    if registry::is_directory(&args.model) {
        let config = registry::open(&args.model, output)?.config().clone();
        return print(args, output, &config);
    }
    let zoo = registry::zoo()?;
    let mut facts = serde_json::to_value(zoo.get(&args.model)?)?;
    if let Value::Object(facts) = &mut facts {
        facts.insert("parameters".into(), zoo.get(&args.model)?.parameters().into());
        facts.insert("terms_with_lineage".into(), serde_json::to_value(zoo.terms(&args.model)?)?);
        facts.insert("lineage".into(), serde_json::to_value(zoo.lineage(&args.model)?)?);
    }
    print(args, output, &facts)
}

fn print(args: &Args, output: &mut Output, facts: &impl Serialize) -> Result<Exit> {
    match args.json {
        true => output.json(facts)?,
        false => output.line(outline(&serde_json::to_value(facts)?))?,
    }
    Ok(Exit::Done)
}

/// JSON as an indented outline: what a reader wants of it, without the punctuation.
fn outline(value: &Value) -> String {
    let mut text = String::new();
    write(value, 0, &mut text);
    text.trim_matches('\n').to_owned()
}

fn write(value: &Value, depth: usize, text: &mut String) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(fields) => {
            for (key, value) in fields.iter().filter(|(_, value)| !is_empty(value)) {
                text.push_str(&format!("\n{indent}{}", key.replace('_', " ")));
                match scalar(value) {
                    Some(scalar) => text.push_str(&format!(": {scalar}")),
                    None => write(value, depth + 1, text),
                }
            }
        }
        Value::Array(items) => {
            for item in items {
                match scalar(item) {
                    Some(scalar) => text.push_str(&format!("\n{indent}- {scalar}")),
                    None => {
                        let mut inner = String::new();
                        write(item, depth + 1, &mut inner);
                        let inner = inner.trim_start();
                        text.push_str(&format!("\n{indent}- {inner}"));
                    }
                }
            }
        }
        other => text.push_str(&scalar(other).unwrap_or_default()),
    }
}

fn is_empty(value: &Value) -> bool {
    matches!(value, Value::Null) || value.as_array().is_some_and(Vec::is_empty) || value.as_str() == Some("")
}

/// One line's worth of a value, when it is that simple.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(if *flag { "yes" } else { "no" }.to_owned()),
        Value::Array(items) if !items.is_empty() && items.iter().all(Value::is_number) => {
            Some(items.iter().map(Value::to_string).collect::<Vec<_>>().join(", "))
        }
        _ => None,
    }
}
