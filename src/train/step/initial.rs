//! What a new student starts from (`initialize_weights` upstream): xavier-uniform Linears, the fused qkv as one matrix and
//! the patch convolution as a Linear; tokens from N(0, 0.02²); biases 0 and norms 1. The patch convolution's bias alone is what
//! `nn.Conv2d` leaves it at, uniform in ±1/√(its inputs): upstream initialises that layer's weight and no more.

use crate::data::{Draws, Purpose, Uniform};
use crate::model::{AxisOrder, ParameterSpec};

/// Standard deviation of tokens.
const TOKEN_STD: f32 = 0.02;

/// The initial values of parameter number `index` of a student with patches of `patch_size`, a function of these and the seed
/// alone.
pub(super) fn values(spec: &ParameterSpec, seed: u64, index: u64, patch_size: usize) -> Vec<f32> {
    let count = spec.elements();
    let mut draws = Draws::new(seed, 0, index, Purpose::Initialise);
    let mut uniform =
        |bound: f64| -> Vec<f32> { (0..count).map(|_| (2.0 * draws.unit() - 1.0) * bound as f32).collect() };
    match spec.shape.as_slice() {
        [_] if spec.name == "patch_embed.proj.bias" => uniform(1.0 / ((3 * patch_size * patch_size) as f64).sqrt()),
        [_] if spec.name.ends_with(".weight") => vec![1.0; count],
        [_] => vec![0.0; count],
        // cls_token and mask_token: (1, 1, C).
        [1, 1, _] => normal(&mut draws, count).into_iter().map(|x| TOKEN_STD * x).collect(),
        [out, rest @ ..] => {
            let inner: usize = rest.iter().product();
            uniform((6.0 / (inner + out) as f64).sqrt())
        }
        [] => vec![0.0; count],
    }
}

/// Standard normal numbers (Box and Muller).
fn normal(draws: &mut Draws, count: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(count + 1);
    while out.len() < count {
        // 1 − u is never 0.
        let (u, v) = (1.0 - f64::from(draws.unit()), f64::from(draws.unit()));
        let (radius, angle) = ((-2.0 * u.ln()).sqrt(), std::f64::consts::TAU * v);
        out.push((radius * angle.cos()) as f32);
        out.push((radius * angle.sin()) as f32);
    }
    out.truncate(count);
    out
}

/// The fixed sine-cosine table (1 + rows·columns, width) with a zero class row, made in f64 as MAE does
/// (`get_2d_sincos_pos_embed`).
pub(super) fn sin_cos(grid: [usize; 2], width: usize, order: AxisOrder) -> Vec<f32> {
    let quarter = width / 4;
    let rates: Vec<f64> = (0..quarter).map(|k| 10_000_f64.powf(-(k as f64) / quarter as f64)).collect();
    let mut table = vec![0f32; width];
    for row in 0..grid[0] {
        for column in 0..grid[1] {
            let axes = match order {
                AxisOrder::ColumnFirst => [column, row],
                AxisOrder::RowFirst => [row, column],
            };
            for axis in axes {
                table.extend(rates.iter().map(|rate| (axis as f64 * rate).sin() as f32));
                table.extend(rates.iter().map(|rate| (axis as f64 * rate).cos() as f32));
            }
        }
    }
    table
}
