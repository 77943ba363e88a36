//! Pickles that would run something, or take all memory or time.

use std::fs;

use proptest::prelude::*;
use tec_zoo::checkpoint::{Checkpoint, CheckpointError};

use super::make::{View, call, dict, global, int, legacy, list, pickle, text, torch_zip, tuple};
use super::{read, refused};
use crate::words::InFull;

/// A pickle that nests `depth` values, each made by `open` before and `close` after the one within.
fn nested(open: &[u8], inner: &[u8], close: &[u8], depth: usize) -> Vec<u8> {
    torch_zip(&pickle(&[open.repeat(depth), inner.to_vec(), close.repeat(depth)].concat()))
}

fn names(error: CheckpointError) -> Vec<String> {
    match error {
        CheckpointError::In { source, .. } => names(*source),
        CheckpointError::UnknownGlobals { names } => names,
        other => panic!("{other}"),
    }
}

#[test]
fn a_pickle_that_calls_the_shell_is_named_and_not_run() {
    let folder = tempfile::tempdir().unwrap();
    let mark = folder.path().join("ran");
    let shell = call(global("os", "system"), &[text(&format!("touch {}", mark.display()))]);
    let bytes = torch_zip(&pickle(&dict(&[(text("model"), View::default().pickled()), (text("x"), shell)])));
    let path = folder.path().join("hostile.pth");
    fs::write(&path, &bytes).unwrap();

    let message = Checkpoint::open(&path).unwrap_err().in_full();
    assert!(message.contains("`os.system`") && message.contains("nothing was run"), "{message}");
    assert!(!mark.exists());

    let survey = Checkpoint::survey(&path).unwrap();
    let unknown: Vec<_> = survey.globals.iter().filter(|global| !global.known).collect();
    assert_eq!(unknown.len(), 1);
    assert_eq!((unknown[0].name.as_str(), unknown[0].count), ("os.system", 1));
    assert_eq!(survey.checkpoint.tensors().len(), 1);
}

#[test]
fn an_unknown_name_is_found_wherever_it_hides() {
    let shell = global("posix", "system");
    let ran = call(shell.clone(), &[text("true")]);
    let by_stack = [text("posix"), text("system"), b"\x93".to_vec()].concat();
    let hidden = [
        ("called", ran.clone()),
        ("only named", shell.clone()),
        ("named on the stack", by_stack),
        ("as INST", b"(S'true'\niposix\nsystem\n".to_vec()),
        ("as OBJ", [b"(".to_vec(), shell.clone(), text("true"), b"o".to_vec()].concat()),
        ("as NEWOBJ", [shell.clone(), tuple(&[text("true")]), b"\x81".to_vec()].concat()),
        (
            "in keywords",
            [global("builtins", "int"), tuple(&[]), dict(&[(text("x"), ran.clone())]), b"\x92".to_vec()].concat(),
        ),
        ("as a key", dict(&[(ran.clone(), int(1))])),
        ("popped again", [ran.clone(), b"0N".to_vec()].concat()),
        ("as a state", [call(global("argparse", "Namespace"), &[]), ran.clone(), b"b".to_vec()].concat()),
        ("where a storage should be", call(global("torch._utils", "_rebuild_tensor_v2"), std::slice::from_ref(&ran))),
    ];
    for (place, value) in hidden {
        let pickled = pickle(&value);
        assert_eq!(names(read(torch_zip(&pickled)).unwrap_err()), ["posix.system"], "{place}");
        assert_eq!(names(read(legacy(&value, &[], b"")).unwrap_err()), ["posix.system"], "{place}, legacy");
    }
}

#[test]
fn a_name_that_only_looks_inert_is_not() {
    for (module, name) in [
        ("torch", "FloatStorage.__reduce__"),
        ("torch", "load"),
        ("torch.cuda", "load"),
        ("numpy", "load"),
        ("numpy", "float64.__class__"),
        ("numpy.dtypes", "os.systemDType"),
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("collections", "namedtuple"),
        ("pathlib", "PosixPath.unlink"),
        ("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ("", "os.system"),
    ] {
        assert_eq!(names(read(torch_zip(&pickle(&global(module, name)))).unwrap_err()), [format!("{module}.{name}")]);
    }
}

#[test]
fn many_and_ugly_names_still_make_one_short_message() {
    let ugly: Vec<_> = (0..1000).map(|number| global("\u{1b}[2J\u{7}x", &"y".repeat(200 + number % 50))).collect();
    let message = refused(torch_zip(&pickle(&list(&ugly))));
    assert!(message.contains("45 more"), "{message}");
    let message = refused(torch_zip(&pickle(&global("x", &"y".repeat(100_000)))));
    assert!(message.contains("a name of 100001 bytes"), "{message}");
}

#[test]
fn lists_nested_a_million_deep_are_refused() {
    let message = refused(nested(b"](", b"N", b"e", 1_000_000));
    assert!(message.contains("nest deeper than 32 levels"), "{message}");
}

#[test]
fn tuples_nested_a_million_deep_are_refused() {
    let message = refused(nested(b"", b")", b"\x85", 1_000_000));
    assert!(message.contains("nest deeper than 32 levels"), "{message}");
}

#[test]
fn calls_nested_a_million_deep_are_refused() {
    let function = [global("builtins", "list"), b"q\x000".to_vec()].concat();
    let nest = [function, b"h\0".repeat(1_000_000), b")".to_vec(), b"\x85R".repeat(1_000_000)].concat();
    let message = refused(torch_zip(&pickle(&nest)));
    assert!(message.contains("nest deeper than 32 levels"), "{message}");
}

#[test]
fn a_tensor_wrapped_a_million_times_is_refused() {
    let function = [global("torch._utils", "_rebuild_parameter"), b"q\x000".to_vec()].concat();
    let tensor = View::default().pickled();
    let nest = [function, b"h\0".repeat(1_000_000), tensor, b"\x85R".repeat(1_000_000)].concat();
    let message = refused(torch_zip(&pickle(&nest)));
    assert!(message.contains("wrapped more than 4 times"), "{message}");
}

#[test]
fn marks_without_end_are_refused() {
    let message = refused(torch_zip(&pickle(&b"(".repeat(5_000_000))));
    assert!(message.contains("holds more than 4194304 values"), "{message}");
}

#[test]
fn a_pickle_of_nothing_but_values_is_refused_before_it_fills_memory() {
    let message = refused(torch_zip(&pickle(&b"N".repeat(5_000_000))));
    assert!(message.contains("holds more than 4194304 values"), "{message}");
}

#[test]
fn a_memo_entry_with_a_huge_number_takes_no_memory() {
    let far = u32::MAX.to_le_bytes();
    let value = [b"]r", &far[..], b"0j", &far[..]].concat();
    assert!(read(torch_zip(&pickle(&value))).unwrap().tensors().is_empty());
    let message = refused(torch_zip(&pickle(b"j\xff\xff\xff\xff")));
    assert!(message.contains("memo entry 4294967295 is not there"), "{message}");
}

#[test]
fn a_list_of_lists_of_lists_that_share_each_other_is_refused() {
    // Ten of the one before, thirty times: 10^30 values in a kilobyte.
    let mut laughs = b"]q\0".to_vec();
    for level in 1..30u8 {
        laughs = [&laughs[..], b"0](", &[b'h', level - 1].repeat(10), b"eq", &[level]].concat();
    }
    let message = refused(torch_zip(&pickle(&laughs)));
    assert!(message.contains("counting shared ones each time"), "{message}");
}

#[test]
fn a_tensor_shared_a_million_times_is_refused() {
    let tensor = [View::default().pickled(), b"q\x000".to_vec()].concat();
    let message =
        refused(torch_zip(&pickle(&[tensor, b"](".to_vec(), b"h\0".repeat(1_000_000), b"e".to_vec()].concat())));
    assert!(message.contains("lists more than 262144 tensors"), "{message}");
}

#[test]
fn a_long_key_over_many_tensors_is_refused_before_it_fills_memory() {
    let many = [View::default().pickled(), b"q\x000](".to_vec(), b"h\0".repeat(200_000), b"e".to_vec()].concat();
    let message = refused(torch_zip(&pickle(&dict(&[(text(&"k".repeat(1_000_000)), many)]))));
    assert!(message.contains("their names take more than"), "{message}");
}

#[test]
fn a_long_key_that_is_met_again_and_again_costs_its_length_each_time() {
    let inner = [dict(&[(text(&"k".repeat(1_000_000)), b"N".to_vec())]), b"q\x000".to_vec()].concat();
    let many = [inner, b"](".to_vec(), b"h\0".repeat(1_000_000), b"e".to_vec()].concat();
    let message = refused(torch_zip(&pickle(&many)));
    assert!(message.contains("counting shared ones each time"), "{message}");
}

#[test]
fn a_long_list_handed_to_a_million_dictionaries_is_not_copied_for_each() {
    let list = list(&vec![tuple(&[b"N".to_vec(), b"N".to_vec()]); 10_000]);
    let start = [list, b"\x85q\x000".to_vec(), global("collections", "OrderedDict"), b"q\x010](".to_vec()].concat();
    let message = refused(torch_zip(&pickle(&[start, b"h\x01h\x00R".repeat(500_000), b"e".to_vec()].concat())));
    assert!(message.contains("counting shared ones each time"), "{message}");
}

#[test]
fn a_value_that_contains_itself_is_read_once() {
    let tensor = View::default().pickled();
    let own = [b"]q\0(h\0".to_vec(), tensor, b"e".to_vec()].concat();
    assert_eq!(read(torch_zip(&pickle(&own))).unwrap().tensors().len(), 1);
}

#[test]
fn lengths_of_a_terabyte_are_refused() {
    let terabyte = (1u64 << 40).to_le_bytes();
    for opcode in [0x8d, 0x8e, 0x96] {
        let message = refused(torch_zip(&[b"\x80\x04", &[opcode][..], &terabyte, b"x."].concat()));
        assert!(message.contains("it says 1099511627776 bytes follow; 2 are left"), "{message}");
    }
    for opcode in *b"XTB\x8b" {
        let message = refused(torch_zip(&[b"\x80\x02", &[opcode][..], &[0xff; 4], b"x."].concat()));
        assert!(message.contains("it says 4294967295 bytes follow"), "{message}");
    }
    // A frame's length is only a hint.
    assert!(read(torch_zip(&[b"\x80\x04\x95", &terabyte[..], b"N."].concat())).is_ok());
}

#[test]
fn a_machine_that_is_asked_for_what_it_has_not_says_so() {
    for (value, says) in [
        (&b""[..], "empty stack"),
        (b"(0", "empty stack"),
        (b"t", "there is none"),
        (b"](a", "empty stack"),
        (b"N(q\0", "stack is empty"),
        (b"}(Nu", "no value"),
        (b"NNa", "no list"),
        (b"NNNs", "no dictionary"),
        (b"h\x07", "memo entry 7 is not there"),
        (b"g7\n", "memo entry 7 is not there"),
        (b"gseven\n", "a number that is none"),
        (b"Iseven\n", "a number that is none"),
        (b"Fseven\n", "a number that is none"),
        (b"Sno quotes\n", "without quotes"),
        (b"V\\u12\n", "damaged string"),
        (b"Vno end", "a line without an end"),
        (b"X\x01\0\0\0\xff", "not UTF-8"),
        (b"c\xff\n\n", "not text"),
        (b"NN\x93", "no short text"),
        (b"(o", "without a class"),
        (b"\x80\x06", "protocol 6"),
        (b"\x82\x01", "0x82"),
    ] {
        let message = refused(torch_zip(&pickle(value)));
        assert!(message.contains(says), "{value:?}: {message}");
    }
}

#[test]
fn text_of_protocol_0_is_unescaped() {
    let keys: [(&[u8], &str); 4] = [
        (b"S'it\\'s \\x41\\\\'\n", "it's A\\"),
        (b"V\\u00e9\\U0001f600\n", "é😀"),
        (b"V\xe9\n", "é"),
        (b"I00\n", "False"),
    ];
    for (key, path) in keys {
        let bytes = torch_zip(&pickle(&dict(&[(key.to_vec(), View::default().pickled())])));
        assert_eq!(read(bytes).unwrap().tensors()[0].path, [path]);
    }
}

proptest! {
    #[test]
    fn any_bytes_after_a_protocol_are_read_or_refused(soup in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Err(error) = read(torch_zip(&[b"\x80\x02", &soup[..]].concat())) {
            super::assert_clear(&error.in_full());
        }
    }

    #[test]
    fn any_sequence_of_real_opcodes_is_read_or_refused(
        opcodes in proptest::collection::vec(proptest::sample::select(SOUP), 0..100),
    ) {
        let soup = opcodes.concat();
        for bytes in [torch_zip(&pickle(&soup)), legacy(&soup, &["0"], &[0; 40])] {
            if let Err(error) = read(bytes) {
                super::assert_clear(&error.in_full());
            }
        }
    }
}

/// Opcodes with small operands.
const SOUP: &[&[u8]] = &[
    b"(",
    b"0",
    b"1",
    b"2",
    b"N",
    b"\x88",
    b"\x89",
    b"K\x01",
    b"K\x02",
    b"]",
    b")",
    b"}",
    b"\x8f",
    b"a",
    b"e",
    b"s",
    b"u",
    b"t",
    b"l",
    b"d",
    b"\x85",
    b"\x86",
    b"\x87",
    b"R",
    b"\x81",
    b"\x92",
    b"b",
    b"Q",
    b"o",
    b"\x90",
    b"\x91",
    b"\x94",
    b"q\0",
    b"q\x01",
    b"h\0",
    b"h\x01",
    b"X\x01\0\0\x000",
    b"X\x07\0\0\0storage",
    b"X\x03\0\0\0cpu",
    b"ctorch\nFloatStorage\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ccollections\nOrderedDict\n",
    b"ctorch._utils\n_rebuild_parameter\n",
    b"cargparse\nNamespace\n",
    b"P0\n",
    b".",
];
