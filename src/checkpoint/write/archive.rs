//! A zip of stored entries, each aligned as torch aligns them, with 64-bit fields only where they are needed.

/// Storages start on a multiple of this, so that a mapped file can be used in place.
const ALIGNMENT: u64 = 64;
/// From here on a 32-bit field holds this value, and the real one is in a 64-bit field.
const OVERFLOW: u64 = 0xffff_ffff;

pub(super) struct Archive<'p, P> {
    put: &'p mut P,
    at: u64,
    directory: Vec<u8>,
    entries: u64,
    /// The least value that goes into a 64-bit field.
    limit: u64,
}

impl<'p, E, P: FnMut(&[u8]) -> Result<(), E>> Archive<'p, P> {
    pub(super) fn new(put: &'p mut P) -> Self {
        Self::with_limit(put, OVERFLOW)
    }

    /// With a `limit` of 0 every field is a 64-bit one, as in files too large for a test.
    pub(super) fn with_limit(put: &'p mut P, limit: u64) -> Self {
        Self { put, at: 0, directory: Vec::new(), entries: 0, limit }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), E> {
        (self.put)(bytes)?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    /// The 32-bit field for `value`; what does not fit goes to `wide`.
    fn field(&self, value: u64, wide: &mut Vec<u8>) -> [u8; 4] {
        if value < self.limit {
            return (value as u32).to_le_bytes();
        }
        wide.extend(value.to_le_bytes());
        (OVERFLOW as u32).to_le_bytes()
    }

    /// One entry. Its checksum stands before it, so the bytes are read twice: from a map, the second time from memory.
    pub(super) fn add(&mut self, name: &str, bytes: &[u8]) -> Result<(), E> {
        let offset = self.at;
        let size = bytes.len() as u64;
        let mut sizes = Vec::new();
        let fields = [self.field(size, &mut sizes), self.field(size, &mut sizes)].concat();
        let mut wide = sizes.clone();
        let place = self.field(offset, &mut wide);
        let common = |extra: &[u8]| {
            let mut out = Vec::new();
            // Names are UTF-8; nothing is compressed; midnight, the first of January 1980.
            out.extend([if extra.is_empty() { 20 } else { 45 }, 0, 0, 8, 0, 0, 0, 0, 0x21, 0]);
            out.extend(crc32fast::hash(bytes).to_le_bytes());
            out.extend(&fields);
            out.extend((name.len() as u16).to_le_bytes());
            out
        };

        let mut header = b"PK\x03\x04".to_vec();
        let mut extra = zip64(&sizes);
        header.extend(common(&extra));
        // Padding is an extra field too, under torch's own mark; the smallest has four bytes.
        let end = offset + 30 + name.len() as u64 + extra.len() as u64 + 4;
        let padding = (end.next_multiple_of(ALIGNMENT) - end) as usize;
        extra.extend(b"FB");
        extra.extend((padding as u16).to_le_bytes());
        extra.resize(extra.len() + padding, b'Z');
        header.extend((extra.len() as u16).to_le_bytes());
        header.extend(name.as_bytes());
        header.extend(extra);
        self.write(&header)?;
        self.write(bytes)?;

        let extra = zip64(&wide);
        self.directory.extend(b"PK\x01\x02\x2d\0");
        self.directory.extend(common(&extra));
        self.directory.extend((extra.len() as u16).to_le_bytes());
        self.directory.extend([0; 10]); // comment, disk, attributes
        self.directory.extend(place);
        self.directory.extend(name.as_bytes());
        self.directory.extend(extra);
        self.entries += 1;
        Ok(())
    }

    /// The directory.
    pub(super) fn finish(mut self) -> Result<(), E> {
        let (start, size, entries) = (self.at, self.directory.len() as u64, self.entries);
        let directory = std::mem::take(&mut self.directory);
        self.write(&directory)?;
        let many = entries >= 0xffff || self.limit == 0;
        let mut wide = Vec::new();
        let fields = [self.field(size, &mut wide), self.field(start, &mut wide)].concat();
        if many || !wide.is_empty() {
            let record = self.at;
            let mut out = b"PK\x06\x06\x2c\0\0\0\0\0\0\0\x2d\0\x2d\0\0\0\0\0\0\0\0\0".to_vec();
            for value in [entries, entries, size, start] {
                out.extend(value.to_le_bytes());
            }
            out.extend(b"PK\x06\x07\0\0\0\0");
            out.extend(record.to_le_bytes());
            out.extend([1, 0, 0, 0]);
            self.write(&out)?;
        }
        let count = if many { 0xffff } else { entries as u16 }.to_le_bytes();
        self.write(&[b"PK\x05\x06\0\0\0\0", [count, count].concat().as_slice(), &fields, &[0, 0]].concat())
    }
}

/// The extra field of 64-bit values; none for no values.
fn zip64(values: &[u8]) -> Vec<u8> {
    if values.is_empty() {
        return Vec::new();
    }
    [[1, 0].as_slice(), &(values.len() as u16).to_le_bytes(), values].concat()
}
