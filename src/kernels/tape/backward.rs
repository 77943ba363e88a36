//! The pass back over a tape.

use std::ops::ControlFlow;
use std::rc::Rc;

use candle_core::{D, Device, Result, Tensor};

use super::{Node, Tape, Var};
use crate::kernels::parameters::Parameters;
use crate::kernels::{attention, gelu, layer_norm, layer_scale, linear, slices, swiglu, tokens};
use crate::model::Activation;

/// The pass back.
pub(super) struct Backward<'p, 'w> {
    parameters: &'p Parameters,
    values: Vec<Tensor>,
    nodes: Vec<Node>,
    gradients: Vec<Option<Rc<Tensor>>>,
    written: &'w mut [bool],
    /// Uses of each parameter still to come.
    pending: Vec<usize>,
}

impl<'p, 'w> Backward<'p, 'w> {
    pub(super) fn new(tape: Tape<'p>, written: &'w mut [bool]) -> Self {
        let mut pending = vec![0; tape.parameters.slots().len()];
        for slot in tape.nodes.iter().flat_map(|node| node.slots(tape.parameters)) {
            pending[slot] += 1;
        }
        let gradients = tape.nodes.iter().map(|_| None).collect();
        Self { parameters: tape.parameters, values: tape.values, nodes: tape.nodes, gradients, written, pending }
    }

    /// Goes back to the start; returns the gradient of the [`Node::Input`] there, if there is one.
    pub(super) fn run(
        mut self,
        finished: &mut dyn FnMut(usize),
        hear: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<ControlFlow<(), Option<Rc<Tensor>>>> {
        let slots = self.parameters.slots();
        let mut done = slots.len();
        while let (Some(node), Some(value)) = (self.nodes.pop(), self.values.pop()) {
            if hear(self.nodes.len() + 1).is_break() {
                return Ok(ControlFlow::Break(()));
            }
            match (&node, self.gradients.pop().flatten()) {
                (Node::Input, Some(gradient)) => return Ok(ControlFlow::Continue(Some(gradient))),
                (_, Some(gradient)) => {
                    if self.step(&node, &value, gradient, hear)?.is_break() {
                        return Ok(ControlFlow::Break(()));
                    }
                }
                (Node::Loss { prediction, gradient }, None) => self.give(*prediction, Rc::new(gradient.clone()))?,
                // No loss looks at it.
                (_, None) => {}
            }
            for slot in node.slots(self.parameters) {
                self.pending[slot] -= 1;
            }
            let before = done;
            while done > 0 && self.pending[done - 1] == 0 {
                done -= 1;
            }
            if done < before {
                finished(slots[done].range.start);
            }
        }
        Ok(ControlFlow::Continue(None))
    }

    /// Undoes one operation; a block that is computed again can be stopped inside.
    fn step(
        &mut self,
        node: &Node,
        value: &Tensor,
        dy: Rc<Tensor>,
        hear: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>> {
        let Node::Block { x, vit, prefix, hidden } = node else {
            return self.undo(node, value, dy).map(ControlFlow::Continue);
        };
        let left = self.nodes.len() + 1;
        let mut inner = Tape::new(self.parameters);
        let start = inner.push(self.values[x.0].clone(), Node::Input);
        inner.block(start, vit, prefix, hidden.as_ref()).map_err(candle_core::Error::wrap)?;
        let mut inner = Backward::new(inner, &mut *self.written);
        if let Some(end) = inner.gradients.last_mut() {
            *end = Some(dy);
        }
        match inner.run(&mut |_| {}, &mut |_| hear(left))? {
            ControlFlow::Continue(Some(gradient)) => self.give(*x, gradient).map(ControlFlow::Continue),
            ControlFlow::Continue(None) => Ok(ControlFlow::Continue(())),
            ControlFlow::Break(()) => Ok(ControlFlow::Break(())),
        }
    }

    fn undo(&mut self, node: &Node, value: &Tensor, dy: Rc<Tensor>) -> Result<()> {
        match node {
            Node::Constant | Node::Input | Node::Loss { .. } | Node::Block { .. } => Ok(()),
            Node::Parameter { slot } => {
                let (into, fresh) = self.parameter(*slot)?;
                slices::accumulate(&into, &dy, fresh)
            }
            Node::Linear { x, weight, residual } => {
                let (dweight, fresh) = self.parameter(*weight)?;
                let (dbias, _) = self.parameter(*weight + 1)?;
                // Products on the CPU take either type, exactly.
                let dy_operand = match dy.device() {
                    Device::Cpu => Rc::clone(&dy),
                    _ => Rc::new(dy.to_dtype(self.parameters.precision())?),
                };
                let rows = dweight.dim(0)?;
                let dweight = dweight.reshape((rows, ()))?;
                linear::backward_parameters(&self.values[x.0], &dy_operand, &dweight, &dbias, fresh)?;
                if self.needs(*x) {
                    let operand = self.parameters.operand(*weight)?.reshape((rows, ()))?;
                    let (to, before) = match self.gelu_before(*x) {
                        Some(before) => (before, Some(&self.values[before.0])),
                        None => (*x, None),
                    };
                    let dx = linear::backward_input(&dy_operand, &operand, self.values[x.0].dtype(), before)?;
                    self.give(to, Rc::new(dx))?;
                }
                match residual {
                    Some(residual) => self.give(*residual, dy),
                    None => Ok(()),
                }
            }
            Node::LayerNorm { x, weight, eps } => {
                let (dweight, fresh) = self.parameter(*weight)?;
                let (dbias, _) = self.parameter(*weight + 1)?;
                let gamma = self.parameters.value(*weight)?;
                let dx = layer_norm::backward(&self.values[x.0], &dy, &gamma, *eps, &dweight, &dbias, fresh)?;
                let dx = dx.to_dtype(self.values[x.0].dtype())?;
                self.give(*x, Rc::new(dx))
            }
            Node::Gelu { x, kind } => {
                let dx = gelu::backward(&self.values[x.0], &dy, *kind)?;
                self.give(*x, Rc::new(dx))
            }
            Node::SwiGlu { x } => {
                let dx = swiglu::backward(&self.values[x.0], &dy)?;
                self.give(*x, Rc::new(dx))
            }
            Node::LayerScale { x, gamma } => {
                let (dgamma, fresh) = self.parameter(*gamma)?;
                let value = self.parameters.value(*gamma)?;
                let dx = layer_scale::backward(&self.values[x.0], &dy, &value, &dgamma, fresh)?;
                self.give(*x, Rc::new(dx))
            }
            Node::Attention { qkv, heads } => {
                let dqkv = attention::backward(&self.values[qkv.0], &dy, *heads)?;
                self.give(*qkv, Rc::new(dqkv))
            }
            Node::Add { a, b } => {
                for side in [a, b] {
                    if !self.needs(*side) {
                        continue;
                    }
                    let input = &self.values[side.0];
                    let mut gradient = Rc::clone(&dy);
                    // A batch of one was broadcast.
                    if input.dim(0)? != value.dim(0)? {
                        gradient = Rc::new(gradient.sum_keepdim(0)?);
                    }
                    if input.dtype() != gradient.dtype() {
                        gradient = Rc::new(gradient.to_dtype(input.dtype())?);
                    }
                    self.give(*side, gradient)?;
                }
                Ok(())
            }
            Node::Cast { x } => {
                let dx = dy.to_dtype(self.values[x.0].dtype())?;
                self.give(*x, Rc::new(dx))
            }
            Node::Prepend { token, x } => {
                let (tokens, first) = (value.dim(1)?, self.values[token.0].dim(1)?);
                if self.needs(*token) {
                    self.give(*token, Rc::new(dy.narrow(1, 0, first)?.sum_keepdim(0)?))?;
                }
                let rest = dy.narrow(1, first, tokens - first)?.contiguous()?;
                self.give(*x, Rc::new(rest))
            }
            Node::ConcatChannels { parts } => {
                let mut start = 0;
                for part in parts {
                    let width = self.values[part.0].dim(D::Minus1)?;
                    let slice = dy.narrow(D::Minus1, start, width)?.contiguous()?;
                    self.give(*part, Rc::new(slice.to_dtype(self.values[part.0].dtype())?))?;
                    start += width;
                }
                Ok(())
            }
            Node::Channels { x, start } => self.give_part(*x, &dy, 2, *start),
            Node::Tokens { x, start } => self.give_part(*x, &dy, 1, *start),
            Node::SelectToken { x, index } => self.give_part(*x, &dy.unsqueeze(1)?, 1, *index),
            Node::MeanTokens { x, start } => {
                let tokens = self.values[x.0].dim(1)? - start;
                let (batch, width) = dy.dims2()?;
                let each = (dy.unsqueeze(1)? / tokens as f64)?.broadcast_as((batch, tokens, width))?.contiguous()?;
                self.give_part(*x, &each, 1, *start)
            }
            Node::Unshuffle { x, token, restore } => {
                let (dtoken, fresh) = self.parameter(*token)?;
                let dx = tokens::unshuffle_backward(&dy, restore, &dtoken, fresh)?;
                self.give(*x, Rc::new(dx.to_dtype(self.values[x.0].dtype())?))
            }
            Node::Hidden { x, restore } => {
                let dx = tokens::hidden_patches_backward(&dy, restore, self.values[x.0].dim(1)?)?;
                self.give(*x, Rc::new(dx))
            }
            Node::RowLogits { x, rows, shape } => {
                let dx = shape.backward(&self.values[x.0], rows, &dy)?;
                self.give(*x, Rc::new(dx))
            }
        }
    }

    /// A parameter's gradient, and whether nothing is in it yet.
    fn parameter(&mut self, slot: usize) -> Result<(Tensor, bool)> {
        if self.pending[slot] == 0 {
            let name = &self.parameters.slots()[slot].spec.name;
            candle_core::bail!("`{name}` gets a gradient from an operation that does not name it");
        }
        let fresh = !std::mem::replace(&mut self.written[slot], true);
        Ok((self.parameters.gradient(slot)?, fresh))
    }

    /// What `x` is GELU of, if it is, and if the node being undone is the only one that uses `x`: the one right after it,
    /// when no other has given `x` a gradient. The derivative then goes into the product.
    fn gelu_before(&self, x: Var) -> Option<Var> {
        match &self.nodes[x.0] {
            Node::Gelu { x: before, kind: Activation::GeluErf }
                if x.0 + 1 == self.nodes.len()
                    && self.gradients[x.0].is_none()
                    && matches!(self.values[before.0].device(), Device::Cpu) =>
            {
                Some(*before)
            }
            _ => None,
        }
    }

    fn needs(&self, var: Var) -> bool {
        !matches!(self.nodes[var.0], Node::Constant)
    }

    /// Adds to the gradient of `var`.
    fn give(&mut self, var: Var, gradient: Rc<Tensor>) -> Result<()> {
        if !self.needs(var) {
            return Ok(());
        }
        let slot = &mut self.gradients[var.0];
        *slot = Some(match slot.take() {
            None => gradient,
            // One of the two is usually nobody else's, and can take the sum.
            Some(sum) if Rc::strong_count(&sum) == 1 => {
                slices::accumulate(&sum, &gradient, false)?;
                sum
            }
            Some(sum) => Rc::new(slices::sum(&sum, &gradient)?),
        });
        Ok(())
    }

    /// Adds `part` to a slice, along `axis` from `start` on, of the gradient of `var`.
    fn give_part(&mut self, var: Var, part: &Tensor, axis: usize, start: usize) -> Result<()> {
        if !self.needs(var) {
            return Ok(());
        }
        let whole = match self.gradients[var.0].take() {
            Some(sum) if Rc::strong_count(&sum) == 1 => sum,
            Some(sum) => Rc::new(sum.copy()?),
            None => {
                let like = &self.values[var.0];
                Rc::new(Tensor::zeros(like.dims(), part.dtype(), like.device())?)
            }
        };
        slices::accumulate_part(&whole, part, axis, start)?;
        self.gradients[var.0] = Some(whole);
        Ok(())
    }
}
