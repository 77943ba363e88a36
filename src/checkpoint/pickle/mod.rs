//! Just enough of a pickle machine to read checkpoints, protocols 0 to 5: opcodes build inert nodes, nothing is imported
//! and nothing is called.
//!
//! Nodes live in one arena and refer to each other by index, so sharing costs nothing, a value that contains itself is
//! representable, and dropping never recurses. Work and memory are bounded by the length of the pickle: every length is
//! checked against the bytes that are left, and no opcode copies what another one made.

mod machine;
mod opcodes;
mod text;

use super::globals;
pub(super) use machine::read;

/// Index of a node.
pub(super) type Id = u32;

/// An inert value.
#[derive(Debug)]
pub(super) enum Node {
    None,
    Bool(bool),
    Int(i64),
    /// An integer beyond 64 bits, as its number of bytes.
    Big(usize),
    Float(f64),
    Str(Box<str>),
    Bytes(Box<[u8]>),
    List(Vec<Id>),
    Tuple(Box<[Id]>),
    Dict(Vec<(Id, Id)>),
    Set(Vec<Id>),
    /// `module.name`, not imported.
    Global(Box<str>),
    Object(Box<Object>),
    /// A reference the surrounding container resolves (a storage).
    Persistent(Id),
}

/// What calling `function` would have made.
#[derive(Debug)]
pub(super) struct Object {
    pub(super) function: Id,
    pub(super) args: Id,
    /// BUILD's argument.
    pub(super) state: Option<Id>,
    /// What was set by key.
    pub(super) items: Vec<(Id, Id)>,
    /// What was appended.
    pub(super) list: Vec<Id>,
}

/// The nodes of one or more pickles.
#[derive(Debug, Default)]
pub(super) struct Arena {
    nodes: Vec<Node>,
    globals: usize,
    /// Highest protocol seen.
    pub(super) protocol: u8,
}

impl Arena {
    pub(super) fn get(&self, id: Id) -> &Node {
        // Ids are only made by `push`, and nodes are never removed.
        &self.nodes[id as usize]
    }

    fn get_mut(&mut self, id: Id) -> &mut Node {
        &mut self.nodes[id as usize]
    }

    fn push(&mut self, node: Node) -> Id {
        self.nodes.push(node);
        (self.nodes.len() - 1) as Id
    }

    /// All nodes.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter()
    }

    /// The text of a string node.
    pub(super) fn str(&self, id: Id) -> Option<&str> {
        match self.get(id) {
            Node::Str(text) => Some(text),
            _ => None,
        }
    }

    /// A non-negative integer that fits the machine.
    pub(super) fn size(&self, id: Id) -> Option<usize> {
        match self.get(id) {
            Node::Int(value) => usize::try_from(*value).ok(),
            _ => None,
        }
    }

    /// The items of a tuple or list.
    pub(super) fn sequence(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Node::List(items) => Some(items),
            Node::Tuple(items) => Some(items),
            _ => None,
        }
    }

    /// Whether it is a dictionary, of whatever class.
    pub(super) fn is_dict(&self, id: Id) -> bool {
        match self.get(id) {
            Node::Dict(_) => true,
            Node::Object(object) => self.global(object.function).is_some_and(globals::is_dict),
            _ => false,
        }
    }

    /// `module.name` of a global.
    pub(super) fn global(&self, id: Id) -> Option<&str> {
        match self.get(id) {
            Node::Global(name) => Some(name),
            _ => None,
        }
    }
}
