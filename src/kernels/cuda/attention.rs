//! Attention as batched products over all heads, straight from the fused qkv's strides, with a softmax between them.
//!
//! Logits are f32; heads are taken in groups, so that what lies between the products stays bounded.

use candle_core::{CudaDevice, DType, Result, Tensor};

use super::product::{Matrix, product};
use super::{Argument, Grid, Module, address, device, module, suffix, unwritten};

const ATTENTION: Module = module!("attention");

/// Bytes of f32 logits held at a time.
const LOGITS: usize = 512 << 20;

/// qkv (B, T, 3·C), N heads of d channels, some of the B·N heads at a time.
struct Heads<'t> {
    device: &'t CudaDevice,
    dtype: DType,
    batch: usize,
    tokens: usize,
    width: usize,
    heads: usize,
}

/// A group of heads.
#[derive(Clone, Copy)]
struct Group {
    first: usize,
    count: usize,
}

impl<'t> Heads<'t> {
    fn of(qkv: &'t Tensor, heads: usize) -> Result<Self> {
        let (batch, tokens, channels) = qkv.dims3()?;
        if heads == 0 || channels == 0 || channels % (3 * heads) != 0 {
            candle_core::bail!("attention: {channels} channels are not q, k and v of {heads} heads");
        }
        Ok(Self { device: device(qkv)?, dtype: qkv.dtype(), batch, tokens, width: channels / 3, heads })
    }

    fn d(&self) -> usize {
        self.width / self.heads
    }

    fn scale(&self) -> f32 {
        1.0 / (self.d() as f32).sqrt()
    }

    /// Groups whose logits fit into the bound.
    fn groups(&self) -> impl Iterator<Item = Group> + use<> {
        let all = self.batch * self.heads;
        let each = (LOGITS / 4 / (self.tokens * self.tokens).max(1)).max(1);
        (0..all).step_by(each).map(move |first| Group { first, count: each.min(all - first) })
    }

    /// The heads' (T, d) in `tensor`, whose tokens are `channels` wide, from channel `offset` on. With the matrices comes
    /// the tensor their addresses are in.
    fn matrices(&self, group: Group, tensor: &Tensor, channels: usize, offset: usize) -> Result<(Tensor, Matrix)> {
        let base = address(tensor, self.dtype, self.batch * self.tokens * channels)?;
        let image = self.tokens * channels;
        self.list(group, base, [image, self.d(), offset], self.heads, self.dtype, channels)
    }

    /// The heads' (T, T) in a buffer of the group's own.
    fn squares(&self, group: Group, tensor: &Tensor, dtype: DType) -> Result<(Tensor, Matrix)> {
        let base = address(tensor, dtype, group.count * self.tokens * self.tokens)?;
        let own = Group { first: 0, count: group.count };
        self.list(own, base, [self.tokens * self.tokens, 0, 0], 1, dtype, self.tokens)
    }

    fn list(
        &self,
        group: Group,
        base: Argument,
        [image, d, offset]: [usize; 3],
        heads: usize,
        dtype: DType,
        stride: usize,
    ) -> Result<(Tensor, Matrix)> {
        // Two words an address.
        let list = unwritten((group.count, 2), DType::U32, self.device)?;
        let Argument::Long(at) = address(&list, DType::U32, 2 * group.count)? else {
            candle_core::bail!("an address is a number of 64 bits");
        };
        let (word, long) = (|n: usize| Argument::Word(n as u32), |n: usize| Argument::Long(n as u64));
        let arguments = [
            base,
            Argument::Long(at),
            word(group.first),
            word(group.count),
            word(heads),
            long(image),
            long(d),
            long(offset),
            word(dtype.size_in_bytes()),
        ];
        // SAFETY: a base address, room for as many addresses, and how they are computed.
        unsafe { ATTENTION.launch(self.device, "strided", Grid::each(group.count), &arguments)? };
        Ok((list, Matrix { address: at, dtype, stride, transposed: false }))
    }

    /// C (m, n) = `scale`·A·B for each head of the group.
    fn products(&self, group: Group, sizes: [usize; 3], a: Matrix, b: Matrix, scale: f32, c: Matrix) -> Result<()> {
        // SAFETY: lists of as many addresses as the group has heads, made by `matrices` and `squares` from tensors whose
        // sizes were checked.
        unsafe { product(self.device, sizes, a, b, c, (scale, false), Some(group.count)) }
    }

    /// Softmax(s·Q·Kᵀ) of the group, (heads, T, T).
    fn weights(&self, group: Group, q: Matrix, k: Matrix) -> Result<Tensor> {
        let (t, count) = (self.tokens, group.count * self.tokens * self.tokens);
        let logits = unwritten((group.count, t, t), DType::F32, self.device)?;
        let (_list, to) = self.squares(group, &logits, DType::F32)?;
        self.products(group, [t, t, self.d()], q, transpose(k), self.scale(), to)?;
        let weights = unwritten((group.count, t, t), self.dtype, self.device)?;
        let arguments =
            [address(&logits, DType::F32, count)?, address(&weights, self.dtype, count)?, Argument::Word(t as u32)];
        let name = format!("attention_softmax_{}", suffix(self.dtype)?);
        // SAFETY: (rows, t) in and out, and t.
        unsafe { ATTENTION.launch(self.device, &name, Grid::rows([group.count * t, 1, 1], t), &arguments)? };
        Ok(weights)
    }
}

fn transpose(matrix: Matrix) -> Matrix {
    Matrix { transposed: !matrix.transposed, ..matrix }
}

pub(in crate::kernels) fn forward(qkv: &Tensor, heads: usize) -> Result<Tensor> {
    let this = Heads::of(qkv, heads)?;
    let (t, d, c) = (this.tokens, this.d(), this.width);
    let out = unwritten((this.batch, t, c), this.dtype, this.device)?;
    for group in this.groups() {
        let (_q, q) = this.matrices(group, qkv, 3 * c, 0)?;
        let (_k, k) = this.matrices(group, qkv, 3 * c, c)?;
        let (_v, v) = this.matrices(group, qkv, 3 * c, 2 * c)?;
        let (_o, o) = this.matrices(group, &out, c, 0)?;
        let weights = this.weights(group, q, k)?;
        let (_p, p) = this.squares(group, &weights, this.dtype)?;
        this.products(group, [t, d, t], p, v, 1.0, o)?;
    }
    Ok(out)
}

/// With P the weights: dV = Pᵀ·dO, dP = dO·Vᵀ, dS = P∘(dP − rowsum(P∘dP)), dQ = s·dS·K, dK = s·dSᵀ·Q.
pub(in crate::kernels) fn backward(qkv: &Tensor, dout: &Tensor, heads: usize) -> Result<Tensor> {
    let this = Heads::of(qkv, heads)?;
    let (t, d, c) = (this.tokens, this.d(), this.width);
    let dqkv = unwritten(qkv.shape(), this.dtype, this.device)?;
    for group in this.groups() {
        let (_q, q) = this.matrices(group, qkv, 3 * c, 0)?;
        let (_k, k) = this.matrices(group, qkv, 3 * c, c)?;
        let (_v, v) = this.matrices(group, qkv, 3 * c, 2 * c)?;
        let (_o, o) = this.matrices(group, dout, c, 0)?;
        let (_dq, dq) = this.matrices(group, &dqkv, 3 * c, 0)?;
        let (_dk, dk) = this.matrices(group, &dqkv, 3 * c, c)?;
        let (_dv, dv) = this.matrices(group, &dqkv, 3 * c, 2 * c)?;
        let weights = this.weights(group, q, k)?;
        let (_p, p) = this.squares(group, &weights, this.dtype)?;
        this.products(group, [t, d, t], transpose(p), o, 1.0, dv)?;
        let slopes = unwritten((group.count, t, t), DType::F32, this.device)?;
        let (_dp, dp) = this.squares(group, &slopes, DType::F32)?;
        this.products(group, [t, t, d], o, transpose(v), 1.0, dp)?;
        let logit_slopes = unwritten((group.count, t, t), this.dtype, this.device)?;
        let count = group.count * t * t;
        let arguments = [
            address(&weights, this.dtype, count)?,
            address(&slopes, DType::F32, count)?,
            address(&logit_slopes, this.dtype, count)?,
            Argument::Word(t as u32),
        ];
        let name = format!("attention_softmax_backward_{}", suffix(this.dtype)?);
        // SAFETY: three of (rows, t), and t.
        unsafe { ATTENTION.launch(this.device, &name, Grid::rows([group.count * t, 1, 1], t), &arguments)? };
        let (_ds, ds) = this.squares(group, &logit_slopes, this.dtype)?;
        this.products(group, [t, d, t], ds, k, this.scale(), dq)?;
        this.products(group, [t, d, t], transpose(ds), q, this.scale(), dk)?;
    }
    Ok(dqkv)
}
