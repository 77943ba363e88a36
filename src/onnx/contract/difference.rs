//! A promise held against an expectation.

use serde::Serialize;
use serde_json::Value;

use super::expectation::Expectation;
use super::reasons::reason;
use super::{Contract, Subject};
use crate::hint::Hint;

/// One thing that is not as expected.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    /// The field.
    pub field: String,
    /// What is promised; `None` where nothing is said.
    pub here: Option<Value>,
    /// What is expected.
    pub expected: Value,
    /// What goes wrong otherwise.
    pub why: &'static str,
    /// What to do.
    pub next: Hint,
}

/// Fields an export decides: what a model says of them is not the last word.
const OF_EXPORTS: [&str; 18] = [
    "inputs",
    "outputs",
    "target",
    "for",
    "adapters",
    "levels",
    "strides",
    "level_norm",
    "neck",
    "window",
    "global_blocks",
    "image_size",
    "layout",
    "grid",
    "resample",
    "dtype",
    "calibration",
    "prefix_tokens",
];

impl Contract {
    /// Where this is not what `expectation` asks for, in its order.
    pub fn differences(&self, expectation: &Expectation) -> Vec<Difference> {
        let depth = self.facts.get("depth").and_then(Value::as_u64);
        let open = |field: &str| self.subject == Subject::Model && OF_EXPORTS.contains(&field);
        let mut out = Vec::new();
        for (field, expected) in expectation.facts() {
            let wanted = expected.choices(depth);
            // Nothing is asked of a depth the consumer does not know.
            if open(field) || wanted.is_empty() || field == "resample" && self.is_native() {
                continue;
            }
            let here = self.facts.get(field);
            if !here.is_some_and(|here| wanted.iter().any(|wanted| fits(field, here, wanted))) {
                let (why, next) = reason(field);
                let expected = match wanted[..] {
                    [wanted] => wanted.clone(),
                    _ => Value::Array(wanted.into_iter().cloned().collect()),
                };
                out.push(Difference { field: field.to_owned(), here: here.cloned(), expected, why, next });
            }
        }
        out
    }

    /// Whether the position table is used as it is stored, so that no rule moved it.
    fn is_native(&self) -> bool {
        let [size, native] = ["image_size", "native_image_size"].map(|field| self.facts.get(field));
        size.is_some() && size == native
    }
}

/// Whether the promise `is` is good for one who wants `wanted`.
fn fits(field: &str, is: &Value, wanted: &Value) -> bool {
    match field {
        // A file that takes any image takes this one.
        "image_size" if is == "any" => true,
        // Of pixels in 0…255, as detectors' configurations have them, or in 0…1.
        "mean" | "std" => close(&unit(is), &unit(wanted)),
        _ => is == wanted || close(&numbers(is), &numbers(wanted)),
    }
}

fn numbers(value: &Value) -> Option<Vec<f64>> {
    match value {
        Value::Array(values) => values.iter().map(Value::as_f64).collect(),
        value => value.as_f64().map(|number| vec![number]),
    }
}

fn unit(value: &Value) -> Option<Vec<f64>> {
    let values = numbers(value)?;
    let scale = if values.iter().any(|value| *value > 1.5) { 255.0 } else { 1.0 };
    Some(values.into_iter().map(|value| value / scale).collect())
}

/// Equal but for the digits a configuration rounds to.
fn close(a: &Option<Vec<f64>>, b: &Option<Vec<f64>>) -> bool {
    let (Some(a), Some(b)) = (a, b) else { return false };
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-4 * b.abs().max(1e-6))
}
