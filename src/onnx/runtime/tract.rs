//! tract: the embedded runtime. It optimises for known shapes, so a plan is made for each batch size it meets.

use std::path::Path;
use std::sync::Arc;

use tract_linalg::multithread::{Executor, multithread_tract_scope};
use tract_onnx::prelude::{
    Datum, Framework, InferenceFact, InferenceModel, InferenceModelExt, IntoRunnable, IntoTValue, TValue, Tensor,
    TypedRunnableModel, tvec,
};

use super::{Engine, Images, Output, RuntimeOptions};

pub(super) struct Tract {
    model: InferenceModel,
    names: Vec<String>,
    executor: Executor,
    plan: Option<([usize; 4], Arc<TypedRunnableModel>)>,
}

/// The error with its causes, on one line.
fn words(error: impl std::fmt::Display) -> String {
    format!("{error:#}")
}

impl Tract {
    pub(super) fn open(path: &Path, options: &RuntimeOptions) -> Result<Self, String> {
        let model = tract_onnx::onnx().model_for_path(path).map_err(words)?;
        let outlets = model.output_outlets().map_err(words)?;
        let names = outlets.iter().map(|outlet| model.outlet_label(*outlet).unwrap_or_default().to_owned()).collect();
        let executor = match options.thread_count() {
            1 => Executor::SingleThread,
            threads => Executor::multithread(threads),
        };
        Ok(Self { model, names, executor, plan: None })
    }

    fn plan(&mut self, shape: [usize; 4]) -> Result<Arc<TypedRunnableModel>, String> {
        if let Some((planned, plan)) = &self.plan
            && *planned == shape
        {
            return Ok(plan.clone());
        }
        let fact = InferenceFact::dt_shape(f32::datum_type(), shape);
        let model = self.model.clone().with_input_fact(0, fact).map_err(words)?;
        let plan = model.into_optimized().map_err(words)?.into_runnable().map_err(words)?;
        self.plan = Some((shape, plan.clone()));
        Ok(plan)
    }
}

impl Engine for Tract {
    fn run(&mut self, images: &Images) -> Result<Vec<Output>, String> {
        let plan = self.plan(images.shape)?;
        let input = Tensor::from_shape(&images.shape, &images.values).map_err(words)?;
        let outputs = multithread_tract_scope(self.executor.clone(), || plan.run(tvec![input.into_tvalue()]));
        let outputs = outputs.map_err(words)?;
        let output = |(name, value): (&String, &TValue)| {
            let view = value.to_plain_array_view::<f32>().map_err(words)?;
            Ok(Output { name: name.clone(), shape: value.shape().to_vec(), values: view.iter().copied().collect() })
        };
        self.names.iter().zip(&outputs).map(output).collect()
    }
}
