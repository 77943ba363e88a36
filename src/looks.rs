//! What a file plainly is, by its first bytes: for the refusal of one that was meant to be something else.

/// What a file that begins with `bytes` is; `None` where that is not plain.
pub(crate) fn looks(bytes: &[u8]) -> Option<&'static str> {
    let text = |prefix: &[u8]| bytes[..bytes.len().min(64)].trim_ascii_start().to_ascii_lowercase().starts_with(prefix);
    let looks = match bytes {
        [0xff, 0xd8, 0xff, ..] => "a JPEG image",
        [0x89, b'P', b'N', b'G', ..] => "a PNG image",
        [b'G', b'I', b'F', b'8', ..] => "a GIF image",
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => "a WebP image",
        [b'I', b'I', 42, 0, ..] | [b'M', b'M', 0, 42, ..] => "a TIFF image",
        [0x1f, 0x8b, ..] => "a gzip archive: unpack it first",
        [b'P', b'K', 3, 4, ..] => "a zip archive, as torch checkpoints are",
        [0x89, b'H', b'D', b'F', ..] => "an HDF5 file",
        [0x80, 0..=5, ..] => "a pickle, as old torch checkpoints are",
        // The version of the format; then a producer, the graph, or an operator set.
        [0x08, 1..=0x20, 0x12 | 0x1a | 0x3a | 0x42, ..] => "an ONNX file: a graph, not the checkpoint it was made from",
        [_, _, _, _, _, 0, 0, 0, b'{', ..] => "a safetensors file",
        _ if text(b"version https://git-lfs") => "a git-lfs pointer: run `git lfs pull`",
        _ if text(b"<!doctype html") || text(b"<html") => "a web page: the download was refused",
        _ if text(b"%pdf") => "a PDF document",
        _ => return None,
    };
    Some(looks)
}

#[cfg(test)]
mod tests {
    use super::looks;

    #[test]
    fn files_people_mix_up_are_told_apart() {
        for (bytes, expected) in [
            (&b"\xff\xd8\xff\xe0\0\x10JFIF"[..], Some("a JPEG image")),
            (b"\x08\x08\x12\x07tec-zoo", Some("an ONNX file: a graph, not the checkpoint it was made from")),
            (b"\x50\0\0\0\0\0\0\0{\"__metadata__\"", Some("a safetensors file")),
            (b"  <!DOCTYPE html>", Some("a web page: the download was refused")),
            (b"just words", None),
            (b"", None),
        ] {
            assert_eq!(looks(bytes), expected);
        }
    }
}
