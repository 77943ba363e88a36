//! Who claims each key: a mapping's layout against a checkpoint's tensors, by names alone.

use std::collections::BTreeMap;

use super::mapping::{Layout, Mapping, Rule};
use super::template::{Captures, Template};
use crate::checkpoint::{Checkpoint, TensorEntry};
use crate::model::Mlp;

/// What becomes of one tensor of the checkpoint.
#[derive(Debug, Clone)]
pub(crate) enum Fate {
    Model(String),
    Adapter(String),
    Neck(String),
    Concat { to: String, part: usize, parts: usize },
    Decoder(String),
    Ignored,
    OtherBranch,
    Beside,
    Unclaimed,
    Ambiguous { first: String, second: String },
}

/// The fate of every tensor, in the order of `Checkpoint::tensors`, with its key as the rules saw it.
#[derive(Debug)]
pub(crate) struct Claims {
    pub(crate) fates: Vec<(String, Fate)>,
}

/// Parameters whose source marks a layout as present.
const ANCHORS: [&str; 3] = ["cls_token", "pos_embed", "patch_embed.proj.weight"];

impl Mapping {
    /// The layouts that this checkpoint has an encoder in, and the marks of.
    pub(crate) fn fitting_layouts(&self, checkpoint: &Checkpoint) -> Vec<&Layout> {
        let fits = |layout: &&Layout| {
            let keys = || checkpoint.tensors().iter().filter_map(|entry| layout.stripped_key_of(entry));
            let anchored =
                keys().any(|key| matches!(self.claim(key), Fate::Model(target) if ANCHORS.contains(&target.as_str())));
            let marks = &layout.marks;
            anchored && (marks.is_empty() || keys().any(|key| marks.iter().any(|mark| mark.captures(key).is_some())))
        };
        self.layouts.iter().filter(fits).collect()
    }

    /// Decides every tensor.
    pub(crate) fn claims(&self, layout: &Layout, checkpoint: &Checkpoint) -> Claims {
        let fates = checkpoint
            .tensors()
            .iter()
            .map(|entry| match layout.key_of(entry) {
                Some(key) => self.inside(layout, key),
                None => (shown(entry), self.outside(layout, entry)),
            })
            .collect();
        Claims { fates }
    }

    /// The fate of a key that sits in the layout's dictionary.
    fn inside(&self, layout: &Layout, key: &str) -> (String, Fate) {
        if let Some(stripped) = key.strip_prefix(layout.prefix.as_str()) {
            let fate = self.claim(stripped);
            if !matches!(fate, Fate::Unclaimed) {
                return (stripped.to_owned(), fate);
            }
        }
        let fate = if layout.unprefixed.iter().any(|template| template.captures(key).is_some()) {
            self.claim(key)
        } else if layout.ignore.iter().any(|template| template.captures(key).is_some()) {
            Fate::Ignored
        } else if self.other_branches(layout).any(|other| {
            other.root == layout.root && !other.prefix.is_empty() && key.starts_with(other.prefix.as_str())
        }) {
            Fate::OtherBranch
        } else {
            Fate::Unclaimed
        };
        (key.to_owned(), fate)
    }

    /// The fate of a tensor that sits elsewhere in the file.
    fn outside(&self, layout: &Layout, entry: &TensorEntry) -> Fate {
        let other =
            self.other_branches(layout).any(|other| !other.root.is_empty() && entry.path.starts_with(&other.root));
        // Where the tensor's path leaves the way to the layout's dictionary.
        let fork = entry.path.iter().zip(&layout.root).find(|(have, want)| have != want).map(|(have, _)| have);
        match fork {
            _ if other => Fate::OtherBranch,
            Some(name) if entry.path.len() > 1 && self.beside.contains(name) => Fate::Beside,
            _ => Fate::Unclaimed,
        }
    }

    fn other_branches<'m>(&'m self, layout: &'m Layout) -> impl Iterator<Item = &'m Layout> {
        self.layouts
            .iter()
            .filter(move |other| layout.branch.is_some() && other.branch.is_some() && other.branch != layout.branch)
    }

    /// The most specific rule's answer for `key`.
    fn claim(&self, key: &str) -> Fate {
        let mut best: Option<(&Template, &Rule, Captures<'_>)> = None;
        let mut tie: Option<&Template> = None;
        for (template, rule) in &self.rules {
            let Some(captures) = template.captures(key) else { continue };
            match best {
                Some((held, _, _)) if template.literal_segments() < held.literal_segments() => {}
                Some((held, _, _)) if template.literal_segments() == held.literal_segments() => tie = Some(template),
                _ => {
                    best = Some((template, rule, captures));
                    tie = None;
                }
            }
        }
        let Some((template, rule, captures)) = best else { return Fate::Unclaimed };
        if let Some(second) = tie {
            return Fate::Ambiguous { first: template.to_string(), second: second.to_string() };
        }
        let rendered = |to: &Template| to.render(&captures);
        match rule {
            Rule::Model(to) | Rule::SwiGlu(to) => rendered(to).map(Fate::Model),
            Rule::Adapter(to) => rendered(to).map(Fate::Adapter),
            Rule::Neck(to) => rendered(to).map(Fate::Neck),
            Rule::Concat { to, part, parts } => rendered(to).map(|to| Fate::Concat { to, part: *part, parts: *parts }),
            Rule::Decoder => Some(Fate::Decoder(key.to_owned())),
            Rule::Ignore => Some(Fate::Ignored),
        }
        .unwrap_or(Fate::Unclaimed)
    }

    /// The rules backwards: the source keys of a parameter of a model whose MLPs are `mlp`, in order (several where it is
    /// joined).
    pub(crate) fn sources_of(&self, target: &str, mlp: Mlp) -> Vec<String> {
        let mut parts = BTreeMap::new();
        // The rules for SwiGLU come after those they take the place of.
        for (from, rule) in &self.rules {
            let (to, part) = match rule {
                Rule::Model(to) | Rule::Adapter(to) | Rule::Neck(to) => (to, 0),
                Rule::SwiGlu(to) if mlp == Mlp::SwiGlu => (to, 0),
                Rule::Concat { to, part, .. } => (to, *part),
                Rule::SwiGlu(_) | Rule::Decoder | Rule::Ignore => continue,
            };
            if let Some(source) = to.captures(target).and_then(|captures| from.render(&captures)) {
                parts.insert(part, source);
            }
        }
        parts.into_values().collect()
    }
}

impl Layout {
    /// The key of a tensor in the layout's dictionary, its prefix included.
    fn key_of<'e>(&self, entry: &'e TensorEntry) -> Option<&'e str> {
        match entry.path.strip_prefix(self.root.as_slice()) {
            Some([key]) => Some(key),
            _ => None,
        }
    }

    /// The key the rules see, for a tensor under the layout's prefix.
    fn stripped_key_of<'e>(&self, entry: &'e TensorEntry) -> Option<&'e str> {
        self.key_of(entry)?.strip_prefix(self.prefix.as_str())
    }
}

/// A tensor's whole path, as reports show it.
pub(crate) fn shown(entry: &TensorEntry) -> String {
    entry.path.join("/")
}
