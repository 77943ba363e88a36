//! ONNX Runtime, loaded at run time.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use ort::environment::Environment;
use ort::logging::LogLevel;
use ort::session::builder::GraphOptimizationLevel;
use ort::session::{RunOptions, Session};
use ort::value::TensorRef;

use super::library::find_ort_library;
use super::{Engine, Feed, Output, Runtime, RuntimeError, RuntimeOptions, Stop};

/// A process loads one library, once; later sessions share it, whatever options they bring.
static ENVIRONMENT: OnceLock<Result<Environment, String>> = OnceLock::new();

pub(super) struct OnnxRuntime {
    session: Session,
}

/// Loads the library explicitly: `ort`'s implicit loading panics when there is none.
fn environment(options: &RuntimeOptions) -> Result<Environment, RuntimeError> {
    let library = match ENVIRONMENT.get() {
        Some(_) => None,
        None => Some(find_ort_library(options)?),
    };
    let loaded = ENVIRONMENT.get_or_init(|| {
        let library = library.ok_or("it was not found")?;
        let builder = ort::init_from(library).map_err(|error| error.to_string())?;
        let environment =
            builder.with_name("tec-zoo").with_telemetry(false).build().map_err(|error| error.to_string())?;
        // Warnings about graphs are the reports' business.
        environment.set_log_level(LogLevel::Fatal);
        Ok(environment)
    });
    loaded.clone().map_err(|reason| RuntimeError::OrtLibrary { reason })
}

impl OnnxRuntime {
    pub(super) fn open(path: &Path, options: &RuntimeOptions, stop: &Stop) -> Result<Self, RuntimeError> {
        let environment = environment(options)?;
        let session = || -> Result<Session, String> {
            let builder = Session::builder(&environment).map_err(|error| error.to_string())?;
            // A failed setting hands the builder back inside its error; only the words are of use here.
            let builder =
                builder.with_optimization_level(GraphOptimizationLevel::All).map_err(|error| error.to_string())?;
            let mut builder = builder.with_intra_threads(options.thread_count()).map_err(|error| error.to_string())?;
            let canceler = builder.canceler();
            stop.by(move || {
                // Where it cannot be cancelled, it is left to end by itself.
                let _ = canceler.cancel();
            });
            builder.commit_from_file(path).map_err(|error| error.to_string())
        };
        Ok(Self { session: session().map_err(|reason| RuntimeError::Failed { runtime: Runtime::Ort, reason })? })
    }
}

impl Engine for OnnxRuntime {
    fn run(&mut self, feed: &Feed, stop: &Stop) -> Result<Vec<Output>, String> {
        let words = |error: ort::Error| error.to_string();
        let options = Arc::new(RunOptions::new().map_err(words)?);
        let terminated = options.clone();
        stop.by(move || {
            // It then ends between two nodes.
            let _ = terminated.terminate();
        });
        let (shape, session) = (feed.extent().0, &mut self.session);
        let outputs = match feed {
            Feed::Images(images) => {
                let tensor = TensorRef::from_array_view((shape, images.values.as_slice())).map_err(words)?;
                session.run_with_options(ort::inputs![tensor], &options)
            }
            Feed::Pixels(pixels) => {
                let tensor = TensorRef::from_array_view((shape, pixels.values.as_slice())).map_err(words)?;
                session.run_with_options(ort::inputs![tensor], &options)
            }
        };
        let outputs = outputs.map_err(words)?;
        let mut out = Vec::with_capacity(outputs.len());
        for (name, value) in &outputs {
            let (shape, values) = value.try_extract_tensor::<f32>().map_err(words)?;
            let shape = shape.iter().map(|&dim| usize::try_from(dim).unwrap_or(0)).collect();
            out.push(Output { name: name.to_owned(), shape, values: values.to_vec() });
        }
        Ok(out)
    }
}
