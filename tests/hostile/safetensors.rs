//! Headers that do not hold.

use super::refused;

fn file(header: &str, data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat()
}

fn tensor(dtype: &str, shape: &str, offsets: &str) -> String {
    format!(r#"{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}"#)
}

#[test]
fn a_header_that_lies_about_its_length_is_refused() {
    for length in [0, 1, 100, 1 << 40, u64::MAX] {
        let mut bytes = file(&format!(r#"{{"w":{}}}"#, tensor("F32", "[1]", "[0,4]")), 4);
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        refused(bytes);
    }
}

#[test]
fn offsets_that_overlap_or_leave_the_file_are_refused() {
    for (first, second) in
        [("[0,4]", "[0,4]"), ("[0,4]", "[2,6]"), ("[0,4]", "[8,12]"), ("[0,4]", "[4,99]"), ("[4,0]", "[4,8]")]
    {
        let (first, second) = (tensor("F32", "[1]", first), tensor("F32", "[1]", second));
        refused(file(&format!(r#"{{"a":{first},"b":{second}}}"#), 8));
    }
}

#[test]
fn shapes_that_overflow_are_refused() {
    for shape in
        ["[4294967296,4294967296,4294967296]", "[0,18446744073709551615,2]", "[18446744073709551615,2,0]", "[-1]"]
    {
        refused(file(&format!(r#"{{"w":{}}}"#, tensor("F32", shape, "[0,0]")), 0));
    }
}

#[test]
fn a_shape_that_disagrees_with_its_bytes_is_refused() {
    for (dtype, shape) in [("F32", "[2]"), ("F16", "[1]"), ("F64", "[1]"), ("F4", "[1]"), ("X9", "[1]")] {
        refused(file(&format!(r#"{{"w":{}}}"#, tensor(dtype, shape, "[0,4]")), 4));
    }
}

#[test]
fn numbers_smaller_than_a_byte_are_refused_by_name() {
    let message = refused(file(&format!(r#"{{"w":{}}}"#, tensor("F4", "[8]", "[0,4]")), 4));
    assert!(message.contains("F4") && message.contains("tensor `w`"), "{message}");
}

#[test]
fn a_tensor_that_is_there_twice_is_refused() {
    let (one, other) = (tensor("F32", "[1]", "[0,4]"), tensor("I32", "[1]", "[0,4]"));
    let message = refused(file(&format!(r#"{{"w":{one},"w":{other}}}"#), 4));
    assert!(message.contains("tensor `w` is there twice"), "{message}");
}

#[test]
fn a_header_that_nests_without_end_is_refused() {
    refused(file(&format!(r#"{{"w":{}"#, "[".repeat(100_000)), 0));
    refused(file(&r#"{"a":"#.repeat(100_000), 0));
}

#[test]
fn a_header_that_is_no_json_is_refused() {
    for header in ["{", "{]", "{\"w\":1}", "{\"w\":{}}", "{\u{1b}[2J"] {
        refused(file(header, 0));
    }
}

#[test]
fn a_header_larger_than_any_honest_one_is_refused() {
    let message = refused(file(&format!("{{{}", " ".repeat(100_000_001)), 0));
    assert!(message.contains("safetensors"), "{message}");
}
