//! TEC's input adapter applied to its class token: the one conversion that computes.

/// `fc2(gelu(fc1(token)))` with the exact (erf) GELU and no residual, as `models_tec_vit.py:389-397` has it.
///
/// `token` (C), `fc1` weight (M, C) and bias (M), `fc2` weight (C, M) and bias (C). In f64, rounded once: upstream computes
/// in f32, which agrees to a few 1e-7. `None` when the sizes do not fit.
pub(crate) fn merged_class_token(token: &[f64], fc1: [&[f64]; 2], fc2: [&[f64]; 2]) -> Option<Vec<f32>> {
    let hidden = linear(fc1[0], fc1[1], token)?;
    let hidden: Vec<f64> = hidden.into_iter().map(gelu).collect();
    let out = linear(fc2[0], fc2[1], &hidden)?;
    Some(out.into_iter().map(|value| value as f32).collect())
}

/// `weight` (out, in) · `input` (in) + `bias` (out).
fn linear(weight: &[f64], bias: &[f64], input: &[f64]) -> Option<Vec<f64>> {
    if input.is_empty() || weight.len() != bias.len().checked_mul(input.len())? {
        return None;
    }
    let dot = |row: &[f64]| -> f64 { row.iter().zip(input).map(|(w, x)| w * x).sum() };
    Some(weight.chunks_exact(input.len()).zip(bias).map(|(row, b)| dot(row) + b).collect())
}

fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2))
}
