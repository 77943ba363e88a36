//! `metrics.jsonl`: what happened in each update, one JSON object a line.
//!
//! Lines are only ever appended, except that a continued run first cuts off those after the checkpoint it continues from:
//! the updates they tell of are about to happen again.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::ops::{Range, RangeInclusive};
use std::path::Path;

use serde::{Deserialize, Serialize};

/// A line longer than this is not one of ours.
const MAX_LINE: u64 = 1 << 14;

/// One update. The keys are stable; those after `images` differ from run to run, all others are functions of the recipe,
/// the base and the data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Updates done, this one included.
    pub step: u64,
    /// Fractional epoch at which it happened, as the schedule counts.
    pub epoch: f64,
    /// Learning rate.
    pub lr: f64,
    /// The loss: the sum of the terms below that the method has, mean over the batch.
    pub loss: f64,
    /// Feature term.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feature: Option<f64>,
    /// Attention term.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attention: Option<f64>,
    /// Pixel term.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pixels: Option<f64>,
    /// L2 norm of the whole gradient.
    pub grad_norm: f64,
    /// Images in the run's updates so far.
    pub images: u64,
    /// Broken images skipped so far.
    pub skipped: u64,
    /// Images per second of this update, waiting included.
    pub images_per_second: f64,
    /// Share of its time spent waiting for data, 0 to 1.
    pub data_wait: f64,
    /// Seconds since 1970 when it was done.
    pub time: f64,
}

/// The file, open for appending.
#[derive(Debug)]
pub struct Metrics {
    file: File,
}

impl Metrics {
    /// File name in a run's folder.
    pub const NAME: &str = "metrics.jsonl";

    /// Opens `path`, keeping the lines of the first `steps` updates, and returns them.
    ///
    /// # Errors
    /// The system's.
    pub fn open(path: &Path, steps: u64) -> io::Result<(Self, Vec<StepRecord>)> {
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut kept = Vec::new();
        let mut end = 0;
        each(&file, |record, after| {
            let last = kept.last().map_or(0, |last: &StepRecord| last.step);
            let wanted = last < record.step && record.step <= steps;
            if wanted {
                end = after;
                kept.push(record);
            }
            wanted
        })?;
        file.set_len(end)?;
        file.seek(SeekFrom::Start(end))?;
        Ok((Self { file }, kept))
    }

    /// Which of the updates after the first `steps.start`, up to `steps.end` of them, `records` do not tell of, counted from 1;
    /// none in an undamaged file.
    pub fn missing(records: &[StepRecord], steps: Range<u64>) -> Vec<RangeInclusive<u64>> {
        let mut next = steps.start + 1;
        let ends = records.iter().map(|record| record.step).chain([steps.end + 1]);
        let gaps = ends.filter_map(|step| {
            let gap = next..=step.saturating_sub(1);
            next = step + 1;
            (!gap.is_empty()).then_some(gap)
        });
        gaps.collect()
    }

    /// Reads the whole lines of `path`, up to the first that is none.
    ///
    /// # Errors
    /// The system's.
    pub fn read(path: &Path) -> io::Result<Vec<StepRecord>> {
        let mut records = Vec::new();
        each(&File::open(path)?, |record, _| {
            records.push(record);
            true
        })?;
        Ok(records)
    }

    /// Appends a line, in one write.
    ///
    /// # Errors
    /// The system's.
    pub fn append(&mut self, record: &StepRecord) -> io::Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        self.file.write_all(&line)
    }

    /// Waits until the lines are on the platter.
    ///
    /// # Errors
    /// The system's.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// Calls `take` with each record and the offset behind it, until it says no or a line is no record.
fn each(file: &File, mut take: impl FnMut(StepRecord, u64) -> bool) -> io::Result<()> {
    let mut reader = BufReader::new(file);
    let (mut line, mut at) = (Vec::new(), 0);
    loop {
        line.clear();
        at += io::Read::take(&mut reader, MAX_LINE).read_until(b'\n', &mut line)? as u64;
        let Some(text) = line.strip_suffix(b"\n") else { return Ok(()) };
        let Ok(record) = serde_json::from_slice(text) else { return Ok(()) };
        if !take(record, at) {
            return Ok(());
        }
    }
}
