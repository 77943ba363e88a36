//! candle-onnx: evaluates the nodes one by one.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use candle_onnx::onnx::ModelProto;

use super::{Engine, Feed, Images, Output, Pixels};

pub(super) struct CandleOnnx {
    model: ModelProto,
    input: String,
    outputs: Vec<String>,
}

impl CandleOnnx {
    pub(super) fn open(path: &Path) -> Result<Self, String> {
        let model = candle_onnx::read_file(path).map_err(words)?;
        let graph = model.graph.as_ref().ok_or("the file has no graph")?;
        if graph.initializer.iter().any(|tensor| tensor.data_location == 1) {
            // It would read the absent raw data as an empty buffer.
            return Err("it does not read external data".to_owned());
        }
        let input = graph.input.first().ok_or("the graph has no input")?.name.clone();
        let outputs = graph.output.iter().map(|output| output.name.clone()).collect();
        Ok(Self { model, input, outputs })
    }
}

/// candle's errors quote the whole node and a backtrace; the first clause says what is wrong.
#[expect(clippy::needless_pass_by_value, reason = "map_err hands it over")]
fn words(error: candle_core::Error) -> String {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    line.split(" for op NodeProto").next().unwrap_or_default().chars().take(200).collect()
}

impl Engine for CandleOnnx {
    fn run(&mut self, feed: Feed<'_>) -> Result<Vec<Output>, String> {
        let input = match feed {
            Feed::Images(Images { shape, values }) => Tensor::from_slice(values, &shape[..], &Device::Cpu),
            Feed::Pixels(Pixels { shape, values }) => Tensor::from_slice(values, &shape[..], &Device::Cpu),
        };
        let input = input.map_err(words)?;
        let mut values =
            candle_onnx::simple_eval(&self.model, HashMap::from([(self.input.clone(), input)])).map_err(words)?;
        let mut out = Vec::with_capacity(self.outputs.len());
        for name in &self.outputs {
            let value = values.remove(name).ok_or_else(|| format!("it gave no output `{name}`"))?;
            let shape = value.dims().to_vec();
            let flat = value.to_dtype(DType::F32).and_then(|value| value.flatten_all()?.to_vec1::<f32>());
            out.push(Output { name: name.clone(), shape, values: flat.map_err(words)? });
        }
        Ok(out)
    }
}
