//! The metrics once more, as TensorBoard reads them: a TFRecord file of `Event` messages.
//!
//! Just enough of both formats for scalars. A record is its length, a checksum of the length, the message and a checksum of
//! the message (`tensorflow/core/lib/io/record_writer.h`); field numbers are those of `event.proto` and `summary.proto`.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use super::metrics::StepRecord;
use crate::staged::StagedFile;
use crate::wire::Message;

/// The file, open for appending.
#[derive(Debug)]
pub struct Events {
    file: File,
}

impl Events {
    /// File name in a run's folder; TensorBoard looks for `tfevents` in it.
    pub const NAME: &str = "events.out.tfevents.tec-zoo";

    /// Starts `path` anew with what `records` tell, for a run that goes on behind them.
    ///
    /// # Errors
    /// The system's.
    pub fn start(path: &Path, now: f64, records: &[StepRecord]) -> io::Result<Self> {
        let mut staged = StagedFile::new(path)?;
        let mut version = Message::default();
        version.double(1, records.first().map_or(now, |record| record.time));
        version.string(3, "brain.Event:2");
        let mut bytes = framed(version.bytes());
        for record in records {
            bytes.extend(framed(event(record).bytes()));
        }
        staged.file().write_all(&bytes)?;
        let file = staged.file().try_clone()?;
        staged.commit()?;
        Ok(Self { file })
    }

    /// Appends the scalars of one update, in one write.
    ///
    /// # Errors
    /// The system's.
    pub fn append(&mut self, record: &StepRecord) -> io::Result<()> {
        self.file.write_all(&framed(event(record).bytes()))
    }
}

/// `Event { wall_time = 1, step = 2, summary = 5 }`, one `Summary.Value { tag = 1, simple_value = 2 }` for each scalar.
fn event(record: &StepRecord) -> Message {
    let scalars = [
        ("loss/total", Some(record.loss)),
        ("loss/feature", record.feature),
        ("loss/attention", record.attention),
        ("loss/pixels", record.pixels),
        ("optimizer/lr", Some(record.lr)),
        ("optimizer/grad_norm", Some(record.grad_norm)),
        ("speed/images_per_second", Some(record.images_per_second)),
        ("speed/data_wait", Some(record.data_wait)),
    ];
    let mut summary = Message::default();
    for (tag, scalar) in scalars.into_iter().filter_map(|(tag, scalar)| Some((tag, scalar?))) {
        let mut value = Message::default();
        value.string(1, tag);
        value.float(2, scalar as f32);
        summary.message(1, &value);
    }
    let mut event = Message::default();
    event.double(1, record.time);
    event.varint(2, record.step);
    event.message(5, &summary);
    event
}

fn framed(message: &[u8]) -> Vec<u8> {
    let length = (message.len() as u64).to_le_bytes();
    let mut out = Vec::with_capacity(message.len() + 16);
    out.extend_from_slice(&length);
    out.extend_from_slice(&masked(&length).to_le_bytes());
    out.extend_from_slice(message);
    out.extend_from_slice(&masked(message).to_le_bytes());
    out
}

/// `crc32c::Mask`: a checksum of bytes that hold checksums would be weak.
fn masked(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}
