//! Table of contents. Each module says in its first line what it proves.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop where it stands")]

mod checkpoint;
#[cfg(feature = "cli")]
mod cli;
mod convert;
#[cfg(feature = "data")]
mod data;
#[cfg(feature = "candle")]
mod dinov2;
#[cfg(feature = "train")]
mod distributed;
#[cfg(feature = "fetch")]
mod fetch;
#[cfg(feature = "cli")]
mod finetuned;
#[cfg(feature = "candle")]
mod gemm;
mod hostile;
#[cfg(feature = "fetch")]
mod identify;
#[cfg(feature = "data")]
mod images;
#[cfg(all(feature = "cli", unix))]
mod interrupt;
#[cfg(feature = "candle")]
mod kernels;
mod language;
#[cfg(feature = "train")]
mod method;
#[cfg(feature = "cli")]
mod names;
#[cfg(feature = "cli")]
mod onnx;
#[cfg(all(feature = "cli", unix))]
mod outputs;
#[cfg(feature = "candle")]
mod parity;
mod position;
#[cfg(feature = "cli")]
mod quiet;
#[cfg(all(feature = "cli", unix))]
mod readme;
mod stats;
#[cfg(feature = "cli")]
mod train;
#[cfg(feature = "candle")]
mod traps;
mod words;
mod zoo;
