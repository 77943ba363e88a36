//! Shard patterns: `train-{000000..001023}.tar`, `{a,b}/part-{0..9}.tar`.

/// More names than this are a typing error.
const MAX_NAMES: usize = 1 << 20;

/// Whether `text` is a pattern at all.
pub(super) fn is_pattern(text: &str) -> bool {
    text.find('{').is_some_and(|open| text[open..].contains('}'))
}

/// All names of a pattern, in order: the last pair of braces changes fastest.
///
/// `{first..last}` counts, with as many digits as the longer of both when either starts with a zero; `{a,b}` are the words
/// themselves.
pub(super) fn expand(pattern: &str) -> Result<Vec<String>, String> {
    let mut names = vec![String::new()];
    let mut rest = pattern;
    while let Some(open) = rest.find('{') {
        let Some(close) = rest[open..].find('}') else {
            return Err(format!("`{{` at `{}` is never closed", &rest[open..]));
        };
        let choices = choices(&rest[open + 1..open + close])?;
        if choices.len().saturating_mul(names.len()) > MAX_NAMES {
            return Err(format!("it stands for more than {MAX_NAMES} names"));
        }
        let prefix = &rest[..open];
        names =
            names.iter().flat_map(|name| choices.iter().map(move |choice| format!("{name}{prefix}{choice}"))).collect();
        rest = &rest[open + close + 1..];
    }
    for name in &mut names {
        name.push_str(rest);
    }
    Ok(names)
}

fn choices(inside: &str) -> Result<Vec<String>, String> {
    let Some((first, last)) = inside.split_once("..") else {
        return Ok(inside.split(',').map(str::to_owned).collect());
    };
    let number = |text: &str| match text.bytes().all(|digit| digit.is_ascii_digit()) {
        true => text.parse::<u64>().map_err(|error| format!("`{text}`: {error}")),
        false => Err(format!("`{text}` in `{{{inside}}}` is no number")),
    };
    let (from, to) = (number(first)?, number(last)?);
    if from > to {
        return Err(format!("`{{{inside}}}` counts backwards"));
    }
    if to - from >= MAX_NAMES as u64 {
        return Err(format!("it stands for more than {MAX_NAMES} names"));
    }
    let padded = [first, last].iter().any(|text| text.len() > 1 && text.starts_with('0'));
    let digits = if padded { first.len().max(last.len()) } else { 0 };
    Ok((from..=to).map(|number| format!("{number:0digits$}")).collect())
}
