//! The machine: a stack, a memo, and one arm for each opcode.

use std::collections::HashMap;

use super::{Arena, Id, Node, Object, text};
use crate::checkpoint::CheckpointError;

/// Bounds on what one container's pickles may build. A real checkpoint has some ten thousand values and some tens of
/// names; a pickle of nothing but one-byte opcodes would take 30 times its size in memory.
const MAX_NODES: usize = 1 << 22;
const MAX_GLOBALS: usize = 1 << 16;
/// A name is copied into its node, and two opcodes of a byte or two can name what has been read before.
const MAX_NAME: usize = 256;

/// Reads the pickle at the start of `bytes`; returns its root and how many bytes it took.
pub(in crate::checkpoint) fn read(arena: &mut Arena, bytes: &[u8]) -> Result<(Id, usize)> {
    let mut machine = Machine { arena, bytes, at: 0, stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
    let root = machine.run()?;
    Ok((root, machine.at))
}

struct Machine<'a> {
    arena: &'a mut Arena,
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Id>,
    marks: Vec<usize>,
    /// A map and not a list, so that a high number costs no memory.
    memo: HashMap<usize, Id>,
}

type Result<T, E = CheckpointError> = std::result::Result<T, E>;

impl<'a> Machine<'a> {
    fn fail<T>(&self, what: impl std::fmt::Display) -> Result<T> {
        Err(CheckpointError::pickle(format!("{what} (byte {})", self.at)))
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let bytes = self.bytes;
        let Some(end) = self.at.checked_add(len).filter(|&end| end <= self.bytes.len()) else {
            return self.fail(format!("it says {len} bytes follow; {} are left", self.bytes.len() - self.at));
        };
        let taken = &bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn length<const N: usize>(&mut self) -> Result<usize> {
        let bytes = self.array::<N>()?;
        let mut wide = [0; 8];
        wide[..N].copy_from_slice(&bytes);
        match usize::try_from(u64::from_le_bytes(wide)) {
            Ok(length) => Ok(length),
            Err(_) => self.fail("a length beyond this machine's memory"),
        }
    }

    fn line(&mut self) -> Result<&'a [u8]> {
        let bytes = self.bytes;
        let rest = &bytes[self.at..];
        let Some(len) = rest.iter().position(|&byte| byte == b'\n') else {
            return self.fail("a line without an end");
        };
        self.at += len + 1;
        let line = &rest[..len];
        Ok(line.strip_suffix(b"\r").unwrap_or(line))
    }

    fn text_line(&mut self) -> Result<&'a str> {
        match std::str::from_utf8(self.line()?) {
            Ok(text) => Ok(text),
            Err(_) => self.fail("a line that is not text"),
        }
    }

    fn text(&mut self, len: usize) -> Result<Box<str>> {
        match std::str::from_utf8(self.take(len)?) {
            Ok(text) => Ok(text.into()),
            Err(_) => self.fail("a string that is not UTF-8"),
        }
    }

    fn push(&mut self, node: Node) {
        let id = self.arena.push(node);
        self.stack.push(id);
    }

    /// What lies below the innermost mark belongs to an outer object under construction.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Result<Id> {
        match self.stack.len() > self.floor() {
            true => self.stack.pop().map_or_else(|| self.fail("an empty stack"), Ok),
            false => self.fail("it takes a value from an empty stack"),
        }
    }

    fn top(&self) -> Result<Id> {
        match self.stack.last() {
            Some(&id) if self.stack.len() > self.floor() => Ok(id),
            _ => self.fail("it needs a value and the stack is empty"),
        }
    }

    fn marked(&mut self) -> Result<Vec<Id>> {
        match self.marks.pop() {
            Some(mark) => Ok(self.stack.split_off(mark)),
            None => self.fail("it needs a mark and there is none"),
        }
    }

    fn pairs(&mut self, items: &[Id]) -> Result<Vec<(Id, Id)>> {
        match items.as_chunks::<2>() {
            (pairs, []) => Ok(pairs.iter().map(|&[key, value]| (key, value)).collect()),
            _ => self.fail("a dictionary with a key and no value"),
        }
    }

    fn remember(&mut self, index: usize) -> Result<()> {
        let id = self.top()?;
        self.memo.insert(index, id);
        Ok(())
    }

    fn recall(&mut self, index: usize) -> Result<()> {
        match self.memo.get(&index) {
            Some(&id) => {
                self.stack.push(id);
                Ok(())
            }
            None => self.fail(format!("memo entry {index} is not there")),
        }
    }

    fn number<T: std::str::FromStr>(&mut self) -> Result<T> {
        match self.text_line()?.trim().parse() {
            Ok(number) => Ok(number),
            Err(_) => self.fail("a number that is none"),
        }
    }

    fn long(&mut self, len: usize) -> Result<()> {
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

    fn call(&mut self, function: Id, args: Id) {
        let object = Object { function, args, state: None, items: Vec::new(), list: Vec::new() };
        self.push(Node::Object(Box::new(object)));
    }

    fn append(&mut self, target: Id, new: &[Id]) -> Result<()> {
        match self.arena.get_mut(target) {
            Node::List(items) | Node::Set(items) => items.extend(new),
            Node::Object(object) => object.list.extend(new),
            _ => return self.fail("it appends to something that is no list"),
        }
        Ok(())
    }

    fn insert(&mut self, target: Id, new: &[(Id, Id)]) -> Result<()> {
        match self.arena.get_mut(target) {
            Node::Dict(items) => items.extend(new),
            Node::Object(object) => object.items.extend(new),
            _ => return self.fail("it sets a key of something that is no dictionary"),
        }
        Ok(())
    }

    fn build(&mut self) -> Result<()> {
        let state = self.pop()?;
        let target = self.top()?;
        // Only objects have state; a name that is given some is left a name.
        if let Node::Object(object) = self.arena.get_mut(target) {
            object.state = Some(state);
        }
        Ok(())
    }

    fn global(&mut self, module: &str, name: &str) -> Result<Id> {
        self.arena.globals += 1;
        if self.arena.globals > MAX_GLOBALS {
            return self.fail(format!("it names more than {MAX_GLOBALS} things"));
        }
        if module.len() + name.len() > MAX_NAME {
            return self.fail(format!("a name of {} bytes", module.len() + name.len()));
        }
        Ok(self.arena.push(Node::Global(format!("{module}.{name}").into())))
    }

    fn global_lines(&mut self) -> Result<Id> {
        let module = self.text_line()?;
        let name = self.text_line()?;
        self.global(module, name)
    }

    fn run(&mut self) -> Result<Id> {
        loop {
            let [opcode] = self.array()?;
            if self.arena.nodes.len().max(self.stack.len()).max(self.marks.len()) > MAX_NODES {
                return self.fail(format!("it holds more than {MAX_NODES} values"));
            }
            match opcode {
                b'.' => return self.pop(),
                0x80 => {
                    let [protocol] = self.array()?;
                    if protocol > 5 {
                        return self.fail(format!("protocol {protocol}; 5 is the newest there is"));
                    }
                    self.arena.protocol = self.arena.protocol.max(protocol);
                }
                // FRAME only says how much follows.
                0x95 => {
                    self.array::<8>()?;
                }
                b'(' => self.marks.push(self.stack.len()),
                b'0' => match self.marks.last() {
                    Some(&mark) if mark == self.stack.len() => {
                        self.marks.pop();
                    }
                    _ => {
                        self.pop()?;
                    }
                },
                b'1' => {
                    self.marked()?;
                }
                b'2' => {
                    let top = self.top()?;
                    self.stack.push(top);
                }
                b'N' => self.push(Node::None),
                0x88 => self.push(Node::Bool(true)),
                0x89 => self.push(Node::Bool(false)),
                b'I' => {
                    let node = match self.line()? {
                        b"00" => Some(Node::Bool(false)),
                        b"01" => Some(Node::Bool(true)),
                        line => text::integer(line),
                    };
                    let Some(node) = node else { return self.fail("a number that is none") };
                    self.push(node);
                }
                b'L' => {
                    let Some(node) = text::integer(self.line()?) else { return self.fail("a number that is none") };
                    self.push(node);
                }
                b'F' => {
                    let value = self.number()?;
                    self.push(Node::Float(value));
                }
                b'J' => {
                    let value = i32::from_le_bytes(self.array()?);
                    self.push(Node::Int(value.into()));
                }
                b'K' => {
                    let [value] = self.array()?;
                    self.push(Node::Int(value.into()));
                }
                b'M' => {
                    let value = u16::from_le_bytes(self.array()?);
                    self.push(Node::Int(value.into()));
                }
                0x8a => {
                    let len = self.length::<1>()?;
                    self.long(len)?;
                }
                0x8b => {
                    let len = self.length::<4>()?;
                    self.long(len)?;
                }
                b'G' => {
                    let value = f64::from_be_bytes(self.array()?);
                    self.push(Node::Float(value));
                }
                b'S' => {
                    let Some(node) = text::quoted(self.line()?) else { return self.fail("a string without quotes") };
                    self.push(node);
                }
                b'T' | b'U' => {
                    let len = if opcode == b'T' { self.length::<4>()? } else { self.length::<1>()? };
                    let node = text::bytes_or_text(self.take(len)?);
                    self.push(node);
                }
                b'V' => {
                    let Some(text) = text::raw_unicode(self.line()?) else { return self.fail("a damaged string") };
                    self.push(Node::Str(text.into()));
                }
                0x8c | b'X' | 0x8d => {
                    let len = match opcode {
                        0x8c => self.length::<1>()?,
                        b'X' => self.length::<4>()?,
                        _ => self.length::<8>()?,
                    };
                    let text = self.text(len)?;
                    self.push(Node::Str(text));
                }
                b'C' | b'B' | 0x8e | 0x96 => {
                    let len = match opcode {
                        b'C' => self.length::<1>()?,
                        b'B' => self.length::<4>()?,
                        _ => self.length::<8>()?,
                    };
                    let bytes = self.take(len)?.into();
                    self.push(Node::Bytes(bytes));
                }
                b']' => self.push(Node::List(Vec::new())),
                b'l' => {
                    let items = self.marked()?;
                    self.push(Node::List(items));
                }
                b')' => self.push(Node::Tuple(Box::default())),
                b't' => {
                    let items = self.marked()?.into();
                    self.push(Node::Tuple(items));
                }
                0x85..=0x87 => {
                    let mut items = vec![0; usize::from(opcode - 0x84)];
                    for item in items.iter_mut().rev() {
                        *item = self.pop()?;
                    }
                    self.push(Node::Tuple(items.into()));
                }
                b'}' => self.push(Node::Dict(Vec::new())),
                b'd' => {
                    let items = self.marked()?;
                    let pairs = self.pairs(&items)?;
                    self.push(Node::Dict(pairs));
                }
                0x8f => self.push(Node::Set(Vec::new())),
                0x91 => {
                    let items = self.marked()?;
                    self.push(Node::Set(items));
                }
                b'a' => {
                    let item = self.pop()?;
                    let target = self.top()?;
                    self.append(target, &[item])?;
                }
                b'e' | 0x90 => {
                    let items = self.marked()?;
                    let target = self.top()?;
                    self.append(target, &items)?;
                }
                b's' => {
                    let value = self.pop()?;
                    let key = self.pop()?;
                    let target = self.top()?;
                    self.insert(target, &[(key, value)])?;
                }
                b'u' => {
                    let items = self.marked()?;
                    let pairs = self.pairs(&items)?;
                    let target = self.top()?;
                    self.insert(target, &pairs)?;
                }
                b'p' => {
                    let index = self.number()?;
                    self.remember(index)?;
                }
                b'q' => {
                    let index = self.length::<1>()?;
                    self.remember(index)?;
                }
                b'r' => {
                    let index = self.length::<4>()?;
                    self.remember(index)?;
                }
                0x94 => self.remember(self.memo.len())?,
                b'g' => {
                    let index = self.number()?;
                    self.recall(index)?;
                }
                b'h' => {
                    let index = self.length::<1>()?;
                    self.recall(index)?;
                }
                b'j' => {
                    let index = self.length::<4>()?;
                    self.recall(index)?;
                }
                b'c' => {
                    let global = self.global_lines()?;
                    self.stack.push(global);
                }
                0x93 => {
                    let name = self.pop()?;
                    let module = self.pop()?;
                    let short = |id| self.arena.str(id).filter(|text| text.len() <= MAX_NAME).map(str::to_owned);
                    let (Some(module), Some(name)) = (short(module), short(name)) else {
                        return self.fail("a global whose name is no short text");
                    };
                    let global = self.global(&module, &name)?;
                    self.stack.push(global);
                }
                b'R' | 0x81 => {
                    let args = self.pop()?;
                    let function = self.pop()?;
                    self.call(function, args);
                }
                0x92 => {
                    let _keywords = self.pop()?;
                    let args = self.pop()?;
                    let function = self.pop()?;
                    self.call(function, args);
                }
                b'i' => {
                    let function = self.global_lines()?;
                    let items = self.marked()?.into();
                    let args = self.arena.push(Node::Tuple(items));
                    self.call(function, args);
                }
                b'o' => {
                    let items = self.marked()?;
                    let Some((&function, args)) = items.split_first() else {
                        return self.fail("an object without a class");
                    };
                    let args = self.arena.push(Node::Tuple(args.into()));
                    self.call(function, args);
                }
                b'b' => self.build()?,
                b'P' => {
                    let text = self.text_line()?.into();
                    let id = self.arena.push(Node::Str(text));
                    self.push(Node::Persistent(id));
                }
                b'Q' => {
                    let id = self.pop()?;
                    self.push(Node::Persistent(id));
                }
                other => return self.fail(format!("opcode {other:#04x}, which no checkpoint has a use for")),
            }
        }
    }
}
