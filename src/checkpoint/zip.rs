//! The directory of an uncompressed zip, as `torch.save` writes it.
//!
//! Only the directory and the local headers are read; entries stay where they are. What a torch zip never has is refused
//! by name: compression, encryption, the same name twice, names that leave the archive, entries that overlap.

use std::collections::HashMap;
use std::ops::Range;

use super::CheckpointError;
use super::error::shown;

pub(super) const END: &[u8] = b"PK\x05\x06";
const END64: &[u8] = b"PK\x06\x06";
const LOCATOR64: &[u8] = b"PK\x06\x07";
const CENTRAL: &[u8] = b"PK\x01\x02";
pub(crate) const LOCAL: &[u8] = b"PK\x03\x04";

/// Entries by name, as byte ranges of the archive.
#[derive(Debug)]
pub(super) struct Archive {
    entries: HashMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    data: Range<usize>,
    /// CRC-32 of the data; 0 where the writer left it out, as torch can be told to.
    checksum: u32,
}

fn bad(what: impl std::fmt::Display) -> CheckpointError {
    CheckpointError::Zip { reason: what.to_string() }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<usize> {
    Some(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?).into())
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?).into())
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

/// Position, size and entry count of the central directory.
fn directory(bytes: &[u8]) -> Result<(usize, usize, u64), CheckpointError> {
    // The end record is 22 bytes and a comment of at most 65,535.
    let from = bytes.len().saturating_sub(22 + 65_535);
    let tail = &bytes[from..];
    let Some(end) = tail.windows(4).rposition(|window| window == END).map(|at| from + at) else {
        return Err(bad("it has no end-of-directory record: the file is truncated, or no zip"));
    };
    let cut = || bad("its end-of-directory record is truncated");
    let mut count = u16_at(bytes, end + 10).ok_or_else(cut)? as u64;
    let mut size = u32_at(bytes, end + 12).ok_or_else(cut)?;
    let mut start = u32_at(bytes, end + 16).ok_or_else(cut)?;
    if count == 0xffff || size == 0xffff_ffff || start == 0xffff_ffff {
        let cut = || bad("its zip64 record is missing or truncated");
        let locator = end.checked_sub(20).ok_or_else(cut)?;
        if bytes.get(locator..locator + 4) != Some(LOCATOR64) {
            return Err(cut());
        }
        let record = u64_at(bytes, locator + 8).and_then(|at| usize::try_from(at).ok()).ok_or_else(cut)?;
        if record.checked_add(4).and_then(|end| bytes.get(record..end)) != Some(END64) {
            return Err(cut());
        }
        // The record was read at `record`, so adding its small field offsets cannot overflow.
        count = u64_at(bytes, record + 32).ok_or_else(cut)?;
        size = u64_at(bytes, record + 40).ok_or_else(cut)?;
        start = u64_at(bytes, record + 48).ok_or_else(cut)?;
    }
    let outside = || bad("its directory lies outside the file: the file is truncated");
    let start = usize::try_from(start).map_err(|_| outside())?;
    let size = usize::try_from(size).map_err(|_| outside())?;
    match start.checked_add(size) {
        Some(stop) if stop <= end => Ok((start, size, count)),
        _ => Err(outside()),
    }
}

impl Archive {
    /// Reads the directory of `bytes`.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, CheckpointError> {
        let (start, size, count) = directory(bytes)?;
        if count > (size / 46) as u64 {
            return Err(bad(format!("its directory of {size} bytes cannot hold {count} entries")));
        }
        let directory = &bytes[start..start + size];
        let mut archive = Self { entries: HashMap::new() };
        let mut used: Vec<(usize, usize)> = Vec::new();
        let mut at = 0;
        for _ in 0..count {
            let (name, whole, entry, next) = entry(bytes, start, directory, at)?;
            used.push((whole, entry.data.end));
            if archive.entries.contains_key(&name) {
                return Err(bad(format!("entry `{}` is there twice", shown(&name))));
            }
            archive.entries.insert(name, entry);
            at = next;
        }
        if at != size {
            return Err(bad(format!("its directory of {size} bytes says it ends after {at}")));
        }
        used.sort_unstable();
        if used.windows(2).any(|pair| pair[0].1 > pair[1].0) {
            return Err(bad("its entries overlap"));
        }
        Ok(archive)
    }

    /// Byte range of an entry.
    pub(super) fn get(&self, name: &str) -> Option<Range<usize>> {
        Some(self.entries.get(name)?.data.clone())
    }

    /// Names, in no order.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The entries below `folder`, by the rest of their names.
    pub(super) fn below(&self, folder: &str) -> HashMap<String, Range<usize>> {
        let below = |(name, entry): (&String, &Entry)| {
            name.strip_prefix(folder).map(|rest| (rest.to_owned(), entry.data.clone()))
        };
        self.entries.iter().filter_map(below).collect()
    }

    /// Data ranges and CRC-32s of the entries that have one.
    pub(super) fn checksums(&self) -> impl Iterator<Item = (Range<usize>, u32)> {
        self.entries.values().filter(|entry| entry.checksum != 0).map(|entry| (entry.data.clone(), entry.checksum))
    }

    /// An entry's bytes, compared with their checksum: for small ones, on which everything else rests.
    pub(super) fn checked<'a>(&self, name: &str, bytes: &'a [u8]) -> Result<&'a [u8], CheckpointError> {
        let entry = self.entries.get(name).ok_or_else(|| bad(format!("it has no entry `{}`", shown(name))))?;
        let data = &bytes[entry.data.clone()];
        // A fuzzer would spend its life on checksums.
        if !cfg!(fuzzing) && entry.checksum != 0 && crc32fast::hash(data) != entry.checksum {
            return Err(bad(format!("entry `{}` is damaged: its checksum differs", shown(name))));
        }
        Ok(data)
    }
}

/// What the directory says of an entry.
#[derive(Debug, Clone)]
pub(crate) struct Listed {
    pub(crate) name: String,
    /// Where its own header begins.
    pub(crate) header: usize,
    pub(crate) size: usize,
    pub(crate) checksum: u32,
}

/// Where the directory of `bytes` begins; only the end record is read.
#[cfg(feature = "fetch")]
pub(crate) fn directory_start(bytes: &[u8]) -> Result<usize, CheckpointError> {
    Ok(directory(bytes)?.0)
}

/// The entries the directory of `bytes` lists; only it and its end record are read.
#[cfg(feature = "fetch")]
pub(crate) fn listing(bytes: &[u8]) -> Result<Vec<Listed>, CheckpointError> {
    let (start, size, count) = directory(bytes)?;
    let (mut at, mut entries) = (0, Vec::new());
    for _ in 0..count {
        let (entry, next) = listed(&bytes[start..start + size], at)?;
        entries.push(entry);
        at = next;
    }
    Ok(entries)
}

/// One directory entry, and the position of the next one.
fn listed(directory: &[u8], at: usize) -> Result<(Listed, usize), CheckpointError> {
    let cut = || bad("its directory is truncated");
    if at.checked_add(4).and_then(|end| directory.get(at..end)) != Some(CENTRAL) {
        return Err(bad("its directory is damaged"));
    }
    let flags = u16_at(directory, at + 8).ok_or_else(cut)?;
    let method = u16_at(directory, at + 10).ok_or_else(cut)?;
    let checksum = u32_at(directory, at + 16).and_then(|crc| u32::try_from(crc).ok()).ok_or_else(cut)?;
    let mut packed = u32_at(directory, at + 20).ok_or_else(cut)?;
    let mut size = u32_at(directory, at + 24).ok_or_else(cut)?;
    let name_len = u16_at(directory, at + 28).ok_or_else(cut)?;
    let extra_len = u16_at(directory, at + 30).ok_or_else(cut)?;
    let comment_len = u16_at(directory, at + 32).ok_or_else(cut)?;
    let mut header = u32_at(directory, at + 42).ok_or_else(cut)?;
    let name = directory.get(at + 46..at + 46 + name_len).ok_or_else(cut)?;
    let extra = directory.get(at + 46 + name_len..at + 46 + name_len + extra_len).ok_or_else(cut)?;
    let name = std::str::from_utf8(name).map_err(|_| bad("an entry's name is not text"))?.to_owned();

    // For errors.
    let seen = shown(&name);
    let hostile = name.starts_with('/') || name.contains('\\') || name.contains('\0');
    if hostile || name.split('/').any(|part| part == "..") || name.get(1..2) == Some(":") {
        return Err(bad(format!("entry `{seen}` has a name that leaves the archive")));
    }
    if flags & 1 != 0 {
        return Err(bad(format!("entry `{seen}` is encrypted")));
    }
    if method != 0 {
        return Err(CheckpointError::Compressed { entry: seen, method });
    }
    // Zip64: the fields that overflowed follow in a fixed order, and only those.
    let mut field = zip64(extra);
    for value in [&mut size, &mut packed, &mut header] {
        if *value == 0xffff_ffff {
            *value = field.next().ok_or_else(|| bad(format!("entry `{seen}` lacks its zip64 sizes")))?;
        }
    }
    if packed != size {
        return Err(bad(format!("entry `{seen}` is stored, yet {size} bytes take {packed}")));
    }
    let header = usize::try_from(header).map_err(|_| outside(&name))?;
    let size = usize::try_from(size).map_err(|_| outside(&name))?;
    Ok((Listed { name, header, size, checksum }, at + 46 + name_len + extra_len + comment_len))
}

fn outside(name: &str) -> CheckpointError {
    bad(format!("entry `{}` lies outside the file: the file is truncated or damaged", shown(name)))
}

/// One directory entry: name, start of its local header, the entry, position of the next one.
fn entry(
    bytes: &[u8],
    limit: usize,
    directory: &[u8],
    at: usize,
) -> Result<(String, usize, Entry, usize), CheckpointError> {
    let (Listed { name, header, size, checksum }, next) = listed(directory, at)?;
    let outside = || outside(&name);
    if header.checked_add(30).is_none_or(|end| end > limit) || &bytes[header..header + 4] != LOCAL {
        return Err(outside());
    }
    let local_name = u16_at(bytes, header + 26).ok_or_else(outside)?;
    let local_extra = u16_at(bytes, header + 28).ok_or_else(outside)?;
    let data = header + 30 + local_name + local_extra;
    let end = data.checked_add(size).filter(|&end| end <= limit).ok_or_else(outside)?;
    if bytes[header + 30..(header + 30 + local_name).min(limit)] != *name.as_bytes() {
        return Err(bad(format!("entry `{}` has another name in its own header", shown(&name))));
    }
    Ok((name, header, Entry { data: data..end, checksum }, next))
}

/// The 64-bit fields of a zip64 extra block.
fn zip64(extra: &[u8]) -> impl Iterator<Item = u64> {
    let (mut at, mut block) = (0, &extra[..0]);
    while let (Some(kind), Some(len)) = (u16_at(extra, at), u16_at(extra, at + 2)) {
        let Some(body) = extra.get(at + 4..at + 4 + len) else { break };
        if kind == 1 {
            block = body;
        }
        at += 4 + len;
    }
    block.as_chunks::<8>().0.iter().map(|field| u64::from_le_bytes(*field))
}
