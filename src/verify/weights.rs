//! What the weights themselves give away.

use half::{bf16, f16};
use safetensors::Dtype;

use super::Precision;
use super::replay::Replay;
use crate::kernels::KernelError;
use crate::model::{Canonical, Ops, TensorView};

/// The precision every weight matrix has been through, if any.
///
/// Norms and biases are left out: many of theirs are 0 or 1, which any format holds.
pub(super) fn rounded_to(model: &Canonical) -> Option<Precision> {
    let matrices = || {
        let views = model.model().names().filter_map(|name| model.get(name).filter(|_| name.ends_with(".weight")));
        views.filter(|view| view.shape.len() > 1)
    };
    [Precision::Bf16, Precision::F16]
        .into_iter()
        .find(|precision| matrices().all(|view| went_through(&view, *precision)))
}

fn went_through(view: &TensorView<'_>, precision: Precision) -> bool {
    let exact = |value: f32| match precision {
        Precision::Bf16 => bf16::from_f32(value).to_f32() == value,
        Precision::F16 => f16::from_f32(value).to_f32() == value,
    };
    match (view.dtype, precision) {
        (Dtype::BF16, Precision::Bf16) | (Dtype::F16, Precision::F16) => true,
        (Dtype::F32, _) => view.bytes.as_chunks::<4>().0.iter().all(|b| exact(f32::from_le_bytes(*b))),
        _ => false,
    }
}

/// Whether the final norm is what a fresh one is: ones and zeros.
pub(super) fn norm_is_initial(replay: &mut Replay<'_, '_>) -> Result<bool, KernelError> {
    for (name, initial) in [("norm.weight", 1f32), ("norm.bias", 0.0)] {
        if vector(replay, name)?.iter().any(|value| *value != initial) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether the LayerScale of block `i` is what a fresh one is: one number, whichever the training began with.
pub(super) fn scale_is_initial(replay: &mut Replay<'_, '_>, i: usize) -> Result<bool, KernelError> {
    let mut values = vector(replay, &format!("blocks.{i}.ls1.gamma"))?;
    values.extend(vector(replay, &format!("blocks.{i}.ls2.gamma"))?);
    Ok(values.windows(2).all(|pair| pair[0] == pair[1]))
}

fn vector(replay: &mut Replay<'_, '_>, name: &str) -> Result<Vec<f32>, KernelError> {
    let values = replay.ops.parameter(name)?.to_vec1::<f32>();
    values.map_err(|source| KernelError::Operation { operation: name.into(), source })
}
