//! `tec-zoo register`.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::{exit::Exit, hint::Advised, interrupt, output::Output, registry};
use crate::fetch::Store;
use crate::hint::{Command, Hint};
use crate::train::{RunModel, is_run};
use crate::{identify, zoo};

/// Give a model directory a name, so that every command takes the name; or take the name away again
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tec-zoo register out/ibot --name my-ibot && tec-zoo info my-ibot
  tec-zoo register --remove my-ibot                             the directory stays where it is")]
pub(super) struct Args {
    /// A directory in the common format, or the folder of a pretraining that has ended; it stays where it is
    #[arg(required_unless_present = "remove")]
    dir: Option<PathBuf>,
    /// What to call it
    #[arg(long, required_unless_present = "remove")]
    name: Option<String>,
    /// Take the name even where another model has it; a released model is hidden until the name is removed
    #[arg(long)]
    overwrite: bool,
    /// Forget a registered name; its directory stays, and a released model of that name is seen again
    #[arg(long, value_name = "NAME", conflicts_with_all = ["dir", "name", "overwrite"])]
    remove: Option<String>,
}

pub(super) fn run(args: &Args, output: &mut Output) -> Result<Exit> {
    match (&args.dir, &args.name, &args.remove) {
        (Some(dir), Some(name), _) => register(dir, name, args.overwrite, output)?,
        (_, _, Some(name)) => remove(name, output)?,
        // The parser lets none through.
        _ => {}
    }
    Ok(Exit::Done)
}

fn register(dir: &Path, name: &str, overwrite: bool, output: &mut Output) -> Result<()> {
    let dir = match is_run(dir).then(|| registry::run_model(dir, output)).transpose()? {
        None => dir.to_path_buf(),
        Some(RunModel::Result(directory)) => directory,
        Some(RunModel::Checkpoint(_)) => {
            let text = format!("`{}` is a checkpoint, which its run may remove", dir.display());
            let convert = Command::new("convert").word(dir.display().to_string()).set("out", "DIR");
            return Err(Advised::refusal(text, Hint::new().command(convert).words(" makes a model of it to register")));
        }
    };
    let manifest = zoo::register(&registry::overlay()?, name, &dir, overwrite)?;
    let store = Store::open(&registry::home()?)?;
    remember(&store, name, &dir)?;
    output.say(format_args!("`{name}` is registered in {}", manifest.display()));
    Ok(())
}

/// Keeps the model's fingerprint. The name holds by now: who does not wait leaves it to `identify`, which makes what is missing.
fn remember(store: &Store, name: &str, dir: &Path) -> Result<()> {
    let folder = store.fingerprints();
    match identify::remember(&folder, name, dir, &mut |_| interrupt::flow()) {
        Err(identify::IdentifyError::Interrupted) => Ok(identify::forget(&folder, name)?),
        other => Ok(other?),
    }
}

fn remove(name: &str, output: &mut Output) -> Result<()> {
    let directory = zoo::unregister(&registry::overlay()?, name)?;
    let store = Store::open(&registry::home()?)?;
    identify::forget(&store.fingerprints(), name)?;
    // A released model that is here is known by its own values again.
    if let (Ok(_), Some(released)) = (registry::zoo()?.get(name), store.model(name)) {
        remember(&store, name, &released)?;
    }
    output.say(format_args!("`{name}` is no longer registered; its files stay in {}", directory.display()));
    Ok(())
}
