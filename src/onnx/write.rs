//! A model file: `ModelProto` in two passes, lengths first and then a stream, with the weights beside it in
//! `FILE.onnx.data` once one protobuf message could not hold them. Both files appear by rename, or not at all.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use super::graph::{Graph, Initializer};
use crate::staged::StagedFile;
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
    pub(super) bytes: u64,
    pub(super) data: Option<PathBuf>,
}

/// Where a tensor of the data file lies.
struct Place {
    offset: u64,
    len: u64,
}

impl Model<'_> {
    /// Writes `path`, and `path` + `.data` when the model would be larger than `limit` bytes.
    pub(super) fn write(&self, path: &Path, limit: u64) -> io::Result<Written> {
        let inline: u64 = self.graph.initializers.iter().map(Initializer::bytes).sum();
        let name = path.file_name().ok_or_else(|| io::Error::other("the output has no file name"))?;
        let external = inline > limit;
        let mut data_name = name.to_os_string();
        data_name.push(".data");
        let location = data_name
            .to_str()
            .ok_or_else(|| io::Error::other("the output's file name is not UTF-8, and the data file's must be"))?;

        let places = self.place(external);
        let data = match external {
            true => {
                let to = path.with_file_name(&data_name);
                let mut staged = StagedFile::new(&to)?;
                self.write_data(staged.file(), &places)?;
                Some((staged, to))
            }
            false => None,
        };
        let mut staged = StagedFile::new(path)?;
        let mut out = BufWriter::with_capacity(1 << 20, staged.file());
        let bytes = self.stream(&mut out, &places, location)?;
        out.flush()?;
        drop(out);
        // The data first: a model without its weights must never be seen.
        let data = match data {
            Some((data, to)) => {
                data.commit()?;
                Some(to)
            }
            None => None,
        };
        staged.commit()?;
        Ok(Written { bytes, data })
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

    fn write_data(&self, file: &mut File, places: &[Option<Place>]) -> io::Result<()> {
        let mut out = BufWriter::with_capacity(1 << 20, file);
        let mut at = 0;
        for (initializer, place) in self.graph.initializers.iter().zip(places) {
            let Some(place) = place else { continue };
            io::copy(&mut io::Read::take(io::repeat(0), place.offset - at), &mut out)?;
            initializer.payload.write(initializer.element, &mut out)?;
            at = place.offset + place.len;
        }
        out.flush()
    }

    fn stream(&self, out: &mut impl Write, places: &[Option<Place>], location: &str) -> io::Result<u64> {
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
        for ((message, tensor, inline), initializer) in tensors.iter().zip(&graph.initializers) {
            out.write_all(message.bytes())?;
            out.write_all(tensor.bytes())?;
            if *inline {
                initializer.payload.write(initializer.element, out)?;
            }
        }
        out.write_all(tail.bytes())?;
        Ok(model.bytes().len() as u64 + graph_len)
    }
}

/// `StringStringEntryProto`.
fn pair(key: &str, value: &str) -> Message {
    let mut out = Message::default();
    out.string(1, key);
    out.string(2, value);
    out
}
