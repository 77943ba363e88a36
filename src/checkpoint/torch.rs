//! What torch's pickles mean: tensors behind `_rebuild_*` calls, found by walking dictionaries and lists from the root.

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
const MAX_VISITS: usize = 1 << 22;

/// Finds storages for persistent ids.
pub(super) enum Storages<'a> {
    /// By key: each has all of an archive entry or of a legacy file's tail.
    Keyed(&'a dyn Fn(&str) -> Option<Range<usize>>),
    /// The tar's: persistent ids name whole tensors.
    Tensors(&'a HashMap<String, (Dtype, Vec<usize>, Place)>),
}

/// Tensors of a pickled object, and what else stands in it.
#[derive(Debug, Default)]
pub(super) struct Walked {
    pub(super) tensors: Vec<TensorEntry>,
    /// Non-tensor leaves near the root, for people.
    pub(super) leaves: Vec<(Vec<String>, String)>,
}

/// Names in the arena that are not on the list, sorted.
pub(super) fn unknown_globals(arena: &Arena) -> Vec<String> {
    all_globals(arena).into_iter().filter(|(name, _)| !globals::is_known(name)).map(|(name, _)| name).collect()
}

/// Every name in the arena and how often it stands there.
pub(super) fn all_globals(arena: &Arena) -> BTreeMap<String, usize> {
    let mut out = BTreeMap::new();
    for node in arena.iter() {
        if let Node::Global(name) = node {
            *out.entry(name.clone()).or_default() += 1;
        }
    }
    out
}

/// Walks from `root`.
pub(super) fn walk(arena: &Arena, root: Id, source: usize, storages: &Storages<'_>) -> Result<Walked, CheckpointError> {
    let mut walker = Walker { arena, source, storages, out: Walked::default(), visits: 0, open: Vec::new() };
    walker.visit(root, &mut Vec::new())?;
    Ok(walker.out)
}

struct Walker<'a> {
    arena: &'a Arena,
    source: usize,
    storages: &'a Storages<'a>,
    out: Walked,
    visits: usize,
    /// Nodes being visited: one met again below itself is a cycle.
    open: Vec<Id>,
}

impl Walker<'_> {
    // Recursion is bounded by MAX_DEPTH.
    fn visit(&mut self, id: Id, path: &mut Vec<String>) -> Result<(), CheckpointError> {
        self.visits += 1;
        if self.visits > MAX_VISITS || path.len() > MAX_DEPTH {
            return Err(CheckpointError::pickle(format!(
                "its objects nest deeper than {MAX_DEPTH} levels or share each other more than {MAX_VISITS} times"
            )));
        }
        if self.open.contains(&id) {
            return Ok(());
        }
        self.open.push(id);
        match self.arena.get(id) {
            Node::Dict(items) => self.visit_items(items, path)?,
            Node::List(items) | Node::Tuple(items) => {
                for (index, &item) in items.iter().enumerate() {
                    path.push(index.to_string());
                    self.visit(item, path)?;
                    path.pop();
                }
            }
            Node::Object { function, args, state, items, list } => {
                match self.tensor(*function, *args).map_err(|reason| CheckpointError::tensor(path, reason))? {
                    Some(tensor) => self.found(path, tensor)?,
                    None => {
                        self.leaf(path, id);
                        self.visit_items(items, path)?;
                        for (index, &item) in list.iter().enumerate() {
                            path.push(index.to_string());
                            self.visit(item, path)?;
                            path.pop();
                        }
                        if let Some(state) = state
                            && matches!(self.arena.get(*state), Node::Dict(_))
                        {
                            self.visit(*state, path)?;
                        }
                    }
                }
            }
            Node::Persistent(key) => {
                if let Storages::Tensors(tensors) = self.storages {
                    // A tar's persistent id is a tensor's number; a storage's number names no tensor.
                    let found = self.key(*key).and_then(|key| tensors.get(&key));
                    if let Some((dtype, shape, place)) = found.cloned() {
                        self.found(path, (dtype, shape, place))?;
                    }
                }
            }
            _ => self.leaf(path, id),
        }
        self.open.pop();
        Ok(())
    }

    fn visit_items(&mut self, items: &[(Id, Id)], path: &mut Vec<String>) -> Result<(), CheckpointError> {
        for &(key, value) in items {
            let Some(key) = self.key(key) else { continue };
            path.push(key);
            self.visit(value, path)?;
            path.pop();
        }
        Ok(())
    }

    fn key(&self, id: Id) -> Option<String> {
        match self.arena.get(id) {
            Node::Str(text) => Some(text.clone()),
            Node::Int(number) => Some(number.to_string()),
            _ => None,
        }
    }

    fn found(&mut self, path: &[String], (dtype, shape, place): Tensor) -> Result<(), CheckpointError> {
        if self.out.tensors.len() >= MAX_TENSORS {
            return Err(CheckpointError::pickle(format!("it lists more than {MAX_TENSORS} tensors")));
        }
        self.out.tensors.push(TensorEntry { path: path.to_vec(), dtype, shape, place });
        Ok(())
    }

    fn leaf(&mut self, path: &[String], id: Id) {
        if !path.is_empty() && path.len() <= 2 && self.out.leaves.len() < 256 {
            self.out.leaves.push((path.to_vec(), self.describe(id)));
        }
    }

    fn describe(&self, id: Id) -> String {
        match self.arena.get(id) {
            Node::None => "None".into(),
            Node::Bool(value) => if *value { "True" } else { "False" }.into(),
            Node::Int(value) => value.to_string(),
            Node::Big(bytes) => format!("integer of {bytes} bytes"),
            Node::Float(value) => value.to_string(),
            Node::Str(text) => format!("{:?}", text.chars().take(80).collect::<String>()),
            Node::Bytes(bytes) => format!("{} bytes", bytes.len()),
            Node::Set(items) => format!("set of {}", items.len()),
            Node::Global(name) => name.clone(),
            Node::Object { function, .. } => self.arena.global(*function).unwrap_or("object").to_owned(),
            Node::List(items) | Node::Tuple(items) => format!("{} items", items.len()),
            Node::Dict(items) => format!("{} keys", items.len()),
            Node::Persistent(_) => "storage".into(),
        }
    }

    /// The tensor a call makes, when it makes one.
    fn tensor(&self, function: Id, args: Id) -> Result<Option<Tensor>, String> {
        let Some(name) = self.arena.global(function) else { return Ok(None) };
        let args = self.arena.sequence(args).unwrap_or_default();
        let short = || format!("`{name}` was called with {} arguments", args.len());
        match name {
            "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state" => {
                self.inner(*args.first().ok_or_else(short)?)
            }
            "torch._tensor._rebuild_from_type_v2" => match args {
                [inner, _, inner_args, ..] => self.tensor_of(*inner, *inner_args),
                _ => Err(short()),
            },
            "torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2" | "torch._utils._rebuild_tensor_v3" => {
                let [storage, offset, shape, strides, rest @ ..] = args else { return Err(short()) };
                let dtype = match (name.ends_with("_v3"), rest) {
                    (true, [_, _, dtype, ..]) => Some(*dtype),
                    (true, _) => return Err(short()),
                    (false, _) => None,
                };
                self.strided(*storage, *offset, *shape, *strides, dtype).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// A call whose function must not be another wrapper: wrappers around wrappers would recurse.
    fn tensor_of(&self, function: Id, args: Id) -> Result<Option<Tensor>, String> {
        match self.arena.global(function) {
            Some(name) if name.starts_with("torch._utils._rebuild_tensor") => self.tensor(function, args),
            _ => Err("it is wrapped in something that is no tensor".into()),
        }
    }

    fn inner(&self, id: Id) -> Result<Option<Tensor>, String> {
        match self.arena.get(id) {
            Node::Object { function, args, .. } => self.tensor_of(*function, *args),
            Node::Persistent(key) => match self.storages {
                Storages::Tensors(tensors) => Ok(self.key(*key).and_then(|key| tensors.get(&key)).cloned()),
                Storages::Keyed(_) => Err("it is a storage where a tensor should be".into()),
            },
            _ => Err("it is a parameter without a tensor".into()),
        }
    }

    fn sizes(&self, id: Id, what: &str) -> Result<Vec<usize>, String> {
        let items = match self.arena.get(id) {
            // torch.Size((…)) in some files.
            Node::Object { args, .. } => {
                self.arena.sequence(*args).and_then(|args| self.arena.sequence(*args.first()?))
            }
            _ => self.arena.sequence(id),
        };
        let items = items.ok_or_else(|| format!("its {what} is no tuple"))?;
        if items.len() > MAX_DEPTH {
            return Err(format!("it has {} axes", items.len()));
        }
        let size = |&item| self.arena.size(item).ok_or_else(|| format!("its {what} holds no size"));
        items.iter().map(size).collect()
    }

    fn strided(&self, storage: Id, offset: Id, shape: Id, strides: Id, dtype: Option<Id>) -> Result<Tensor, String> {
        let shape = self.sizes(shape, "shape")?;
        let strides = self.sizes(strides, "strides")?;
        let offset = self.arena.size(offset).ok_or("its offset is no size")?;
        let Node::Persistent(id) = self.arena.get(storage) else { return Err("its storage is none".into()) };
        let Storages::Keyed(find) = self.storages else { return Err("its storage is none".into()) };
        let id = self.arena.sequence(*id).ok_or("its storage has no description")?;
        let [kind, class, key, location, count, rest @ ..] = id else {
            return Err(format!("its storage is described by {} values", id.len()));
        };
        if self.arena.str(*kind) != Some("storage") {
            return Err("its storage is none".into());
        }
        if self.arena.str(*location) == Some("meta") {
            return Err("it is on the `meta` device: the file holds its shape and no values".into());
        }
        let class = self.arena.global(*class).ok_or("its storage has no class")?;
        let dtype = match (dtype, globals::is_untyped(class)) {
            (Some(dtype), _) => {
                let name = self.arena.global(dtype).ok_or("its dtype has no name")?;
                globals::dtype(name).flatten().ok_or_else(|| format!("its type is `{name}`, which is not supported"))?
            }
            (None, false) => globals::storage(class)
                .flatten()
                .ok_or_else(|| format!("its storage is `{class}`, which is not supported"))?,
            (None, true) => return Err("its storage is untyped and no type is given".into()),
        };
        let element = dtype.bitsize() / 8;
        let key = self.key(*key).ok_or("its storage has no key")?;
        let range = find(&key).ok_or_else(|| format!("its storage `{key}` is not in the file"))?;
        let unit = if globals::is_untyped(class) { 1 } else { element };
        let count = self.arena.size(*count).and_then(|count| count.checked_mul(unit));
        // A legacy view's count is its root's.
        if rest.first().is_none_or(|view| matches!(self.arena.get(*view), Node::None)) && count != Some(range.len()) {
            let said = count.map_or("too many".to_owned(), |count| count.to_string());
            return Err(format!("its storage `{key}` says {said} bytes and has {}", range.len()));
        }
        let view = match rest.first().map(|&view| self.arena.sequence(view)) {
            Some(Some([_, offset, _])) => self.arena.size(*offset).ok_or("its view has no offset")?,
            _ => 0,
        };
        let offset = offset.checked_add(view).and_then(|offset| offset.checked_mul(element));
        let place = Place {
            source: self.source,
            storage: range,
            offset: offset.ok_or("its offset overflows")?,
            strides,
            element,
        };
        place.check(&shape)?;
        Ok((dtype, shape, place))
    }
}

type Tensor = (Dtype, Vec<usize>, Place);
