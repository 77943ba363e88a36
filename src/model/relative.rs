//! How relative positions are looked up: the arithmetic that the eager pass and a graph share.

/// A table (2·n − 1, `width`), row-major, stretched linearly to (2·`side` − 1, `width`) as detectron2's `get_rel_pos` does
/// (`interpolate(mode="linear")`, `align_corners=False`).
pub(crate) fn stretched(table: &[f32], width: usize, side: usize) -> Vec<f32> {
    let (from, to) = (table.len() / width.max(1), 2 * side - 1);
    if from == to || from == 0 {
        return table.to_vec();
    }
    let scale = from as f64 / to as f64;
    let mut out = Vec::with_capacity(to * width);
    for i in 0..to {
        let at = (scale * (i as f64 + 0.5) - 0.5).max(0.0);
        let low = (at.floor() as usize).min(from - 1);
        let high = (low + 1).min(from - 1);
        let share = (at - low as f64) as f32;
        let (low, high) = (&table[low * width..][..width], &table[high * width..][..width]);
        out.extend(low.iter().zip(high).map(|(low, high)| low * (1.0 - share) + high * share));
    }
    out
}

/// For each pair of places on an axis of `side`, [query][key], the row of a table of 2·side − 1 offsets.
pub(crate) fn axis_offsets(side: usize) -> impl Iterator<Item = usize> {
    (0..side).flat_map(move |query| (0..side).map(move |key| query + side - 1 - key))
}

/// For each pair of tokens, [query][key], class token first, the row of BEiT's table of a grid of `rows` × `columns`.
pub(crate) fn table_rows([rows, columns]: [usize; 2]) -> Vec<usize> {
    let patches = rows * columns;
    let special = (2 * rows - 1) * (2 * columns - 1);
    let (class_to_patch, patch_to_class, class_to_class) = (special, special + 1, special + 2);
    let mut out = Vec::with_capacity((1 + patches) * (1 + patches));
    out.push(class_to_class);
    out.resize(1 + patches, class_to_patch);
    for query in 0..patches {
        out.push(patch_to_class);
        for key in 0..patches {
            let down = query / columns + rows - 1 - key / columns;
            let across = query % columns + columns - 1 - key % columns;
            out.push(down * (2 * columns - 1) + across);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_count_from_the_far_end() {
        assert_eq!(axis_offsets(3).collect::<Vec<_>>(), [2, 1, 0, 3, 2, 1, 4, 3, 2]);
    }

    #[test]
    fn a_table_of_the_right_size_is_left_alone_and_another_is_stretched() {
        let table = [0.0, 10.0, 20.0];
        assert_eq!(stretched(&table, 1, 2), table);
        // torch: F.interpolate(torch.tensor([[[0., 10., 20.]]]), size=5, mode="linear")
        let expected = [0.0, 4.0, 10.0, 16.0, 20.0];
        for (ours, theirs) in stretched(&table, 1, 3).into_iter().zip(expected) {
            assert!((ours - theirs).abs() < 1e-5, "{ours} is not {theirs}");
        }
    }

    #[test]
    fn the_last_three_rows_are_the_class_tokens() {
        let rows = table_rows([1, 2]);
        assert_eq!(rows, [5, 3, 3, 4, 1, 0, 4, 2, 1]);
    }
}
