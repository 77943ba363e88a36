//! `torch.save` before 1.6: a magic number, three pickles, the list of storage keys, then the storages one after another.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use super::error::shown;
use super::pickle::{self, Arena, Id, Node};
use super::{CheckpointError, globals};

/// The number 0x1950a86a20f9469cfc6c as protocols 2 and up write it.
const MAGIC: &[u8] = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.";

/// Length of the pickled magic number that every such file starts with, when `bytes` do.
pub(super) fn magic(bytes: &[u8]) -> Option<usize> {
    let rest = match bytes {
        [0x80, 4..=5, 0x95, rest @ ..] => rest.get(8..)?,
        [0x80, 2..=5, rest @ ..] => rest,
        _ => return None,
    };
    rest.starts_with(MAGIC).then_some(bytes.len() - rest.len() + MAGIC.len())
}

/// Everything but the tensors.
#[derive(Debug)]
pub(super) struct Legacy {
    pub(super) arena: Arena,
    pub(super) root: Id,
    pub(super) storages: HashMap<String, Range<usize>>,
    /// Where the last storage ends.
    pub(super) end: usize,
}

/// Reads the stream behind the magic number, which takes `magic` bytes.
pub(super) fn read(bytes: &[u8], magic: usize) -> Result<Legacy, CheckpointError> {
    let mut arena = Arena::default();
    let mut at = magic;
    let mut next = |arena: &mut Arena| -> Result<(Id, usize), CheckpointError> {
        let (id, len) = pickle::read(arena, &bytes[at..])?;
        at += len;
        Ok((id, at))
    };
    let (protocol, _) = next(&mut arena)?;
    if arena.size(protocol) != Some(1001) {
        return Err(CheckpointError::pickle("its protocol is not 1001, the only one there ever was"));
    }
    let (system, _) = next(&mut arena)?;
    if let Node::Dict(items) = arena.get(system) {
        let big = |&(key, value): &(Id, Id)| {
            arena.str(key) == Some("little_endian") && matches!(arena.get(value), Node::Bool(false))
        };
        if items.iter().any(big) {
            return Err(CheckpointError::BigEndian);
        }
    }
    let (root, _) = next(&mut arena)?;
    let (keys, mut at) = next(&mut arena)?;
    let elements = element_sizes(&arena)?;
    let keys = arena.sequence(keys).ok_or_else(|| CheckpointError::pickle("its list of storages is none"))?;
    let mut storages = HashMap::with_capacity(keys.len());
    for &key in keys {
        let key = match arena.get(key) {
            Node::Str(key) => key.to_string(),
            Node::Int(key) => key.to_string(),
            _ => return Err(CheckpointError::pickle("a storage's key is no text")),
        };
        let cut = || CheckpointError::Truncated { what: format!("storage `{}`", shown(&key)) };
        let count = bytes.get(at..at + 8).and_then(|count| count.try_into().ok()).map(u64::from_le_bytes);
        let count = count.and_then(|count| usize::try_from(count).ok()).ok_or_else(cut)?;
        // A storage nothing refers to has no known element size, so nothing after it can be found.
        let element = *elements
            .get(key.as_str())
            .ok_or_else(|| CheckpointError::pickle(format!("storage `{}` has no known class", shown(&key))))?;
        let start = at + 8;
        let end = count.checked_mul(element).and_then(|len| start.checked_add(len)).filter(|&end| end <= bytes.len());
        at = end.ok_or_else(cut)?;
        if let Some(twice) = storages.insert(key, start..at) {
            return Err(CheckpointError::pickle(format!("the storage at byte {} is there twice", twice.start)));
        }
    }
    Ok(Legacy { arena, root, storages, end: at })
}

/// Bytes of one element of each storage, from the persistent ids that name it.
fn element_sizes(arena: &Arena) -> Result<HashMap<&str, usize>, CheckpointError> {
    let mut out = HashMap::new();
    // One long key can be named by many short persistent ids.
    let mut seen = HashSet::new();
    for node in arena.iter() {
        let Node::Persistent(id) = node else { continue };
        let Some(&[_, class, key, ..]) = arena.sequence(*id) else { continue };
        if !seen.insert((class, key)) {
            continue;
        }
        let (Some(class), Some(key)) = (arena.global(class), arena.str(key)) else { continue };
        let Some((element, _)) = globals::storage(class) else { continue };
        if out.insert(key, element).is_some_and(|other| other != element) {
            let reason = format!("storage `{}` has elements of two sizes", shown(key));
            return Err(CheckpointError::pickle(reason));
        }
    }
    Ok(out)
}
