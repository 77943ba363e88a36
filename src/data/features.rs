//! Features out: a safetensors file that grows image by image.

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::DataError;
use crate::staged::StagedFile;

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
    path: PathBuf,
    columns: Vec<Column>,
}

impl FeatureFile {
    /// A file to be written at `path`.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_path_buf(), columns: Vec::new() }
    }

    fn folder(&self) -> &Path {
        match self.path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        }
    }

    fn io(&self) -> impl Fn(std::io::Error) -> DataError + use<> {
        let path = self.path.display().to_string();
        move |source| DataError::Io { path: path.clone(), source }
    }

    /// Appends `values` of shape `[rows, …]` to the output `name`.
    ///
    /// # Errors
    /// [`DataError::Io`]; [`DataError::Tensors`] when an earlier batch of this output had another row shape.
    pub fn append(&mut self, name: &str, shape: &[usize], values: &[f32]) -> Result<(), DataError> {
        let io = self.io();
        let at = match self.columns.iter().position(|column| column.name == name) {
            Some(at) => at,
            None => {
                let spool = BufWriter::new(tempfile::tempfile_in(self.folder()).map_err(&io)?);
                self.columns.push(Column { name: name.to_owned(), row_shape: shape[1..].to_vec(), rows: 0, spool });
                self.columns.len() - 1
            }
        };
        let column = &mut self.columns[at];
        if column.row_shape != shape[1..] {
            let reason = format!("`{name}` was {:?} an image and is now {:?}", column.row_shape, &shape[1..]);
            return Err(DataError::Tensors { path: self.path.display().to_string(), reason });
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
    /// [`DataError::Io`].
    pub fn finish(mut self, metadata: &[(&str, String)]) -> Result<(), DataError> {
        let io = self.io();
        let (mut header, mut offset) = (Map::new(), 0);
        let about: Map<String, Value> = metadata.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
        header.insert("__metadata__".into(), Value::Object(about));
        for column in &self.columns {
            let mut shape = vec![column.rows];
            shape.extend(&column.row_shape);
            let end = offset + 4 * shape.iter().product::<usize>();
            let entry = json!({ "dtype": "F32", "shape": shape, "data_offsets": [offset, end] });
            header.insert(column.name.clone(), entry);
            offset = end;
        }
        let mut header = Value::Object(header).to_string().into_bytes();
        // Tensors start 8-byte aligned, as the format asks; spaces are its padding.
        header.resize(header.len().next_multiple_of(8), b' ');

        let mut staged = StagedFile::new(&self.path).map_err(&io)?;
        let file = staged.file();
        file.write_all(&(header.len() as u64).to_le_bytes()).map_err(&io)?;
        file.write_all(&header).map_err(&io)?;
        for column in &mut self.columns {
            column.spool.flush().map_err(&io)?;
            let spool = column.spool.get_mut();
            spool.seek(SeekFrom::Start(0)).map_err(&io)?;
            std::io::copy(spool, file).map_err(&io)?;
        }
        staged.commit().map_err(io)
    }
}
