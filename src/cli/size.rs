//! Sizes on the command line: `512x384`, height first; `512` is a square.

/// Parses `HxW` or `N`.
pub(super) fn parse(text: &str) -> Result<[usize; 2], String> {
    let side = |text: &str| text.parse::<usize>().ok().filter(|&side| side > 0);
    let parsed = match text.split_once(['x', 'X']) {
        Some((height, width)) => side(height).zip(side(width)).map(|(height, width)| [height, width]),
        None => side(text).map(|side| [side, side]),
    };
    parsed.ok_or_else(|| format!("`{text}` is not a size\nhint: height first, such as 512x384, or 512 for a square"))
}
