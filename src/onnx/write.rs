//! A model file: `ModelProto` in two passes, lengths first and then a stream, with the weights beside it in
//! `FILE.onnx.data` once one protobuf message could not hold them. Both files appear by rename, or not at all.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use super::ExportError;
use super::event::{Event, Interrupted, Listener, tell};
use super::graph::{Graph, Initializer};
use crate::destination::Destination;
use crate::wire::Message;

/// Protobuf's own limit is 2^31 - 1 bytes; runtimes refuse more. Some room is left for the nodes.
pub(super) const MESSAGE_LIMIT: u64 = (1 << 31) - (1 << 24);

/// Each tensor in the data file starts at a multiple of this, so that runtimes can map it.
const ALIGNMENT: u64 = 4096;

/// A tensor smaller than this stays in the model file: shape constants have to, and it keeps biases readable.
const EXTERNAL_MINIMUM: u64 = 1024;

/// A graph with what stands around it.
#[derive(Debug)]
pub(super) struct Model<'a> {
    pub(super) ir_version: u64,
    pub(super) opset: u32,
    pub(super) graph_name: String,
    pub(super) description: String,
    pub(super) metadata: Vec<(String, String)>,
    pub(super) graph: Graph<'a>,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Written {
    /// The file, links followed.
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    pub(super) data: Option<PathBuf>,
}

/// Told the bytes of weights written, before each weight; an error ends the writing.
type Progress<'a> = &'a mut dyn FnMut(u64) -> io::Result<()>;

/// Where a tensor of the data file lies.
struct Place {
    offset: u64,
    len: u64,
}

impl Model<'_> {
    /// Writes `out`, and `out` + `.data` when the model would be larger than `limit` bytes; `hear` may end it before each weight.
    pub(super) fn write(&self, out: &Destination, limit: u64, hear: Listener<'_>) -> Result<Written, ExportError> {
        let failed =
            |source: io::Error| match source.get_ref().and_then(|error| error.downcast_ref::<Interrupted>().copied()) {
                Some(interrupted) => interrupted.into(),
                None => ExportError::Write { path: out.path().display().to_string(), source },
            };
        let inline: u64 = self.graph.initializers.iter().map(Initializer::bytes).sum();
        let external = inline > limit;
        let mut staged = out.file_output()?;
        let path = staged.target().unwrap_or(out.path()).to_path_buf();
        // Runtimes look for the data beside the file, not beside a link to it.
        let data = external.then(|| data_beside(staged.target())).transpose().map_err(failed)?;
        let location = data.as_deref().and_then(Path::file_name).and_then(OsStr::to_str).unwrap_or_default();

        let places = self.place(external);
        let mut progress = |bytes| tell(hear, Event::Writing { bytes, total: inline }).map_err(io::Error::other);
        let data = match &data {
            Some(to) => {
                let mut staged = out.beside(to).file_output()?;
                self.write_data(staged.file(), &places, &mut progress).map_err(failed)?;
                Some((staged, to.clone()))
            }
            None => None,
        };
        let mut writer = BufWriter::with_capacity(1 << 20, staged.file());
        let bytes = self.stream(&mut writer, &places, location, &mut progress).map_err(failed)?;
        writer.flush().map_err(failed)?;
        drop(writer);
        // The data first: a model without its weights must never be seen.
        let data = match data {
            Some((data, to)) => {
                data.commit()?;
                Some(to)
            }
            None => None,
        };
        staged.commit()?;
        Ok(Written { path, bytes, data })
    }

    fn place(&self, external: bool) -> Vec<Option<Place>> {
        let mut end = 0_u64;
        let place = |initializer: &Initializer<'_>| {
            let len = initializer.bytes();
            if !external || len < EXTERNAL_MINIMUM {
                return None;
            }
            let offset = end.next_multiple_of(ALIGNMENT);
            end = offset + len;
            Some(Place { offset, len })
        };
        self.graph.initializers.iter().map(place).collect()
    }

    fn write_data(&self, file: &mut File, places: &[Option<Place>], progress: Progress<'_>) -> io::Result<()> {
        let mut out = BufWriter::with_capacity(1 << 20, file);
        // What is written of the weights, and where the file is: it has gaps between them.
        let (mut written, mut at) = (0, 0);
        for (initializer, place) in self.graph.initializers.iter().zip(places) {
            let Some(place) = place else { continue };
            progress(written)?;
            io::copy(&mut io::Read::take(io::repeat(0), place.offset - at), &mut out)?;
            initializer.payload.write(initializer.element, &mut out)?;
            written += place.len;
            at = place.offset + place.len;
        }
        out.flush()
    }

    fn stream(
        &self,
        out: &mut impl Write,
        places: &[Option<Place>],
        location: &str,
        progress: Progress<'_>,
    ) -> io::Result<u64> {
        let graph = &self.graph;
        let mut head = Message::default();
        for node in &graph.nodes {
            head.message(1, &node.encode());
        }
        head.string(2, &self.graph_name);
        let mut tail = Message::default();
        for input in &graph.inputs {
            tail.message(11, &input.encode());
        }
        for output in &graph.outputs {
            tail.message(12, &output.encode());
        }
        // Each tensor's message, except for the raw data that follows it.
        let mut tensors = Vec::with_capacity(graph.initializers.len());
        let mut graph_len = (head.bytes().len() + tail.bytes().len()) as u64;
        for (initializer, place) in graph.initializers.iter().zip(places) {
            let mut tensor = initializer.encode_header();
            let streamed = match place {
                Some(place) => {
                    for (key, value) in [
                        ("location", location),
                        ("offset", &place.offset.to_string()),
                        ("length", &place.len.to_string()),
                    ] {
                        tensor.message(13, &pair(key, value));
                    }
                    tensor.varint(14, 1);
                    0
                }
                None => {
                    tensor.announce(9, initializer.bytes());
                    initializer.bytes()
                }
            };
            let mut message = Message::default();
            message.announce(5, tensor.bytes().len() as u64 + streamed);
            graph_len += (message.bytes().len() + tensor.bytes().len()) as u64 + streamed;
            tensors.push((message, tensor, place.is_none()));
        }

        let mut model = Message::default();
        model.varint(1, self.ir_version);
        model.string(2, "tec-zoo");
        model.string(3, env!("CARGO_PKG_VERSION"));
        model.string(6, &self.description);
        let mut opset = Message::default();
        opset.string(1, "");
        opset.varint(2, u64::from(self.opset));
        model.message(8, &opset);
        for (key, value) in &self.metadata {
            model.message(14, &pair(key, value));
        }
        model.announce(7, graph_len);

        out.write_all(model.bytes())?;
        out.write_all(head.bytes())?;
        // What is beside the file was written before.
        let mut written: u64 = places.iter().flatten().map(|place| place.len).sum();
        for ((message, tensor, inline), initializer) in tensors.iter().zip(&graph.initializers) {
            out.write_all(message.bytes())?;
            out.write_all(tensor.bytes())?;
            if *inline {
                progress(written)?;
                initializer.payload.write(initializer.element, out)?;
                written += initializer.bytes();
            }
        }
        out.write_all(tail.bytes())?;
        Ok(model.bytes().len() as u64 + graph_len)
    }
}

/// Where the weights of the file `model` go.
fn data_beside(model: Option<&Path>) -> io::Result<PathBuf> {
    let model = model.ok_or_else(|| io::Error::other("its weights take a second file, and a stream is one"))?;
    let mut name = model.file_name().unwrap_or_default().to_os_string();
    name.push(".data");
    if name.to_str().is_none() {
        return Err(io::Error::other("the output's file name is not UTF-8, and the data file's must be"));
    }
    Ok(model.with_file_name(name))
}

/// `StringStringEntryProto`.
fn pair(key: &str, value: &str) -> Message {
    let mut out = Message::default();
    out.string(1, key);
    out.string(2, value);
    out
}
