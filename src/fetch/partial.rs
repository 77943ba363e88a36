//! A model out of a remote file that holds more: only the chosen branch's tensors are fetched.

use std::collections::HashSet;
use std::ops::ControlFlow;

use super::caller::{Caller, attended};
use super::download::Wanted;
use super::make::{IN_PART, Made, Origin, Recipe};
use super::{Event, FetchError, Options, Parts, Remote, Store, address};
use crate::causes::in_full;
use crate::checkpoint::Checkpoint;
use crate::convert::{Conversion, ConvertError, Plan, Request, config_text};
use crate::destination::Destination;
use crate::model::ModelFile;

/// A conversion of a file that was fetched in part.
#[derive(Debug, Clone)]
pub struct Partial {
    /// What was made.
    pub conversion: Conversion,
    /// Bytes that were fetched.
    pub fetched: u64,
    /// Bytes of the whole file.
    pub total: u64,
}

/// Converts the torch zip at `url` into the model directory `out`, fetching only the tensors that become part of it.
///
/// The file's sha256 stays unknown, and the model's provenance says so; every tensor is compared with the checksum the
/// archive has for it.
///
/// # Errors
/// As for [`Remote::open`] and [`crate::convert::convert`]. A reading that was interrupted begins again.
pub fn convert_remote(
    store: &Store,
    url: &str,
    out: impl Into<Destination>,
    request: &Request,
    options: &Options,
    events: &mut dyn FnMut(Event) -> ControlFlow<()>,
) -> Result<Partial, FetchError> {
    let out = out.into();
    out.check_directory(&ModelFile::ALL.map(ModelFile::name))?;
    attended(events, |caller| convert(store, url, &out, request, options, caller))
}

fn convert(
    store: &Store,
    url: &str,
    out: &Destination,
    request: &Request,
    options: &Options,
    caller: &Caller,
) -> Result<Partial, FetchError> {
    caller.tell(Event::Source { address: address::shown(url) });
    let mut remote = Remote::reach(store, url, options, caller)?;
    let needed = needed(&mut remote, request, caller)?;
    let (fetched, total) = remote.fetched();
    let wanted = |path: &[String]| needed.contains(&path.join("/"));
    caller.tell(Event::InPart { needed: fetched + remote.cost(wanted)?, total });
    remote.take(wanted, caller)?;
    // Where the tensors really lie is known only now.
    let checkpoint = open(&remote)?;
    caller.tell(Event::Converting);
    let shown = address::shown(url);
    let name = shown.rsplit('/').next().unwrap_or_default();
    let plan = Plan::new(&checkpoint, request)?;
    let mut conversion = plan.apply(&checkpoint, name, out.clone(), &mut |progress| caller.converting(progress))?;
    conversion.config.provenance.source_sha256 = IN_PART.to_owned();
    let config = conversion.dir.join(ModelFile::Config.name());
    super::store::write_atomically(&config, &config_text(&conversion.config, true))?;
    let (fetched, total) = remote.fetched();
    Ok(Partial { conversion, fetched, total })
}

/// A model made of parts of its file.
pub(super) struct Reading {
    pub made: Made,
    /// Bytes that were fetched.
    pub fetched: u64,
    /// Bytes of the whole file.
    pub total: u64,
}

/// Makes the model from the parts of its source's file that it needs. `None` where the whole file is wanted, or is the
/// only thing to be had.
///
/// # Errors
/// What stands in the way here, or what is wrong with the model; a server's failure is none.
pub(super) fn read(recipe: &Recipe<'_>, wanted: &Wanted, caller: &Caller) -> Result<Option<Reading>, FetchError> {
    let options = recipe.options;
    let auto = match options.parts {
        Parts::Never => return Ok(None),
        Parts::Always => false,
        Parts::Auto if recipe.source.branch.is_none() || !wanted.hashes.is_empty() || wanted.pinned.is_some() => {
            return Ok(None);
        }
        Parts::Auto => true,
    };
    let bring = || -> Result<Option<Remote<'_>>, FetchError> {
        let mut remote = Remote::reach(recipe.store, &wanted.address, options, caller)?;
        let needed = needed(&mut remote, &recipe.request(), caller)?;
        let (fetched, total) = remote.fetched();
        let all = fetched + remote.cost(|path| needed.contains(&path.join("/")))?;
        if auto && all > total / 4 * 3 {
            return Ok(None);
        }
        caller.tell(Event::InPart { needed: all, total });
        remote.take(|path| needed.contains(&path.join("/")), caller)?;
        Ok(Some(remote))
    };
    let remote = match bring() {
        Ok(Some(remote)) => remote,
        Ok(None) => return Ok(None),
        Err(error) if error.is_local() => return Err(error),
        Err(error) => {
            caller.tell(Event::NotInPart { reason: in_full(&error) });
            return Ok(None);
        }
    };
    let made = recipe.make(&open(&remote)?, Origin::Part, caller)?;
    let (fetched, total) = remote.fetched();
    Ok(Some(Reading { made, fetched, total }))
}

/// Paths, joined by `/`, of the tensors a conversion takes.
fn needed(remote: &mut Remote<'_>, request: &Request, caller: &Caller) -> Result<HashSet<String>, FetchError> {
    // The one tensor whose values a plan looks at.
    let position = |name: &String| name.contains("pos_embed") || name.contains("position_emb");
    remote.take(|path| path.last().is_some_and(position), caller)?;
    let plan = Plan::new(&open(remote)?, request)?;
    let taken = plan.decisions().iter().filter(|decision| decision.target.is_some());
    Ok(taken.map(|decision| decision.source.clone()).collect())
}

fn open(remote: &Remote<'_>) -> Result<Checkpoint, FetchError> {
    Checkpoint::open(remote.path()).map_err(|error| ConvertError::from(error).into())
}
