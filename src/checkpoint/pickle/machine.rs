//! The machine that opcodes drive: what is left of the pickle, a stack, and a memo.

use std::collections::HashMap;

use super::{Arena, Id, Node, Object};
use crate::checkpoint::CheckpointError;

/// Bounds on what one container's pickles may build. A real checkpoint has some ten thousand values and some tens of
/// names; a pickle of nothing but one-byte opcodes would take 30 times its size in memory.
pub(super) const MAX_NODES: usize = 1 << 22;
const MAX_GLOBALS: usize = 1 << 16;
/// A name is copied into its node, and two opcodes of a byte or two can name what has been read before.
pub(super) const MAX_NAME: usize = 256;

/// Reads the pickle at the start of `bytes`; returns its root and how many bytes it took.
pub(in crate::checkpoint) fn read(arena: &mut Arena, bytes: &[u8]) -> Result<(Id, usize)> {
    let mut machine = Machine { arena, bytes, at: 0, stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
    let root = machine.run()?;
    Ok((root, machine.at))
}

pub(super) struct Machine<'a> {
    pub(super) arena: &'a mut Arena,
    bytes: &'a [u8],
    at: usize,
    pub(super) stack: Vec<Id>,
    pub(super) marks: Vec<usize>,
    /// A map and not a list, so that a high number costs no memory.
    pub(super) memo: HashMap<usize, Id>,
}

pub(super) type Result<T, E = CheckpointError> = std::result::Result<T, E>;

impl<'a> Machine<'a> {
    pub(super) fn fail<T>(&self, what: impl std::fmt::Display) -> Result<T> {
        Err(CheckpointError::pickle(format!("{what} (byte {})", self.at)))
    }

    pub(super) fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let bytes = self.bytes;
        let Some(end) = self.at.checked_add(len).filter(|&end| end <= self.bytes.len()) else {
            return self.fail(format!("it says {len} bytes follow; {} are left", self.bytes.len() - self.at));
        };
        let taken = &bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    pub(super) fn length<const N: usize>(&mut self) -> Result<usize> {
        let bytes = self.array::<N>()?;
        let mut wide = [0; 8];
        wide[..N].copy_from_slice(&bytes);
        match usize::try_from(u64::from_le_bytes(wide)) {
            Ok(length) => Ok(length),
            Err(_) => self.fail("a length beyond this machine's memory"),
        }
    }

    pub(super) fn line(&mut self) -> Result<&'a [u8]> {
        let bytes = self.bytes;
        let rest = &bytes[self.at..];
        let Some(len) = rest.iter().position(|&byte| byte == b'\n') else {
            return self.fail("a line without an end");
        };
        self.at += len + 1;
        let line = &rest[..len];
        Ok(line.strip_suffix(b"\r").unwrap_or(line))
    }

    pub(super) fn text_line(&mut self) -> Result<&'a str> {
        match std::str::from_utf8(self.line()?) {
            Ok(text) => Ok(text),
            Err(_) => self.fail("a line that is not text"),
        }
    }

    pub(super) fn text(&mut self, len: usize) -> Result<Box<str>> {
        match std::str::from_utf8(self.take(len)?) {
            Ok(text) => Ok(text.into()),
            Err(_) => self.fail("a string that is not UTF-8"),
        }
    }

    pub(super) fn push(&mut self, node: Node) {
        let id = self.arena.push(node);
        self.stack.push(id);
    }

    /// What lies below the innermost mark belongs to an outer object under construction.
    pub(super) fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    pub(super) fn pop(&mut self) -> Result<Id> {
        match self.stack.len() > self.floor() {
            true => self.stack.pop().map_or_else(|| self.fail("an empty stack"), Ok),
            false => self.fail("it takes a value from an empty stack"),
        }
    }

    pub(super) fn top(&self) -> Result<Id> {
        match self.stack.last() {
            Some(&id) if self.stack.len() > self.floor() => Ok(id),
            _ => self.fail("it needs a value and the stack is empty"),
        }
    }

    pub(super) fn marked(&mut self) -> Result<Vec<Id>> {
        match self.marks.pop() {
            Some(mark) => Ok(self.stack.split_off(mark)),
            None => self.fail("it needs a mark and there is none"),
        }
    }

    pub(super) fn pairs(&mut self, items: &[Id]) -> Result<Vec<(Id, Id)>> {
        match items.as_chunks::<2>() {
            (pairs, []) => Ok(pairs.iter().map(|&[key, value]| (key, value)).collect()),
            _ => self.fail("a dictionary with a key and no value"),
        }
    }

    pub(super) fn remember(&mut self, index: usize) -> Result<()> {
        let id = self.top()?;
        self.memo.insert(index, id);
        Ok(())
    }

    pub(super) fn recall(&mut self, index: usize) -> Result<()> {
        match self.memo.get(&index) {
            Some(&id) => {
                self.stack.push(id);
                Ok(())
            }
            None => self.fail(format!("memo entry {index} is not there")),
        }
    }

    pub(super) fn number<T: std::str::FromStr>(&mut self) -> Result<T> {
        match self.text_line()?.trim().parse() {
            Ok(number) => Ok(number),
            Err(_) => self.fail("a number that is none"),
        }
    }

    pub(super) fn long(&mut self, len: usize) -> Result<()> {
        let bytes = self.take(len)?;
        let node = match len {
            0 => Node::Int(0),
            1..=8 => {
                let sign = if bytes[len - 1] & 0x80 != 0 { 0xff } else { 0 };
                let mut wide = [sign; 8];
                wide[..len].copy_from_slice(bytes);
                Node::Int(i64::from_le_bytes(wide))
            }
            len => Node::Big(len),
        };
        self.push(node);
        Ok(())
    }

    pub(super) fn call(&mut self, function: Id, args: Id) {
        let object = Object { function, args, state: None, items: Vec::new(), list: Vec::new() };
        self.push(Node::Object(Box::new(object)));
    }

    pub(super) fn append(&mut self, target: Id, new: &[Id]) -> Result<()> {
        match self.arena.get_mut(target) {
            Node::List(items) | Node::Set(items) => items.extend(new),
            Node::Object(object) => object.list.extend(new),
            _ => return self.fail("it appends to something that is no list"),
        }
        Ok(())
    }

    pub(super) fn insert(&mut self, target: Id, new: &[(Id, Id)]) -> Result<()> {
        match self.arena.get_mut(target) {
            Node::Dict(items) => items.extend(new),
            Node::Object(object) => object.items.extend(new),
            _ => return self.fail("it sets a key of something that is no dictionary"),
        }
        Ok(())
    }

    pub(super) fn build(&mut self) -> Result<()> {
        let state = self.pop()?;
        let target = self.top()?;
        // Only objects have state; a name that is given some is left a name.
        if let Node::Object(object) = self.arena.get_mut(target) {
            object.state = Some(state);
        }
        Ok(())
    }

    pub(super) fn global(&mut self, module: &str, name: &str) -> Result<Id> {
        self.arena.globals += 1;
        if self.arena.globals > MAX_GLOBALS {
            return self.fail(format!("it names more than {MAX_GLOBALS} things"));
        }
        if module.len() + name.len() > MAX_NAME {
            return self.fail(format!("a name of {} bytes", module.len() + name.len()));
        }
        Ok(self.arena.push(Node::Global(format!("{module}.{name}").into())))
    }

    pub(super) fn global_lines(&mut self) -> Result<Id> {
        let module = self.text_line()?;
        let name = self.text_line()?;
        self.global(module, name)
    }
}
