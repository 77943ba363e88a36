//! `tec-zoo register`.

use std::path::PathBuf;

use anyhow::Result;

use super::{exit::Exit, hint::Advised, output::Output, registry};
use crate::hint::{Command, Hint};
use crate::train::{RunModel, is_run};

/// Give a model directory a name, so that every command takes the name
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  tec-zoo register out/ibot --name my-ibot && tec-zoo info my-ibot")]
pub(super) struct Args {
    /// A directory in the common format, or the folder of a pretraining that has ended; it stays where it is
    dir: PathBuf,
    /// What to call it
    #[arg(long)]
    name: String,
}

pub(super) fn run(args: &Args, output: &mut Output) -> Result<Exit> {
    let dir = match is_run(&args.dir).then(|| registry::run_model(&args.dir, output)).transpose()? {
        None => args.dir.clone(),
        Some(RunModel::Result(directory)) => directory,
        Some(RunModel::Checkpoint(_)) => {
            let text = format!("`{}` is a checkpoint, which its run may remove", args.dir.display());
            let convert = Command::new("convert").word(args.dir.display().to_string()).set("out", "DIR");
            return Err(Advised::refusal(text, Hint::new().command(convert).words(" makes a model of it to register")));
        }
    };
    let manifest = crate::zoo::register(&registry::overlay()?, &args.name, &dir)?;
    let store = crate::fetch::Store::open(&registry::home()?)?;
    crate::identify::remember(&store.fingerprints(), &args.name, &dir, &mut |_| super::interrupt::flow())?;
    output.say(format_args!("`{}` is registered in {}", args.name, manifest.display()));
    Ok(Exit::Done)
}
