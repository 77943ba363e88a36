//! `tec-zoo matrix`.

use anyhow::Result;
use clap::ValueEnum;
use serde_json::json;

use super::export::{AdaptersArg, DtypeArg, For};
use super::{exit::Exit, output::Output, registry, runtimes};
use crate::model::{VitConfig, quarters};
use crate::onnx::matrix::{Cell, Row, Variant, holds, row};
use crate::onnx::runtime::Runtime;
use crate::onnx::{CheckOptions, ExportOptions, MapOptions, Size};

/// Export every variant of a model, and show which runs where
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tec-zoo matrix ibot
  tec-zoo matrix ibot --runtimes tract,candle --json
  tec-zoo matrix ibot --markdown > runs-where.md

A cell is the largest |Δ| of any output at any size with the smallest cosine, or the number of the note that says why it did not run. Files for one
size are made for the model's own and for a rectangle; dynamic ones run at three sizes.")]
pub(super) struct Args {
    /// A directory in the common format, a pretraining's folder or checkpoint, or a name of the zoo
    model: String,
    /// Runtimes to ask, each of which has to run some variant: ort, tract, candle; every one that is found when left out
    #[arg(long, value_delimiter = ',', value_parser = runtimes::parse)]
    runtimes: Vec<Runtime>,
    /// Threads for one run; as many as the machine has when left out
    #[arg(long)]
    threads: Option<usize>,
    /// A table for a document
    #[arg(long, conflicts_with = "json")]
    markdown: bool,
    /// For machines: one object for each variant
    #[arg(long)]
    json: bool,
}

/// The leading columns.
const LABELS: [&str; 4] = ["for", "adapters", "dtype", "size"];

pub(super) fn run(args: &Args, output: &mut Output) -> Result<Exit> {
    let model = registry::open(&args.model, output)?;
    let scratch = tempfile::tempdir()?;
    let (runtimes, runtime) = (args.runtimes.clone(), runtimes::options(args.threads));
    let options = CheckOptions { runtimes, runtime, ..CheckOptions::default() };
    let variants = variants(&model.config().vit);
    let mut progress = runtimes::Progress::new(output);
    let mut rows = Vec::with_capacity(variants.len());
    for (i, variant) in variants.iter().enumerate() {
        progress.about(format!("{}/{} {}: ", i + 1, variants.len(), variant.labels.join(" ")));
        rows.push(row(&model, variant, scratch.path(), &options, &mut |event| progress.hear(event))?);
    }
    drop(progress);
    let holds = holds(&rows, &options);
    let asked = rows
        .iter()
        .map(|row| row.cells.iter().map(|(runtime, _)| *runtime).collect())
        .find(|asked: &Vec<_>| !asked.is_empty());
    let asked = asked.unwrap_or_default();
    match (args.json, args.markdown) {
        (true, _) => output.json(&json!({ "holds": holds, "columns": LABELS, "rows": rows }))?,
        (_, true) => print_markdown(&rows, &asked, output)?,
        _ => print(&rows, &asked, output)?,
    }
    if holds != Some(true) && rows.iter().all(Row::holds) {
        output.warn("a runtime that had to run, or every runtime, ran no variant");
    }
    Ok(if holds == Some(true) { Exit::Done } else { Exit::NotHeld })
}

/// Every combination of what `export` offers; a new value of one of its options is a new row.
fn variants(vit: &VitConfig) -> Vec<Variant> {
    let maps = MapOptions { levels: quarters(vit.depth), ..MapOptions::default() };
    let mut variants = Vec::new();
    for purpose in For::value_variants() {
        for adapters in AdaptersArg::value_variants() {
            for dtype in DtypeArg::value_variants() {
                for (size, label) in [(Size::Fixed(vit.image_size), "fixed"), (Size::Dynamic, "dynamic")] {
                    let labels = vec![name(purpose), name(adapters), name(dtype), label.to_owned()];
                    let options = ExportOptions {
                        purpose: purpose.purpose(maps.clone()),
                        adapters: adapters.adapters(),
                        dtype: dtype.dtype(),
                        size,
                        ..ExportOptions::default()
                    };
                    variants.push(Variant { labels, options });
                }
            }
        }
    }
    variants
}

/// As it is written on the command line.
fn name(value: &impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

/// The cells of every row as text, and the notes they refer to.
fn texts(rows: &[Row], runtimes: &[Runtime]) -> (Vec<Vec<String>>, Vec<String>) {
    let mut notes: Vec<String> = Vec::new();
    let mut note = |text: &str| {
        let known = notes.iter().position(|known| known == text);
        let number = known.unwrap_or_else(|| {
            notes.push(text.to_owned());
            notes.len() - 1
        });
        format!("no [{}]", number + 1)
    };
    let mut lines = Vec::with_capacity(rows.len());
    for row in rows {
        let mut line = row.labels.clone();
        match &row.refused {
            Some(reason) => line.extend(vec![note(&format!("not exported: {reason}")); runtimes.len()]),
            None => line.extend(row.cells.iter().map(|(_, cell)| match cell {
                Cell::Ran { max_abs_diff, cosine } => format!("{max_abs_diff:.0e} ({cosine:.6})"),
                Cell::Differs { max_abs_diff, cosine } => format!("DIFFERS {max_abs_diff:.0e} ({cosine:.6})"),
                Cell::CouldNotRun { reason } => note(reason),
            })),
        }
        lines.push(line);
    }
    (lines, notes)
}

fn print(rows: &[Row], runtimes: &[Runtime], output: &mut Output) -> Result<()> {
    let (lines, notes) = texts(rows, runtimes);
    let headers: Vec<String> = LABELS
        .iter()
        .map(|label| label.to_uppercase())
        .chain(runtimes.iter().map(|r| r.name().to_uppercase()))
        .collect();
    let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
    output.table(&headers, &lines, &[])?;
    for (i, text) in notes.iter().enumerate() {
        output.line(format_args!("[{}] {text}", i + 1))?;
    }
    Ok(())
}

fn print_markdown(rows: &[Row], runtimes: &[Runtime], output: &mut Output) -> Result<()> {
    let (lines, notes) = texts(rows, runtimes);
    let headers: Vec<&str> = LABELS.into_iter().chain(runtimes.iter().map(|runtime| runtime.name())).collect();
    output.line(format_args!("| {} |", headers.join(" | ")))?;
    output.line(format_args!("|{}", "---|".repeat(headers.len())))?;
    for line in lines {
        output.line(format_args!("| {} |", line.join(" | ")))?;
    }
    output.line("")?;
    for (i, text) in notes.iter().enumerate() {
        output.line(format_args!("{}. {}", i + 1, text.replace('|', "\\|")))?;
    }
    Ok(())
}
