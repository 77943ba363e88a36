//! `tec-zoo completions`.

use anyhow::Result;
use clap::CommandFactory;
use clap_complete::Shell;

use super::{Cli, exit::Exit, output::Output};

/// Print a shell's completion script
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  tec-zoo completions bash > ~/.local/share/bash-completion/completions/tec-zoo")]
pub(super) struct Args {
    /// The shell
    shell: Shell,
}

pub(super) fn run(args: &Args, output: &mut Output) -> Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "tec-zoo", &mut script);
    output.line(String::from_utf8_lossy(&script).trim_end())?;
    Ok(Exit::Done)
}
