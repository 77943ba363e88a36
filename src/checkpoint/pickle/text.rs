//! Values that protocols 0 and 1 write as text.

use super::Node;

/// What `repr` wrote for a Python 2 `str`: quotes around it, escapes within. `None` when it is not that.
pub(super) fn quoted(line: &[u8]) -> Option<Node> {
    let line = line.trim_ascii();
    let (&open, rest) = line.split_first()?;
    let (&close, inner) = rest.split_last()?;
    if open != close || !matches!(open, b'\'' | b'"') {
        return None;
    }
    let mut out = Vec::with_capacity(inner.len());
    let mut bytes = inner.iter().copied();
    while let Some(byte) = bytes.next() {
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        match bytes.next()? {
            b'n' => out.push(b'\n'),
            b'r' => out.push(b'\r'),
            b't' => out.push(b'\t'),
            b'x' => out.push((digit(bytes.next()?)? << 4 | digit(bytes.next()?)?) as u8),
            escaped @ (b'\\' | b'\'' | b'"') => out.push(escaped),
            _ => return None,
        }
    }
    Some(bytes_or_text(&out))
}

/// Python 2's `str`: text where it is text.
pub(super) fn bytes_or_text(bytes: &[u8]) -> Node {
    match std::str::from_utf8(bytes) {
        Ok(text) => Node::Str(text.into()),
        Err(_) => Node::Bytes(bytes.into()),
    }
}

/// The `raw-unicode-escape` codec: Latin-1, and `\uXXXX` or `\UXXXXXXXX` for the rest. `None` when it is not that.
pub(super) fn raw_unicode(line: &[u8]) -> Option<String> {
    let mut out = String::with_capacity(line.len());
    let mut at = 0;
    while let Some(&byte) = line.get(at) {
        at += 1;
        let digits = match (byte, line.get(at)) {
            (b'\\', Some(b'u')) => 4,
            (b'\\', Some(b'U')) => 8,
            _ => {
                out.push(char::from(byte));
                continue;
            }
        };
        let hex = line.get(at + 1..at + 1 + digits)?;
        let code = hex.iter().try_fold(0u32, |code, &byte| Some(code << 4 | digit(byte)?))?;
        out.push(char::from_u32(code)?);
        at += 1 + digits;
    }
    Some(out)
}

/// A decimal integer of any length, with Python 2's `L` behind it or not.
pub(super) fn integer(line: &[u8]) -> Option<Node> {
    let text = std::str::from_utf8(line).ok()?.trim();
    let text = text.strip_suffix('L').unwrap_or(text);
    let digits = text.strip_prefix('-').unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    // 2.4 decimal digits a byte; only the magnitude's order is kept.
    Some(text.parse().map_or(Node::Big(digits.len() * 5 / 12), Node::Int))
}

fn digit(byte: u8) -> Option<u32> {
    char::from(byte).to_digit(16)
}
