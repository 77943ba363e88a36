//! What a model is called. A folder's name is nobody's proof: a name of the zoo is had by being asked for by it, by being
//! registered under it, or by coming from its file.

use std::path::Path;

use anyhow::Result;

use super::registry;
use crate::model::{Canonical, Provenance};
use crate::train::{checkpoint_name, is_run};
use crate::zoo::{Digest, Manifest, Zoo};

/// What a model is called, and what the zoo knows of it.
#[derive(Debug)]
pub(super) struct Identity {
    /// A name of the zoo; or the run's or the folder's, which then is none.
    pub(super) name: String,
    /// Where it has a name of the zoo.
    pub(super) manifest: Option<Manifest>,
}

impl Identity {
    /// Of the model opened as `model`.
    pub(super) fn of(model: &str, opened: &Canonical) -> Result<Self> {
        let zoo = registry::zoo()?;
        if !registry::is_directory(model) {
            return Ok(Self { name: model.to_owned(), manifest: Some(zoo.get(model)?.clone()) });
        }
        match Self::known(&zoo, opened) {
            Some(identity) => Ok(identity),
            // `run@120`, as no model can be called.
            None if !opened.has_files() => Ok(Self { name: checkpoint_name(opened.dir())?, manifest: None }),
            None => Ok(Self { name: own_name(&zoo, &std::path::absolute(opened.dir())?), manifest: None }),
        }
    }

    /// Of a base that was called `name` when its run began.
    pub(super) fn of_started(name: &str, opened: &Canonical) -> Result<Self> {
        let zoo = registry::zoo()?;
        Ok(Self::known(&zoo, opened).unwrap_or_else(|| Self { name: name.to_owned(), manifest: None }))
    }

    /// The released model that `opened` comes from, or the name it is registered under.
    fn known(zoo: &Zoo, opened: &Canonical) -> Option<Self> {
        let provenance = &opened.config().provenance;
        let directory = opened.dir().canonicalize().ok();
        let registered = |manifest: &&Manifest| {
            let other = manifest.directory.as_ref().and_then(|directory| directory.canonicalize().ok());
            other.is_some() && other == directory
        };
        let manifest =
            zoo.iter().find(|manifest| is_from(manifest, provenance)).or_else(|| zoo.iter().find(registered))?;
        Some(Self { name: manifest.name.clone(), manifest: Some(manifest.clone()) })
    }

    /// The released model's name, where it is one.
    pub(super) fn released(&self) -> Option<&str> {
        self.manifest.as_ref().filter(|manifest| manifest.directory.is_none()).map(|manifest| manifest.name.as_str())
    }
}

/// Whether a conversion took the branch that `manifest` is from a file of it, by the file's hash.
fn is_from(manifest: &Manifest, provenance: &Provenance) -> bool {
    let is = |hash: &Digest| matches!(hash, Digest::Sha256(known) if *known == provenance.source_sha256);
    let branch = |branch: &Option<String>| branch.is_none() || *branch == provenance.branch;
    manifest.sources.iter().any(|source| branch(&source.branch) && source.hashes.iter().any(is))
}

/// The name of the run whose result `directory` is, or its own; with its parent's before it where the zoo has such a name.
fn own_name(zoo: &Zoo, directory: &Path) -> String {
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let run = directory.parent().filter(|parent| is_run(parent) && directory.ends_with("model"));
    let called = run.unwrap_or(directory);
    let own = name(called).unwrap_or_else(|| called.display().to_string());
    match zoo.get(&own) {
        Err(_) => own,
        Ok(_) => format!("{}/{own}", called.parent().and_then(name).unwrap_or_else(|| ".".to_owned())),
    }
}
