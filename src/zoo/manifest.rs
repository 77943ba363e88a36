//! The manifest of one model.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Digest;
use crate::model::{Feature, Licence, Preprocessing, VitConfig, vit_parameters};

/// Everything known about one model before its file is there. See `zoo/README.md` for a walk through the fields.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// What the user types, and the manifest's file name.
    pub name: String,
    /// One line for people.
    pub title: String,
    /// Method (`mae`, `ibot`, `moco-v3`, `tec`, `dino`, `dinov2`, …).
    pub family: String,
    /// Whether this version can use the model.
    pub status: Status,
    /// Why it cannot, when it is only listed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What surprises users of this file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub quirks: Vec<String>,
    /// The output downstream users take.
    pub feature: Feature,
    /// How to cite it.
    pub citation: String,
    /// A model directory in the common format, for registered models: absolute, or relative to the overlay folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<PathBuf>,
    /// Whether this is meant to stand in a released model's place, whose name it has.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub replaces: bool,
    /// Licence of the weights.
    pub licence: LicenceFacts,
    /// Architecture.
    pub vit: VitConfig,
    /// Evaluation preprocessing.
    pub preprocessing: Preprocessing,
    /// The model this one was trained from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<Base>,
    /// TEC's settings for training *from* this model, as its authors chose them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tec: Option<TecDefaults>,
    /// Published results.
    #[serde(default, rename = "metric", skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<Metric>,
    /// Where the weights can be had, best first.
    #[serde(default, rename = "source", skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<Source>,
}

/// Whether a model can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// Fetched, converted and run.
    Ready,
    /// Known, but this version cannot run it; `reason` says why.
    Listed,
}

/// Licence of the weights and what it allows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LicenceFacts {
    /// SPDX identifier, or `unknown`.
    pub spdx: String,
    /// Where it is stated.
    pub evidence: String,
    /// What it comes to.
    pub terms: Terms,
    /// Another source says otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conflict: Option<String>,
}

impl LicenceFacts {
    /// The part a model directory carries.
    pub fn licence(&self) -> Licence {
        Licence { spdx: self.spdx.clone(), evidence: self.evidence.clone() }
    }
}

/// What a licence comes to for commercial use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Terms {
    /// Commercial use is allowed.
    Permissive,
    /// Nothing is stated; treat as non-commercial.
    TreatAsNonCommercial,
    /// Commercial use is not allowed.
    NonCommercial,
}

/// The model another one was trained from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Base {
    /// Its name; several where the authors left open which one; none where it was never released.
    pub one_of: Vec<String>,
    /// What is known about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// TEC's two base-dependent settings.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TecDefaults {
    /// k: rows of the attention target, besides the class token's.
    pub top_k: usize,
    /// τ: temperature of the attention target.
    pub tau: f64,
}

/// A published result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metric {
    /// What was measured, such as `imagenet-1k fine-tuning top-1 (%)`.
    pub task: String,
    /// As published.
    pub value: f64,
    /// Where it is published.
    pub evidence: String,
}

/// One place a model can be had from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Whose copy it is.
    pub kind: SourceKind,
    /// Address of the file; or `hub` and `file`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Repository on the Hugging Face hub, `organisation/name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hub: Option<String>,
    /// File in that repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Mapping in `converters/` that reads it; absent where none can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub converter: Option<String>,
    /// Branch to take where the file holds several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
    /// Size of the file in bytes, where published.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Published hashes of *this* file; empty where nobody published one.
    pub hashes: Vec<Digest>,
    /// Where address, size and hashes are stated.
    pub evidence: String,
}

/// Whose copy a source is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceKind {
    /// The authors'.
    Official,
    /// The same weights, republished by others (often in another container, so with a hash of its own).
    Mirror,
}

impl Source {
    /// The default endpoint of `hub` sources.
    pub const HUB: &str = "https://huggingface.co";

    /// Where to fetch it, with `endpoint` in place of the hub's where one is given.
    pub fn address(&self, endpoint: Option<&str>) -> String {
        match (&self.url, &self.hub, &self.file) {
            (Some(url), ..) => url.clone(),
            (None, Some(hub), Some(file)) => {
                let endpoint = endpoint.unwrap_or(Self::HUB).trim_end_matches('/');
                format!("{endpoint}/{hub}/resolve/main/{file}")
            }
            // `Manifest::validate` refuses a source with neither.
            (None, ..) => String::new(),
        }
    }

    /// Host name of the default address.
    pub fn host(&self) -> String {
        let address = self.address(None);
        let rest = address.split_once("://").map_or("", |(_, rest)| rest);
        rest.split(['/', '?', '#']).next().unwrap_or_default().to_owned()
    }

    /// File name at the end of the address.
    pub fn file_name(&self) -> String {
        let address = self.address(None);
        let path = address.split(['?', '#']).next().unwrap_or_default();
        path.rsplit('/').next().unwrap_or_default().to_owned()
    }

    fn validate(&self) -> Result<(), String> {
        let address = match (&self.url, &self.hub, &self.file) {
            (Some(url), None, None) => url,
            (None, Some(hub), Some(file)) => {
                let parts: Vec<&str> = hub.split('/').collect();
                if parts.len() != 2 || !parts.iter().all(|part| is_plain(part)) || !file.split('/').all(is_plain) {
                    return Err(format!("`{hub}` : `{file}` is not `organisation/name` and a file"));
                }
                return self.validate_facts();
            }
            _ => return Err("a source has either `url`, or `hub` and `file`".into()),
        };
        let local = ["http://localhost", "http://127.0.0.1", "http://[::1]"]
            .iter()
            .any(|host| address.strip_prefix(host).is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', ':'])));
        if !local && !address.starts_with("https://") {
            return Err(format!("`{address}` is not https"));
        }
        if !is_plain(&self.file_name()) {
            return Err(format!("`{address}` does not end in a file name"));
        }
        self.validate_facts()
    }

    fn validate_facts(&self) -> Result<(), String> {
        if self.bytes == Some(0) {
            return Err("`bytes` is 0; leave it out where it is not known".into());
        }
        match self.converter.iter().chain(&self.branch).find(|name| !is_plain(name)) {
            Some(bad) => Err(format!("`{bad}` is not a converter or branch name")),
            None => Ok(()),
        }
    }
}

/// One line of `list`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// What the user types.
    pub name: String,
    /// Method.
    pub family: String,
    /// Such as `ViT-B/16`.
    pub architecture: String,
    /// Of the backbone, class head included where the file has one.
    pub parameters: u64,
    /// SPDX identifier, or `unknown`.
    pub licence: String,
    /// What the licence comes to.
    pub terms: Terms,
    /// Host of the first source; `local` for a registered model.
    pub source: String,
    /// Number of sources.
    pub sources: usize,
    /// Whether this version can use it.
    pub status: Status,
    /// Whether it is in the store; the catalogue cannot know and says no.
    pub cached: bool,
    /// Published results.
    pub metrics: Vec<Metric>,
}

impl Manifest {
    /// Parses and checks a manifest; `name` is what its file is called.
    ///
    /// # Errors
    /// One line saying what is wrong.
    pub fn parse(name: &str, text: &str) -> Result<Self, String> {
        let manifest: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        if manifest.name != name {
            return Err(format!("it is called `{name}` but says `name = \"{}\"`", manifest.name));
        }
        manifest.validate()?;
        Ok(manifest)
    }

    /// Checks that the fields agree with each other.
    ///
    /// # Errors
    /// One line saying what is wrong.
    pub fn validate(&self) -> Result<(), String> {
        if !is_name(&self.name) {
            return Err(format!("`{}` is not a name: use a-z, 0-9, `-` and `.`, at most 64 of them", self.name));
        }
        self.vit.validate()?;
        match self.status {
            Status::Ready if self.sources.is_empty() && self.directory.is_none() => {
                return Err("it is `ready` but has neither a source nor a directory".into());
            }
            Status::Ready if self.sources.iter().any(|source| source.converter.is_none()) => {
                return Err("it is `ready` but a source names no converter".into());
            }
            Status::Listed if self.reason.is_none() => return Err("it is `listed` without a `reason`".into()),
            Status::Ready | Status::Listed => {}
        }
        self.sources.iter().try_for_each(Source::validate)
    }

    /// Parameters of the backbone, computed from the architecture.
    pub fn parameters(&self) -> u64 {
        vit_parameters(&self.vit).iter().map(|spec| spec.elements() as u64).sum()
    }

    /// Such as `ViT-B/16`; unusual sizes are written out.
    pub fn architecture(&self) -> String {
        let size = match (self.vit.width, self.vit.depth) {
            (192, 12) => "Ti".to_owned(),
            (384, 12) => "S".to_owned(),
            (768, 12) => "B".to_owned(),
            (1024, 24) => "L".to_owned(),
            (1280, 32) => "H".to_owned(),
            (1536, 40) => "g".to_owned(),
            (width, depth) => format!("{width}x{depth}"),
        };
        format!("ViT-{size}/{}", self.vit.patch_size)
    }

    /// The line `list` shows, `cached` left false.
    pub fn summary(&self) -> Summary {
        Summary {
            name: self.name.clone(),
            family: self.family.clone(),
            architecture: self.architecture(),
            parameters: self.parameters(),
            licence: self.licence.spdx.clone(),
            terms: self.licence.terms,
            source: self.sources.first().map_or_else(|| "local".to_owned(), Source::host),
            sources: self.sources.len(),
            status: self.status,
            cached: false,
            metrics: self.metrics.clone(),
        }
    }
}

/// Whether `name` can be typed, and be a file name everywhere.
pub(crate) fn is_name(name: &str) -> bool {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    name.len() <= 64
        && name.bytes().all(good)
        && name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        && !name.ends_with('.')
}

/// Whether `part` is one harmless segment of a path or address.
fn is_plain(part: &str) -> bool {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    !part.is_empty() && part.len() <= 128 && !part.starts_with('.') && part.bytes().all(good)
}
