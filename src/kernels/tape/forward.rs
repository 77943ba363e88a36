//! The operations of a forward pass, recorded.

use candle_core::{D, DType, Device, Result, Tensor};

use super::{Node, Tape, Var, run};
use crate::kernels::linear::Weight;
use crate::kernels::{KernelError, attention, gelu, layer_norm, layer_scale, linear, slices, swiglu, tokens};
use crate::model::{Activation, Map, Ops, PositionRequest, RelativeRequest, position};

impl Ops for Tape<'_> {
    type Value = Var;
    type Grid = [usize; 2];
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
            slices::sum(&a.to_dtype(wide)?, &b.to_dtype(wide)?)
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

    fn fixed_grid(&self, sides: [usize; 2]) -> [usize; 2] {
        sides
    }

    fn relative_attention(
        &mut self,
        _: &Var,
        _: usize,
        _: [usize; 2],
        _: &RelativeRequest,
    ) -> std::result::Result<Var, KernelError> {
        Err(untrainable("attention with relative positions"))
    }

    fn windows(&mut self, _: &Var, _: [usize; 2], _: usize) -> std::result::Result<Var, KernelError> {
        Err(untrainable("windows"))
    }

    fn unwindow(&mut self, _: &Var, _: [usize; 2], _: usize) -> std::result::Result<Var, KernelError> {
        Err(untrainable("windows"))
    }

    fn upsample(
        &mut self,
        _: &Map<Var>,
        name: &str,
        _: Option<(&str, f64)>,
    ) -> std::result::Result<Map<Var>, KernelError> {
        Err(untrainable(name))
    }

    fn conv(&mut self, _: &Map<Var>, name: &str) -> std::result::Result<Map<Var>, KernelError> {
        Err(untrainable(name))
    }

    fn repeat(&mut self, _: &Map<Var>, _: usize) -> std::result::Result<Map<Var>, KernelError> {
        Err(untrainable("repeat"))
    }

    fn max_pool(&mut self, _: &Map<Var>, _: usize) -> std::result::Result<Map<Var>, KernelError> {
        Err(untrainable("max pool"))
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

/// What only detectors and segmenters do has no gradient here.
fn untrainable(operation: &str) -> KernelError {
    KernelError::NoGradient { operation: operation.into() }
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
