//! `--out`: a path, or `-` for standard output; asked before the work begins.

use std::io::IsTerminal as _;
use std::path::Path;

use anyhow::Result;

use super::{exit::Usage, output::Output};
use crate::destination::Destination;

/// Where `--out` sends a file. `json` is whether data for machines goes to standard output, which takes one of the two.
pub(super) fn file(path: &Path, overwrite: bool, json: bool, output: &mut Output) -> Result<Destination> {
    let out = destination(path, overwrite);
    if out.is_stdout() && json {
        return Err(Usage("`--json` and `--out -` both write to standard output".into()).into());
    }
    if out.is_stdout() && std::io::stdout().is_terminal() {
        return Err(Usage("`--out -` writes the file to the terminal: send it to a file or a program".into()).into());
    }
    if out.is_stdout() {
        output.yield_stdout();
    }
    out.check_file()?;
    Ok(out)
}

/// What `--out` stands for; whoever writes to it asks first.
pub(super) fn destination(path: &Path, overwrite: bool) -> Destination {
    match path == Path::new("-") || path == Path::new("/dev/stdout") {
        true => Destination::stdout(),
        // `./-` is a file.
        false => Destination::new(path).overwrite(overwrite),
    }
}
