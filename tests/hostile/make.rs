//! Writes pickles and zips that no honest program would.

/// `module.name`, by reference.
pub(super) fn global(module: &str, name: &str) -> Vec<u8> {
    format!("c{module}\n{name}\n").into_bytes()
}

pub(super) fn text(text: &str) -> Vec<u8> {
    [&b"X"[..], &u32::try_from(text.len()).unwrap().to_le_bytes(), text.as_bytes()].concat()
}

pub(super) fn int(value: i64) -> Vec<u8> {
    [b"\x8a\x08", &value.to_le_bytes()[..]].concat()
}

pub(super) fn tuple(items: &[Vec<u8>]) -> Vec<u8> {
    [b"(", &items.concat()[..], b"t"].concat()
}

pub(super) fn list(items: &[Vec<u8>]) -> Vec<u8> {
    [b"](", &items.concat()[..], b"e"].concat()
}

pub(super) fn dict(items: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let items: Vec<u8> = items.iter().flat_map(|(key, value)| [&key[..], value].concat()).collect();
    [b"}(", &items[..], b"u"].concat()
}

pub(super) fn call(function: Vec<u8>, args: &[Vec<u8>]) -> Vec<u8> {
    [function, tuple(args), b"R".to_vec()].concat()
}

pub(super) fn ints(values: &[i64]) -> Vec<u8> {
    tuple(&values.iter().map(|&value| int(value)).collect::<Vec<_>>())
}

/// A view of a storage of f32, as `torch.save` writes one.
pub(super) struct View {
    pub(super) class: &'static str,
    pub(super) key: &'static str,
    pub(super) location: &'static str,
    pub(super) count: i64,
    pub(super) offset: i64,
    pub(super) shape: Vec<i64>,
    pub(super) strides: Vec<i64>,
}

impl Default for View {
    /// Two by two of the four floats in storage `0`.
    fn default() -> Self {
        let (shape, strides) = (vec![2, 2], vec![2, 1]);
        Self { class: "FloatStorage", key: "0", location: "cpu", count: 4, offset: 0, shape, strides }
    }
}

impl View {
    pub(super) fn pickled(&self) -> Vec<u8> {
        let storage =
            [text("storage"), global("torch", self.class), text(self.key), text(self.location), int(self.count)];
        let storage = [tuple(&storage), b"Q".to_vec()].concat();
        let args = [storage, int(self.offset), ints(&self.shape), ints(&self.strides), b"\x89".to_vec(), b")".to_vec()];
        call(global("torch._utils", "_rebuild_tensor_v2"), &args)
    }
}

/// A whole pickle around one value.
pub(super) fn pickle(value: &[u8]) -> Vec<u8> {
    [b"\x80\x02", value, b"."].concat()
}

/// A torch zip with this pickle and one storage of four floats.
pub(super) fn torch_zip(pickle: &[u8]) -> Vec<u8> {
    let floats: Vec<u8> = (0..4).flat_map(|value| (value as f32).to_le_bytes()).collect();
    zip(&[
        Entry::new("archive/data.pkl", pickle),
        Entry::new("archive/byteorder", b"little"),
        Entry::new("archive/data/0", &floats),
    ])
}

/// A legacy stream with this pickled object and its storages.
pub(super) fn legacy(object: &[u8], keys: &[&str], storages: &[u8]) -> Vec<u8> {
    let system = dict(&[(text("little_endian"), b"\x88".to_vec())]);
    let keys: Vec<_> = keys.iter().map(|key| text(key)).collect();
    [
        pickle(b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"),
        pickle(&int(1001)),
        pickle(&system),
        pickle(object),
        pickle(&list(&keys)),
        storages.to_vec(),
    ]
    .concat()
}

/// An entry of a zip, and the lies its directory tells.
#[derive(Clone)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) data: Vec<u8>,
    pub(super) local_name: Option<&'static str>,
    pub(super) flags: u16,
    pub(super) method: u16,
    pub(super) checksum: u32,
    pub(super) packed: Option<u32>,
    pub(super) size: Option<u32>,
    pub(super) offset: Option<u32>,
    pub(super) extra: Vec<u8>,
}

impl Entry {
    pub(super) fn new(name: &str, data: &[u8]) -> Self {
        Self {
            name: name.to_owned(),
            data: data.to_vec(),
            local_name: None,
            flags: 0,
            method: 0,
            checksum: 0,
            packed: None,
            size: None,
            offset: None,
            extra: Vec::new(),
        }
    }
}

pub(super) fn zip(entries: &[Entry]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    let word = |value: u32| value.to_le_bytes();
    let short = |value: usize| u16::try_from(value).unwrap().to_le_bytes();
    for entry in entries {
        let offset = u32::try_from(out.len()).unwrap();
        let len = u32::try_from(entry.data.len()).unwrap();
        let local = entry.local_name.unwrap_or(&entry.name).as_bytes();
        let common = |name: &[u8], extra: &[u8]| {
            let mut header = vec![0; 2];
            header.extend(entry.flags.to_le_bytes());
            header.extend(entry.method.to_le_bytes());
            header.extend([0; 4]);
            header.extend(word(entry.checksum));
            header.extend(word(entry.packed.unwrap_or(len)));
            header.extend(word(entry.size.unwrap_or(len)));
            header.extend(short(name.len()));
            header.extend(short(extra.len()));
            header
        };
        out.extend([b"PK\x03\x04", &common(local, b"")[..], local, &entry.data].concat());
        directory.extend([b"PK\x01\x02\0\0", &common(entry.name.as_bytes(), &entry.extra)[..], &[0; 10]].concat());
        directory.extend(word(entry.offset.unwrap_or(offset)));
        directory.extend([entry.name.as_bytes(), &entry.extra].concat());
    }
    let start = u32::try_from(out.len()).unwrap();
    out.extend(&directory);
    out.extend([b"PK\x05\x06\0\0\0\0", &short(entries.len())[..], &short(entries.len())].concat());
    out.extend([&word(u32::try_from(directory.len()).unwrap())[..], &word(start), &[0; 2]].concat());
    out
}
