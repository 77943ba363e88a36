//! Writes the `torch.save` zip of nested dictionaries of tensors, so that a test can change a fixture and see what happens.

use safetensors::Dtype;
use tec_zoo::checkpoint::Checkpoint;

/// A tensor with its place in the file.
#[derive(Debug, Clone)]
pub(crate) struct Tensor {
    pub(crate) path: Vec<String>,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

impl Tensor {
    pub(crate) fn f32(path: &[&str], shape: &[usize], value: impl Fn(usize) -> f32) -> Self {
        let bytes = (0..shape.iter().product()).flat_map(|at| value(at).to_le_bytes()).collect();
        let path = path.iter().map(|name| (*name).to_owned()).collect();
        Self { path, dtype: Dtype::F32, shape: shape.to_vec(), bytes }
    }

    pub(crate) fn key(&self) -> &str {
        self.path.last().unwrap()
    }
}

/// Every tensor of a checkpoint.
pub(crate) fn tensors(checkpoint: &Checkpoint) -> Vec<Tensor> {
    let read = |entry: &tec_zoo::checkpoint::TensorEntry| Tensor {
        path: entry.path.clone(),
        dtype: entry.dtype,
        shape: entry.shape.clone(),
        bytes: checkpoint.bytes(entry).unwrap().into_owned(),
    };
    checkpoint.tensors().iter().map(read).collect()
}

/// The file.
pub(crate) fn pack(tensors: &[Tensor]) -> Vec<u8> {
    let mut pickle = vec![0x80, 2];
    let numbered: Vec<(usize, &Tensor)> = tensors.iter().enumerate().collect();
    dictionary(&mut pickle, &numbered, 0);
    pickle.push(b'.');
    let mut zip = Zip::default();
    zip.add("archive/data.pkl", &pickle);
    for (at, tensor) in numbered {
        zip.add(&format!("archive/data/{at}"), &tensor.bytes);
    }
    zip.add("archive/version", b"3\n");
    zip.finish()
}

/// The checkpoint the file opens as.
pub(crate) fn checkpoint(tensors: &[Tensor]) -> Checkpoint {
    Checkpoint::from_bytes("edited.pth", pack(tensors).into()).unwrap()
}

fn dictionary(out: &mut Vec<u8>, tensors: &[(usize, &Tensor)], depth: usize) {
    out.push(b'}');
    let mut rest = tensors;
    while let Some((at, first)) = rest.first() {
        let name = &first.path[depth];
        let run = rest.iter().take_while(|(_, tensor)| tensor.path[depth] == *name).count();
        text(out, name);
        if first.path.len() == depth + 1 {
            tensor(out, *at, first);
        } else {
            dictionary(out, &rest[..run], depth + 1);
        }
        out.push(b's');
        rest = &rest[run..];
    }
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.push(b'X');
    out.extend(u32::try_from(text.len()).unwrap().to_le_bytes());
    out.extend(text.as_bytes());
}

fn int(out: &mut Vec<u8>, value: usize) {
    out.push(b'J');
    out.extend(i32::try_from(value).unwrap().to_le_bytes());
}

fn tuple(out: &mut Vec<u8>, values: &[usize]) {
    out.push(b'(');
    values.iter().for_each(|value| int(out, *value));
    out.push(b't');
}

fn tensor(out: &mut Vec<u8>, at: usize, tensor: &Tensor) {
    let storage = match tensor.dtype {
        Dtype::F32 => "FloatStorage",
        Dtype::F64 => "DoubleStorage",
        Dtype::F16 => "HalfStorage",
        Dtype::BF16 => "BFloat16Storage",
        Dtype::I64 => "LongStorage",
        other => panic!("no storage for {other}"),
    };
    out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
    text(out, "storage");
    out.extend(format!("ctorch\n{storage}\n").as_bytes());
    text(out, &at.to_string());
    text(out, "cpu");
    int(out, tensor.shape.iter().product());
    out.extend(b"tQ");
    int(out, 0);
    tuple(out, &tensor.shape);
    let strides: Vec<usize> = (0..tensor.shape.len()).map(|dim| tensor.shape[dim + 1..].iter().product()).collect();
    tuple(out, &strides);
    out.extend(b"\x89ccollections\nOrderedDict\n)RtR");
}

/// Stored entries only, as `torch.save` writes them.
#[derive(Default)]
struct Zip {
    body: Vec<u8>,
    directory: Vec<u8>,
    entries: u16,
}

impl Zip {
    fn add(&mut self, name: &str, bytes: &[u8]) {
        let offset = u32::try_from(self.body.len()).unwrap();
        let size = u32::try_from(bytes.len()).unwrap().to_le_bytes();
        let mut common = vec![0, 0, 0, 0, 0, 0, 0, 0, 0, 0]; // version, flags, method, time, date
        common.extend(crc32(bytes).to_le_bytes());
        common.extend([size, size].concat());
        common.extend(u16::try_from(name.len()).unwrap().to_le_bytes());
        common.extend([0, 0]); // extra field
        self.body.extend([b"PK\x03\x04".as_slice(), &common, name.as_bytes(), bytes].concat());
        let place = [[0; 10].as_slice(), &offset.to_le_bytes()].concat(); // comment, disk, attributes
        self.directory.extend([b"PK\x01\x02\0\0".as_slice(), &common, &place, name.as_bytes()].concat());
        self.entries += 1;
    }

    fn finish(self) -> Vec<u8> {
        let offset = u32::try_from(self.body.len()).unwrap().to_le_bytes();
        let size = u32::try_from(self.directory.len()).unwrap().to_le_bytes();
        let entries = self.entries.to_le_bytes();
        let end = [b"PK\x05\x06\0\0\0\0".as_slice(), &entries, &entries, &size, &offset, &[0, 0]].concat();
        [self.body, self.directory, end].concat()
    }
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg()))
    })
}
