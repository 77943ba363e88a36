//! `tec-zoo view`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Subcommand;

use super::{exit::Exit, interrupt, out, output::Output};
use crate::train::Metrics;
use crate::view::{Curve, ViewError, curves};

/// Pictures, as SVG or PNG
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Losses, learning rate and speed of one pretraining, or of several over one another
    #[command(after_help = "Example:
  tec-zoo view curves run-a run-b --out curves.svg")]
    Curves {
        /// Folders `pretrain --out` made, finished or not
        #[arg(required = true, value_name = "RUN")]
        runs: Vec<PathBuf>,
        /// The picture to write, .svg or .png; `-` for SVG on standard output
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Replace a file that is already there
        #[arg(long)]
        overwrite: bool,
    },
}

pub(super) fn run(args: &Args, output: &mut Output) -> Result<Exit> {
    let Verb::Curves { runs, out, overwrite } = &args.verb;
    let out = out::file(out, *overwrite, false, output)?;
    let read = |run: PathBuf| {
        let name = run.file_name().unwrap_or(run.as_os_str()).to_string_lossy().into_owned();
        let records = Metrics::read(&run.join(Metrics::NAME))
            .map_err(|source| ViewError::Read { run: run.display().to_string(), source })?;
        Ok(Curve { name, records })
    };
    let runs = runs.clone();
    let runs = interrupt::leaving(move || runs.into_iter().map(read).collect::<Result<Vec<_>, ViewError>>())??;
    curves(&runs, out.clone())?;
    output.line(&out)?;
    Ok(Exit::Done)
}
