//! `tec-zoo register`.

use std::path::PathBuf;

use anyhow::Result;

use super::{exit::Exit, output::Output, registry};

/// Give a model directory a name, so that every command takes the name
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  tec-zoo register out/ibot --name my-ibot && tec-zoo info my-ibot")]
pub(super) struct Args {
    /// A directory in the common format; it stays where it is
    dir: PathBuf,
    /// What to call it
    #[arg(long)]
    name: String,
}

pub(super) fn run(args: &Args, output: &mut Output) -> Result<Exit> {
    let manifest = crate::zoo::register(&registry::overlay()?, &args.name, &args.dir)?;
    let store = crate::fetch::Store::open(&registry::home()?)?;
    crate::identify::remember(&store.fingerprints(), &args.name, &args.dir, &mut |_| super::interrupt::flow())?;
    output.say(format_args!("`{}` is registered in {}", args.name, manifest.display()));
    Ok(Exit::Done)
}
