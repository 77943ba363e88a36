//! A forward pass that remembers, and the backward pass over what it remembered.
//!
//! Every operation is an arm of [`Node`], and the backward pass matches on all of them: an operation without a gradient does
//! not compile. Gradients of parameters go straight to the flat buffer of [`Parameters`]; those of values live until the
//! operation that made the value has been undone.

use std::rc::Rc;

use candle_core::{D, DType, Device, Result, Tensor};

use super::linear::Weight;
use super::losses::Loss;
use super::parameters::Parameters;
use super::row_logits::RowLogits;
use super::tokens::{self, Restore};
use super::{KernelError, attention, gelu, layer_norm, layer_scale, linear, slices, swiglu};
use crate::model::{Activation, Ops, PositionRequest, Vit, VitConfig, position};

/// A value on a [`Tape`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Var(usize);

/// What made a value: what its gradient has to go back through. Parameters are slots of [`Parameters`]; a layer's bias is
/// the slot after its weight's.
enum Node {
    Constant,
    /// What a part of a pass that is computed again starts from.
    Input,
    Parameter {
        slot: usize,
    },
    Linear {
        x: Var,
        weight: usize,
        residual: Option<Var>,
    },
    LayerNorm {
        x: Var,
        weight: usize,
        eps: f64,
    },
    Gelu {
        x: Var,
        kind: Activation,
    },
    SwiGlu {
        x: Var,
    },
    LayerScale {
        x: Var,
        gamma: usize,
    },
    Attention {
        qkv: Var,
        heads: usize,
    },
    Add {
        a: Var,
        b: Var,
    },
    Cast {
        x: Var,
    },
    Prepend {
        token: Var,
        x: Var,
    },
    ConcatChannels {
        parts: Vec<Var>,
    },
    Channels {
        x: Var,
        start: usize,
    },
    Tokens {
        x: Var,
        start: usize,
    },
    SelectToken {
        x: Var,
        index: usize,
    },
    MeanTokens {
        x: Var,
        start: usize,
    },
    Unshuffle {
        x: Var,
        token: usize,
        restore: Rc<Restore>,
    },
    RowLogits {
        x: Var,
        rows: Tensor,
        shape: RowLogits,
    },
    /// A block of which only the output was kept.
    Block {
        x: Var,
        vit: Rc<VitConfig>,
        prefix: String,
    },
    Loss {
        prediction: Var,
        gradient: Tensor,
    },
}

/// Records one pass over some [`Parameters`].
pub struct Tape<'p> {
    parameters: &'p Parameters,
    values: Vec<Tensor>,
    nodes: Vec<Node>,
}

impl<'p> Tape<'p> {
    /// An empty tape.
    pub fn new(parameters: &'p Parameters) -> Self {
        Self { parameters, values: Vec::new(), nodes: Vec::new() }
    }

    /// The parameters.
    pub fn parameters(&self) -> &'p Parameters {
        self.parameters
    }

    /// What a variable holds.
    pub fn value(&self, var: Var) -> &Tensor {
        &self.values[var.0]
    }

    /// A value without gradient.
    pub fn constant(&mut self, value: Tensor) -> Var {
        self.push(value, Node::Constant)
    }

    fn push(&mut self, value: Tensor, node: Node) -> Var {
        self.values.push(value);
        self.nodes.push(node);
        Var(self.values.len() - 1)
    }

    /// The tokens (B, 1 + L, D) of a decoder: visible ones from x (B, 1 + K, D) in their places, the parameter `token`
    /// elsewhere, plus the fixed table `position`.
    pub(crate) fn unshuffle(
        &mut self,
        x: Var,
        token: &str,
        position: &str,
        restore: &Rc<Restore>,
    ) -> std::result::Result<Var, KernelError> {
        let slot = self.parameters.find(token)?;
        let position = self.parameters.fixed(position)?;
        let out =
            run(token, || tokens::unshuffle(&self.values[x.0], &self.parameters.value(slot)?, position, restore))?;
        Ok(self.push(out, Node::Unshuffle { x, token: slot, restore: Rc::clone(restore) }))
    }

    /// Logits (B, R, N, L) of chosen query rows; see [`RowLogits`].
    pub(crate) fn row_logits(
        &mut self,
        x: Var,
        rows: &Tensor,
        shape: RowLogits,
    ) -> std::result::Result<Var, KernelError> {
        let out = run("row logits", || shape.forward(&self.values[x.0], rows))?;
        Ok(self.push(out, Node::RowLogits { x, rows: rows.clone(), shape }))
    }

    /// A block of `vit` on x, of which nothing but the output is kept: the backward pass computes the rest again. Costs a
    /// forward pass, saves the memory of a block's inner values.
    pub(crate) fn recomputed_block(
        &mut self,
        x: Var,
        vit: &Rc<VitConfig>,
        prefix: &str,
    ) -> std::result::Result<Var, KernelError> {
        let mut inner = Tape::new(self.parameters);
        let start = inner.push(self.values[x.0].clone(), Node::Input);
        let (end, _) = Vit::new(vit).block_at(&mut inner, &start, prefix)?;
        let out = inner.values.swap_remove(end.0);
        Ok(self.push(out, Node::Block { x, vit: Rc::clone(vit), prefix: prefix.to_owned() }))
    }

    /// Ends the pass in `loss(prediction)`; several may end it.
    pub(crate) fn loss(
        &mut self,
        prediction: Var,
        loss: impl FnOnce(&Tensor) -> Result<Loss>,
    ) -> std::result::Result<Var, KernelError> {
        let Loss { value, gradient } = run("loss", || loss(&self.values[prediction.0]))?;
        Ok(self.push(value, Node::Loss { prediction, gradient }))
    }

    /// Gradients of the sum of all losses, added to the parameters' where `written` says there is something already.
    ///
    /// `finished` is told, from time to time, from which value of the flat buffer on the gradients are final.
    pub(crate) fn backward(
        self,
        written: &mut [bool],
        finished: &mut dyn FnMut(usize),
    ) -> std::result::Result<(), KernelError> {
        run("backward", || Backward::new(self, written).run(finished).map(|_| ()))
    }
}

/// The pass back.
struct Backward<'p, 'w> {
    parameters: &'p Parameters,
    values: Vec<Tensor>,
    nodes: Vec<Node>,
    gradients: Vec<Option<Rc<Tensor>>>,
    written: &'w mut [bool],
    /// Uses of each parameter still to come.
    pending: Vec<usize>,
}

impl<'p, 'w> Backward<'p, 'w> {
    fn new(tape: Tape<'p>, written: &'w mut [bool]) -> Self {
        let mut pending = vec![0; tape.parameters.slots().len()];
        for node in &tape.nodes {
            match node {
                Node::Parameter { slot }
                | Node::Unshuffle { token: slot, .. }
                | Node::LayerScale { gamma: slot, .. } => pending[*slot] += 1,
                Node::Linear { weight, .. } | Node::LayerNorm { weight, .. } => {
                    pending[*weight] += 1;
                    pending[*weight + 1] += 1;
                }
                Node::Block { prefix, .. } => {
                    for slot in block_slots(tape.parameters, prefix) {
                        pending[slot] += 1;
                    }
                }
                _ => {}
            }
        }
        let gradients = tape.nodes.iter().map(|_| None).collect();
        Self { parameters: tape.parameters, values: tape.values, nodes: tape.nodes, gradients, written, pending }
    }

    /// Goes back to the start; returns the gradient of the [`Node::Input`] there, if there is one.
    fn run(mut self, finished: &mut dyn FnMut(usize)) -> Result<Option<Rc<Tensor>>> {
        let slots = self.parameters.slots();
        let mut done = slots.len();
        while let (Some(node), Some(value)) = (self.nodes.pop(), self.values.pop()) {
            let Some(gradient) = self.gradients.pop().flatten() else {
                if let Node::Loss { prediction, gradient } = node {
                    self.give(prediction, Rc::new(gradient))?;
                }
                continue;
            };
            if let Node::Input = node {
                return Ok(Some(gradient));
            }
            self.step(&node, &value, gradient)?;
            let before = done;
            while done > 0 && self.pending[done - 1] == 0 {
                done -= 1;
            }
            if done < before {
                finished(slots[done].range.start);
            }
        }
        Ok(None)
    }

    fn step(&mut self, node: &Node, value: &Tensor, dy: Rc<Tensor>) -> Result<()> {
        match node {
            Node::Constant | Node::Input | Node::Loss { .. } => Ok(()),
            Node::Block { x, vit, prefix } => {
                let mut inner = Tape::new(self.parameters);
                let start = inner.push(self.values[x.0].clone(), Node::Input);
                Vit::new(vit).block_at(&mut inner, &start, prefix).map_err(candle_core::Error::wrap)?;
                let mut inner = Backward::new(inner, &mut *self.written);
                if let Some(end) = inner.gradients.last_mut() {
                    *end = Some(dy);
                }
                let gradient = inner.run(&mut |_| {})?;
                for slot in block_slots(self.parameters, prefix) {
                    self.pending[slot] -= 1;
                }
                match gradient {
                    Some(gradient) => self.give(*x, gradient),
                    None => Ok(()),
                }
            }
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
            Node::RowLogits { x, rows, shape } => {
                let dx = shape.backward(&self.values[x.0], rows, &dy)?;
                self.give(*x, Rc::new(dx))
            }
        }
    }

    /// A parameter's gradient, and whether nothing is in it yet.
    fn parameter(&mut self, slot: usize) -> Result<(Tensor, bool)> {
        let fresh = !std::mem::replace(&mut self.written[slot], true);
        self.pending[slot] -= 1;
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
            Some(sum) => Rc::new((&*sum + &*gradient)?),
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

impl Ops for Tape<'_> {
    type Value = Var;
    type Error = KernelError;

    fn parameter(&mut self, name: &str) -> std::result::Result<Var, KernelError> {
        let slot = self.parameters.find(name)?;
        let value = run(name, || self.parameters.value(slot))?;
        Ok(self.push(value, Node::Parameter { slot }))
    }

    fn patch_embed(&mut self, images: &Var, name: &str, patch: usize) -> std::result::Result<Var, KernelError> {
        let rows = run(name, || tokens::patches(&self.values[images.0], patch, None, self.parameters.precision()))?;
        let rows = self.constant(rows);
        self.linear_to(&rows, name, None, DType::F32)
    }

    fn position(&mut self, name: &str, request: &PositionRequest) -> std::result::Result<Var, KernelError> {
        if !position::is_native(request.native, request.grid) {
            let reason = format!(
                "it is for {:?} patches; training at {:?} would need a new table",
                request.native, request.grid
            );
            return Err(KernelError::Parameter { name: name.into(), reason });
        }
        let table = self.parameters.fixed(name)?.clone();
        Ok(self.constant(table))
    }

    fn tokens(&mut self, x: &Var, start: usize, len: Option<usize>) -> std::result::Result<Var, KernelError> {
        let out = run("tokens", || {
            let value = &self.values[x.0];
            let len = len.unwrap_or_else(|| value.dim(1).unwrap_or(0).saturating_sub(start));
            value.narrow(1, start, len)?.contiguous()
        })?;
        Ok(self.push(out, Node::Tokens { x: *x, start }))
    }

    fn prepend_token(&mut self, token: &Var, x: &Var) -> std::result::Result<Var, KernelError> {
        let out = run("prepend token", || {
            let (token, x) = (&self.values[token.0], &self.values[x.0]);
            let (batch, _, width) = x.dims3()?;
            let count = token.dim(1)?;
            Tensor::cat(&[&token.to_dtype(x.dtype())?.broadcast_as((batch, count, width))?.contiguous()?, x], 1)
        })?;
        Ok(self.push(out, Node::Prepend { token: *token, x: *x }))
    }

    fn add(&mut self, a: &Var, b: &Var) -> std::result::Result<Var, KernelError> {
        let out = run("add", || {
            let (a, b) = (&self.values[a.0], &self.values[b.0]);
            let wide = if a.dtype() == b.dtype() { a.dtype() } else { DType::F32 };
            a.to_dtype(wide)?.broadcast_add(&b.to_dtype(wide)?)
        })?;
        Ok(self.push(out, Node::Add { a: *a, b: *b }))
    }

    fn linear(&mut self, x: &Var, name: &str) -> std::result::Result<Var, KernelError> {
        self.linear_to(x, name, None, self.parameters.precision())
    }

    fn linear_add(&mut self, residual: &Var, x: &Var, name: &str) -> std::result::Result<Var, KernelError> {
        self.linear_to(x, name, Some(*residual), DType::F32)
    }

    fn layer_norm(&mut self, x: &Var, name: &str, eps: f64) -> std::result::Result<Var, KernelError> {
        let weight = self.layer(name)?;
        let out = run(name, || {
            let (gamma, beta) = (self.parameters.value(weight)?, self.parameters.value(weight + 1)?);
            layer_norm::forward(&self.values[x.0], &gamma, &beta, eps, self.parameters.precision())
        })?;
        Ok(self.push(out, Node::LayerNorm { x: *x, weight, eps }))
    }

    fn linear_gelu(&mut self, x: &Var, name: &str, kind: Activation) -> std::result::Result<Var, KernelError> {
        let value = &self.values[x.0];
        let fused = kind == Activation::GeluErf && matches!(value.device(), Device::Cpu);
        if !fused || value.dtype() != self.parameters.precision() {
            let h = self.linear(x, name)?;
            return self.gelu(&h, kind);
        }
        let weight = self.layer(name)?;
        let (before, after) = run(name, || {
            let (operand, bias) = (self.parameters.operand(weight)?, self.parameters.value(weight + 1)?);
            linear::forward_gelu(value, Weight::Stored(&operand), &bias, value.dtype(), true)
        })?;
        let before = before.unwrap_or_else(|| after.clone());
        let before = self.push(before, Node::Linear { x: *x, weight, residual: None });
        Ok(self.push(after, Node::Gelu { x: before, kind }))
    }

    fn gelu(&mut self, x: &Var, kind: Activation) -> std::result::Result<Var, KernelError> {
        let out = run("gelu", || gelu::forward(&self.values[x.0], kind))?;
        Ok(self.push(out, Node::Gelu { x: *x, kind }))
    }

    fn swiglu(&mut self, x: &Var) -> std::result::Result<Var, KernelError> {
        let out = run("swiglu", || swiglu::forward(&self.values[x.0]))?;
        Ok(self.push(out, Node::SwiGlu { x: *x }))
    }

    fn layer_scale(&mut self, x: &Var, name: &str) -> std::result::Result<Var, KernelError> {
        let gamma = self.parameters.find(name)?;
        let out = run(name, || layer_scale::forward(&self.values[x.0], &self.parameters.value(gamma)?))?;
        Ok(self.push(out, Node::LayerScale { x: *x, gamma }))
    }

    fn attention(&mut self, qkv: &Var, heads: usize) -> std::result::Result<Var, KernelError> {
        let out = run("attention", || attention::forward(&self.values[qkv.0], heads))?;
        Ok(self.push(out, Node::Attention { qkv: *qkv, heads }))
    }

    fn concat_channels(&mut self, parts: &[Var]) -> std::result::Result<Var, KernelError> {
        let out = run("concatenate channels", || {
            // Blocks are f32; a norm at their end is in the type of products.
            let parts: Vec<Tensor> =
                parts.iter().map(|part| self.values[part.0].to_dtype(DType::F32)).collect::<Result<_>>()?;
            Tensor::cat(&parts, D::Minus1)
        })?;
        Ok(self.push(out, Node::ConcatChannels { parts: parts.to_vec() }))
    }

    fn channels(&mut self, x: &Var, start: usize, len: usize) -> std::result::Result<Var, KernelError> {
        let out = run("channels", || self.values[x.0].narrow(D::Minus1, start, len)?.contiguous())?;
        Ok(self.push(out, Node::Channels { x: *x, start }))
    }

    fn select_token(&mut self, x: &Var, index: usize) -> std::result::Result<Var, KernelError> {
        let out = run("select token", || self.values[x.0].narrow(1, index, 1)?.squeeze(1)?.contiguous())?;
        Ok(self.push(out, Node::SelectToken { x: *x, index }))
    }

    fn mean_tokens(&mut self, x: &Var, start: usize) -> std::result::Result<Var, KernelError> {
        let out = run("mean of tokens", || {
            let value = &self.values[x.0];
            let tokens = value.dim(1)?.saturating_sub(start);
            value.narrow(1, start, tokens)?.mean(1)
        })?;
        Ok(self.push(out, Node::MeanTokens { x: *x, start }))
    }
}

impl Tape<'_> {
    /// Slot of a layer's weight; its bias must follow.
    fn layer(&self, name: &str) -> std::result::Result<usize, KernelError> {
        let weight = self.parameters.find(&format!("{name}.weight"))?;
        match self.parameters.find(&format!("{name}.bias"))? == weight + 1 {
            true => Ok(weight),
            false => Err(KernelError::Parameter {
                name: format!("{name}.bias"),
                reason: "it does not follow the layer's weight".into(),
            }),
        }
    }

    /// A Linear layer, in `out`, on top of `residual`.
    pub(crate) fn linear_to(
        &mut self,
        x: &Var,
        name: &str,
        residual: Option<Var>,
        out: DType,
    ) -> std::result::Result<Var, KernelError> {
        let weight = self.layer(name)?;
        // What enters a product is kept as it entered: the backward pass needs that.
        let precision = self.parameters.precision();
        let x = match self.values[x.0].dtype() == precision {
            true => *x,
            false => {
                let value = run(name, || self.values[x.0].to_dtype(precision))?;
                self.push(value, Node::Cast { x: *x })
            }
        };
        let value = run(name, || {
            let operand = self.parameters.operand(weight)?;
            // A patch convolution is stored as one; its kernel is a row.
            let operand = operand.reshape((operand.dim(0)?, ()))?;
            let bias = self.parameters.value(weight + 1)?;
            let residual = residual.map(|residual| &self.values[residual.0]);
            linear::forward(&self.values[x.0], Weight::Stored(&operand), &bias, residual, out)
        })?;
        Ok(self.push(value, Node::Linear { x, weight, residual }))
    }
}

/// Slots of the parameters of one block.
fn block_slots(parameters: &Parameters, prefix: &str) -> impl Iterator<Item = usize> {
    let inside = move |name: &str| name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('.'));
    parameters.slots().iter().enumerate().filter(move |(_, slot)| inside(&slot.spec.name)).map(|(index, _)| index)
}

fn run<T>(operation: &str, f: impl FnOnce() -> Result<T>) -> std::result::Result<T, KernelError> {
    f().map_err(|source| KernelError::Operation { operation: operation.into(), source })
}
