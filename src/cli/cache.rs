//! `tec-zoo cache`.

use anyhow::Result;
use clap::Subcommand;

use super::{exit::Exit, fetch, output::Output, registry};
use crate::fetch::Store;
use crate::fetch::cache::{Entry, Health, Sort, ls, prune, repair, verify};

/// What is stored: list it, read and check every bit, repair, clean up
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
    /// For machines: an array of objects
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Everything in the store
    Ls,
    /// Read everything and compare it with its hashes; exit 3 names what is damaged
    Verify {
        /// Fetch the damaged ranges of source files again
        #[arg(long)]
        repair: bool,
    },
    /// Remove what can be made or fetched again; models stay
    Prune,
}

pub(super) fn run(args: &Args, output: &mut Output) -> Result<Exit> {
    let store = Store::open(&registry::home()?)?;
    match &args.verb {
        Verb::Ls => show(&ls(&store)?, args.json, output),
        Verb::Prune => show(&prune(&store)?, args.json, output),
        Verb::Verify { repair } => check(&store, *repair, args.json, output),
    }
}

fn show(entries: &[Entry], json: bool, output: &mut Output) -> Result<Exit> {
    if json {
        output.json(&entries)?;
        return Ok(Exit::Done);
    }
    let row = |entry: &Entry| vec![sort(entry), entry.name.clone(), entry.bytes.to_string()];
    output.table(&["SORT", "NAME", "BYTES"], &entries.iter().map(row).collect::<Vec<_>>(), &[2])?;
    Ok(Exit::Done)
}

fn sort(entry: &Entry) -> String {
    match entry.sort {
        Sort::Model => "model",
        Sort::Source => "source",
        Sort::Partial => "partial",
        Sort::Leftover => "leftover",
    }
    .to_owned()
}

fn read(store: &Store, output: &mut Output) -> Result<Vec<Health>> {
    let mut news = fetch::News::new(output);
    let healths = verify(store, &mut |event| news.hear(event));
    news.bar.finish_and_clear();
    Ok(healths?)
}

fn check(store: &Store, mend: bool, json: bool, output: &mut Output) -> Result<Exit> {
    let mut healths = read(store, output)?;
    if mend {
        let zoo = registry::zoo()?;
        for health in healths.iter().filter(|health| !health.damage.is_empty() && health.entry.sort == Sort::Source) {
            let mut news = fetch::News::new(output);
            let repaired = repair(store, &zoo, &health.entry.name, &fetch::options(), &mut |event| news.hear(event));
            news.bar.finish_and_clear();
            repaired?;
        }
        healths = read(store, output)?;
    }
    let whole = healths.iter().all(|health| health.damage.is_empty());
    if json {
        output.json(&healths)?;
    } else {
        let rows: Vec<Vec<String>> = healths
            .iter()
            .map(|health| {
                let damage = if health.damage.is_empty() { "whole".to_owned() } else { health.damage.join(", ") };
                vec![sort(&health.entry), health.entry.name.clone(), damage]
            })
            .collect();
        output.table(&["SORT", "NAME", "HEALTH"], &rows, &[])?;
    }
    Ok(if whole { Exit::Done } else { Exit::NotHeld })
}
