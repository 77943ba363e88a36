//! Any bytes are an ONNX model or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tec_zoo::onnx::ModelInfo;

fuzz_target!(|data: &[u8]| {
    let _ = ModelInfo::parse(data);
});
