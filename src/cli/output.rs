//! Printing: data on stdout, conversation on stderr.

use std::io::{IsTerminal, Write, stderr, stdout};
use std::time::Duration;

use anyhow::Result;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

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
    color_out: bool,
    color_err: bool,
}

impl Output {
    pub(super) fn new(choice: ColorChoice, quiet: bool) -> Self {
        let allowed = |terminal: bool| match choice {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
        };
        Self { quiet, color_out: allowed(stdout().is_terminal()), color_err: allowed(stderr().is_terminal()) }
    }

    /// A line of data.
    pub(super) fn line(&mut self, text: impl std::fmt::Display) -> Result<()> {
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

    /// The one error a run ends with.
    pub(super) fn error(&mut self, error: &anyhow::Error) {
        let mut text = String::new();
        for cause in error.chain() {
            let cause = cause.to_string();
            // Library errors name their source in their own text; do not say it twice.
            if !text.contains(&cause) {
                if !text.is_empty() {
                    text.push_str(": ");
                }
                text.push_str(&cause);
            }
        }
        eprintln!("{} {text}", paint(self.color_err, Paint::Bad, "error:"));
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
        self.bar(0, "{pos}/{len} {wide_msg}")
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

fn paint(on: bool, color: Paint, text: &str) -> String {
    let code = match color {
        Paint::Good => "32",
        Paint::Bad => "31",
        Paint::Note => "1",
    };
    if on { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}
