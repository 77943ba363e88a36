//! The pickle of a state dictionary, protocol 2: the few opcodes `torch.load`'s restricted unpickler knows.

use super::{State, StateTensor};

/// `storages`: for each tensor the number of its storage.
pub(super) fn dictionary(state: &State<'_>, storages: &[usize]) -> Vec<u8> {
    let mut out = vec![0x80, 2];
    if let Some(key) = state.wrap {
        out.push(b'}');
        text(&mut out, key);
    }
    ordered(&mut out);
    out.push(b'(');
    for (tensor, storage) in state.tensors.iter().zip(storages) {
        text(&mut out, tensor.name);
        rebuild(&mut out, tensor, *storage);
    }
    out.push(b'u');
    if state.wrap.is_some() {
        out.push(b's');
    }
    out.push(b'.');
    out
}

/// An empty `OrderedDict`.
fn ordered(out: &mut Vec<u8>) {
    out.extend(b"ccollections\nOrderedDict\n)R");
}

/// `_rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks)`.
fn rebuild(out: &mut Vec<u8>, tensor: &StateTensor<'_>, storage: usize) {
    out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
    text(out, "storage");
    out.extend(format!("ctorch\n{}\n", tensor.class).as_bytes());
    text(out, &storage.to_string());
    text(out, "cpu");
    int(out, tensor.bytes.len() / tensor.element);
    out.extend(b"tQ");
    int(out, 0);
    tuple(out, tensor.shape.iter().copied());
    let rest = |axis: usize| tensor.shape[axis + 1..].iter().product();
    tuple(out, (0..tensor.shape.len()).map(rest));
    out.push(0x89);
    ordered(out);
    out.extend(b"tR");
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.push(b'X');
    // Names are far shorter than the length field's 4 GiB.
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(text.as_bytes());
}

fn tuple(out: &mut Vec<u8>, values: impl Iterator<Item = usize>) {
    out.push(b'(');
    values.for_each(|value| int(out, value));
    out.push(b't');
}

/// The shortest form; above 2³¹ a `LONG1`, whose bytes are a two's complement number.
fn int(out: &mut Vec<u8>, value: usize) {
    match (u8::try_from(value), u16::try_from(value), i32::try_from(value)) {
        (Ok(byte), _, _) => out.extend([b'K', byte]),
        (_, Ok(short), _) => {
            out.push(b'M');
            out.extend(short.to_le_bytes());
        }
        (_, _, Ok(word)) => {
            out.push(b'J');
            out.extend(word.to_le_bytes());
        }
        _ => {
            out.extend([0x8a, 9]);
            out.extend((value as u64).to_le_bytes());
            out.push(0);
        }
    }
}
