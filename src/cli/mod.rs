//! The command line: one file per verb. The only place that parses arguments, reads the environment, prints, or uses
//! `anyhow`; what a verb does is in the library.
//!
//! Data goes to stdout, conversation to stderr.

mod bundle;
mod cache;
mod calibrate;
mod check;
mod completions;
mod contract;
mod convert;
mod demo;
mod embed;
mod exit;
mod export;
mod fetch;
mod hint;
mod identify;
mod identity;
mod info;
mod inspect;
mod interrupt;
mod list;
mod matrix;
mod out;
mod output;
mod pretrain;
mod progress;
mod register;
mod registry;
mod runtimes;
mod size;
mod stats;
mod verify;
mod view;

use std::process::ExitCode;

use anyhow::Result;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};

use exit::{Exit, Usage};
use output::{ColorChoice, Output};

/// Model zoo and converter for self-supervised Vision Transformers: MAE, iBOT, MoCo v3, TEC.
#[derive(Debug, Parser)]
#[command(
    name = "tec-zoo",
    version,
    about,
    after_help = "Examples:
  tec-zoo demo                                                  the whole way on embedded data
  tec-zoo fetch ibot-vitb                                       download, verify, convert
  tec-zoo inspect checkpoint.pth                                what a file holds; runs nothing in it
  tec-zoo identify checkpoint.pth                               which known weights these are, or the nearest
  tec-zoo convert checkpoint.pth --branch teacher --out ibot    into the common format
  tec-zoo verify ibot --golden activations.safetensors          replay and compare, block by block
  tec-zoo export ibot --out ibot.onnx                           an ONNX backbone, checked in every runtime found
  tec-zoo pretrain --base ibot --data photos/ --out run         a new ViT from its backbone

Exit codes: 0 done, 1 refused or failed, 2 usage, 3 verification did not hold, 4 network, 130 interrupted."
)]
struct Cli {
    /// Print data and errors only
    #[arg(long, short, global = true)]
    quiet: bool,
    /// When to colour
    #[arg(long, value_enum, default_value_t, global = true, value_name = "WHEN")]
    color: ColorChoice,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    List(list::Args),
    Info(info::Args),
    Fetch(fetch::Args),
    Bundle(bundle::Args),
    Cache(cache::Args),
    Register(register::Args),
    Inspect(inspect::Args),
    Identify(identify::Args),
    Convert(convert::Args),
    Verify(verify::Args),
    Embed(embed::Args),
    Export(export::Args),
    Check(check::Args),
    Contract(contract::Args),
    Matrix(matrix::Args),
    Pretrain(pretrain::Args),
    View(view::Args),
    Stats(stats::Args),
    Demo(demo::Args),
    Completions(completions::Args),
}

/// Runs the program. `keep_freed_memory` has the allocator keep what is freed for the next taker: training takes the same again
/// and again, and everything else gives back what one part of its work needed before the next.
pub fn main(keep_freed_memory: fn()) -> ExitCode {
    let matches = match Cli::command().try_get_matches() {
        Ok(matches) => matches,
        Err(error) => return misread(&error),
    };
    let json = asks_for_json(&matches);
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let mut output = Output::new(cli.color, cli.quiet, json);
    interrupt::install();
    if matches!(cli.verb, Verb::Pretrain(_)) {
        keep_freed_memory();
    }
    let result: Result<Exit> = match cli.verb {
        Verb::List(args) => list::run(&args, &mut output),
        Verb::Info(args) => info::run(&args, &mut output),
        Verb::Fetch(args) => fetch::run(&args, &mut output),
        Verb::Bundle(args) => bundle::run(&args, &mut output),
        Verb::Cache(args) => cache::run(&args, &mut output),
        Verb::Register(args) => register::run(&args, &mut output),
        Verb::Inspect(args) => inspect::run(&args, &mut output),
        Verb::Identify(args) => identify::run(&args, &mut output),
        Verb::Convert(args) => convert::run(&args, &mut output),
        Verb::Verify(args) => verify::run(&args, &mut output),
        Verb::Embed(args) => embed::run(&args, &mut output),
        Verb::Export(args) => export::run(&args, &mut output),
        Verb::Check(args) => check::run(&args, &mut output),
        Verb::Contract(args) => contract::run(&args, &mut output),
        Verb::Matrix(args) => matrix::run(&args, &mut output),
        Verb::Pretrain(args) => pretrain::run(&args, &mut output),
        Verb::View(args) => view::run(&args, &mut output),
        Verb::Stats(args) => stats::run(&args, &mut output),
        Verb::Demo(args) => demo::run(&args, &mut output),
        Verb::Completions(args) => completions::run(&args, &mut output),
    };
    let exit = match result {
        Ok(exit) => exit,
        Err(error) => {
            let exit = Exit::of(&error);
            if exit != Exit::PipeClosed {
                output.error(&error, exit);
            }
            exit
        }
    };
    exit.into()
}

/// Whether the verb, or a verb of its own, was called with `--json`.
fn asks_for_json(matches: &ArgMatches) -> bool {
    matches!(matches.try_get_one::<bool>("json"), Ok(Some(true)))
        || matches.subcommand().is_some_and(|(_, matches)| asks_for_json(matches))
}

/// Ends a command line that clap does not take; with `--json` in it, as any other failure.
fn misread(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() || !std::env::args_os().any(|argument| argument == "--json") {
        error.exit();
    }
    let text = error.render().to_string();
    let text = text.split("\n\nUsage:").next().unwrap_or_default().trim();
    let usage = Usage(text.strip_prefix("error: ").unwrap_or(text).to_owned());
    Output::new(ColorChoice::Never, true, true).error(&usage.into(), Exit::Usage);
    Exit::Usage.into()
}
