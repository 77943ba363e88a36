//! Values that are no tensors, as a person reads them.

use super::{MAX_LEAVES, Walker};
use crate::checkpoint::error::shown;
use crate::checkpoint::pickle::{Id, Node};

impl Walker<'_> {
    /// Notes a value for people, when it stands near the root and is not one of a list's many.
    pub(super) fn leaf(&mut self, path: &[String], named: bool, describe: impl Fn(&Self) -> String) {
        if named && matches!(path.len(), 1 | 2) && self.out.leaves.len() < MAX_LEAVES {
            let value = describe(self);
            self.out.leaves.push((path.iter().map(|key| shown(key)).collect(), value));
        }
    }

    /// One line about any value.
    pub(super) fn describe(&self, id: Id) -> String {
        match self.arena.get(id) {
            Node::None => "None".into(),
            Node::Bool(value) => if *value { "True" } else { "False" }.into(),
            Node::Int(value) => value.to_string(),
            Node::Big(bytes) => format!("integer of {bytes} bytes"),
            Node::Float(value) => value.to_string(),
            Node::Str(text) => format!("\"{}\"", shown(text)),
            Node::Bytes(bytes) => format!("{} bytes", bytes.len()),
            Node::Set(items) | Node::List(items) => format!("{} items", items.len()),
            Node::Tuple(items) => format!("{} items", items.len()),
            Node::Dict(items) => format!("{} keys", items.len()),
            Node::Global(name) => shown(name),
            Node::Object(object) => {
                let name = self.arena.global(object.function).unwrap_or("object");
                match name.rsplit('.').next() {
                    Some("_reconstruct" | "_frombuffer") => "numpy.ndarray".into(),
                    Some("scalar") => self.scalar(object.args).unwrap_or_else(|| shown(name)),
                    Some("encode") => self.encoded(object.args).unwrap_or_else(|| shown(name)),
                    _ => shown(name),
                }
            }
            Node::Persistent(_) => "storage".into(),
        }
    }

    /// The value of a numpy scalar, of the types that trainers log.
    fn scalar(&self, args: Id) -> Option<String> {
        let &[dtype, value] = self.arena.sequence(args)? else { return None };
        let Node::Object(dtype) = self.arena.get(dtype) else { return None };
        let code = self.arena.str(*self.arena.sequence(dtype.args)?.first()?)?;
        let bytes = self.raw(value)?;
        Some(match code {
            "f8" => f64::from_le_bytes(bytes.try_into().ok()?).to_string(),
            "f4" => f32::from_le_bytes(bytes.try_into().ok()?).to_string(),
            "i8" => i64::from_le_bytes(bytes.try_into().ok()?).to_string(),
            "i4" => i32::from_le_bytes(bytes.try_into().ok()?).to_string(),
            _ => return None,
        })
    }

    /// How many bytes protocol 2 wrote as text.
    fn encoded(&self, args: Id) -> Option<String> {
        let text = self.arena.str(*self.arena.sequence(args)?.first()?)?;
        Some(format!("{} bytes", text.chars().count()))
    }

    /// Bytes, also as protocol 2 writes them: text that `_codecs.encode` turns into Latin-1.
    fn raw(&self, id: Id) -> Option<Vec<u8>> {
        match self.arena.get(id) {
            Node::Bytes(bytes) if bytes.len() == 8 || bytes.len() == 4 => Some(bytes.to_vec()),
            Node::Object(object) if self.arena.global(object.function) == Some("_codecs.encode") => {
                let text = self.arena.str(*self.arena.sequence(object.args)?.first()?)?;
                text.chars().take(9).map(|char| u8::try_from(u32::from(char)).ok()).collect()
            }
            _ => None,
        }
    }
}
