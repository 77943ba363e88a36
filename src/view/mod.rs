//! Pictures of what happened, for people: SVG or PNG, no window and no fonts of the system needed.

mod curves;
mod picture;

pub use curves::{Curve, ViewError, curves};
