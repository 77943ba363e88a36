//! tract: the embedded runtime. It optimises for known shapes, so a plan is made for each batch and image size it
//! meets, and the last one kept.

use std::path::Path;
use std::sync::Arc;

use tract_linalg::multithread::{Executor, multithread_tract_scope};
use tract_onnx::prelude::{
    DatumType, Framework, InferenceFact, InferenceModel, InferenceModelExt, IntoRunnable, IntoTValue, TValue, Tensor,
    TractError, TypedRunnableModel, tvec,
};
use tract_onnx::tract_core::plan::eval;

use super::{Engine, Feed, Output, RuntimeOptions, Stop};

pub(super) struct Tract {
    model: InferenceModel,
    names: Vec<String>,
    executor: Executor,
    plan: Option<(DatumType, [usize; 4], Arc<TypedRunnableModel>)>,
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

    fn plan(&mut self, element: DatumType, shape: [usize; 4]) -> Result<Arc<TypedRunnableModel>, String> {
        if let Some((of, planned, plan)) = &self.plan
            && (*of, *planned) == (element, shape)
        {
            return Ok(plan.clone());
        }
        let fact = InferenceFact::dt_shape(element, shape);
        let model = self.model.clone().with_input_fact(0, fact).map_err(words)?;
        let plan = model.into_optimized().map_err(words)?.into_runnable().map_err(words)?;
        self.plan = Some((element, shape, plan.clone()));
        Ok(plan)
    }
}

impl Engine for Tract {
    fn run(&mut self, feed: &Feed, stop: &Stop) -> Result<Vec<Output>, String> {
        let shape = feed.extent().0;
        let tensor = match feed {
            Feed::Images(images) => Tensor::from_shape(&shape, &images.values),
            Feed::Pixels(pixels) => Tensor::from_shape(&shape, &pixels.values),
        };
        let tensor = tensor.map_err(words)?;
        let plan = self.plan(tensor.datum_type(), shape)?;
        let mut state = plan.spawn().map_err(words)?;
        let outputs = multithread_tract_scope(self.executor.clone(), || {
            state.run_plan_with_eval(tvec![tensor.into_tvalue()], |context, state, node, inputs| match stop.asked() {
                false => eval(context, state, node, inputs),
                true => Err(TractError::msg("interrupted")),
            })
        });
        let outputs = outputs.map_err(words)?;
        let output = |(name, value): (&String, &TValue)| {
            let view = value.to_plain_array_view::<f32>().map_err(words)?;
            Ok(Output { name: name.clone(), shape: value.shape().to_vec(), values: view.iter().copied().collect() })
        };
        self.names.iter().zip(&outputs).map(output).collect()
    }
}
