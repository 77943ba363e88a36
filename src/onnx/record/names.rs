//! What nodes and constants are called, and where stored values come from.

use super::{Record, Result};
use crate::model::TensorView;
use crate::onnx::ExportError;
use crate::onnx::graph::{Attribute, Element, Initializer, Node};
use crate::onnx::payload::Payload;

impl<'a> Record<'a> {
    /// `blocks.0.attn.qkv` → `blocks.0`, `attn`, `qkv`: an index belongs to the list it indexes.
    pub(super) fn enter(&mut self, parameter: &str) {
        self.scope.clear();
        for part in parameter.split('.') {
            match self.scope.last_mut() {
                Some(list) if part.bytes().all(|byte| byte.is_ascii_digit()) => {
                    list.push('.');
                    list.push_str(part);
                }
                _ => self.scope.push(part.to_owned()),
            }
        }
    }

    pub(super) fn leave_to(&mut self, depth: usize) {
        self.scope.truncate(depth.max(1));
    }

    pub(super) fn nodes(
        &mut self,
        operator: &'static str,
        inputs: &[&str],
        attributes: Vec<(&'static str, Attribute)>,
        outputs: usize,
    ) -> Vec<String> {
        let base = format!("/{}/{operator}", self.scope.join("/"));
        let count = self.taken.entry(base.clone()).or_insert(0);
        let name = if *count == 0 { base } else { format!("{base}_{count}") };
        *count += 1;
        let outputs: Vec<String> = (0..outputs).map(|i| format!("{name}_output_{i}")).collect();
        self.graph.nodes.push(Node {
            name,
            operator,
            inputs: inputs.iter().map(|&input| input.to_owned()).collect(),
            outputs: outputs.clone(),
            attributes,
        });
        outputs
    }

    pub(super) fn node(
        &mut self,
        operator: &'static str,
        inputs: &[&str],
        attributes: Vec<(&'static str, Attribute)>,
    ) -> String {
        self.nodes(operator, inputs, attributes, 1).swap_remove(0)
    }

    pub(super) fn view(&self, name: &str) -> Result<TensorView<'a>> {
        self.model.get(name).ok_or_else(|| ExportError::MissingParameter { name: name.to_owned() })
    }

    pub(super) fn store(&mut self, name: &str, element: Element, dims: Vec<usize>, payload: Payload<'a>) -> String {
        if self.stored.insert(name.to_owned()) {
            self.graph.initializers.push(Initializer { name: name.to_owned(), element, dims, payload });
        }
        name.to_owned()
    }

    pub(super) fn stored(&mut self, name: &str) -> Result<String> {
        let view = self.view(name)?;
        Ok(self.store(name, Element::F32, view.shape.to_vec(), Payload::Stored(view)))
    }

    /// A constant shared by all who need it: `vector` or a scalar.
    pub(super) fn integers(&mut self, values: &[i64], vector: bool) -> String {
        let text: Vec<String> = values.iter().map(i64::to_string).collect();
        let (kind, dims) = if vector { ("ints", vec![values.len()]) } else { ("int", vec![]) };
        self.store(&format!("/{kind}/{}", text.join("_")), Element::I64, dims, Payload::i64(values))
    }

    pub(super) fn scalar(&mut self, value: f32) -> String {
        self.store(&format!("/float/{value:e}"), Element::F32, vec![], Payload::f32(&[value]))
    }
}
