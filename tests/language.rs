//! The library speaks the library's language: no flag and no command of the program in its texts, a cause in `source`
//! alone, advice as data.

#[cfg(feature = "cli")]
mod causes;
mod literals;
#[cfg(feature = "cli")]
mod screen;

use std::path::{Path, PathBuf};

use literals::{Literal, literals};

/// Texts that may look like a command line, each with its reason.
const EXCEPTIONS: [(&str, &str, &str); 2] = [
    ("src/train/distributed/meeting.rs", "tec-zoo meeting1", "the greeting of a protocol"),
    ("src/data/kept.rs", "tec-zoo scan 1\n", "the beginning of a file"),
];

fn sources(folder: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            out.push(path);
        }
    }
}

/// Every literal of the library, with the file it is in; the command line's own are no part of it.
fn library() -> Vec<(String, Literal)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = Vec::new();
    sources(&root.join("src"), &mut paths);
    assert!(paths.len() > 200, "only {} files", paths.len());
    let mut out = Vec::new();
    for path in paths {
        let name = path.strip_prefix(root).unwrap().to_str().unwrap().replace('\\', "/");
        if name.starts_with("src/cli/") || name.ends_with("tests.rs") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        // Unit tests close a file, and may quote what they like.
        let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        out.extend(literals(text).into_iter().map(|literal| (name.clone(), literal)));
    }
    out
}

/// Why a text is the command line's: what of it is.
fn spoken(text: &str) -> Option<&'static str> {
    let flag = text.match_indices("--").any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + 2..].chars().next();
        before.is_none_or(|char| " `\"'(\n".contains(char)) && after.is_some_and(|char| char.is_ascii_lowercase())
    });
    let command = text.match_indices("tec-zoo ").any(|(at, found)| {
        text[at + found.len()..].chars().next().is_some_and(|char| char.is_ascii_lowercase() || char == '…')
    });
    if flag {
        Some("a flag")
    } else if command {
        Some("a command")
    } else if text.contains("hint: ") {
        Some("advice within a text")
    } else {
        None
    }
}

#[test]
fn no_text_of_the_library_names_a_flag_or_a_command_or_carries_its_advice() {
    let mut found = Vec::new();
    for (file, literal) in library() {
        let excepted = EXCEPTIONS.iter().any(|(of, text, _)| *of == file && literal.text == *text);
        if let Some(what) = spoken(&literal.text).filter(|_| !excepted) {
            found.push(format!("{file}:{}: {what}: {:?}", literal.line, literal.text));
        }
    }
    assert!(found.is_empty(), "hints are data (src/hint.rs):\n{}", found.join("\n"));
}

#[test]
fn no_text_of_the_library_prints_its_source() {
    let found: Vec<String> = library()
        .into_iter()
        .filter(|(_, literal)| literal.is_error && literal.text.contains("{source}"))
        .map(|(file, literal)| format!("{file}:{}: {:?}", literal.line, literal.text))
        .collect();
    assert!(found.is_empty(), "a cause is in `source` alone:\n{}", found.join("\n"));
}

#[test]
fn what_a_command_line_says_is_recognised() {
    for text in ["give --heads N", "`--to timm` keeps it", "--pad={multiple} is not possible", "(--for levels)"] {
        assert_eq!(spoken(text), Some("a flag"), "{text}");
    }
    for text in ["`tec-zoo fetch x` brings it", "run tec-zoo list"] {
        assert_eq!(spoken(text), Some("a command"), "{text}");
    }
    assert_eq!(spoken("it is damaged\nhint: fetch it again"), Some("advice within a text"));
    for text in ["a -- b", "x--y", "tec-zoo", ".tec-zoo-", "tec-zoo: ", "a hint"] {
        assert_eq!(spoken(text), None, "{text}");
    }
}
