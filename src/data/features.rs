//! Features out: a safetensors file that grows image by image.

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};

use safetensors::Dtype;
use serde_json::{Map, Value, json};

use super::DataError;
use crate::destination::Destination;
use crate::header::{Slot, header};
use crate::staged::folder_of;

/// Rows of one output, waiting in a nameless file until their number is known.
#[derive(Debug)]
struct Column {
    name: String,
    row_shape: Vec<usize>,
    rows: usize,
    spool: BufWriter<File>,
}

/// Collects features in batches and writes them as one file at the end.
///
/// Memory stays at one batch however many images come: the header of a safetensors file needs the row count, so rows wait on
/// disk beside the destination. Nothing appears under the final name before [`FeatureFile::finish`], and nothing is left
/// behind when that is never reached.
#[derive(Debug)]
pub struct FeatureFile {
    out: Destination,
    columns: Vec<Column>,
}

impl FeatureFile {
    /// A file to be written to `out`.
    ///
    /// # Errors
    /// [`DataError::Destination`] when it cannot be.
    pub fn new(out: impl Into<Destination>) -> Result<Self, DataError> {
        let out = out.into();
        out.check_file()?;
        Ok(Self { out, columns: Vec::new() })
    }

    fn io(&self) -> impl Fn(std::io::Error) -> DataError + use<> {
        let path = self.out.path().display().to_string();
        move |source| DataError::Write { path: path.clone(), source }
    }

    /// Appends `values` of shape `[rows, …]` to the output `name`.
    ///
    /// # Errors
    /// [`DataError::Write`]; [`DataError::Tensors`] when an earlier batch of this output had another row shape.
    pub fn append(&mut self, name: &str, shape: &[usize], values: &[f32]) -> Result<(), DataError> {
        let io = self.io();
        let at = match self.columns.iter().position(|column| column.name == name) {
            Some(at) => at,
            None => {
                let spool = match self.out.is_stream() {
                    true => tempfile::tempfile(),
                    false => tempfile::tempfile_in(folder_of(self.out.path())),
                };
                let spool = BufWriter::new(spool.map_err(&io)?);
                self.columns.push(Column { name: name.to_owned(), row_shape: shape[1..].to_vec(), rows: 0, spool });
                self.columns.len() - 1
            }
        };
        let column = &mut self.columns[at];
        if column.row_shape != shape[1..] {
            let reason = format!("`{name}` was {:?} an image and is now {:?}", column.row_shape, &shape[1..]);
            return Err(DataError::Tensors { path: self.out.path().display().to_string(), reason });
        }
        column.rows += shape[0];
        for value in values {
            column.spool.write_all(&value.to_le_bytes()).map_err(&io)?;
        }
        Ok(())
    }

    /// Writes the file, with `metadata` in its header, and moves it into place.
    ///
    /// # Errors
    /// [`DataError::Write`].
    pub fn finish(mut self, metadata: &[(&str, String)]) -> Result<(), DataError> {
        let io = self.io();
        let about: Map<String, Value> = metadata.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
        let shapes: Vec<Vec<usize>> =
            self.columns.iter().map(|column| [&[column.rows], &column.row_shape[..]].concat()).collect();
        let slots: Vec<Slot<'_>> = self
            .columns
            .iter()
            .zip(&shapes)
            .map(|(column, shape)| Slot { name: &column.name, dtype: Dtype::F32, shape })
            .collect();
        let header = header(Value::Object(about), slots.iter());

        let mut staged = self.out.file_output()?;
        let file = staged.file();
        file.write_all(&header).map_err(&io)?;
        for column in &mut self.columns {
            column.spool.flush().map_err(&io)?;
            let spool = column.spool.get_mut();
            spool.seek(SeekFrom::Start(0)).map_err(&io)?;
            std::io::copy(spool, file).map_err(&io)?;
        }
        Ok(staged.commit()?)
    }
}
