//! Pretraining: a new ViT learns to predict, from a part of the image, what a frozen base model makes of all of it.

mod method;

pub use method::{AttentionRows, ConditionalAdapters, DecoderShape, Initialise, Method, Normalise, Target};
