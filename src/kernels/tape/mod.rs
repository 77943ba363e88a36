//! A forward pass that remembers, and the backward pass over what it remembered.
//!
//! Every operation is an arm of [`Node`], and the backward pass matches on all of them: an operation without a gradient does
//! not compile. Gradients of parameters go straight to the flat buffer of [`Parameters`]; those of values live until the
//! operation that made the value has been undone.

mod backward;
mod forward;
#[cfg(test)]
mod tests;

use std::ops::ControlFlow;
use std::rc::Rc;

use candle_core::{Result, Tensor};

use super::KernelError;
use super::losses::Loss;
use super::parameters::Parameters;
use super::row_logits::RowLogits;
use super::tokens::{self, Restore};
use crate::model::{Activation, Vit, VitConfig};
use backward::Backward;

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
    Hidden {
        x: Var,
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
        hidden: Option<Rc<Restore>>,
    },
    Loss {
        prediction: Var,
        gradient: Tensor,
    },
}

impl Node {
    /// The parameters whose gradients this operation makes, once for each gradient: what has to be undone before a
    /// parameter's gradient is final. Every operation answers, so that a new one is asked.
    fn slots(&self, parameters: &Parameters) -> Vec<usize> {
        match self {
            Self::Parameter { slot } => vec![*slot],
            Self::Linear { weight, x: _, residual: _ } | Self::LayerNorm { weight, x: _, eps: _ } => {
                vec![*weight, *weight + 1]
            }
            Self::LayerScale { gamma, x: _ } => vec![*gamma],
            Self::Unshuffle { token, x: _, restore: _ } => vec![*token],
            Self::Block { prefix, x: _, vit: _, hidden: _ } => {
                let inside = |name: &str| name.strip_prefix(prefix.as_str()).is_some_and(|rest| rest.starts_with('.'));
                let slots = parameters.slots().iter().enumerate();
                slots.filter(|(_, slot)| inside(&slot.spec.name)).map(|(index, _)| index).collect()
            }
            Self::Constant
            | Self::Input
            | Self::Gelu { x: _, kind: _ }
            | Self::SwiGlu { x: _ }
            | Self::Attention { qkv: _, heads: _ }
            | Self::Add { a: _, b: _ }
            | Self::Cast { x: _ }
            | Self::Prepend { token: _, x: _ }
            | Self::ConcatChannels { parts: _ }
            | Self::Channels { x: _, start: _ }
            | Self::Tokens { x: _, start: _ }
            | Self::SelectToken { x: _, index: _ }
            | Self::MeanTokens { x: _, start: _ }
            | Self::Hidden { x: _, restore: _ }
            | Self::RowLogits { x: _, rows: _, shape: _ }
            | Self::Loss { prediction: _, gradient: _ } => Vec::new(),
        }
    }
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

    /// The hidden patches (B, L − K, D) of x (B, 1 + L, D).
    pub(crate) fn hidden(&mut self, x: Var, restore: &Rc<Restore>) -> std::result::Result<Var, KernelError> {
        let out = run("hidden patches", || tokens::hidden_patches(&self.values[x.0], restore))?;
        Ok(self.push(out, Node::Hidden { x, restore: Rc::clone(restore) }))
    }

    /// The block of `vit` whose parameters' names start with `prefix`: all its output, or that for the patches `hidden` says
    /// are hidden.
    pub(crate) fn block(
        &mut self,
        x: Var,
        vit: &VitConfig,
        prefix: &str,
        hidden: Option<&Rc<Restore>>,
    ) -> std::result::Result<Var, KernelError> {
        let vit = Vit::new(vit);
        match hidden {
            None => Ok(vit.block_at(self, &x, prefix)?.0),
            Some(restore) => vit.block_for(self, &x, prefix, |tape, x| tape.hidden(*x, restore)),
        }
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

    /// [`Self::block`], of which nothing but the output is kept: the backward pass computes the rest again. Costs a forward
    /// pass, saves the memory of a block's inner values.
    pub(crate) fn recomputed_block(
        &mut self,
        x: Var,
        vit: &Rc<VitConfig>,
        prefix: &str,
        hidden: Option<&Rc<Restore>>,
    ) -> std::result::Result<Var, KernelError> {
        let mut inner = Tape::new(self.parameters);
        let start = inner.push(self.values[x.0].clone(), Node::Input);
        let end = inner.block(start, vit, prefix, hidden)?;
        let out = inner.values.swap_remove(end.0);
        Ok(self.push(out, Node::Block { x, vit: Rc::clone(vit), prefix: prefix.to_owned(), hidden: hidden.cloned() }))
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
    /// `finished` is told, from time to time, from which value of the flat buffer on the gradients are final; `hear`,
    /// before each operation is undone, how many are left, and may stop there: the gradients are then worth nothing.
    pub(crate) fn backward(
        self,
        written: &mut [bool],
        finished: &mut dyn FnMut(usize),
        hear: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> std::result::Result<ControlFlow<()>, KernelError> {
        run("backward", || Ok(Backward::new(self, written).run(finished, hear)?.map_continue(|_| ())))
    }
}

fn run<T>(operation: &str, f: impl FnOnce() -> Result<T>) -> std::result::Result<T, KernelError> {
    f().map_err(|source| KernelError::Operation { operation: operation.into(), source })
}
