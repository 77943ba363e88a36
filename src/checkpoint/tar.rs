//! `torch.save` before 0.1.10: a tar with the members `storages`, `tensors` and `pickle`.

use std::collections::HashMap;
use std::io::Cursor;
use std::ops::Range;

use safetensors::Dtype;

use super::error::shown;
use super::pickle::{self, Arena, Id, Node};
use super::place::Place;
use super::{CheckpointError, globals};

/// Offset of the magic in a tar header.
const MAGIC_AT: usize = 257;

/// Whether `bytes` look like a tar.
pub(super) fn is_tar(bytes: &[u8]) -> bool {
    bytes.get(MAGIC_AT..MAGIC_AT + 5) == Some(b"ustar")
}

/// The pickled object and the tensors its persistent ids name.
#[derive(Debug)]
pub(super) struct Tar {
    pub(super) arena: Arena,
    pub(super) root: Id,
    pub(super) tensors: HashMap<String, (Dtype, Vec<usize>, Place)>,
}

fn bad(what: impl std::fmt::Display) -> CheckpointError {
    CheckpointError::Tar { reason: shown(&what.to_string()) }
}

fn members(bytes: &[u8]) -> Result<HashMap<String, Range<usize>>, CheckpointError> {
    let mut archive = ::tar::Archive::new(Cursor::new(bytes));
    let mut out = HashMap::new();
    for entry in archive.entries().map_err(bad)? {
        let entry = entry.map_err(bad)?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let start = usize::try_from(entry.raw_file_position()).map_err(bad)?;
        let size = usize::try_from(entry.size()).map_err(bad)?;
        let end = start.checked_add(size).filter(|&end| end <= bytes.len());
        let end = end.ok_or_else(|| CheckpointError::Truncated { what: format!("member `{}`", shown(&name)) })?;
        if out.contains_key(&name) {
            return Err(bad(format!("member `{}` is there twice", shown(&name))));
        }
        out.insert(name, start..end);
    }
    Ok(out)
}

/// A member read front to back.
struct Member<'a> {
    name: &'static str,
    bytes: &'a [u8],
    /// Offset of `bytes` in the file.
    base: usize,
    at: usize,
}

impl<'a> Member<'a> {
    fn of(
        file: &'a [u8],
        members: &HashMap<String, Range<usize>>,
        name: &'static str,
    ) -> Result<Self, CheckpointError> {
        let range =
            members.get(name).ok_or_else(|| bad(format!("it has no member `{name}`: not a torch checkpoint")))?;
        Ok(Self { name, bytes: &file[range.clone()], base: range.start, at: 0 })
    }

    fn pickle(&mut self, arena: &mut Arena) -> Result<Id, CheckpointError> {
        let (id, len) = pickle::read(arena, &self.bytes[self.at..])?;
        self.at += len;
        Ok(id)
    }

    fn skip(&mut self, len: usize) -> Result<Range<usize>, CheckpointError> {
        let end = self.at.checked_add(len).filter(|&end| end <= self.bytes.len());
        let end = end.ok_or_else(|| CheckpointError::Truncated { what: format!("member `{}`", self.name) })?;
        let range = self.base + self.at..self.base + end;
        self.at = end;
        Ok(range)
    }

    fn word(&mut self) -> Result<u64, CheckpointError> {
        let at = self.at;
        self.skip(8)?;
        let bytes: [u8; 8] = self.bytes[at..at + 8].try_into().map_err(bad)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// A non-negative 64-bit number.
    fn size(&mut self) -> Result<usize, CheckpointError> {
        let size = i64::try_from(self.word()?).ok().and_then(|size| usize::try_from(size).ok());
        size.ok_or_else(|| bad(format!("a negative size in `{}`", self.name)))
    }
}

fn key(arena: &Arena, id: Id) -> Result<String, CheckpointError> {
    match arena.get(id) {
        Node::Str(text) => Ok(text.to_string()),
        Node::Int(number) => Ok(number.to_string()),
        _ => Err(bad("a key is neither text nor a number")),
    }
}

/// Reads the archive.
pub(super) fn read(bytes: &[u8], source: usize) -> Result<Tar, CheckpointError> {
    let members = members(bytes)?;
    let mut arena = Arena::default();

    let mut member = Member::of(bytes, &members, "storages")?;
    let mut storages: HashMap<String, (Dtype, Range<usize>)> = HashMap::new();
    let count = member.pickle(&mut arena)?;
    for _ in 0..arena.size(count).ok_or_else(|| bad("its number of storages is none"))? {
        let id = member.pickle(&mut arena)?;
        let Some(&[name, _, class]) = arena.sequence(id) else { return Err(bad("a storage has no description")) };
        let name = key(&arena, name)?;
        let class = arena.global(class).unwrap_or_default();
        let dtype = globals::storage(class).and_then(|(_, dtype)| dtype);
        let dtype = dtype
            .ok_or_else(|| bad(format!("storage `{}` is `{}`, which is not supported", shown(&name), shown(class))))?;
        let len = member.size()?.checked_mul(dtype.bitsize() / 8).ok_or_else(|| bad("a storage's size overflows"))?;
        storages.insert(name, (dtype, member.skip(len)?));
    }
    let views = member.pickle(&mut arena)?;
    for &view in arena.sequence(views).unwrap_or_default() {
        let Some(&[target, root, offset, count]) = arena.sequence(view) else { return Err(bad("a view is none")) };
        let (dtype, range) = storages.get(&key(&arena, root)?).cloned().ok_or_else(|| bad("a view has no root"))?;
        let element = dtype.bitsize() / 8;
        let bytes = |id| arena.size(id).and_then(|size| size.checked_mul(element));
        let view = bytes(offset).zip(bytes(count)).and_then(|(offset, len)| {
            let start = range.start.checked_add(offset)?;
            Some(start..start.checked_add(len).filter(|&end| end <= range.end)?)
        });
        storages.insert(key(&arena, target)?, (dtype, view.ok_or_else(|| bad("a view reaches beyond its root"))?));
    }

    let mut member = Member::of(bytes, &members, "tensors")?;
    let mut tensors = HashMap::new();
    let count = member.pickle(&mut arena)?;
    for _ in 0..arena.size(count).ok_or_else(|| bad("its number of tensors is none"))? {
        let id = member.pickle(&mut arena)?;
        let Some(&[name, storage, _]) = arena.sequence(id) else { return Err(bad("a tensor has no description")) };
        let name = key(&arena, name)?;
        let found = storages.get(&key(&arena, storage)?).cloned();
        let (dtype, storage) = found.ok_or_else(|| bad(format!("tensor `{}` has no storage", shown(&name))))?;
        // The rank is a 32-bit number padded to 64.
        let rank = member.word()? & 0xffff_ffff;
        if rank > 32 {
            return Err(bad(format!("tensor `{}` has {rank} axes", shown(&name))));
        }
        let shape = (0..rank).map(|_| member.size()).collect::<Result<Vec<_>, _>>()?;
        let strides = (0..rank).map(|_| member.size()).collect::<Result<Vec<_>, _>>()?;
        let element = dtype.bitsize() / 8;
        let offset = member.size()?.checked_mul(element).ok_or_else(|| bad("a tensor's offset overflows"))?;
        let place = Place::strided(source, storage, offset, &shape, strides, element);
        let place = place.map_err(|reason| bad(format!("tensor `{}`: {reason}", shown(&name))))?;
        tensors.insert(name, (dtype, shape, place));
    }

    let root = Member::of(bytes, &members, "pickle")?.pickle(&mut arena)?;
    Ok(Tar { arena, root, tensors })
}
