//! Key templates: `blocks.{i}.mlp.fc1.{leaf}` matches keys, and writes them back.
//!
//! Three placeholders exist, each at most once in a template: `{i}` is a decimal index without leading zeros, `{leaf}` is
//! `weight` or `bias`, `{rest}` is whatever follows and stands only at the end. A rule whose two sides have the same
//! placeholders can be run backwards, which is how models go back to other layouts.

use std::fmt;

/// Longest template accepted; released names stay far below.
const MAX_LENGTH: usize = 256;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Literal(String),
    Index,
    Leaf,
    Rest,
}

/// A parsed template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Template {
    text: String,
    tokens: Vec<Token>,
    literal_segments: usize,
}

/// What the placeholders stood for in a key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Captures<'k> {
    index: Option<&'k str>,
    leaf: Option<&'k str>,
    rest: Option<&'k str>,
}

impl Template {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.len() > MAX_LENGTH {
            return Err(format!("a template has 1 to {MAX_LENGTH} bytes; this one has {}", text.len()));
        }
        let mut tokens = Vec::new();
        let mut tail = text;
        while !tail.is_empty() {
            if let Some(after) = tail.strip_prefix('{') {
                let Some((name, after)) = after.split_once('}') else {
                    return Err(format!("`{text}` opens a placeholder and never closes it"));
                };
                let token = match name {
                    "i" => Token::Index,
                    "leaf" => Token::Leaf,
                    "rest" => Token::Rest,
                    _ => {
                        return Err(format!(
                            "`{text}` has `{{{name}}}`; placeholders are {{i}}, {{leaf}} and {{rest}}"
                        ));
                    }
                };
                if tokens.contains(&token) {
                    return Err(format!("`{text}` has `{{{name}}}` twice"));
                }
                if tokens.last().is_some_and(|last| !matches!(last, Token::Literal(_))) {
                    return Err(format!("`{text}` has two placeholders with nothing between them"));
                }
                if token == Token::Rest && !after.is_empty() {
                    return Err(format!("`{text}` goes on after `{{rest}}`"));
                }
                tokens.push(token);
                tail = after;
            } else {
                let end = tail.find('{').unwrap_or(tail.len());
                let (literal, after) = tail.split_at(end);
                if literal.contains('}') {
                    return Err(format!("`{text}` closes a placeholder it never opened"));
                }
                // Without this, `{i}0` could read `10` as index 1 or as no match at all.
                if tokens.last() == Some(&Token::Index) && literal.starts_with(|c: char| c.is_ascii_digit()) {
                    return Err(format!("`{text}` has a digit right after `{{i}}`"));
                }
                tokens.push(Token::Literal(literal.to_owned()));
                tail = after;
            }
        }
        let literal_segments = text.split('.').filter(|segment| !segment.contains('{')).count();
        Ok(Self { text: text.to_owned(), tokens, literal_segments })
    }

    /// How specific the template is: the rule with more literal segments claims a key.
    pub(crate) fn literal_segments(&self) -> usize {
        self.literal_segments
    }

    /// Whether both templates have the same placeholders.
    pub(crate) fn same_placeholders(&self, other: &Self) -> bool {
        [Token::Index, Token::Leaf, Token::Rest]
            .iter()
            .all(|token| self.tokens.contains(token) == other.tokens.contains(token))
    }

    /// The placeholders' values when the whole of `key` matches.
    pub(crate) fn captures<'k>(&self, key: &'k str) -> Option<Captures<'k>> {
        let mut found = Captures::default();
        let mut tail = key;
        for token in &self.tokens {
            match token {
                Token::Literal(literal) => tail = tail.strip_prefix(literal.as_str())?,
                Token::Index => {
                    let end = tail.find(|c: char| !c.is_ascii_digit()).unwrap_or(tail.len());
                    let (digits, after) = tail.split_at(end);
                    if digits.is_empty() || (digits.len() > 1 && digits.starts_with('0')) {
                        return None;
                    }
                    (found.index, tail) = (Some(digits), after);
                }
                Token::Leaf => {
                    let leaf = ["weight", "bias"].into_iter().find(|leaf| tail.starts_with(leaf))?;
                    let (leaf, after) = tail.split_at(leaf.len());
                    (found.leaf, tail) = (Some(leaf), after);
                }
                Token::Rest => {
                    if tail.is_empty() {
                        return None;
                    }
                    (found.rest, tail) = (Some(tail), "");
                }
            }
        }
        tail.is_empty().then_some(found)
    }

    /// The key that has `values` for placeholders; `None` when one of them is not known.
    pub(crate) fn render(&self, values: &Captures<'_>) -> Option<String> {
        let mut out = String::with_capacity(self.text.len());
        for token in &self.tokens {
            out.push_str(match token {
                Token::Literal(literal) => literal,
                Token::Index => values.index?,
                Token::Leaf => values.leaf?,
                Token::Rest => values.rest?,
            });
        }
        Some(out)
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
