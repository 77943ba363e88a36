//! The class token, which TEC's input adapter makes of another one.

use candle_core::{DType, Device};

use super::error::StepError;
use super::{Precision, kernel, products};
use crate::kernels::{KernelError, Parameters, Tape, Var, to_host};
use crate::model::{Activation, Ops as _, ParameterSpec};

/// The class token, through the input adapter where there is one: (1, 1, C). No residual
/// (`models_tec_vit.py:389-397`).
pub(super) fn class_token(tape: &mut Tape<'_>, adapted: bool) -> Result<Var, KernelError> {
    let token = tape.parameter("cls_token")?;
    if !adapted {
        return Ok(token);
    }
    let h = tape.linear(&token, "input_adapter.fc1")?;
    let h = tape.gelu(&h, Activation::GeluErf)?;
    tape.linear_to(&h, "input_adapter.fc2", None, DType::F32)
}

/// The class token of a backbone that goes without its input adapter, from `cls_token` and `input_adapter.*`, as training
/// in `precision` computed it.
pub(in crate::train) fn merged_class_token(
    parameters: Vec<(ParameterSpec, Vec<f32>)>,
    precision: Precision,
) -> Result<Vec<f32>, StepError> {
    let parameters = Parameters::new(parameters, Vec::new(), products(precision), &Device::Cpu)?;
    let mut tape = Tape::new(&parameters);
    let token = class_token(&mut tape, true)?;
    Ok(kernel("cls_token", || to_host(tape.value(token)))?)
}
