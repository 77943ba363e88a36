//! Pictures of what happened, for people: SVG, no fonts and no window needed.

mod curves;

pub use curves::{Curve, ViewError, curves};
