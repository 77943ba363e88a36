//! All manifests: the embedded ones and the user's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::embedded::EMBEDDED;
use super::{LicenceFacts, Manifest, Summary, Terms};
use crate::hint::{Command, Hint};

/// Bounds on an overlay folder: a manifest is a page of text.
const MAX_MANIFEST_BYTES: u64 = 1 << 20;
const MAX_MANIFESTS: usize = 10_000;
/// Longest chain of bases followed; overlays may name each other in a circle.
const MAX_LINEAGE: usize = 16;

/// Why a model cannot be looked up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ZooError {
    /// No such model.
    #[error("no model is called `{name}`")]
    Unknown {
        /// What was asked for.
        name: String,
        /// Names that resemble it.
        near: Vec<String>,
    },
    /// An id of the Hugging Face hub in the place of a name.
    #[error("`{id}` is an id of the Hugging Face hub; models have names of their own here")]
    HubId {
        /// What was asked for.
        id: String,
        /// The models that can be had from there.
        models: Vec<String>,
    },
    /// A name that cannot be used.
    #[error("`{name}` cannot be a model's name")]
    Name {
        /// What was given.
        name: String,
    },
    /// A name that another model has.
    #[error("`{name}` is {}", if *released { "a released model's name" } else { "another registered model's name" })]
    Taken {
        /// The name.
        name: String,
        /// Whether it is a released model's.
        released: bool,
    },
    /// A name that nobody registered.
    #[error("`{name}` is a released model, and nothing is registered in its place")]
    Released {
        /// The name.
        name: String,
    },
    /// A manifest that cannot be used.
    #[error("cannot use the manifest `{file}`: {reason}")]
    Manifest {
        /// The file.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The overlay could not be read or written.
    #[error("cannot use `{path}`")]
    Io {
        /// File or folder.
        path: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A directory to register is no model.
    #[error(transparent)]
    Model(#[from] crate::model::CanonicalError),
}

impl ZooError {
    /// What to do next.
    pub fn hint(&self) -> Option<Hint> {
        match self {
            Self::Unknown { near, .. } => {
                let names: Vec<String> = near.iter().map(|name| format!("`{name}`")).collect();
                let hint = match names.as_slice() {
                    [] => Hint::new(),
                    names => Hint::new().words(format!("did you mean {}? ", names.join(", "))),
                };
                Some(hint.command(Command::new("list")).words(" shows all of them"))
            }
            Self::HubId { id, models } => Some(match models.as_slice() {
                [] => {
                    let convert = Command::new("convert").word("FILE").set("out", "DIR");
                    Hint::new().words("no model here is from there; ").command(convert).words(" reads a file of it")
                }
                [model] => Hint::new().words(format!("`{model}` is the model of {id}")),
                models => Hint::new().words(format!("`{}` are models of {id}", models.join("` and `"))),
            }),
            Self::Name { .. } => Some("use a-z, 0-9, `-` and `.`, at most 64 of them".into()),
            Self::Taken { released, .. } => {
                let takes = match released {
                    true => " puts this model in its place on this machine",
                    false => " gives the name to this model",
                };
                Some(Hint::new().words("choose another name; ").option("overwrite").words(takes))
            }
            Self::Model(error) => error.hint(),
            Self::Released { .. } | Self::Manifest { .. } | Self::Io { .. } => None,
        }
    }
}

/// One step of a model's descent.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Lineage {
    /// Model; a description where the base has no name here.
    pub model: String,
    /// Its licence, when the catalogue has it.
    pub licence: Option<LicenceFacts>,
    /// How certain the step is, where it is not.
    pub note: Option<String>,
}

/// The catalogue.
#[derive(Debug, Clone, Default)]
pub struct Zoo {
    manifests: BTreeMap<String, Manifest>,
    ignored: Vec<PathBuf>,
}

impl Zoo {
    /// The manifests this version was built with.
    ///
    /// # Errors
    /// [`ZooError::Manifest`] for a damaged one, which the tests exclude.
    pub fn embedded() -> Result<Self, ZooError> {
        let mut zoo = Self::default();
        for (name, text) in EMBEDDED {
            let manifest = Manifest::parse(name, text)
                .map_err(|reason| ZooError::Manifest { file: format!("zoo/{name}.toml"), reason })?;
            zoo.manifests.insert((*name).to_owned(), manifest);
        }
        Ok(zoo)
    }

    /// The embedded manifests, added to by the `*.toml` files of `overlay`, which need not exist. One of a released model's
    /// name overrides it where it says `replaces = true`, and is [ignored](Self::ignored) otherwise.
    ///
    /// # Errors
    /// [`ZooError`] naming the first file that cannot be used.
    pub fn with_overlay(overlay: &Path) -> Result<Self, ZooError> {
        let mut zoo = Self::embedded()?;
        zoo.overlay(overlay)?;
        Ok(zoo)
    }

    fn overlay(&mut self, dir: &Path) -> Result<(), ZooError> {
        let io = |path: &Path, source| ZooError::Io { path: path.display().to_string(), source };
        let entries = match std::fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(io(dir, error)),
        };
        for (count, entry) in entries.enumerate() {
            let path = entry.map_err(|error| io(dir, error))?.path();
            let bad = |reason: String| ZooError::Manifest { file: path.display().to_string(), reason };
            if count >= MAX_MANIFESTS {
                return Err(bad(format!("its folder has more than {MAX_MANIFESTS} entries")));
            }
            // Temporary siblings of a write in progress start with a dot.
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            let Some(name) = name.strip_suffix(".toml").filter(|name| !name.starts_with('.')) else { continue };
            if std::fs::metadata(&path).map_err(|error| io(&path, error))?.len() > MAX_MANIFEST_BYTES {
                return Err(bad(format!("it is larger than {MAX_MANIFEST_BYTES} bytes")));
            }
            let text = std::fs::read_to_string(&path).map_err(|error| io(&path, error))?;
            let mut manifest = Manifest::parse(name, &text).map_err(bad)?;
            manifest.directory = manifest.directory.map(|relative| dir.join(relative));
            if self.manifests.contains_key(name) && !manifest.replaces {
                self.ignored.push(path);
                continue;
            }
            self.manifests.insert(name.to_owned(), manifest);
        }
        Ok(())
    }

    /// Files of the overlay that have a released model's name and do not say that they replace it.
    pub fn ignored(&self) -> &[PathBuf] {
        &self.ignored
    }

    /// The manifest called `name`.
    ///
    /// # Errors
    /// [`ZooError::Unknown`], with the names that resemble it; [`ZooError::HubId`].
    ///
    /// ```
    /// use tec_zoo::zoo::Zoo;
    ///
    /// let zoo = Zoo::embedded()?;
    /// assert_eq!(zoo.get("mocov3-vits")?.vit.heads, 12);
    /// let hint = zoo.get("ibot-vit-b").unwrap_err().hint().unwrap_or_default().to_string();
    /// assert!(hint.contains("did you mean `ibot-vitb`"), "{hint}");
    /// # Ok::<(), tec_zoo::zoo::ZooError>(())
    /// ```
    pub fn get(&self, name: &str) -> Result<&Manifest, ZooError> {
        self.manifests.get(name).ok_or_else(|| match self.mirrors_of(name) {
            models if !models.is_empty() || name.contains('/') => ZooError::HubId { id: name.to_owned(), models },
            _ => ZooError::Unknown { name: name.to_owned(), near: self.near(name) },
        })
    }

    /// The models that can be had from the repository `id` of the hub, with or without its owner.
    fn mirrors_of(&self, id: &str) -> Vec<String> {
        let is = |hub: &str| hub == id || hub.split_once('/').is_some_and(|(_, name)| name == id);
        let from = |manifest: &&Manifest| manifest.sources.iter().filter_map(|source| source.hub.as_deref()).any(is);
        self.iter().filter(from).map(|manifest| manifest.name.clone()).collect()
    }

    /// All manifests, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Manifest> {
        self.manifests.values()
    }

    /// Lines of `list`, by name; of one family when one is given (an unknown family has no lines).
    pub fn list(&self, family: Option<&str>) -> Vec<Summary> {
        let wanted = |manifest: &&Manifest| family.is_none_or(|family| manifest.family == family);
        self.iter().filter(wanted).map(Manifest::summary).collect()
    }

    /// All families, sorted.
    pub fn families(&self) -> Vec<&str> {
        let mut families: Vec<&str> = self.iter().map(|manifest| manifest.family.as_str()).collect();
        families.sort_unstable();
        families.dedup();
        families
    }

    /// The model and what it was trained from, nearest first. A base the authors left open appears once for each
    /// candidate.
    ///
    /// # Errors
    /// [`ZooError::Unknown`] for `name` itself.
    pub fn lineage(&self, name: &str) -> Result<Vec<Lineage>, ZooError> {
        let first = self.get(name)?;
        let mut out = vec![Lineage { model: name.to_owned(), licence: Some(first.licence.clone()), note: None }];
        let mut next = vec![first];
        while let Some(manifest) = next.pop() {
            let Some(base) = &manifest.base else { continue };
            if base.one_of.is_empty() {
                let model = base.note.clone().unwrap_or_else(|| "unknown".to_owned());
                out.push(Lineage { model, licence: None, note: None });
            }
            for candidate in &base.one_of {
                if out.len() >= MAX_LINEAGE || out.iter().any(|step| step.model == *candidate) {
                    continue;
                }
                let known = self.manifests.get(candidate);
                let licence = known.map(|manifest| manifest.licence.clone());
                out.push(Lineage { model: candidate.clone(), licence, note: base.note.clone() });
                next.extend(known);
            }
        }
        Ok(out)
    }

    /// The strictest terms along the lineage: what a user of the model should keep to.
    ///
    /// # Errors
    /// [`ZooError::Unknown`] for `name` itself.
    pub fn terms(&self, name: &str) -> Result<Terms, ZooError> {
        let unknown = Terms::TreatAsNonCommercial;
        let terms = |step: &Lineage| step.licence.as_ref().map_or(unknown, |licence| licence.terms);
        Ok(self.lineage(name)?.iter().map(terms).max().unwrap_or(unknown))
    }

    fn near(&self, name: &str) -> Vec<String> {
        let plain = |text: &str| text.to_ascii_lowercase().replace(['-', '_', '.', '/', ' '], "");
        let asked = plain(name);
        let mut scored: Vec<(f64, &String)> = self
            .manifests
            .keys()
            .map(|known| (strsim::normalized_damerau_levenshtein(&asked, &plain(known)), known))
            .filter(|(score, _)| *score >= 0.6)
            .collect();
        scored.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(b.1)));
        scored.into_iter().take(3).map(|(_, known)| known.clone()).collect()
    }
}
