//! Any text is a mapping or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tec_zoo::convert::Mapping;

fuzz_target!(|text: &str| {
    if let Ok(mapping) = Mapping::parse("fuzz", text) {
        let _ = (mapping.title(), mapping.branches(), mapping.published_heads(768));
    }
});
