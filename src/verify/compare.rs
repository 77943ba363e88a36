//! How far two tensors are apart.

use candle_core::Tensor;
use serde::Serialize;

use crate::kernels::KernelError;

/// Differences of a tensor from its reference. Where either holds a value that is not finite, the distances are infinite
/// (`null` in JSON) and the cosine is 0.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Difference {
    /// max |Δ|.
    pub max_abs: f64,
    /// max |Δ| / max |reference|: what is held against the tolerance.
    pub relative: f64,
    /// ‖Δ‖ / ‖reference‖: steadier than a maximum, so it is what hypotheses are ranked by.
    pub rms: f64,
    /// Cosine similarity of the flattened tensors; a wrong head count can leave 0.9996.
    pub cosine: f64,
}

impl Difference {
    /// Distance of `ours` from `reference`, of the same shape.
    pub(super) fn between(ours: &Tensor, reference: &Tensor) -> Result<Self, KernelError> {
        let values = |x: &Tensor| {
            x.flatten_all()
                .and_then(|x| x.to_vec1::<f32>())
                .map_err(|source| KernelError::Operation { operation: "compare".into(), source })
        };
        Ok(Self::of(&values(ours)?, &values(reference)?))
    }

    fn of(ours: &[f32], reference: &[f32]) -> Self {
        let (mut most, mut scale) = (0f64, 0f64);
        let (mut delta2, mut ours2, mut reference2, mut dot) = (0f64, 0f64, 0f64, 0f64);
        let mut finite = ours.len() == reference.len();
        for (&a, &b) in ours.iter().zip(reference) {
            finite &= a.is_finite() && b.is_finite();
            let (a, b) = (f64::from(a), f64::from(b));
            most = most.max((a - b).abs());
            scale = scale.max(b.abs());
            delta2 += (a - b) * (a - b);
            ours2 += a * a;
            reference2 += b * b;
            dot += a * b;
        }
        if !finite {
            let far = f64::INFINITY;
            return Self { max_abs: far, relative: far, rms: far, cosine: 0.0 };
        }
        let ratio = |a: f64, b: f64| if a == 0.0 { 0.0 } else { a / b };
        let cosine = if most == 0.0 { 1.0 } else { ratio(dot, (ours2 * reference2).sqrt()) };
        Self { max_abs: most, relative: ratio(most, scale), rms: ratio(delta2.sqrt(), reference2.sqrt()), cosine }
    }
}
