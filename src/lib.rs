#![doc = include_str!("../README.md")]
//!
//! # Map of the crate
//!
//! A checkpoint's way through the modules, from a file nobody should trust to a graph three runtimes agree on:
//!
//! 1. [`checkpoint`] reads containers (torch zip, torch legacy, tar, safetensors, sharded) as hostile input, lazily.
//! 2. [`convert`] decides the fate of every key from headers alone, then streams the tensors into the common format.
//! 3. [`model`] knows the architecture: names, shapes, and the forward passes, written once, generic over
//!    [`model::Ops`].
//! 4. [`kernels`] runs those passes on candle; [`verify`] replays stored activations and names what diverged.
//! 5. [`onnx`] records the same passes as a graph, writes it, and checks it in three runtimes.
//! 6. `data` turns images into inputs; [`zoo`] knows the released models, [`fetch`] brings them here, verified, and
//!    [`identify`] says whose weights any file holds.
//! 7. `train` makes a new model from any base's backbone; `view` draws how it went.
//!
//! Errors say what is wrong and where; what to do next is a [`hint::Hint`], data that each caller words for itself.
//!
//! Without features, the crate reads and converts; forward passes, runtimes and the command line are features.

mod causes;
pub mod checkpoint;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
pub mod convert;
#[cfg(feature = "data")]
pub mod data;
pub mod destination;
#[cfg(feature = "fetch")]
pub mod fetch;
mod header;
pub mod hint;
#[cfg(feature = "fetch")]
pub mod identify;
#[cfg(feature = "candle")]
pub mod kernels;
mod looks;
mod memory;
pub mod model;
pub mod onnx;
mod staged;
#[cfg(feature = "train")]
pub mod train;
#[cfg(feature = "candle")]
pub mod verify;
#[cfg(feature = "view")]
pub mod view;
mod wire;
pub mod zoo;
