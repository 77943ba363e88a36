//! What torch's pickles mean: tensors behind `_rebuild_*` calls, found by walking dictionaries and lists from the root.

mod describe;
mod rebuild;

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use safetensors::Dtype;

use super::pickle::{Arena, Id, Node};
use super::place::Place;
use super::{CheckpointError, TensorEntry, globals};

/// Bounds of the walk. Sharing lets a small pickle describe a tree that is larger than any memory; a real checkpoint has
/// some thousands of tensors, a few levels deep.
const MAX_TENSORS: usize = 1 << 18;
const MAX_DEPTH: usize = 32;
/// Values visited, each weighing as much as its key.
const MAX_WORK: usize = 1 << 22;
const KEY_WEIGHT: usize = 32;
/// Bytes of all tensors' paths together.
const MAX_PATHS: usize = 1 << 26;
/// Values shown to people.
const MAX_LEAVES: usize = 256;

/// A tensor as the pickle describes it.
type Tensor = (Dtype, Vec<usize>, Place);

/// Finds storages for persistent ids.
pub(super) enum Storages<'a> {
    /// By key: each has all of an archive entry or of a legacy file's tail.
    Keyed(&'a HashMap<String, Range<usize>>),
    /// The tar's: persistent ids name whole tensors.
    Tensors(&'a HashMap<String, Tensor>),
}

/// Tensors of a pickled object, and what else stands in it.
#[derive(Debug, Default)]
pub(super) struct Walked {
    pub(super) tensors: Vec<TensorEntry>,
    /// Non-tensor leaves near the root, for people.
    pub(super) leaves: Vec<(Vec<String>, String)>,
}

/// Every name in the arena and how often it stands there.
pub(super) fn all_globals(arena: &Arena) -> BTreeMap<&str, usize> {
    let mut out = BTreeMap::new();
    for node in arena.iter() {
        if let Node::Global(name) = node {
            *out.entry(&**name).or_default() += 1;
        }
    }
    out
}

/// Walks from `root`.
pub(super) fn walk(arena: &Arena, root: Id, source: usize, storages: &Storages<'_>) -> Result<Walked, CheckpointError> {
    let mut walker = Walker { arena, source, storages, out: Walked::default(), work: 0, paths: 0, open: Vec::new() };
    walker.visit(root, &mut Vec::new(), true)?;
    Ok(walker.out)
}

struct Walker<'a> {
    arena: &'a Arena,
    source: usize,
    storages: &'a Storages<'a>,
    out: Walked,
    work: usize,
    paths: usize,
    /// Nodes being visited: one met again below itself is a cycle.
    open: Vec<Id>,
}

impl Walker<'_> {
    fn spend(&mut self, work: usize) -> Result<(), CheckpointError> {
        self.work += work;
        match self.work > MAX_WORK {
            true => Err(CheckpointError::pickle(format!(
                "it holds more than {MAX_WORK} values, counting shared ones each time"
            ))),
            false => Ok(()),
        }
    }

    /// `named`: whether only dictionaries were passed on the way here. Recursion is bounded by twice MAX_DEPTH.
    fn visit(&mut self, id: Id, path: &mut Vec<String>, named: bool) -> Result<(), CheckpointError> {
        self.spend(1)?;
        // What a call wraps around has its path.
        if path.len() > MAX_DEPTH || self.open.len() > 2 * MAX_DEPTH {
            return Err(CheckpointError::pickle(format!("its values nest deeper than {MAX_DEPTH} levels")));
        }
        if self.open.contains(&id) {
            return Ok(());
        }
        self.open.push(id);
        match self.arena.get(id) {
            Node::Dict(items) => self.visit_items(items, path, named)?,
            Node::List(items) => self.visit_list(items, path, named)?,
            Node::Tuple(items) => self.visit_list(items, path, named)?,
            Node::Set(items) => self.visit_list(items, path, named)?,
            Node::Object(_) => self.visit_object(id, path, named)?,
            Node::Persistent(key) => {
                self.spend_key(*key)?;
                let tensor = match self.storages {
                    // A tar's persistent id is a tensor's number; a storage's number names no tensor.
                    Storages::Tensors(tensors) => self.key(*key).and_then(|key| tensors.get(&key)).cloned(),
                    Storages::Keyed(_) => None,
                };
                match tensor {
                    Some(tensor) => self.found(path, tensor)?,
                    None => self.leaf(path, named, |walker| walker.describe(id)),
                }
            }
            _ => self.leaf(path, named, |walker| walker.describe(id)),
        }
        self.open.pop();
        Ok(())
    }

    fn visit_object(&mut self, id: Id, path: &mut Vec<String>, named: bool) -> Result<(), CheckpointError> {
        let Node::Object(object) = self.arena.get(id) else { return Ok(()) };
        let name = self.arena.global(object.function).unwrap_or_default();
        let args = self.arena.sequence(object.args).unwrap_or_default();
        if let Some(rebuild) = globals::rebuild(name) {
            let tensor = self.tensor(rebuild, name, args, 0).map_err(|reason| CheckpointError::tensor(path, reason))?;
            return self.found(path, tensor);
        }
        if globals::is_dict(name) {
            // An OrderedDict's own attributes (`_metadata`) say nothing about tensors.
            if let Some(&from) = args.last() {
                match self.arena.sequence(from) {
                    Some(pairs) => {
                        let pairs = self.pairs(pairs)?;
                        self.visit_items(&pairs, path, named)?;
                    }
                    None if self.arena.is_dict(from) => self.visit(from, path, named)?,
                    None => {}
                }
            }
            return self.visit_items(&object.items, path, named);
        }
        if globals::is_sequence(name) {
            if let Some(&from) = args.first() {
                self.visit(from, path, named)?;
            }
            return self.visit_list(&object.list, path, named);
        }
        self.leaf(path, named, |walker| walker.describe(id));
        self.visit_items(&object.items, path, named)?;
        self.visit_list(&object.list, path, named)?;
        match object.state {
            Some(state) if self.arena.is_dict(state) => self.visit(state, path, named),
            _ => Ok(()),
        }
    }

    /// `[(key, value), …]`, as Python 2 wrote dictionaries of other classes.
    fn pairs(&mut self, list: &[Id]) -> Result<Vec<(Id, Id)>, CheckpointError> {
        self.spend(list.len())?;
        let pair = |&item: &Id| match self.arena.sequence(item) {
            Some(&[key, value]) => Some((key, value)),
            _ => None,
        };
        Ok(list.iter().filter_map(pair).collect())
    }

    fn visit_list(&mut self, items: &[Id], path: &mut Vec<String>, named: bool) -> Result<(), CheckpointError> {
        let start = self.out.tensors.len();
        for (index, &item) in items.iter().enumerate() {
            path.push(index.to_string());
            self.visit(item, path, false)?;
            path.pop();
        }
        if self.out.tensors.len() == start && !items.is_empty() {
            self.leaf(path, named, |_| format!("{} items", items.len()));
        }
        Ok(())
    }

    fn visit_items(&mut self, items: &[(Id, Id)], path: &mut Vec<String>, named: bool) -> Result<(), CheckpointError> {
        for &(key, value) in items {
            self.spend_key(key)?;
            path.push(self.step(key));
            self.visit(value, path, named)?;
            path.pop();
        }
        Ok(())
    }

    /// Keys are copied each time they are met.
    fn spend_key(&mut self, id: Id) -> Result<(), CheckpointError> {
        self.spend(1 + self.arena.str(id).map_or(0, str::len) / KEY_WEIGHT)
    }

    fn key(&self, id: Id) -> Option<String> {
        match self.arena.get(id) {
            Node::Str(text) => Some(text.to_string()),
            Node::Int(number) => Some(number.to_string()),
            _ => None,
        }
    }

    /// Any dictionary key as text: one that is neither text nor a number hides no tensor.
    fn step(&self, id: Id) -> String {
        match self.arena.get(id) {
            Node::Tuple(items) => {
                let items: Vec<String> = items.iter().take(8).map(|&item| self.describe(item)).collect();
                format!("({})", items.join(", "))
            }
            _ => self.key(id).unwrap_or_else(|| self.describe(id)),
        }
    }

    fn found(&mut self, path: &[String], (dtype, shape, place): Tensor) -> Result<(), CheckpointError> {
        self.paths += path.iter().map(String::len).sum::<usize>();
        if self.out.tensors.len() >= MAX_TENSORS || self.paths > MAX_PATHS {
            return Err(CheckpointError::pickle(format!(
                "it lists more than {MAX_TENSORS} tensors, or their names take more than {MAX_PATHS} bytes"
            )));
        }
        self.out.tensors.push(TensorEntry { path: path.to_vec(), dtype, shape, place });
        Ok(())
    }
}
