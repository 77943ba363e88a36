//! A checkpoint dialect as data: where its tensors sit, what each key becomes, and the published facts of its family.
//!
//! The schema is described for authors in `converters/README.md`. Parsing checks everything a mapping can get wrong on
//! its own, so that planning only ever meets a checkpoint's faults.

use std::collections::BTreeMap;

use indexmap::IndexMap;
use serde::Deserialize;

use super::template::Template;
use crate::model::{Activation, Feature, Licence, Preprocessing, Resample};

/// Bounds on a mapping file: generous for people, small enough to be read without a thought about memory.
const MAX_TEXT: usize = 1 << 18;
const MAX_RULES: usize = 1 << 10;
const MAX_WINDOW: usize = 1 << 10;

/// Why a mapping is not usable.
#[derive(Debug, thiserror::Error)]
#[error("mapping `{name}`: {reason}")]
pub struct MappingError {
    /// The mapping.
    pub name: String,
    /// What is wrong with it.
    pub reason: String,
}

/// What a family's position table must be; a table of another kind is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ExpectedPosition {
    SinCosColumnFirst,
    SinCosRowFirst,
    Learned,
    Any,
}

/// When the encoder's final norm must be in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum FinalNorm {
    Always,
    /// A fine-tuned file has `fc_norm` in its place.
    UnlessFcNorm,
    /// A segmenter or detector, which has a neck, may do without.
    UnlessNeck,
    Optional,
}

/// The `config.json` a dialect keeps beside its weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SidecarKind {
    /// timm's hub configuration.
    Timm,
    /// transformers' model configuration.
    Transformers,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    title: String,
    #[serde(default)]
    heads: BTreeMap<String, usize>,
    #[serde(default)]
    architectures: BTreeMap<String, usize>,
    norm_eps: Option<f64>,
    activation: Activation,
    position: ExpectedPosition,
    resample: Resample,
    resample_with_registers: Option<Resample>,
    #[serde(default)]
    fold_class_position: bool,
    final_norm: FinalNorm,
    feature: Feature,
    preprocessing: Preprocessing,
    licence: Licence,
    sidecar: Option<SidecarKind>,
    adapter_norm_eps: Option<f64>,
    neck_norm_eps: Option<f64>,
    window: Option<usize>,
    #[serde(default)]
    beside: Vec<String>,
    layouts: Vec<LayoutFile>,
    #[serde(default)]
    ignore: Vec<String>,
    model: IndexMap<String, String>,
    #[serde(default)]
    swiglu: IndexMap<String, String>,
    #[serde(default)]
    adapters: IndexMap<String, String>,
    #[serde(default)]
    neck: IndexMap<String, String>,
    #[serde(default)]
    concat: Vec<ConcatFile>,
    decoder: Option<DecoderFile>,
    merge: Option<Merge>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LayoutFile {
    root: Vec<String>,
    #[serde(default)]
    prefix: String,
    branch: Option<String>,
    #[serde(default)]
    unprefixed: Vec<String>,
    #[serde(default)]
    marks: Vec<String>,
    #[serde(default)]
    ignore: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ConcatFile {
    dim: usize,
    to: String,
    from: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DecoderFile {
    keep: Vec<String>,
    width: String,
    blocks: Vec<String>,
    heads: Option<usize>,
}

/// TEC's input adapter: the class token goes through an MLP before pretraining's encoder sees it. The tensors are named
/// by their targets among the adapters.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Merge {
    /// Parameter of the model that is computed.
    pub(crate) to: String,
    /// Where the token as it was before goes.
    pub(crate) token: String,
    /// First Linear of the MLP, without `.weight`.
    pub(crate) fc1: String,
    /// Second Linear.
    pub(crate) fc2: String,
}

/// One place where a dialect keeps a state dictionary.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    pub(crate) root: Vec<String>,
    pub(crate) prefix: String,
    pub(crate) branch: Option<String>,
    pub(crate) unprefixed: Vec<Template>,
    /// Keys of which one at least is in any file of this layout.
    pub(crate) marks: Vec<Template>,
    pub(crate) ignore: Vec<Template>,
}

impl Layout {
    /// The layout in words, for errors.
    pub(crate) fn describe(&self) -> String {
        let root = if self.root.is_empty() { "the top level".to_owned() } else { format!("`{}`", self.root.join(".")) };
        let prefix = if self.prefix.is_empty() { String::new() } else { format!(" under `{}`", self.prefix) };
        format!("{root}{prefix}")
    }
}

/// What a rule does with the key it claims.
#[derive(Debug, Clone)]
pub(crate) enum Rule {
    /// Copied into `model.safetensors` under a new name.
    Model(Template),
    /// The same, for the MLPs of a model with SwiGLU: backwards, it comes before a [`Rule::Model`] of the same parameter.
    SwiGlu(Template),
    /// Copied into `adapters.safetensors` under a new name.
    Adapter(Template),
    /// Copied into `neck.safetensors` under a new name.
    Neck(Template),
    /// Part `part` of `parts` of a parameter, joined along the first dimension.
    Concat { to: Template, part: usize, parts: usize },
    /// Copied into `decoder.safetensors` under its own name.
    Decoder,
    /// Not part of any file.
    Ignore,
}

/// Which tensors tell the decoder's size.
#[derive(Debug, Clone)]
pub(crate) struct DecoderFacts {
    /// Tensor whose last dimension is the decoder's width.
    pub(crate) width: String,
    /// Templates with `{i}`, any of which counts its blocks.
    pub(crate) blocks: Vec<Template>,
    /// Published head count.
    pub(crate) heads: Option<usize>,
}

/// A checkpoint dialect: rules for its keys and the published facts of its family.
///
/// ```
/// let mapping = tec_zoo::convert::Mapping::builtin("moco-v3").unwrap();
/// assert_eq!(mapping.published_heads(384), Some(12)); // where timm's ViT-S has 6
/// ```
#[derive(Debug, Clone)]
pub struct Mapping {
    pub(crate) name: String,
    pub(crate) title: String,
    pub(crate) heads: BTreeMap<usize, usize>,
    pub(crate) architectures: BTreeMap<String, usize>,
    pub(crate) norm_eps: Option<f64>,
    pub(crate) activation: Activation,
    pub(crate) position: ExpectedPosition,
    pub(crate) resample: Resample,
    pub(crate) resample_with_registers: Option<Resample>,
    /// The table has a row for the class token even where registers follow it.
    pub(crate) fold_class_position: bool,
    pub(crate) final_norm: FinalNorm,
    pub(crate) feature: Feature,
    pub(crate) preprocessing: Preprocessing,
    pub(crate) licence: Licence,
    pub(crate) sidecar: Option<SidecarKind>,
    pub(crate) adapter_norm_eps: Option<f64>,
    /// Of a neck's norms.
    pub(crate) neck_norm_eps: Option<f64>,
    /// The models attend in windows of this side, all but the last block of each quarter, and have no class token.
    pub(crate) window: Option<usize>,
    pub(crate) beside: Vec<String>,
    pub(crate) layouts: Vec<Layout>,
    pub(crate) rules: Vec<(Template, Rule)>,
    pub(crate) decoder: Option<DecoderFacts>,
    pub(crate) merge: Option<Merge>,
}

impl Mapping {
    /// Reads a mapping from the text of a file of `converters/`.
    ///
    /// # Errors
    /// When the text is not TOML of the schema, or a rule contradicts itself or another one.
    pub fn parse(name: &str, text: &str) -> Result<Self, MappingError> {
        Self::read(text).and_then(|file| Self::build(name, file)).map_err(|reason| {
            let name = name.to_owned();
            MappingError { name, reason }
        })
    }

    /// The dialect's name: its file's, without extension.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// One line about it.
    pub fn title(&self) -> &str {
        &self.title
    }

    /// Branches a full checkpoint of this dialect may hold.
    pub fn branches(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.layouts.iter().filter_map(|layout| layout.branch.as_deref()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// The family's published head count at `width`.
    pub fn published_heads(&self, width: usize) -> Option<usize> {
        self.heads.get(&width).copied()
    }

    /// The family's resampling rule for a model of `registers` register tokens.
    pub(crate) fn resample_of(&self, registers: usize) -> Resample {
        self.resample_with_registers.filter(|_| registers > 0).unwrap_or(self.resample)
    }

    fn read(text: &str) -> Result<File, String> {
        if text.len() > MAX_TEXT {
            return Err(format!("{} bytes; at most {MAX_TEXT} are read", text.len()));
        }
        toml::from_str(text).map_err(|error| error.to_string())
    }

    fn build(name: &str, file: File) -> Result<Self, String> {
        let mut rules = Vec::new();
        for (from, to) in &file.model {
            let (from, to) = renaming(from, to)?;
            rules.push((from, Rule::Model(to)));
        }
        for (from, to) in &file.swiglu {
            let (from, to) = renaming(from, to)?;
            rules.push((from, Rule::SwiGlu(to)));
        }
        for (from, to) in &file.adapters {
            let (from, to) = renaming(from, to)?;
            rules.push((from, Rule::Adapter(to)));
        }
        for (from, to) in &file.neck {
            let (from, to) = renaming(from, to)?;
            rules.push((from, Rule::Neck(to)));
        }
        if file.window.is_some_and(|side| !(1..=MAX_WINDOW).contains(&side)) {
            return Err(format!("`window` is {}; 1 to {MAX_WINDOW} make sense", file.window.unwrap_or(0)));
        }
        for concat in &file.concat {
            if concat.dim != 0 {
                return Err(format!("`{}` is joined along dimension {}; only 0 is known", concat.to, concat.dim));
            }
            let parts = concat.from.len();
            if !(2..=8).contains(&parts) {
                return Err(format!("`{}` is joined from {parts} parts; 2 to 8 make sense", concat.to));
            }
            for (part, from) in concat.from.iter().enumerate() {
                let (from, to) = renaming(from, &concat.to)?;
                rules.push((from, Rule::Concat { to, part, parts }));
            }
        }
        let decoder = match &file.decoder {
            None => None,
            Some(decoder) => {
                for keep in &decoder.keep {
                    rules.push((Template::parse(keep)?, Rule::Decoder));
                }
                let blocks = decoder.blocks.iter().map(|block| Template::parse(block)).collect::<Result<_, _>>()?;
                Some(DecoderFacts { width: decoder.width.clone(), blocks, heads: decoder.heads })
            }
        };
        for ignore in &file.ignore {
            rules.push((Template::parse(ignore)?, Rule::Ignore));
        }
        if rules.len() > MAX_RULES {
            return Err(format!("{} rules; at most {MAX_RULES} are read", rules.len()));
        }
        for (at, (template, _)) in rules.iter().enumerate() {
            if rules[..at].iter().any(|(other, _)| other == template) {
                return Err(format!("`{template}` is claimed by two rules"));
            }
        }
        if file.layouts.is_empty() {
            return Err("it has no `[[layouts]]`: where do the tensors sit?".to_owned());
        }
        let layouts = file.layouts.into_iter().map(layout).collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            name: name.to_owned(),
            title: file.title,
            heads: heads_by_width(&file.heads)?,
            architectures: file.architectures,
            norm_eps: file.norm_eps,
            activation: file.activation,
            position: file.position,
            resample: file.resample,
            resample_with_registers: file.resample_with_registers,
            fold_class_position: file.fold_class_position,
            final_norm: file.final_norm,
            feature: file.feature,
            preprocessing: file.preprocessing,
            licence: file.licence,
            sidecar: file.sidecar,
            adapter_norm_eps: file.adapter_norm_eps,
            neck_norm_eps: file.neck_norm_eps,
            window: file.window,
            beside: file.beside,
            layouts,
            rules,
            decoder,
            merge: file.merge,
        })
    }
}

fn renaming(from: &str, to: &str) -> Result<(Template, Template), String> {
    let (from, to) = (Template::parse(from)?, Template::parse(to)?);
    if !from.same_placeholders(&to) {
        return Err(format!("`{from}` and `{to}` have different placeholders, so the rule cannot be run backwards"));
    }
    Ok((from, to))
}

fn layout(file: LayoutFile) -> Result<Layout, String> {
    let templates = |texts: &[String]| texts.iter().map(|text| Template::parse(text)).collect::<Result<Vec<_>, _>>();
    Ok(Layout {
        unprefixed: templates(&file.unprefixed)?,
        marks: templates(&file.marks)?,
        ignore: templates(&file.ignore)?,
        root: file.root,
        prefix: file.prefix,
        branch: file.branch,
    })
}

fn heads_by_width(table: &BTreeMap<String, usize>) -> Result<BTreeMap<usize, usize>, String> {
    table
        .iter()
        .map(|(width, heads)| {
            let parsed: usize = width.parse().map_err(|_| format!("`heads.{width}`: `{width}` is not a width"))?;
            if *heads == 0 || !parsed.is_multiple_of(*heads) {
                return Err(format!("`heads.{width}` is {heads}, which does not divide {width}"));
            }
            Ok((parsed, *heads))
        })
        .collect()
}
