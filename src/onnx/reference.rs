//! What an exported graph's outputs should be: the same pass, by the eager kernels.

use candle_core::{DType, Device, Tensor};

use super::CheckError;
use super::event::{Event, Interrupted, Listener, tell};
use super::export::Adapters;
use super::purpose::{Named, Purpose, outputs};
use super::runtime::{Images, Output};
use crate::kernels::{Eager, KernelError};
use crate::model::{Canonical, ModelConfig};

/// The outputs of `purpose` for `images`, laid out as the graph lays them out; `config` is the model's, with what the graph
/// does otherwise. The model's weights are not kept in memory.
pub(super) fn eager(
    model: &Canonical,
    config: &ModelConfig,
    images: &Images,
    purpose: &Purpose,
    adapters: Adapters,
    hear: Listener<'_>,
) -> Result<Vec<Output>, CheckError> {
    let failed = |reason: String| CheckError::Reference { reason };
    purpose.validate(config, adapters).map_err(|error| failed(error.to_string()))?;
    let maps = purpose.maps(config).map_err(|error| failed(error.to_string()))?;
    let candle = |error: candle_core::Error| failed(error.to_string());
    let kernel = |error: KernelError| match error {
        KernelError::Interrupted => CheckError::Interrupted(Interrupted),
        error => failed(error.to_string()),
    };
    let [_, _, height, width] = images.shape;
    tell(hear, Event::Reference { size: [height, width] })?;
    let mut ops = Eager::new(model).forgetful().attended(|name: &str| hear(Event::Layer { name }));
    let input = Tensor::from_slice(&images.values, &images.shape[..], &Device::Cpu).map_err(candle)?;
    let grid = ops.grid(&input).map_err(kernel)?;
    let values = outputs(config, &mut ops, &input, grid, purpose, maps.as_ref(), adapters).map_err(kernel)?;
    let lay_out = |Named { name, value, grid }: Named<Tensor, [usize; 2]>| {
        let value = match grid {
            // (B, L, C) → (B, C, rows, columns)
            Some([rows, columns]) => {
                let (batch, _, channels) = value.dims3().map_err(candle)?;
                let turned = value.transpose(1, 2).and_then(|value| value.contiguous()).map_err(candle)?;
                turned.reshape((batch, channels, rows, columns)).map_err(candle)?
            }
            None => value,
        };
        let shape = value.dims().to_vec();
        let flat = value.to_dtype(DType::F32).and_then(|value| value.flatten_all()?.to_vec1::<f32>());
        Ok(Output { name, shape, values: flat.map_err(candle)? })
    };
    values.into_iter().map(lay_out).collect()
}
