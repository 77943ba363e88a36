//! Any bytes are a checkpoint or an error; every tensor of one gives exactly the bytes its shape says, or an error; and any
//! checkpoint has a plan, or a list of what stands in the way.
#![no_main]

use std::borrow::Cow;

use libfuzzer_sys::fuzz_target;
use tec_zoo::checkpoint::Checkpoint;
use tec_zoo::convert::{Plan, Request};

/// A tensor beyond this tells nothing a smaller one does not.
const LARGEST: usize = 1 << 20;

fuzz_target!(|data: &[u8]| {
    let Ok(checkpoint) = Checkpoint::from_bytes("fuzz", Cow::Owned(data.to_vec())) else { return };
    if let Err(error) = Plan::new(&checkpoint, &Request::default()) {
        let _ = error.to_string();
    }
    for tensor in checkpoint.tensors() {
        let elements = tensor.shape.iter().product::<usize>();
        let size = elements * (tensor.dtype.bitsize() / 8);
        if size <= LARGEST
            && let Ok(bytes) = checkpoint.bytes(tensor)
        {
            assert_eq!(bytes.len(), size, "{tensor:?}");
        }
    }
});
