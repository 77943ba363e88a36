//! Just enough of a pickle machine to read checkpoints, protocols 0 to 5: opcodes build inert nodes, nothing is imported
//! and nothing is called.
//!
//! Nodes live in one arena and refer to each other by index, so sharing costs nothing, a value that contains itself is
//! representable, and dropping never recurses. Work and memory are bounded by the length of the pickle: every opcode
//! makes at most one node, and every length is checked against the bytes that are left.

use super::CheckpointError;

/// Index of a node.
pub(super) type Id = u32;

/// An inert value.
#[derive(Debug, Clone)]
pub(super) enum Node {
    None,
    Bool(bool),
    Int(i64),
    /// An integer beyond 64 bits, as its number of bytes.
    Big(usize),
    Float(f64),
    Str(String),
    Bytes(Vec<u8>),
    List(Vec<Id>),
    Tuple(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Set(Vec<Id>),
    /// `module.name`, not imported.
    Global(String),
    /// What calling `function` would have made; `state` is BUILD's argument.
    Object {
        function: Id,
        args: Id,
        state: Option<Id>,
        items: Vec<(Id, Id)>,
        list: Vec<Id>,
    },
    /// A reference the surrounding container resolves (a storage).
    Persistent(Id),
}

/// The nodes of one or more pickles.
#[derive(Debug, Default)]
pub(super) struct Arena {
    nodes: Vec<Node>,
    /// Highest protocol seen.
    pub(super) protocol: u8,
}

impl Arena {
    pub(super) fn get(&self, id: Id) -> &Node {
        // Ids are only made by `push`, and nodes are never removed.
        &self.nodes[id as usize]
    }

    pub(super) fn push(&mut self, node: Node) -> Id {
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
            Node::List(items) | Node::Tuple(items) => Some(items),
            _ => None,
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

/// Reads the pickle at the start of `bytes`; returns its root and how many bytes it took.
pub(super) fn read(arena: &mut Arena, bytes: &[u8]) -> Result<(Id, usize), CheckpointError> {
    if arena.nodes.len() + bytes.len() > u32::MAX as usize {
        return Err(CheckpointError::pickle("it is larger than 4 GiB"));
    }
    let mut machine = Machine { arena, bytes, at: 0, stack: Vec::new(), marks: Vec::new(), memo: Vec::new() };
    let root = machine.run()?;
    Ok((root, machine.at))
}

struct Machine<'a> {
    arena: &'a mut Arena,
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: Vec<Option<Id>>,
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

    fn line(&mut self) -> Result<&'a str> {
        let bytes = self.bytes;
        let rest = &bytes[self.at..];
        let Some(len) = rest.iter().position(|&byte| byte == b'\n') else {
            return self.fail("a line without an end");
        };
        self.at += len + 1;
        match std::str::from_utf8(&rest[..len]) {
            Ok(text) => Ok(text.trim_end_matches('\r')),
            Err(_) => self.fail("a line that is not text"),
        }
    }

    fn text(&mut self, len: usize) -> Result<String> {
        let text = std::str::from_utf8(self.take(len)?).map(str::to_owned);
        match text {
            Ok(text) => Ok(text),
            Err(_) => self.fail("a string that is not UTF-8"),
        }
    }

    fn push(&mut self, node: Node) {
        let id = self.arena.push(node);
        self.stack.push(id);
    }

    fn pop(&mut self) -> Result<Id> {
        // What lies below the innermost mark belongs to an outer object under construction.
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.len() > floor {
            true => Ok(self.stack.split_off(self.stack.len() - 1)[0]),
            false => self.fail("it takes a value from an empty stack"),
        }
    }

    fn top(&self) -> Result<Id> {
        match self.stack.last() {
            Some(&id) => Ok(id),
            None => self.fail("it needs a value and the stack is empty"),
        }
    }

    fn marked(&mut self) -> Result<Vec<Id>> {
        let Some(mark) = self.marks.pop().filter(|&mark| mark <= self.stack.len()) else {
            return self.fail("it needs a mark and there is none");
        };
        Ok(self.stack.split_off(mark))
    }

    fn pairs(&mut self, items: Vec<Id>) -> Result<Vec<(Id, Id)>> {
        match items.as_chunks::<2>() {
            (pairs, []) => Ok(pairs.iter().map(|&[key, value]| (key, value)).collect()),
            _ => self.fail("a dictionary with a key and no value"),
        }
    }

    fn remember(&mut self, index: usize) -> Result<()> {
        // Pickles number their memo from 0 upwards, one entry an opcode; a higher number is an attempt on memory.
        if index > self.bytes.len() {
            return self.fail(format!("memo entry {index} in a pickle of {} bytes", self.bytes.len()));
        }
        if self.memo.len() <= index {
            self.memo.resize(index + 1, None);
        }
        self.memo[index] = Some(self.top()?);
        Ok(())
    }

    fn recall(&mut self, index: usize) -> Result<()> {
        match self.memo.get(index).copied().flatten() {
            Some(id) => {
                self.stack.push(id);
                Ok(())
            }
            None => self.fail(format!("memo entry {index} is not there")),
        }
    }

    fn number<T: std::str::FromStr>(&mut self) -> Result<T> {
        let parsed = self.line()?.trim().trim_end_matches('L').parse();
        match parsed {
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
        let node = match self.arena.global(function) {
            Some("collections.OrderedDict" | "collections.defaultdict" | "builtins.dict" | "__builtin__.dict") => {
                Node::Dict(self.entries(args))
            }
            Some("builtins.set" | "builtins.frozenset" | "__builtin__.set" | "__builtin__.frozenset") => {
                let items = self.arena.sequence(args).and_then(|args| self.arena.sequence(*args.first()?));
                Node::Set(items.map(<[Id]>::to_vec).unwrap_or_default())
            }
            _ => Node::Object { function, args, state: None, items: Vec::new(), list: Vec::new() },
        };
        self.push(node);
    }

    /// `OrderedDict([(key, value), …])`, as Python 2 wrote it.
    fn entries(&self, args: Id) -> Vec<(Id, Id)> {
        let list = self.arena.sequence(args).and_then(|args| self.arena.sequence(*args.last()?));
        let pair = |&item: &Id| match self.arena.sequence(item) {
            Some(&[key, value]) => Some((key, value)),
            _ => None,
        };
        list.map(|list| list.iter().filter_map(pair).collect()).unwrap_or_default()
    }

    fn append(&mut self, target: Id, new: Vec<Id>) -> Result<()> {
        match &mut self.arena.nodes[target as usize] {
            Node::List(items) | Node::Set(items) | Node::Object { list: items, .. } => {
                items.extend(new);
                Ok(())
            }
            _ => self.fail("it appends to something that is no list"),
        }
    }

    fn insert(&mut self, target: Id, new: Vec<(Id, Id)>) -> Result<()> {
        match &mut self.arena.nodes[target as usize] {
            Node::Dict(items) | Node::Object { items, .. } => {
                items.extend(new);
                Ok(())
            }
            _ => self.fail("it sets a key of something that is no dictionary"),
        }
    }

    fn build(&mut self) -> Result<()> {
        let state = self.pop()?;
        let target = self.top()?;
        // An OrderedDict's own state (`_metadata`) and a list subclass's say nothing about tensors.
        if let Node::Object { state: slot, .. } = &mut self.arena.nodes[target as usize] {
            *slot = Some(state);
        }
        Ok(())
    }

    fn global(&mut self) -> Result<Id> {
        let module = self.line()?.to_owned();
        let name = self.line()?.to_owned();
        Ok(self.arena.push(Node::Global(format!("{module}.{name}"))))
    }

    fn run(&mut self) -> Result<Id> {
        loop {
            let [opcode] = self.array()?;
            match opcode {
                b'.' => {
                    let root = self.pop()?;
                    return Ok(root);
                }
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
                    let text = self.line()?.trim().to_owned();
                    let node = match text.as_str() {
                        "00" => Node::Bool(false),
                        "01" => Node::Bool(true),
                        text => match text.parse() {
                            Ok(value) => Node::Int(value),
                            Err(_) => return self.fail("a number that is none"),
                        },
                    };
                    self.push(node);
                }
                b'L' => {
                    let value = self.number()?;
                    self.push(Node::Int(value));
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
                // Python 2's `str`: text where it is text.
                b'S' => {
                    let quoted = self.line()?.trim().to_owned();
                    let inner = quoted.get(1..quoted.len().saturating_sub(1)).unwrap_or_default().to_owned();
                    self.push(Node::Str(inner));
                }
                b'T' | b'U' => {
                    let len = if opcode == b'T' { self.length::<4>()? } else { self.length::<1>()? };
                    let bytes = self.take(len)?;
                    let node = match std::str::from_utf8(bytes) {
                        Ok(text) => Node::Str(text.to_owned()),
                        Err(_) => Node::Bytes(bytes.to_vec()),
                    };
                    self.push(node);
                }
                b'V' => {
                    let text = self.line()?.to_owned();
                    self.push(Node::Str(text));
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
                    let bytes = self.take(len)?.to_vec();
                    self.push(Node::Bytes(bytes));
                }
                b']' => self.push(Node::List(Vec::new())),
                b'l' => {
                    let items = self.marked()?;
                    self.push(Node::List(items));
                }
                b')' => self.push(Node::Tuple(Vec::new())),
                b't' => {
                    let items = self.marked()?;
                    self.push(Node::Tuple(items));
                }
                0x85..=0x87 => {
                    let mut items = Vec::new();
                    for _ in 0..opcode - 0x84 {
                        items.push(self.pop()?);
                    }
                    items.reverse();
                    self.push(Node::Tuple(items));
                }
                b'}' => self.push(Node::Dict(Vec::new())),
                b'd' => {
                    let items = self.marked()?;
                    let pairs = self.pairs(items)?;
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
                    self.append(target, vec![item])?;
                }
                b'e' | 0x90 => {
                    let items = self.marked()?;
                    let target = self.top()?;
                    self.append(target, items)?;
                }
                b's' => {
                    let value = self.pop()?;
                    let key = self.pop()?;
                    let target = self.top()?;
                    self.insert(target, vec![(key, value)])?;
                }
                b'u' => {
                    let items = self.marked()?;
                    let pairs = self.pairs(items)?;
                    let target = self.top()?;
                    self.insert(target, pairs)?;
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
                    let global = self.global()?;
                    self.stack.push(global);
                }
                0x93 => {
                    let name = self.pop()?;
                    let module = self.pop()?;
                    let (Some(module), Some(name)) = (self.arena.str(module), self.arena.str(name)) else {
                        return self.fail("a global whose name is no text");
                    };
                    let node = Node::Global(format!("{module}.{name}"));
                    self.push(node);
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
                    let function = self.global()?;
                    let items = self.marked()?;
                    let args = self.arena.push(Node::Tuple(items));
                    self.call(function, args);
                }
                b'o' => {
                    let mut items = self.marked()?;
                    if items.is_empty() {
                        return self.fail("an object without a class");
                    }
                    let function = items.remove(0);
                    let args = self.arena.push(Node::Tuple(items));
                    self.call(function, args);
                }
                b'b' => self.build()?,
                b'P' => {
                    let text = self.line()?.to_owned();
                    let id = self.arena.push(Node::Str(text));
                    self.push(Node::Persistent(id));
                }
                b'Q' => {
                    let id = self.pop()?;
                    self.push(Node::Persistent(id));
                }
                other => return self.fail(format!("opcode {other:#04x}, which no protocol up to 5 has")),
            }
        }
    }
}
