//! Nodes for attention with relative positions.

use super::layout::{ROWS, patches};
use super::maps::known;
use super::{Form, Record, Result, Value};
use crate::model::relative::{axis_offsets, stretched, table_rows};
use crate::model::{RelativePosition, RelativeRequest};
use crate::onnx::ExportError;
use crate::onnx::graph::{Attribute, BATCH, Element, Extent, FLOAT};
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
                    let reason = format!("{tokens} tokens are not {} × {} patches", grid[0], grid[1]);
                    return Err(ExportError::unrecordable("relative_attention", reason));
                }
                let (queries, keys) = self.with_offsets(&turned[0], &keys, [heads, d], grid, &relative.name)?;
                self.node("MatMul", &[&queries, &keys], vec![])
            }
            RelativePosition::Table => {
                let logits = self.node("MatMul", &[&turned[0], &keys], vec![]);
                let bias = self.table_bias(heads, known("a table of relative positions", grid)?, &relative.name)?;
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
        [rows, columns]: [Extent; 2],
        name: &str,
    ) -> Result<(String, String)> {
        let (tokens, [heads, d]) = (patches([rows, columns]), [heads, d].map(Extent::Fixed));
        let h = self.offsets(&format!("{name}.rel_pos_h"), 0, rows)?;
        let w = self.offsets(&format!("{name}.rel_pos_w"), 1, columns)?;
        let (down_places, across_places) = self.places([rows, columns])?;
        let map = self.reshaped(queries, &[ROWS, rows, columns, d])?;
        // (B·N, rows, columns, d) · (rows, d, rows)
        let down = self.node("MatMul", &[&map, &h], vec![]);
        let sideways = self.turned(&map, &[0, 2, 1, 3]);
        let across = self.node("MatMul", &[&sideways, &w], vec![]);
        let across = self.turned(&across, &[0, 2, 1, 3]);
        let mut longer = [queries.to_owned(), keys.to_owned()];
        for (products, places, side) in [(down, down_places, rows), (across, across_places, columns)] {
            let products = self.reshaped(&products, &[BATCH, heads, tokens, side])?;
            longer[0] = self.node("Concat", &[&longer[0], &products], vec![("axis", Attribute::Int(-1))]);
            let places = self.expanded(&places, keys, &[heads, side, Extent::Fixed(1)])?;
            longer[1] = self.node("Concat", &[&longer[1], &places], vec![("axis", Attribute::Int(2))]);
        }
        let [queries, keys] = longer;
        Ok((queries, keys))
    }
    /// A table of offsets laid out for products: (side, d, side), [query's place][channel][key's place].
    fn offsets(&mut self, name: &str, axis: usize, side: Extent) -> Result<String> {
        let view = self.view(name)?;
        let &[offsets, d] = view.shape else {
            return Err(ExportError::unrecordable("relative_attention", format!("`{name}` is no table")));
        };
        let Extent::Fixed(side) = side else {
            let weights = self.stretching(offsets, axis, side)?;
            let table = self.stored(name)?;
            let looked_up = self.node("MatMul", &[&weights, &table], vec![]);
            let pairs = self.reshaped(&looked_up, &[ROWS, side, Extent::Fixed(d)])?;
            return Ok(self.turned(&pairs, &[0, 2, 1]));
        };
        let table = stretched(&to_f32(view), d, side);
        let mut values = vec![0f32; side * d * side];
        for (at, row) in axis_offsets(side).enumerate() {
            let (query, key) = (at / side, at % side);
            for (channel, value) in table[row * d..][..d].iter().enumerate() {
                values[(query * d + channel) * side + key] = *value;
            }
        }
        Ok(self.store(name, Element::F32, vec![side, d, side], Payload::f32(&values)))
    }

    /// What a table of `offsets` rows is multiplied by to give every pair of places of a free axis its row, stretched
    /// linearly: (n², offsets), [query's place · n + key's].
    fn stretching(&mut self, offsets: usize, axis: usize, side: Extent) -> Result<String> {
        let name = format!("stretching {offsets} {axis}");
        if let Some(known) = self.shared.get(&name) {
            return Ok(known.clone());
        }
        let scope = std::mem::replace(&mut self.scope, vec!["offsets".to_owned()]);
        let length = self.length(side)?;
        let count = self.node("Cast", &[&length], vec![("to", Attribute::Int(FLOAT))]);
        let [one, two, half] = [1.0, 2.0, 0.5].map(|value| self.scalar(value));
        let from = self.scalar(offsets as f32);
        // Of 2n − 1 offsets the (i − j + n − 1)th lies at offsets / (2n − 1) · (i − j + n − ½) − ½: doubled, all whole
        // numbers but for the one division.
        let twice = self.node("Mul", &[&count, &two], vec![]);
        let targets = self.node("Sub", &[&twice, &one], vec![]);
        let distance = self.distances(side)?;
        let place = self.node("Add", &[&distance, &targets], vec![]);
        let place = self.node("Mul", &[&place, &from], vec![]);
        let unit = self.node("Mul", &[&targets, &two], vec![]);
        let place = self.node("Div", &[&place, &unit], vec![]);
        let place = self.node("Sub", &[&place, &half], vec![]);
        let (zero, last) = (self.scalar(0.0), self.scalar(offsets as f32 - 1.0));
        let place = self.node("Clip", &[&place, &zero, &last], vec![]);
        let column = self.integers(&[-1, 1], true);
        let place = self.node("Reshape", &[&place, &column], vec![]);
        let rows: Vec<f32> = (0..offsets).map(|row| row as f32).collect();
        let rows = self.store(&format!("/count/{offsets}"), Element::F32, vec![1, offsets], Payload::f32(&rows));
        let away = self.node("Sub", &[&place, &rows], vec![]);
        let weights = self.hat(&away);
        self.shared.insert(name, weights.clone());
        self.scope = scope;
        Ok(weights)
    }

    /// Where the keys' ones are: (1, 1, rows, T) for the rows, (1, 1, columns, T) for the columns.
    fn places(&mut self, grid: [Extent; 2]) -> Result<(String, String)> {
        let [Extent::Fixed(rows), Extent::Fixed(columns)] = grid else { return self.free_places(grid) };
        let tokens = rows * columns;
        let stored = |record: &mut Self, axis: &str, side: usize, place: fn(usize, usize) -> usize| {
            let mut ones = vec![0f32; side * tokens];
            for token in 0..tokens {
                ones[place(token, columns) * tokens + token] = 1.0;
            }
            let name = format!("/{axis}/{rows}x{columns}");
            record.store(&name, Element::F32, vec![1, 1, side, tokens], Payload::f32(&ones))
        };
        let down = stored(self, "rows", rows, |token, columns| token / columns);
        let across = stored(self, "columns", columns, |token, columns| token % columns);
        Ok((down, across))
    }

    fn free_places(&mut self, grid: [Extent; 2]) -> Result<(String, String)> {
        let mut out = Vec::with_capacity(2);
        for axis in [0, 1] {
            let name = format!("places {axis}");
            if let Some(known) = self.shared.get(&name) {
                out.push(known.clone());
                continue;
            }
            let scope = std::mem::replace(&mut self.scope, vec!["places".to_owned()]);
            let distance = self.distances(grid[axis])?;
            let half = self.scalar(0.5);
            let distance = self.node("Mul", &[&distance, &half], vec![]);
            let same = self.hat(&distance);
            let one = Extent::Fixed(1);
            // Each row's ones for all its columns, each column's in every row.
            let dims = if axis == 0 { [grid[0], ROWS, one] } else { [grid[1], one, ROWS] };
            let same = self.reshaped(&same, &dims)?;
            let same = self.expanded(&same, &same, &grid)?;
            let same = self.reshaped(&same, &[one, one, grid[axis], patches(grid)])?;
            self.shared.insert(name, same.clone());
            self.scope = scope;
            out.push(same);
        }
        let across = out.pop().unwrap_or_default();
        Ok((out.pop().unwrap_or_default(), across))
    }

    /// Twice the distance from each place of a free axis to each other, (n, n): [query's][key's].
    fn distances(&mut self, side: Extent) -> Result<String> {
        let length = self.length(side)?;
        let queries = self.counter(&length);
        let row = self.integers(&[1, -1], true);
        let keys = self.node("Reshape", &[&queries, &row], vec![]);
        Ok(self.node("Sub", &[&queries, &keys], vec![]))
    }

    /// 1 at 0, falling to 0 at distance 1.
    fn hat(&mut self, x: &str) -> String {
        let one = self.scalar(1.0);
        let distance = self.node("Abs", &[x], vec![]);
        let left = self.node("Sub", &[&one, &distance], vec![]);
        self.node("Relu", &[&left], vec![])
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
