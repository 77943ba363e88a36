//! BEiT's relative positions, which mmseg's `MAE` inherits: a table per block, and the buffer that says which row a pair of
//! tokens reads.

/// Rows of the table of a grid: every offset between two patches, and three for the class token.
pub(super) fn rows([height, width]: [usize; 2]) -> usize {
    (2 * height - 1) * (2 * width - 1) + 3
}

/// Bytes of [`index`]; `None` beyond all bounds.
pub(super) fn index_bytes([height, width]: [usize; 2]) -> Option<usize> {
    let tokens = height.checked_mul(width)?.checked_add(1)?;
    tokens.checked_mul(tokens)?.checked_mul(8)
}

/// `relative_position_index` (1 + L, 1 + L), little-endian int64: for tokens at (y, x) and (v, u) the row
/// `(y − v + H − 1)·(2W − 1) + x − u + W − 1`; the last three rows are for the class token looking at a patch, a patch
/// looking at it, and it at itself.
pub(super) fn index(grid: [usize; 2]) -> Vec<u8> {
    let [height, width] = grid;
    let rows = rows(grid);
    let mut out = Vec::with_capacity(index_bytes(grid).unwrap_or(0));
    let mut put = |row: usize| out.extend((row as i64).to_le_bytes());
    put(rows - 1);
    (0..height * width).for_each(|_| put(rows - 3));
    for query in 0..height * width {
        put(rows - 2);
        for key in 0..height * width {
            let down = query / width + height - 1 - key / width;
            let right = query % width + width - 1 - key % width;
            put(down * (2 * width - 1) + right);
        }
    }
    out
}
