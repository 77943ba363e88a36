//! A model out of a remote file that holds more: only the chosen branch's tensors are fetched.

use std::ops::ControlFlow;
use std::path::Path;

use super::{Event, FetchError, Options, Remote, Store, address};
use crate::checkpoint::Checkpoint;
use crate::convert::{Action, Conversion, ConvertError, Plan, Request, config_text};
use crate::model::ModelFile;

/// `source_sha256` of a model whose file was never here as a whole.
const IN_PART: &str = "unknown: read in part";

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
/// As for [`Remote::open`] and [`crate::convert::convert`].
pub fn convert_remote(
    store: &Store,
    url: &str,
    out: &Path,
    request: &Request,
    options: &Options,
    events: &mut dyn FnMut(Event),
) -> Result<Partial, FetchError> {
    events(Event::Source { address: address::shown(url) });
    let mut remote = Remote::open(store, url, options)?;
    // The one tensor whose values a plan looks at.
    remote.bring(|path| path.last().is_some_and(|name| name.contains("pos_embed") || name.contains("position_emb")))?;
    let checkpoint = open(&remote)?;
    let plan = Plan::new(&checkpoint, request)?;
    let needed: Vec<&str> = plan
        .decisions()
        .iter()
        .filter(|decision| matches!(decision.action, Action::Copy | Action::Join))
        .map(|decision| decision.source.as_str())
        .collect();
    drop(checkpoint);
    remote.bring(|path| needed.contains(&path.join("/").as_str()))?;
    // Where the tensors really lie is known only now.
    let checkpoint = open(&remote)?;
    events(Event::Converting);
    let shown = address::shown(url);
    let name = shown.rsplit('/').next().unwrap_or_default();
    let plan = Plan::new(&checkpoint, request)?;
    let mut conversion = plan.apply(&checkpoint, name, out, false, &mut |_| ControlFlow::Continue(()))?;
    conversion.config.provenance.source_sha256 = IN_PART.to_owned();
    let config = conversion.dir.join(ModelFile::Config.name());
    super::store::write_atomically(&config, &config_text(&conversion.config, true))?;
    let (fetched, total) = remote.fetched();
    Ok(Partial { conversion, fetched, total })
}

fn open(remote: &Remote<'_>) -> Result<Checkpoint, FetchError> {
    Checkpoint::open(remote.path()).map_err(|error| ConvertError::from(error).into())
}
