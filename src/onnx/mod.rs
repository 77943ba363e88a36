//! ONNX export: the forward pass of [`crate::model`] recorded as a graph, written as a file, and checked in every
//! runtime at hand.
//!
//! The writer is this crate's own, because weights are streamed from the mapped checkpoint instead of being built into
//! one message in memory. See `docs/onnx.md` for what a file contains.

mod check;
mod contract;
mod dtype;
mod event;
mod export;
mod feed;
mod graph;
pub mod matrix;
mod metadata;
mod payload;
mod purpose;
mod read;
mod record;
#[cfg(feature = "candle")]
mod reference;
pub mod runtime;
mod target;
mod verdict;
mod write;

pub use crate::wire::WireError;
pub use check::{
    CALIBRATED_COSINE, CheckError, CheckOptions, DEFAULT_ATOL, DEFAULT_BATCH, HALF_COSINE, INT8_COSINE, Reference,
    Tolerance, check, export_checked,
};
pub use contract::{CONSUMERS, Contract, ContractError, Difference, Expectation, Subject};
pub use dtype::{Calibration, CalibrationError, Calibrator, Dtype};
pub use event::{Event, Interrupted, Listener};
pub use export::{Adapters, BYTES_INPUT, ExportError, ExportOptions, ExportReport, INPUT, OutputInfo, Size, export};
pub use graph::Extent;
pub use purpose::{LevelNorm, MapContract, MapOptions, NeckUse, Purpose};
pub use read::{AttributeValue, DimInfo, InitializerInfo, InterfaceInfo, ModelInfo, NodeInfo, ReadError};
pub use record::{Record, Value};
pub use target::Target;
pub use verdict::{CheckReport, OutputCheck, RuntimeCheck, RuntimeVerdict};
