//! What relative positions add to attention's logits.

use candle_core::{Result, Tensor};

use crate::model::relative::{axis_offsets, stretched, table_rows};

const NAME: &str = "relative positions";

/// The relative positions of one block, laid out for a grid.
pub(crate) enum Relative {
    /// Products of a query with a row for each offset, per axis.
    Decomposed {
        grid: [usize; 2],
        /// (rows, rows, d): [query row][key row].
        by_row: Vec<f32>,
        /// (columns, columns, d).
        by_column: Vec<f32>,
    },
    /// A value for each offset and head.
    Table {
        /// (offsets, N)
        table: Vec<f32>,
        heads: usize,
        /// (T, T): rows of the table.
        rows: Vec<usize>,
    },
}

impl Relative {
    /// From `rel_pos_h` (2·n − 1, d) and `rel_pos_w` (2·m − 1, d), stretched to `grid`.
    pub(crate) fn decomposed(h: &Tensor, w: &Tensor, grid: [usize; 2]) -> Result<Self> {
        let lay_out = |table: &Tensor, side: usize| -> Result<Vec<f32>> {
            let (_, d) = table.dims2()?;
            let table = stretched(&table.flatten_all()?.to_vec1::<f32>()?, d, side);
            Ok(axis_offsets(side).flat_map(|row| table[row * d..][..d].iter().copied()).collect())
        };
        Ok(Self::Decomposed { grid, by_row: lay_out(h, grid[0])?, by_column: lay_out(w, grid[1])? })
    }

    /// From a `relative_position_bias_table` (offsets, N) for `grid`.
    pub(crate) fn table(table: &Tensor, grid: [usize; 2]) -> Result<Self> {
        let (offsets, heads) = table.dims2()?;
        let [rows, columns] = grid;
        if offsets != (2 * rows - 1) * (2 * columns - 1) + 3 {
            candle_core::bail!("{NAME}: a table of {offsets} offsets is not for {rows} × {columns} patches");
        }
        Ok(Self::Table { table: table.flatten_all()?.to_vec1()?, heads, rows: table_rows(grid) })
    }

    /// Whether they are for attention of `tokens` tokens in `heads` heads of `d` channels.
    pub(crate) fn check(&self, tokens: usize, heads: usize, d: usize) -> Result<()> {
        let fits = match self {
            Self::Decomposed { grid: [rows, columns], by_row, by_column } => {
                tokens == rows * columns && by_row.len() == rows * rows * d && by_column.len() == columns * columns * d
            }
            Self::Table { heads: made_for, rows, .. } => *made_for == heads && rows.len() == tokens * tokens,
        };
        if !fits {
            candle_core::bail!("{NAME}: they are not for {tokens} tokens and {heads} heads of {d}");
        }
        Ok(())
    }

    /// Adds to the logits (T) of token `t` in `head`, whose query is `query` (d), unscaled.
    pub(crate) fn add(&self, head: usize, t: usize, query: &[f32], logits: &mut [f32]) {
        match self {
            Self::Decomposed { grid: [rows, columns], by_row, by_column } => {
                let d = query.len();
                let dot = |table: &[f32], at: usize| -> f32 {
                    table[at * d..][..d].iter().zip(query).map(|(weight, q)| weight * q).sum()
                };
                let (row, column) = (t / columns, t % columns);
                let across: Vec<f32> = (0..*columns).map(|key| dot(by_column, column * columns + key)).collect();
                for (key, logits) in logits.chunks_exact_mut(*columns).enumerate() {
                    let down = dot(by_row, row * rows + key);
                    for (logit, across) in logits.iter_mut().zip(&across) {
                        *logit += down + across;
                    }
                }
            }
            Self::Table { table, heads, rows } => {
                let tokens = logits.len();
                for (logit, row) in logits.iter_mut().zip(&rows[t * tokens..]) {
                    *logit += table[row * heads + head];
                }
            }
        }
    }
}
