//! What an error says in full, as a caller of the library would print it.

use tec_zoo::hint::Hint;

/// An error with its causes, and with its advice in the library's own words.
pub(crate) trait InFull {
    fn in_full(&self) -> String;
}

fn full(error: &dyn std::error::Error, hint: Option<Hint>) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    if let Some(hint) = hint {
        text.push_str(&format!("\nhint: {hint}"));
    }
    text
}

macro_rules! in_full {
    ($($kind:ty),* $(,)?) => {
        $(impl InFull for $kind {
            fn in_full(&self) -> String {
                full(self, self.hint())
            }
        })*
    };
}

in_full!(
    tec_zoo::checkpoint::CheckpointError,
    tec_zoo::convert::ConvertError,
    tec_zoo::model::CanonicalError,
    tec_zoo::onnx::CalibrationError,
    tec_zoo::onnx::CheckError,
    tec_zoo::onnx::ContractError,
    tec_zoo::onnx::ExportError,
    tec_zoo::onnx::runtime::RuntimeError,
    tec_zoo::zoo::ZooError,
);
#[cfg(feature = "fetch")]
in_full!(tec_zoo::identify::IdentifyError, tec_zoo::fetch::FetchError);
#[cfg(feature = "data")]
in_full!(tec_zoo::data::DataError);
#[cfg(feature = "candle")]
in_full!(tec_zoo::kernels::KernelError, tec_zoo::verify::VerifyError);
#[cfg(feature = "train")]
in_full!(
    tec_zoo::train::RecipeError,
    tec_zoo::train::RunError,
    tec_zoo::train::StepError,
    tec_zoo::train::distributed::DistributedError,
);
