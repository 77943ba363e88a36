//! The networks of a file: a full checkpoint holds several (teacher and student, optimizer states, heads).

use std::collections::BTreeMap;

/// Depth beyond which names are not split further: a hostile pickle nests as deep as it likes.
const DEEPEST: usize = 32;

/// A network: where its names begin, and which of the file's units are its.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Group {
    /// Dotted; empty where the file is one network.
    pub(super) place: String,
    pub(super) members: Vec<usize>,
}

/// Splits dotted names into networks, in the order of their first members.
///
/// A network is what holds a list (`blocks.0`, `blocks.1`, …) below its own name. Where a name has two or more of them
/// below it, each is a network of its own; where it has one, or is a list itself, it is one.
pub(super) fn groups<'a>(names: impl Iterator<Item = &'a str>) -> Vec<Group> {
    let mut root = Node::default();
    for (index, name) in names.enumerate() {
        root.insert(name.splitn(DEEPEST, '.'), index);
    }
    let mut found = root.networks("");
    found.sort_by_key(|group| group.members.iter().min().copied());
    found
}

#[derive(Default)]
struct Node<'a> {
    here: Vec<usize>,
    below: BTreeMap<&'a str, Node<'a>>,
}

impl<'a> Node<'a> {
    fn insert(&mut self, mut name: impl Iterator<Item = &'a str>, index: usize) {
        match name.next() {
            None => self.here.push(index),
            Some(part) => self.below.entry(part).or_default().insert(name, index),
        }
    }

    fn is_list(&self) -> bool {
        self.below.keys().any(|key| key.bytes().all(|b| b.is_ascii_digit()))
    }

    fn holds_list(&self) -> bool {
        self.is_list() || self.below.values().any(Node::holds_list)
    }

    fn all(&self) -> Vec<usize> {
        let below = self.below.values().flat_map(Node::all);
        self.here.iter().copied().chain(below).collect()
    }

    fn networks(&self, place: &str) -> Vec<Group> {
        let whole = || vec![Group { place: place.to_owned(), members: self.all() }];
        if self.is_list() {
            return whole();
        }
        let name = |key: &str| if place.is_empty() { key.to_owned() } else { format!("{place}.{key}") };
        let (networks, rest): (Vec<_>, Vec<_>) =
            self.below.iter().partition(|(_, node)| !node.is_list() && node.holds_list());
        let mut found: Vec<Group> = networks.iter().flat_map(|(key, node)| node.networks(&name(key))).collect();
        if found.len() < 2 {
            // One network and what surrounds it: `vit.encoder` without `vit.embeddings` would be half of one.
            return match (networks.as_slice(), rest.is_empty() && self.here.is_empty()) {
                ([_], true) => found,
                _ => whole(),
            };
        }
        let members: Vec<usize> =
            self.here.iter().copied().chain(rest.iter().flat_map(|(_, node)| node.all())).collect();
        if !members.is_empty() {
            found.push(Group { place: place.to_owned(), members });
        }
        found
    }
}
