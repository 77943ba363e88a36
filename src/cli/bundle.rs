//! `tec-zoo bundle`.

use std::path::PathBuf;

use anyhow::{Context, Result};

use super::{exit::Exit, fetch, out, output::Output, registry};
use crate::fetch::{Store, bundle};

/// Pack models that are here into one archive, for a site without a network
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  tec-zoo fetch ibot-vitb mae-vitb && tec-zoo bundle ibot-vitb mae-vitb --out models.bundle
  tec-zoo fetch --from models.bundle                            on the other side; with names, only those

The bundle is a plain tar and the same bytes whenever it is made of the same models. Its sha256 goes to stdout: compare it on the
other side. Licences stay with their models.")]
pub(super) struct Args {
    /// Names of the zoo, or of registered models
    #[arg(required = true)]
    models: Vec<String>,
    /// The archive to write; `-` for standard output
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Replace a file that is already there
    #[arg(long)]
    overwrite: bool,
    /// For machines: one object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, output: &mut Output) -> Result<Exit> {
    let out = out::file(&args.out, args.overwrite, args.json, output)?;
    let zoo = registry::zoo()?;
    let store = Store::open(&registry::home()?)?;
    let mut models = Vec::new();
    for name in &args.models {
        let Some(directory) = registry::present(zoo.get(name)?)? else {
            return Err(registry::absent(name));
        };
        models.push((name.clone(), directory));
    }
    let mut news = fetch::News::new(output);
    let made = bundle(&store, &models, out.clone(), &mut |event| news.hear(event));
    news.bar.finish_and_clear();
    let made = made.with_context(|| format!("{out} is not written"))?;
    match args.json {
        true => output.json(&made)?,
        false => output.line(format_args!("{}  {}", made.sha256, made.path.display()))?,
    }
    Ok(Exit::Done)
}
