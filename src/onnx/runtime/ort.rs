//! ONNX Runtime, loaded at run time.

use std::path::Path;
use std::sync::OnceLock;

use ort::environment::Environment;
use ort::logging::LogLevel;
use ort::session::Session;
use ort::session::builder::GraphOptimizationLevel;
use ort::value::TensorRef;

use super::library::find_ort_library;
use super::{Engine, Feed, Images, Output, Pixels, Runtime, RuntimeError, RuntimeOptions};

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
    pub(super) fn open(path: &Path, options: &RuntimeOptions) -> Result<Self, RuntimeError> {
        let environment = environment(options)?;
        let session = || -> Result<Session, String> {
            let builder = Session::builder(&environment).map_err(|error| error.to_string())?;
            // A failed setting hands the builder back inside its error; only the words are of use here.
            let builder =
                builder.with_optimization_level(GraphOptimizationLevel::All).map_err(|error| error.to_string())?;
            let mut builder = builder.with_intra_threads(options.thread_count()).map_err(|error| error.to_string())?;
            builder.commit_from_file(path).map_err(|error| error.to_string())
        };
        Ok(Self { session: session().map_err(|reason| RuntimeError::Failed { runtime: Runtime::Ort, reason })? })
    }
}

impl Engine for OnnxRuntime {
    fn run(&mut self, feed: Feed<'_>) -> Result<Vec<Output>, String> {
        let words = |error: ort::Error| error.to_string();
        let outputs = match feed {
            Feed::Images(Images { shape, values }) => {
                self.session.run(ort::inputs![TensorRef::from_array_view((*shape, values.as_slice())).map_err(words)?])
            }
            Feed::Pixels(Pixels { shape, values }) => {
                self.session.run(ort::inputs![TensorRef::from_array_view((*shape, values.as_slice())).map_err(words)?])
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
