//! The two layouts of tokens, and the way from one to the other.

use super::{Form, Record, Result, Value};
use crate::onnx::ExportError;
use crate::onnx::graph::{Attribute, BATCH, Extent, PATCHES, TOKENS};

/// Number of patches of a grid.
pub(super) fn patches(grid: [Extent; 2]) -> Extent {
    match grid {
        [Extent::Fixed(rows), Extent::Fixed(columns)] => Extent::Fixed(rows * columns),
        _ => PATCHES,
    }
}

/// A side brought to a multiple of `padding`.
pub(in crate::onnx) fn padded(side: usize, padding: Option<usize>) -> usize {
    padding.map_or(side, |multiple| side.next_multiple_of(multiple))
}

/// The length of a token axis with `more` tokens before it.
pub(super) fn longer(tokens: Extent, more: usize) -> Extent {
    match tokens {
        Extent::Fixed(tokens) => Extent::Fixed(more + tokens),
        Extent::Free(_) => TOKENS,
    }
}

/// Batch times tokens.
pub(super) const ROWS: Extent = Extent::Free("batch·tokens");

/// As Reshape takes it: what is not known follows from the rest.
fn fixed(extent: Extent) -> i64 {
    match extent {
        Extent::Fixed(length) => length as i64,
        Extent::Free(_) => -1,
    }
}

impl Record<'_> {
    pub(super) fn tokens_of(&self, x: &Value) -> Result<(Extent, usize)> {
        match x.form {
            Form::Tokens { tokens, channels } | Form::Flat { tokens, channels } => Ok((tokens, channels)),
            _ => Err(ExportError::unrecordable("tokens", format!("`{}` is not a sequence of tokens", x.name))),
        }
    }

    /// What Reshape needs to give an axis of each of these lengths: a constant where all but one are known, else put
    /// together from the lengths at run time.
    pub(super) fn shape(&mut self, extents: &[Extent]) -> Result<String> {
        let free = |extent: &&Extent| matches!(extent, Extent::Free(_));
        // One length follows from the others: the one no node holds, where there is such.
        let unknown = |extent: &&Extent| free(extent) && !self.lengths.contains_key(extent);
        let inferred = extents.iter().find(unknown).or_else(|| extents.iter().find(free)).copied();
        if extents.iter().filter(free).count() <= 1 {
            let sizes: Vec<i64> = extents.iter().map(|extent| fixed(*extent)).collect();
            return Ok(self.integers(&sizes, true));
        }
        if let Some(name) = self.shapes.get(extents) {
            return Ok(name.clone());
        }
        let mut parts: Vec<String> = Vec::new();
        let mut known: Vec<i64> = Vec::new();
        for extent in extents {
            match extent {
                Extent::Free(_) if Some(*extent) != inferred => {
                    let length = self.length(*extent)?;
                    if !known.is_empty() {
                        parts.push(self.integers(&std::mem::take(&mut known), true));
                    }
                    parts.push(length);
                }
                _ => known.push(fixed(*extent)),
            }
        }
        if !known.is_empty() {
            parts.push(self.integers(&known, true));
        }
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let scope = std::mem::replace(&mut self.scope, vec!["shapes".to_owned()]);
        let name = self.node("Concat", &parts, vec![("axis", Attribute::Int(0))]);
        self.scope = scope;
        self.shapes.insert(extents.to_vec(), name.clone());
        Ok(name)
    }

    /// The length of a free axis, a vector of one.
    pub(super) fn length(&self, extent: Extent) -> Result<String> {
        self.lengths.get(&extent).cloned().ok_or_else(|| {
            ExportError::unrecordable("shape", format!("nothing in the graph knows the length of `{extent}`"))
        })
    }

    /// Notes that the shape `shape` has the length of `extent` at `axis`.
    pub(super) fn measure(&mut self, shape: &str, axis: i64, extent: Extent) {
        let index = self.integers(&[axis], true);
        let length = self.node("Gather", &[shape, &index], vec![("axis", Attribute::Int(0))]);
        self.lengths.insert(extent, length);
    }

    pub(super) fn relay(&mut self, x: &Value, flat: bool, dims: &[Extent]) -> Result<String> {
        let key = (x.name.clone(), flat);
        if let Some(name) = self.relaid.get(&key) {
            return Ok(name.clone());
        }
        let shape = self.shape(dims)?;
        let name = self.node("Reshape", &[&x.name, &shape], vec![]);
        self.relaid.insert(key, name.clone());
        // The way back is known as well.
        self.relaid.insert((name.clone(), !flat), x.name.clone());
        Ok(name)
    }

    pub(super) fn flat(&mut self, x: &Value) -> Result<Value> {
        match x.form {
            Form::Tokens { tokens, channels } => {
                let name = self.relay(x, true, &[ROWS, Extent::Fixed(channels)])?;
                Ok(Value { name, form: Form::Flat { tokens, channels } })
            }
            _ => Ok(x.clone()),
        }
    }

    pub(super) fn stacked(&mut self, x: &Value) -> Result<Value> {
        match x.form {
            Form::Flat { tokens, channels } => {
                let name = self.relay(x, false, &[BATCH, tokens, Extent::Fixed(channels)])?;
                Ok(Value { name, form: Form::Tokens { tokens, channels } })
            }
            Form::Tokens { .. } => Ok(x.clone()),
            _ => Err(ExportError::unrecordable("tokens", format!("`{}` is not a sequence of tokens", x.name))),
        }
    }

    pub(super) fn channels_of(&self, x: &Value) -> Result<usize> {
        match x.form {
            Form::Tokens { channels, .. } | Form::Flat { channels, .. } | Form::Pooled { channels } => Ok(channels),
            _ => Err(ExportError::unrecordable("channels", format!("`{}` has no channel axis", x.name))),
        }
    }

    pub(super) fn with_channels(x: &Value, name: String, channels: usize) -> Value {
        let form = match x.form {
            Form::Tokens { tokens, .. } => Form::Tokens { tokens, channels },
            Form::Flat { tokens, .. } => Form::Flat { tokens, channels },
            _ => Form::Pooled { channels },
        };
        Value { name, form }
    }
}
