//! `--device`.

use anyhow::Result;
use candle_core::Device;

use super::exit::Usage;

/// The device `text` names: `cpu`, `cuda` or `cuda:N`. Of several processes on a machine, number `local_rank` takes the GPU of
/// that number where the text has none.
pub(super) fn parse(text: &str, local_rank: usize) -> Result<Device> {
    let ordinal = match text.split_once(':') {
        None if text == "cpu" => return Ok(Device::Cpu),
        None if text == "cuda" => Some(local_rank),
        Some(("cuda", ordinal)) => ordinal.parse().ok(),
        _ => None,
    };
    let Some(ordinal) = ordinal else {
        return Err(Usage(format!("`{text}` is no device\nhint: cpu, cuda or cuda:N")).into());
    };
    if !cfg!(feature = "cuda") {
        return Err(Usage("this build has no CUDA\nhint: build with `--features cuda`".into()).into());
    }
    Ok(Device::new_cuda(ordinal)?)
}
