//! Position tables resampled by each family's rule, against PyTorch's own `interpolate`.

use std::path::Path;

use tec_zoo::model::position::{PositionError, is_native, resample, resample_matrices};
use tec_zoo::model::{Resample, Weights};

/// Weights are computed in f64 where PyTorch computes them in f32: 64·2⁻²⁴ of the source coordinate at the largest grid
/// here, times the kernel's slope.
const TOLERANCE: f32 = 1e-5;

fn values(weights: &Weights, name: &str) -> Vec<f32> {
    weights.get(name).unwrap().bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

#[test]
fn every_flavour_and_size_agrees_with_pytorch() {
    let reference = Weights::open(Path::new("fixtures/reference/pos_embed_resize.safetensors")).unwrap();
    let table = values(&reference, "pos_embed");
    let mut compared = 0;
    for name in reference.names().filter(|name| *name != "pos_embed") {
        let (flavour, size) = name.rsplit_once('.').unwrap();
        let (rows, columns) = size.split_once('x').unwrap();
        let grid = [rows.parse().unwrap(), columns.parse().unwrap()];
        let rule = match flavour {
            "size" => Resample::Size,
            "scale_offset_0.1" => Resample::ScaleOffset { offset: 0.1 },
            "size_antialias" => Resample::SizeAntialias,
            other => panic!("no rule for {other}"),
        };
        let ours = resample(&table, 4, [14, 14], grid, rule).unwrap();
        let theirs = values(&reference, name);
        assert_eq!(ours.len(), theirs.len(), "{name}");
        assert_eq!(ours[..4], table[..4], "{name}: the class row is not resampled");
        let worst = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst <= TOLERANCE, "{name}: max |Δ| {worst}");
        compared += 1;
    }
    assert_eq!(compared, 24);
}

#[test]
fn the_rules_differ_where_they_should() {
    let table: Vec<f32> = (0..197).map(|i| (i as f32).sin()).collect();
    let at = |grid, rule| resample(&table, 1, [14, 14], grid, rule).unwrap();
    let difference = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let offset = Resample::ScaleOffset { offset: 0.1 };
    assert!(difference(&at([32, 32], Resample::Size), &at([32, 32], offset)) > 1e-3);
    assert!(difference(&at([7, 7], Resample::Size), &at([7, 7], Resample::SizeAntialias)) > 1e-3);
    // At the native grid iBOT's rule still moves the table, so upstream does not apply it there.
    assert!(difference(&at([14, 14], Resample::Size), &table) < 1e-6);
    assert!(difference(&at([14, 14], offset), &table) > 1e-3);
    assert!(is_native([14, 14], [14, 14]));
    // As many patches as the table has, but not square: upstream interpolates.
    assert!(!is_native([14, 14], [7, 28]));
}

#[test]
fn every_row_of_a_matrix_sums_to_one() {
    for rule in [Resample::Size, Resample::ScaleOffset { offset: 0.1 }, Resample::SizeAntialias] {
        for grid in [[14, 14], [1, 3], [7, 28], [50, 84]] {
            for matrix in resample_matrices([14, 14], grid, rule).unwrap() {
                assert_eq!(matrix.values.len(), matrix.rows * matrix.columns);
                for row in matrix.values.chunks_exact(matrix.columns) {
                    let sum: f32 = row.iter().sum();
                    assert!((sum - 1.0).abs() < 1e-5, "{rule:?} {grid:?}: {sum}");
                }
            }
        }
    }
}

#[test]
fn an_impossible_table_is_refused() {
    let refused = resample(&[0.0; 10], 1, [3, 4], [6, 6], Resample::Size).unwrap_err();
    assert!(matches!(refused, PositionError::Shape { values: 10, .. }));
    let refused = resample(&[0.0; 10], 1, [3, 3], [0, 6], Resample::Size).unwrap_err();
    assert_eq!(refused, PositionError::EmptyGrid { native: [3, 3], grid: [0, 6] });
    assert!(resample(&[0.0; 10], usize::MAX, [3, 3], [6, 6], Resample::Size).is_err());
}
