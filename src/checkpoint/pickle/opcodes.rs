//! One arm for each opcode of protocols 0 to 5.

use super::machine::{MAX_NAME, MAX_NODES, Machine, Result};
use super::{Id, Node, text};

impl Machine<'_> {
    /// Runs up to STOP; returns the root.
    pub(super) fn run(&mut self) -> Result<Id> {
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
