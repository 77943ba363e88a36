//! Just enough of an ONNX reader to say what a file promises: its nodes, its interface, its metadata. Any file is
//! hostile: every length is checked against what contains it, nesting is bounded because only known messages are
//! entered, and what is kept is bounded by the file's own size.
//!
//! Subgraphs, functions and training information are not entered; nothing this tool writes has them.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use memmap2::Mmap;
use serde::Serialize;

use crate::looks::looks;
use crate::wire::{Field, Reader, WireError, WireType};

/// Why a file is not a readable ONNX model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The file could not be read.
    #[error("cannot read `{path}`")]
    Io {
        /// The file.
        path: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The bytes are something else.
    #[error("`{path}` is not an ONNX model: it looks like {looks}")]
    SomethingElse {
        /// The file.
        path: String,
        /// What it is.
        looks: &'static str,
    },
    /// The bytes are no ONNX model.
    #[error("`{path}` is not an ONNX model")]
    Malformed {
        /// The file.
        path: String,
        /// Where and why.
        source: WireError,
    },
}

/// An attribute's value, as far as this tool uses them.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum AttributeValue {
    /// An integer.
    Int(i64),
    /// A float.
    Float(f32),
    /// A text.
    Text(String),
    /// Integers.
    Ints(Vec<i64>),
    /// A kind nothing here writes (tensor, graph, …), by its `AttributeType` number.
    Other(u64),
}

/// A node.
#[derive(Debug, Clone, PartialEq, Serialize, Default)]
pub struct NodeInfo {
    /// Name.
    pub name: String,
    /// Operator.
    pub operator: String,
    /// Operator's domain; empty for the standard one.
    pub domain: String,
    /// Names of what it takes; an empty name is an omitted optional.
    pub inputs: Vec<String>,
    /// Names of what it makes.
    pub outputs: Vec<String>,
    /// Attributes.
    pub attributes: BTreeMap<String, AttributeValue>,
}

/// A dimension.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum DimInfo {
    /// Known.
    Size(u64),
    /// Named, chosen at run time.
    Name(String),
    /// Not said.
    Unknown,
}

impl std::fmt::Display for DimInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Size(size) => write!(f, "{size}"),
            Self::Name(name) => f.write_str(name),
            Self::Unknown => f.write_str("?"),
        }
    }
}

/// An input or output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
pub struct InterfaceInfo {
    /// Name.
    pub name: String,
    /// `TensorProto.DataType` of the elements; 1 is f32.
    pub element: u64,
    /// Shape.
    pub dims: Vec<DimInfo>,
}

/// A stored tensor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
pub struct InitializerInfo {
    /// Name.
    pub name: String,
    /// `TensorProto.DataType` of the elements; 1 is f32.
    pub element: u64,
    /// Shape.
    pub dims: Vec<u64>,
    /// Bytes of raw data in the model file.
    pub bytes: u64,
    /// File, offset and length of data kept outside, as the file says them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub external: BTreeMap<String, String>,
}

/// What an ONNX file says of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Default)]
pub struct ModelInfo {
    /// Version of the file format.
    pub ir_version: u64,
    /// Operator sets: domain (empty for the standard one) and version.
    pub opsets: Vec<(String, u64)>,
    /// Program that wrote it.
    pub producer: String,
    /// That program's version.
    pub producer_version: String,
    /// Description.
    pub description: String,
    /// Free metadata.
    pub metadata: BTreeMap<String, String>,
    /// Name of the graph.
    pub graph: String,
    /// Inputs.
    pub inputs: Vec<InterfaceInfo>,
    /// Outputs.
    pub outputs: Vec<InterfaceInfo>,
    /// Nodes, in execution order.
    pub nodes: Vec<NodeInfo>,
    /// Stored tensors.
    pub initializers: Vec<InitializerInfo>,
}

impl ModelInfo {
    /// Reads `path`, without loading its weights.
    ///
    /// # Errors
    /// When the file cannot be read or is no ONNX model.
    pub fn open(path: &Path) -> Result<Self, ReadError> {
        let shown = || path.display().to_string();
        let io = |source| ReadError::Io { path: shown(), source };
        let file = File::open(path).map_err(io)?;
        if file.metadata().map_err(io)?.len() == 0 {
            return Err(ReadError::Malformed { path: shown(), source: Reader::new(&[]).error("the file is empty") });
        }
        // SAFETY: the map is read-only and dropped before this returns. A writer that shortens the file meanwhile ends
        // the process with SIGBUS, as with every mapped file; this tool only ever replaces files by rename.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        let refused = |source| match looks(&map) {
            // A graph that is damaged later on begins as one.
            Some(looks) if !looks.contains("ONNX") => ReadError::SomethingElse { path: shown(), looks },
            _ => ReadError::Malformed { path: shown(), source },
        };
        Self::parse(&map).map_err(refused)
    }

    /// Reads a model from memory.
    ///
    /// # Errors
    /// Says at which byte the bytes stop being a model.
    pub fn parse(bytes: &[u8]) -> Result<Self, WireError> {
        let mut model = Self::default();
        let mut graphs = 0;
        let mut reader = Reader::new(bytes);
        while let Some(field) = reader.field()? {
            match field.number {
                1 => model.ir_version = field.varint()?,
                2 => model.producer = field.text()?.to_owned(),
                3 => model.producer_version = field.text()?.to_owned(),
                6 => model.description = field.text()?.to_owned(),
                7 => {
                    graphs += 1;
                    model.graph(field.delimited()?)?;
                }
                8 => model.opsets.push(opset(field.delimited()?)?),
                14 => {
                    let (key, value) = pair(field.delimited()?)?;
                    model.metadata.insert(key, value);
                }
                _ => {}
            }
        }
        match graphs {
            1 => Ok(model),
            0 => Err(reader.error("it has no graph")),
            _ => Err(reader.error("it has more than one graph")),
        }
    }

    fn graph(&mut self, mut reader: Reader<'_>) -> Result<(), WireError> {
        while let Some(field) = reader.field()? {
            match field.number {
                1 => self.nodes.push(node(field.delimited()?)?),
                2 => self.graph = field.text()?.to_owned(),
                5 => self.initializers.push(initializer(field.delimited()?)?),
                11 => self.inputs.push(interface(field.delimited()?)?),
                12 => self.outputs.push(interface(field.delimited()?)?),
                _ => {}
            }
        }
        Ok(())
    }
}

fn pair(mut reader: Reader<'_>) -> Result<(String, String), WireError> {
    let (mut key, mut value) = (String::new(), String::new());
    while let Some(field) = reader.field()? {
        match field.number {
            1 => key = field.text()?.to_owned(),
            2 => value = field.text()?.to_owned(),
            _ => {}
        }
    }
    Ok((key, value))
}

fn opset(mut reader: Reader<'_>) -> Result<(String, u64), WireError> {
    let (mut domain, mut version) = (String::new(), 0);
    while let Some(field) = reader.field()? {
        match field.number {
            1 => domain = field.text()?.to_owned(),
            2 => version = field.varint()?,
            _ => {}
        }
    }
    Ok((domain, version))
}

fn node(mut reader: Reader<'_>) -> Result<NodeInfo, WireError> {
    let mut out = NodeInfo::default();
    while let Some(field) = reader.field()? {
        match field.number {
            1 => out.inputs.push(field.text()?.to_owned()),
            2 => out.outputs.push(field.text()?.to_owned()),
            3 => out.name = field.text()?.to_owned(),
            4 => out.operator = field.text()?.to_owned(),
            5 => {
                let (name, value) = attribute(field.delimited()?)?;
                out.attributes.insert(name, value);
            }
            7 => out.domain = field.text()?.to_owned(),
            _ => {}
        }
    }
    Ok(out)
}

fn attribute(mut reader: Reader<'_>) -> Result<(String, AttributeValue), WireError> {
    let (mut name, mut kind) = (String::new(), 0);
    let (mut float, mut int, mut text, mut ints) = (0.0, 0, String::new(), Vec::new());
    while let Some(field) = reader.field()? {
        match (field.number, field.wire) {
            (1, _) => name = field.text()?.to_owned(),
            (2, WireType::Fixed32) => float = f32::from_bits(field.value as u32),
            (3, _) => int = field.varint()? as i64,
            (4, _) => text = String::from_utf8_lossy(field.delimited()?.bytes()).into_owned(),
            (8, _) => integers(&field, &mut ints)?,
            (20, _) => kind = field.varint()?,
            _ => {}
        }
    }
    let value = match kind {
        1 => AttributeValue::Float(float),
        2 => AttributeValue::Int(int),
        3 => AttributeValue::Text(text),
        7 => AttributeValue::Ints(ints),
        other => AttributeValue::Other(other),
    };
    Ok((name, value))
}

/// Repeated integers, packed or one by one.
fn integers(field: &Field<'_>, out: &mut Vec<i64>) -> Result<(), WireError> {
    if field.wire != WireType::Delimited {
        out.push(field.varint()? as i64);
        return Ok(());
    }
    let mut packed = field.delimited()?;
    while !packed.is_empty() {
        out.push(packed.raw_varint()? as i64);
    }
    Ok(())
}

fn initializer(mut reader: Reader<'_>) -> Result<InitializerInfo, WireError> {
    let mut out = InitializerInfo::default();
    let mut dims = Vec::new();
    while let Some(field) = reader.field()? {
        match field.number {
            1 => integers(&field, &mut dims)?,
            2 => out.element = field.varint()?,
            8 => out.name = field.text()?.to_owned(),
            9 => out.bytes = field.delimited()?.bytes().len() as u64,
            13 => {
                let (key, value) = pair(field.delimited()?)?;
                out.external.insert(key, value);
            }
            _ => {}
        }
    }
    out.dims = dims
        .into_iter()
        .map(|dim| u64::try_from(dim).map_err(|_| reader.error("a tensor has a negative dimension")))
        .collect::<Result<_, _>>()?;
    Ok(out)
}

fn interface(mut reader: Reader<'_>) -> Result<InterfaceInfo, WireError> {
    let mut out = InterfaceInfo::default();
    while let Some(field) = reader.field()? {
        match field.number {
            1 => out.name = field.text()?.to_owned(),
            2 => {
                let mut kind = field.delimited()?;
                while let Some(field) = kind.field()? {
                    if field.number == 1 {
                        tensor_type(field.delimited()?, &mut out)?;
                    }
                }
            }
            _ => {}
        }
    }
    Ok(out)
}

fn tensor_type(mut reader: Reader<'_>, out: &mut InterfaceInfo) -> Result<(), WireError> {
    while let Some(field) = reader.field()? {
        match field.number {
            1 => out.element = field.varint()?,
            2 => {
                let mut shape = field.delimited()?;
                while let Some(field) = shape.field()? {
                    if field.number == 1 {
                        out.dims.push(dimension(field.delimited()?)?);
                    }
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn dimension(mut reader: Reader<'_>) -> Result<DimInfo, WireError> {
    let mut out = DimInfo::Unknown;
    while let Some(field) = reader.field()? {
        match field.number {
            1 => out = DimInfo::Size(field.varint()?),
            2 => out = DimInfo::Name(field.text()?.to_owned()),
            _ => {}
        }
    }
    Ok(out)
}
