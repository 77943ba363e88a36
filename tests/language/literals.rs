//! String literals of Rust source, found without a parser: enough of the lexer to tell them from comments and characters.

/// A string literal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Literal {
    /// From 1.
    pub(super) line: usize,
    /// As the program has it, but for escapes other than line ends and quotes.
    pub(super) text: String,
    /// Whether it is the text of an error.
    pub(super) is_error: bool,
}

/// The string literals of `source`, byte strings and raw ones included.
pub(super) fn literals(source: &str) -> Vec<Literal> {
    let mut out = Vec::new();
    let mut at = 0;
    while at < source.len() {
        let rest = &source[at..];
        let before = source[..at].chars().next_back();
        let starts_word = !before.is_some_and(|char| char.is_alphanumeric() || char == '_');
        at += if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if let Some(hashes) = raw_start(rest).filter(|_| starts_word) {
            let open = rest.find('"').unwrap_or(0) + 1;
            let close = format!("\"{}", "#".repeat(hashes));
            let len = rest[open..].find(&close).unwrap_or(rest.len() - open);
            out.push(literal(source, at, rest[open..open + len].to_owned()));
            (open + len + close.len()).min(rest.len())
        } else if let Some(text) = rest.strip_prefix('"') {
            let (text, len) = plain(text);
            out.push(literal(source, at, text));
            (1 + len).min(rest.len())
        } else if rest.starts_with('\'') {
            character(rest)
        } else {
            rest.chars().next().map_or(1, char::len_utf8)
        };
    }
    out
}

fn literal(source: &str, at: usize, text: String) -> Literal {
    let line = source[..at].matches('\n').count() + 1;
    Literal { line, text, is_error: source[..at].trim_end().ends_with("#[error(") }
}

/// Number of hashes of a raw string that starts here.
fn raw_start(rest: &str) -> Option<usize> {
    let rest = rest.strip_prefix('b').unwrap_or(rest).strip_prefix('r')?;
    let hashes = rest.len() - rest.trim_start_matches('#').len();
    rest[hashes..].starts_with('"').then_some(hashes)
}

/// Length of a comment that may hold comments.
fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    rest.len()
}

/// Text and length, with its closing quote, of a literal whose opening quote was read.
fn plain(rest: &str) -> (String, usize) {
    let mut text = String::new();
    let mut chars = rest.char_indices().peekable();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return (text, at + 1),
            '\\' => match chars.next() {
                Some((_, 'n')) => text.push('\n'),
                // The line goes on, without the spaces it begins with.
                Some((_, '\n')) => while chars.next_if(|(_, char)| char.is_whitespace()).is_some() {},
                Some((_, escaped)) => text.push(escaped),
                None => break,
            },
            char => text.push(char),
        }
    }
    (text, rest.len())
}

/// Length of a character literal, or of the quote of a lifetime.
fn character(rest: &str) -> usize {
    let mut chars = rest.char_indices().skip(1);
    match chars.next() {
        Some((_, '\\')) => {
            chars.next();
            chars.find(|(_, char)| *char == '\'').map_or(rest.len(), |(at, _)| at + 1)
        }
        Some((at, char)) if rest[at + char.len_utf8()..].starts_with('\'') => at + char.len_utf8() + 1,
        _ => 1,
    }
}

#[test]
fn literals_are_told_from_comments_characters_and_lifetimes() {
    let source = r##"
        // "no" --x
        /* "no" /* "no" */ */
        fn f<'a>(x: &'a str) -> char { let quote = '"'; let other = '\''; '\u{22}' }
        let a = "one \"two\" \
                 three\n--four"; let b = br#"five "six""#; let c = b"seven";
    "##;
    let texts: Vec<String> = literals(source).into_iter().map(|literal| literal.text).collect();
    assert_eq!(texts, ["one \"two\" three\n--four", "five \"six\"", "seven"]);
    assert_eq!(literals(source)[0].line, 5);
    let errors = literals("#[error(\n \"a\", f(\"b\"))] E");
    assert!(errors[0].is_error && !errors[1].is_error);
}
