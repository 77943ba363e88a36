//! Printing: data on stdout, conversation on stderr.

use std::io::{IsTerminal, Write, stderr, stdout};
use std::time::Duration;

use anyhow::Result;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::exit::Exit;
use super::hint;

/// When to colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(super) enum ColorChoice {
    /// On a terminal, unless NO_COLOR is set
    #[default]
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// A colour, for what a reader's eye should find first.
#[derive(Debug, Clone, Copy)]
pub(super) enum Paint {
    Good,
    Bad,
    Note,
}

/// Where everything the program says goes.
#[derive(Debug)]
pub(super) struct Output {
    quiet: bool,
    /// Whether standard output belongs to a file, so that what is said of it is conversation.
    yielded: bool,
    color_out: bool,
    color_err: bool,
    json: bool,
}

/// How a run failed, as `--json` has it.
#[derive(Debug, Serialize)]
struct Failure {
    schema: u32,
    error: String,
    causes: Vec<String>,
    hint: Option<String>,
    exit: u8,
}

impl Failure {
    fn new(error: &anyhow::Error, exit: Exit) -> Self {
        let hint = hint::of(error).map(|hint| hint::shown(&hint));
        let mut texts = error.chain().map(ToString::to_string);
        let error = texts.next().unwrap_or_default();
        Self { schema: 1, error, causes: texts.collect(), hint, exit: exit.code() }
    }
}

impl Output {
    /// With `json`, an error is one object too.
    pub(super) fn new(choice: ColorChoice, quiet: bool, json: bool) -> Self {
        let allowed = |terminal: bool| match choice {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
        };
        Self {
            quiet,
            yielded: false,
            color_out: allowed(stdout().is_terminal()),
            color_err: allowed(stderr().is_terminal()),
            json,
        }
    }

    /// From now on nothing is printed on standard output, which takes a file.
    pub(super) fn yield_stdout(&mut self) {
        self.yielded = true;
        self.color_out = self.color_err;
    }

    /// A line of data.
    pub(super) fn line(&mut self, text: impl std::fmt::Display) -> Result<()> {
        if self.yielded {
            self.say(text);
            return Ok(());
        }
        writeln!(stdout(), "{text}")?;
        Ok(())
    }

    /// Data for machines.
    pub(super) fn json(&mut self, value: &impl Serialize) -> Result<()> {
        let mut out = stdout().lock();
        serde_json::to_writer_pretty(&mut out, value).map_err(std::io::Error::from)?;
        writeln!(out)?;
        Ok(())
    }

    /// A table, columns aligned; the columns of `right` are numbers.
    pub(super) fn table(&mut self, headers: &[&str], rows: &[Vec<String>], right: &[usize]) -> Result<()> {
        let width = |column: usize| {
            let cells = rows.iter().map(|row| row[column].chars().count());
            cells.chain([headers[column].chars().count()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..headers.len()).map(width).collect();
        let render = |cells: &mut dyn Iterator<Item = &str>| {
            let mut line = String::new();
            for (column, cell) in cells.enumerate() {
                let pad = " ".repeat(widths[column] - cell.chars().count());
                match right.contains(&column) {
                    true => line.extend([pad.as_str(), cell]),
                    false => line.extend([cell, pad.as_str()]),
                }
                line.push_str("  ");
            }
            line.truncate(line.trim_end().len());
            line
        };
        let head = render(&mut headers.iter().copied());
        let head = self.paint_out(Paint::Note, &head);
        self.line(head)?;
        for row in rows {
            self.line(render(&mut row.iter().map(String::as_str)))?;
        }
        Ok(())
    }

    /// Conversation: what was decided, what comes next. Silent under `--quiet`.
    pub(super) fn say(&mut self, text: impl std::fmt::Display) {
        if !self.quiet {
            eprintln!("{text}");
        }
    }

    /// Something the user should not miss.
    pub(super) fn warn(&mut self, text: impl std::fmt::Display) {
        eprintln!("{} {text}", paint(self.color_err, Paint::Note, "warning:"));
    }

    /// The one error a run ends with: what failed, each cause, and last what to do next.
    pub(super) fn error(&mut self, error: &anyhow::Error, exit: Exit) {
        let failure = Failure::new(error, exit);
        if self.json {
            // One line, the last: what was said on the way stands before it.
            match serde_json::to_string(&failure) {
                Ok(text) => eprintln!("{text}"),
                Err(error) => eprintln!("error: {error}"),
            }
            return;
        }
        let mut text = failure.error;
        for cause in &failure.causes {
            // Behind a list, a cause begins a line of its own.
            text.push_str(if text.contains('\n') { "\ncause: " } else { ": " });
            text.push_str(cause);
        }
        eprintln!("{} {text}", paint(self.color_err, Paint::Bad, "error:"));
        if let Some(hint) = failure.hint {
            eprintln!("{} {hint}", paint(self.color_err, Paint::Note, "hint:"));
        }
    }

    /// `text` in colour, for stdout.
    pub(super) fn paint_out(&self, color: Paint, text: &str) -> String {
        paint(self.color_out, color, text)
    }

    /// A bar over `total` bytes; draws nothing where stderr is no terminal.
    pub(super) fn bytes_bar(&self, total: u64) -> ProgressBar {
        let template = "{bytes:>10} / {total_bytes} {wide_bar} {bytes_per_sec} eta {eta}";
        self.bar(total, template)
    }

    /// A bar over `total` images.
    pub(super) fn images_bar(&self, total: u64) -> ProgressBar {
        self.bar(total, "{pos:>8} / {len} images {wide_bar} {per_sec} eta {eta}")
    }

    /// A bar over the updates of a run, whose message says how it goes.
    pub(super) fn steps_bar(&self) -> ProgressBar {
        self.bar(0, "{wide_msg}")
    }

    /// A line that says what is being done.
    pub(super) fn spinner(&self) -> ProgressBar {
        self.bar(0, "{spinner} {wide_msg} {elapsed}")
    }

    fn bar(&self, total: u64, template: &str) -> ProgressBar {
        let hidden = self.quiet || !stderr().is_terminal();
        let target = if hidden { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(Some(total), target);
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        bar
    }
}

/// Something the user should not miss, where no [`Output`] is at hand.
pub(super) fn warning(text: impl std::fmt::Display) {
    eprintln!("warning: {text}");
}

fn paint(on: bool, color: Paint, text: &str) -> String {
    let code = match color {
        Paint::Good => "32",
        Paint::Bad => "31",
        Paint::Note => "1",
    };
    if on { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}
