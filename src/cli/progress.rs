//! How a pretraining goes, while it goes: a line that is redrawn on a terminal, and one now and then elsewhere; and the end of
//! a run that stands still.

use std::io::Write as _;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::{DecimalBytes, ProgressBar};

use super::interrupt;
use super::output::Output;
use crate::data::{DamagedShard, ScanEvent};
use crate::train::{BranchFile, News, Stall, StepRecord};

/// How often a line is printed where there is no terminal to redraw one on.
const EVERY: Duration = Duration::from_secs(30);

/// An update that takes longer is shown from within.
const LONG: Duration = Duration::from_secs(1);

/// Columns of a line.
const COLUMNS: usize = 79;

/// Follows a run.
pub(super) struct Progress<'a> {
    output: &'a mut Output,
    bar: ProgressBar,
    printed: Instant,
    steps: u64,
    /// The newest update.
    record: Option<StepRecord>,
    /// When it ended, or the first began.
    since: Instant,
    /// Of several processes, one tells how it goes; each tells what only it knows.
    tells: bool,
}

impl<'a> Progress<'a> {
    pub(super) fn new(output: &'a mut Output, tells: bool) -> Self {
        let bar = if tells { output.steps_bar() } else { ProgressBar::hidden() };
        let now = Instant::now();
        Self { output, bar, printed: now, steps: 0, record: None, since: now, tells }
    }

    /// Shows what there is to show; the answer says whether the user asked to stop.
    pub(super) fn hear(&mut self, news: News<'_>) -> ControlFlow<()> {
        match news {
            News::Started { done, steps, images, from } => {
                self.steps = steps;
                self.since = Instant::now();
                let from = from.map_or(String::new(), |path| format!(", from {}", path.display()));
                match done == steps {
                    _ if !self.tells => {}
                    true => self.say(format_args!("all {steps} updates are made{from}")),
                    false => self.say(format_args!("{images} images; updates {} to {steps}{from}", done + 1)),
                }
            }
            News::Scan(event) => self.scanned(event),
            News::UnknownData { images } => {
                self.warn(format_args!(
                    "this run of an older version does not say which images it was started with, only that there were {images}"
                ));
            }
            News::DamagedRecord { path, reason } => {
                self.warn(format_args!("`{}` cannot be used: {reason}; a checkpoint says the same", path.display()));
            }
            News::Branched { from, their_epoch, epoch, lr, afresh } if self.tells => {
                let BranchFile { run, step, .. } = from;
                self.say(format_args!("goes on from `{run}` after its update {step}, epoch {their_epoch:.2}"));
                self.say(format_args!("here it is epoch {epoch:.2} of the schedule, learning rate {lr:.2e}"));
                if !afresh.is_empty() {
                    let mut parts: Vec<&str> =
                        afresh.iter().map(|name| name.split('.').next().unwrap_or(name)).collect();
                    parts.dedup();
                    let (count, parts) = (afresh.len(), parts.join("`, `"));
                    self.warn(format_args!("{count} parameters begin afresh, weights and moments: of `{parts}`"));
                }
            }
            News::Disk(room) if self.tells => {
                let free = room.free.map_or(String::new(), |free| format!(" of {} free", DecimalBytes(free)));
                let (each, needed) = (DecimalBytes(room.checkpoint), DecimalBytes(room.needed));
                let most = room.checkpoints;
                self.say(format_args!("disk: {needed}{free}: the result and {most} checkpoints of {each}"));
            }
            News::Damaged { path, reason } => {
                self.warn(format_args!("`{}` cannot be used: {reason}; going back further", path.display()));
            }
            News::Missing { updates } => {
                let updates = updates.iter().map(|range| match range.start() == range.end() {
                    true => range.start().to_string(),
                    false => format!("{} to {}", range.start(), range.end()),
                });
                self.warn(format_args!(
                    "metrics.jsonl has lost updates {}; the weights are whole",
                    updates.collect::<Vec<_>>().join(", ")
                ));
            }
            News::Broken(broken) => {
                self.warn(format_args!("skipped `{}`: {}", broken.path, broken.reason));
            }
            News::MicroBatch { step, done, of, left } => {
                if of > 1 && self.since.elapsed() >= LONG {
                    self.show(step, Some((done, of)), left, false);
                }
            }
            News::Step { record, left } => {
                self.record = Some(record.clone());
                self.since = Instant::now();
                self.show(record.step, None, left, record.step == self.steps);
            }
            News::Branched { .. } | News::Disk(_) | News::Working(_) | News::Saved { .. } => {}
        }
        interrupt::flow()
    }

    /// How the search for images goes: redrawn on a terminal, elsewhere every half minute.
    fn scanned(&mut self, event: ScanEvent<'_>) {
        if !self.tells {
            return;
        }
        let line = match event {
            ScanEvent::Walking { folders, images } => format!("looking for images: {images} in {folders} folders"),
            ScanEvent::Reading { done, of } => format!("looking for images: {done} of {of}"),
            ScanEvent::Digesting { done, of } => format!("comparing images: {done} of {of}"),
            ScanEvent::Unread(unread) => return self.warn(unread),
            ScanEvent::Damaged(shard) => {
                let DamagedShard { path, reason, images } = shard;
                return self.warn(format_args!("`{}`: {reason}; its first {images} images are used", path.display()));
            }
        };
        self.draw(line, false);
    }

    pub(super) fn finish(self) {
        self.bar.finish_and_clear();
    }

    fn show(&mut self, step: u64, within: Option<(usize, usize)>, left: Duration, last: bool) {
        self.draw(line(step, self.steps, self.record.as_ref(), within, left), last);
    }

    fn draw(&mut self, line: String, last: bool) {
        if !self.bar.is_hidden() {
            self.bar.set_message(line);
        } else if self.tells && (last || self.printed.elapsed() >= EVERY) {
            self.printed = Instant::now();
            self.output.say(line);
        }
    }

    fn say(&mut self, text: impl std::fmt::Display) {
        let (bar, output) = (&self.bar, &mut *self.output);
        bar.suspend(|| output.say(text));
    }

    fn warn(&mut self, text: impl std::fmt::Display) {
        let (bar, output) = (&self.bar, &mut *self.output);
        bar.suspend(|| output.warn(text));
    }
}

/// `13/1550  [##------] 16/64  loss 5.7725  lr 1.20e-4  312.5 images/s  eta 2h 5m`, or `epoch 3.25` where an update is short;
/// what does not fit is left out, the least important first.
fn line(step: u64, steps: u64, record: Option<&StepRecord>, within: Option<(usize, usize)>, left: Duration) -> String {
    let mut parts = vec![(0, format!("{step}/{steps}"))];
    match (within, record) {
        (Some((done, of)), _) => {
            let full = 8 * done / of.max(1);
            parts.push((2, format!("[{}{}] {done}/{of}", "#".repeat(full), "-".repeat(8 - full))));
        }
        (None, Some(record)) => parts.push((3, format!("epoch {:.2}", record.epoch))),
        (None, None) => {}
    }
    if let Some(record) = record {
        parts.push((1, format!("loss {:.4}", record.loss)));
        parts.push((4, format!("lr {:.2e}", record.lr)));
        parts.push((2, format!("{:.1} images/s", record.images_per_second)));
        if record.data_wait >= 0.05 {
            parts.push((5, format!("data wait {:.0}%", 100.0 * record.data_wait)));
        }
    }
    parts.push((0, format!("eta {}", time(left))));
    loop {
        let line = parts.iter().map(|(_, part)| part.as_str()).collect::<Vec<_>>().join("  ");
        let least = parts.iter().map(|(rank, _)| *rank).max().unwrap_or(0);
        if line.chars().count() <= COLUMNS || least == 0 {
            return line;
        }
        parts.retain(|(rank, _)| *rank < least);
    }
}

/// `12s`, `3m 4s`, `2h 5m`, `12d 23h`.
pub(super) fn time(time: Duration) -> String {
    let seconds = time.as_secs();
    match (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m {}s", seconds % 60),
        (0, hours, minutes) => format!("{hours}h {minutes}m"),
        (days, hours, _) => format!("{days}d {hours}h"),
    }
}

/// Ends the program over a run that stands still. The run's own thread may be the one that hangs in writing to stderr, so
/// nobody waits for the report for long.
pub(super) fn end(stall: &Stall, out: &Path) {
    let hint = format!(
        "`tec-zoo pretrain --out {} --resume` goes on from the newest checkpoint, which is whole",
        out.display()
    );
    let text = format!("error: the run stands still: {stall}\nhint: {hint}\n");
    let report = std::thread::spawn(move || drop(std::io::stderr().write_all(text.as_bytes())));
    let until = Instant::now() + Duration::from_secs(2);
    while !report.is_finished() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
    std::process::exit(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(step: u64) -> StepRecord {
        StepRecord {
            step,
            epoch: 299.99,
            lr: 1.2e-4,
            loss: 5.7725,
            feature: Some(2.8718),
            attention: Some(2.9007),
            pixels: None,
            grad_norm: 1.0,
            images: 1,
            skipped: 0,
            images_per_second: 312.5,
            data_wait: 0.25,
            time: 0.0,
        }
    }

    #[test]
    fn a_line_fits_eighty_columns_and_keeps_what_matters_most() {
        let left = Duration::from_secs(7500);
        assert_eq!(
            line(13, 1550, Some(&record(13)), Some((16, 64)), left),
            "13/1550  [##------] 16/64  loss 5.7725  lr 1.20e-4  312.5 images/s  eta 2h 5m"
        );
        assert_eq!(
            line(13, 1550, Some(&record(13)), None, left),
            "13/1550  epoch 299.99  loss 5.7725  lr 1.20e-4  312.5 images/s  eta 2h 5m"
        );
        assert_eq!(line(1, 9, None, Some((3, 4)), left), "1/9  [######--] 3/4  eta 2h 5m");
        let mut long = record(10_000_000);
        (long.images_per_second, long.loss) = (123_456.7, 123_456.789);
        for within in [None, Some((9999, 10_000))] {
            let line = line(10_000_000, 20_000_000, Some(&long), within, Duration::MAX);
            assert!(line.chars().count() < 80 && line.contains("loss") && line.contains("eta "), "{line}");
        }
    }
}
