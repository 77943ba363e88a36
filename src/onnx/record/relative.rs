//! Nodes for attention with relative positions.

use super::layout::{ROWS, patches};
use super::maps::known;
use super::{Form, Record, Result, Value};
use crate::model::relative::{axis_offsets, stretched, table_rows};
use crate::model::{RelativePosition, RelativeRequest};
use crate::onnx::ExportError;
use crate::onnx::graph::{Attribute, BATCH, Element, Extent};
use crate::onnx::payload::{Payload, to_f32};

impl Record<'_> {
    pub(super) fn record_relative_attention(
        &mut self,
        qkv: &Value,
        heads: usize,
        grid: [Extent; 2],
        relative: &RelativeRequest,
    ) -> Result<Value> {
        let (tokens, channels) = self.tokens_of(qkv)?;
        let wide = channels / 3;
        if heads == 0 || channels % (3 * heads) != 0 {
            let reason = format!("{channels} channels for {heads} heads");
            return Err(ExportError::unrecordable("relative_attention", reason));
        }
        let d = wide / heads;
        let sides = known("relative positions", grid)?;
        self.enter(&relative.name);
        let qkv = self.flat(qkv)?;
        let parts = self.split(&qkv.name, 3);
        let mut turned = Vec::with_capacity(3);
        // (B·T, N·d) → (B, N, T, d), the keys to (B, N, d, T).
        for (part, perm) in parts.iter().zip([[0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]]) {
            let part = self.reshaped(part, &[BATCH, tokens, Extent::Fixed(heads), Extent::Fixed(d)])?;
            turned.push(self.turned(&part, &perm));
        }
        let scale = self.scalar((d as f32).powf(-0.5));
        let keys = self.node("Mul", &[&turned[1], &scale], vec![]);
        let logits = match relative.kind {
            RelativePosition::Decomposed { .. } => {
                if tokens != patches(grid) {
                    let reason = format!("{tokens} tokens are not {} × {} patches", sides[0], sides[1]);
                    return Err(ExportError::unrecordable("relative_attention", reason));
                }
                let (queries, keys) = self.with_offsets(&turned[0], &keys, [heads, d], sides, &relative.name)?;
                self.node("MatMul", &[&queries, &keys], vec![])
            }
            RelativePosition::Table => {
                let logits = self.node("MatMul", &[&turned[0], &keys], vec![]);
                let bias = self.table_bias(heads, sides, &relative.name)?;
                self.node("Add", &[&logits, &bias], vec![])
            }
        };
        let weights = self.node("Softmax", &[&logits], vec![("axis", Attribute::Int(-1))]);
        let mixed = self.node("MatMul", &[&weights, &turned[2]], vec![]);
        let mixed = self.turned(&mixed, &[0, 2, 1, 3]);
        let name = self.reshaped(&mixed, &[ROWS, Extent::Fixed(wide)])?;
        Ok(Value { name, form: Form::Flat { tokens, channels: wide } })
    }

    /// Queries (B, N, T, d) and keys (B, N, d, T) made rows + columns longer, so that their product holds the relative
    /// positions as well: a query gets its products with every offset's row, a key a 1 where its own row and column are.
    /// Adding the positions to the logits instead would cost passes over T² values for each head.
    fn with_offsets(
        &mut self,
        queries: &str,
        keys: &str,
        [heads, d]: [usize; 2],
        [rows, columns]: [usize; 2],
        name: &str,
    ) -> Result<(String, String)> {
        let tokens = rows * columns;
        let fixed = |lengths: [usize; 3]| lengths.map(Extent::Fixed);
        let map = self.reshaped(queries, &[&[ROWS], &fixed([rows, columns, d])[..]].concat())?;
        let h = self.offsets(&format!("{name}.rel_pos_h"), d, rows)?;
        let w = self.offsets(&format!("{name}.rel_pos_w"), d, columns)?;
        // (B·N, rows, columns, d) · (rows, d, rows)
        let down = self.node("MatMul", &[&map, &h], vec![]);
        let sideways = self.turned(&map, &[0, 2, 1, 3]);
        let across = self.node("MatMul", &[&sideways, &w], vec![]);
        let across = self.turned(&across, &[0, 2, 1, 3]);
        let both = self.node("Concat", &[&down, &across], vec![("axis", Attribute::Int(-1))]);
        let both = self.reshaped(&both, &[&[BATCH], &fixed([heads, tokens, rows + columns])[..]].concat())?;
        let queries = self.node("Concat", &[queries, &both], vec![("axis", Attribute::Int(-1))]);

        let mut places = vec![0f32; (rows + columns) * tokens];
        for token in 0..tokens {
            places[token / columns * tokens + token] = 1.0;
            places[(rows + token % columns) * tokens + token] = 1.0;
        }
        let dims = vec![1, 1, rows + columns, tokens];
        let places = self.store(&format!("/places/{rows}x{columns}"), Element::F32, dims, Payload::f32(&places));
        let places = self.expanded(&places, keys, &[heads, rows + columns, tokens]);
        let keys = self.node("Concat", &[keys, &places], vec![("axis", Attribute::Int(2))]);
        Ok((queries, keys))
    }

    /// A table of offsets laid out for products: (side, d, side), [query's place][channel][key's place].
    fn offsets(&mut self, name: &str, d: usize, side: usize) -> Result<String> {
        let table = stretched(&to_f32(self.view(name)?), d, side);
        let mut values = vec![0f32; side * d * side];
        for (at, row) in axis_offsets(side).enumerate() {
            let (query, key) = (at / side, at % side);
            for (channel, value) in table[row * d..][..d].iter().enumerate() {
                values[(query * d + channel) * side + key] = *value;
            }
        }
        Ok(self.store(name, Element::F32, vec![side, d, side], Payload::f32(&values)))
    }

    /// BEiT's table looked up for every pair of tokens: (N, T, T).
    fn table_bias(&mut self, heads: usize, grid: [usize; 2], name: &str) -> Result<String> {
        let name = format!("{name}.relative_position_bias_table");
        let [rows, columns] = grid;
        let offsets = (2 * rows - 1) * (2 * columns - 1) + 3;
        let stored = self.view(&name)?.shape;
        if stored != [offsets, heads] {
            let reason = format!("`{name}` {stored:?} is not for {rows} × {columns} patches");
            return Err(ExportError::unrecordable("relative_attention", reason));
        }
        let table = self.stored(&name)?;
        let pairs: Vec<i64> = table_rows(grid).into_iter().map(|row| row as i64).collect();
        let tokens = 1 + rows * columns;
        let index = format!("/relative_position_index/{rows}x{columns}");
        let index = self.store(&index, Element::I64, vec![tokens * tokens], Payload::i64(&pairs));
        let looked_up = self.node("Gather", &[&table, &index], vec![("axis", Attribute::Int(0))]);
        let looked_up = self.reshaped(&looked_up, &[tokens, tokens, heads].map(Extent::Fixed))?;
        Ok(self.turned(&looked_up, &[2, 0, 1]))
    }
}
