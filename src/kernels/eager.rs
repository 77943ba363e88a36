//! The [`Ops`] of a model directory, on candle's CPU tensors.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use candle_core::{D, DType, Device, Tensor};
use half::{bf16, f16};
use safetensors::Dtype;

use super::gemm::Packed;
use super::linear::Weight;
use super::relative::Relative;
use super::{KernelError, attention, gelu, layer_norm, layer_scale, linear, maps, slices, swiglu, tokens};
use crate::model::{
    Activation, Canonical, Features, Map, Ops, PositionRequest, RelativePosition, RelativeRequest, TensorView, Vit,
    position,
};

/// Computes a model's passes in f32, reading each parameter from its map the first time it is named.
///
/// Parameters stored as f16 or bf16 are widened, f64 ones rounded.
///
/// ```no_run
/// use candle_core::{Device, Tensor};
/// use tec_zoo::{kernels::Eager, model::Canonical};
///
/// let model = Canonical::open("ibot-vitb".as_ref())?;
/// let images = Tensor::zeros((1, 3, 224, 224), candle_core::DType::F32, &Device::Cpu)?;
/// let features = Eager::new(&model).features(&images)?;
/// assert_eq!(features.blocks.len(), model.config().vit.depth);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Eager<'a, P = Unattended> {
    model: &'a Canonical,
    device: Device,
    precision: DType,
    parameters: HashMap<String, Tensor>,
    /// Weights of matrix products, in their precision.
    operands: HashMap<String, Operand>,
    /// A neck's layers as matrix products, by name: weight and bias.
    layers: HashMap<String, (Operand, Tensor)>,
    /// Position tables, resampled.
    positions: HashMap<(String, [usize; 2]), (PositionRequest, Tensor)>,
    /// Whether parameters are kept for the next pass.
    keep: bool,
    pulse: P,
}

/// Who is told each layer's name before it is computed, and may end the pass there.
pub trait Pulse {
    /// Whether to go on to the layer `name`; a `Break` ends the pass with [`KernelError::Interrupted`].
    fn layer(&mut self, name: &str) -> ControlFlow<()>;
}

/// Nobody: the pass runs to its end.
#[derive(Debug, Clone, Copy)]
pub struct Unattended;

impl Pulse for Unattended {
    fn layer(&mut self, _: &str) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

impl<F: FnMut(&str) -> ControlFlow<()>> Pulse for F {
    fn layer(&mut self, name: &str) -> ControlFlow<()> {
        self(name)
    }
}

/// A weight as matrix products take it.
#[derive(Debug, Clone)]
enum Operand {
    Stored(Tensor),
    Packed(Arc<Packed>),
}

impl Operand {
    fn weight(&self) -> Weight<'_> {
        match self {
            Self::Stored(weight) => Weight::Stored(weight),
            Self::Packed(weight) => Weight::Packed(weight),
        }
    }
}

impl<'a> Eager<'a> {
    /// An executor for `model` on the CPU, in f32; reads nothing yet.
    pub fn new(model: &'a Canonical) -> Self {
        Self::on(model, Device::Cpu, DType::F32)
    }

    /// An executor on `device` whose matrix products run in `precision`: F32, or BF16 with sums and norms in f32.
    pub fn on(model: &'a Canonical, device: Device, precision: DType) -> Self {
        let (parameters, operands) = (HashMap::new(), HashMap::new());
        let (layers, positions) = (HashMap::new(), HashMap::new());
        Self { model, device, precision, parameters, operands, layers, positions, keep: true, pulse: Unattended }
    }

    /// The same executor, which tells `pulse` of each layer.
    pub fn attended<P: Pulse>(self, pulse: P) -> Eager<'a, P> {
        let Self { model, device, precision, parameters, operands, layers, positions, keep, pulse: Unattended } = self;
        Eager { model, device, precision, parameters, operands, layers, positions, keep, pulse }
    }
}

impl<'a, P: Pulse> Eager<'a, P> {
    /// Forgets each parameter once it is used: a pass then takes the memory of its values, not of the model.
    pub fn forgetful(mut self) -> Self {
        self.keep = false;
        self
    }

    /// The model.
    pub fn model(&self) -> &'a Canonical {
        self.model
    }

    /// Puts `tensor` in place of the parameter `name` from here on.
    ///
    /// # Errors
    /// The model has no such parameter, or one of another shape.
    pub fn substitute(&mut self, name: &str, tensor: Tensor) -> Result<(), KernelError> {
        let stored = self.stored(name)?;
        if stored.shape != tensor.dims() {
            let reason = format!("its shape is {:?}, not {:?}", stored.shape, tensor.dims());
            return Err(KernelError::Parameter { name: name.into(), reason });
        }
        self.restore(name);
        self.parameters.insert(name.into(), tensor);
        Ok(())
    }

    /// Forgets every substitution of `name`.
    pub fn restore(&mut self, name: &str) {
        self.parameters.remove(name);
        self.operands.remove(name);
        self.layers.clear();
        self.positions.retain(|(table, _), _| table != name);
    }

    /// The patch grid `[H / p, W / p]` of `images` (B, 3, H, W).
    ///
    /// # Errors
    /// Images of another shape, or whose sides are no multiples of the patch.
    pub fn grid(&self, images: &Tensor) -> Result<[usize; 2], KernelError> {
        let patch = self.model.config().vit.patch_size;
        match images.dims() {
            &[batch, 3, height, width]
                if batch > 0 && height > 0 && width > 0 && height % patch == 0 && width % patch == 0 =>
            {
                Ok([height / patch, width / patch])
            }
            shape => Err(KernelError::Images { shape: shape.to_vec(), patch }),
        }
    }

    /// The encoder on normalised `images` (B, 3, H, W).
    ///
    /// # Errors
    /// Images that do not fit the model.
    pub fn features(&mut self, images: &Tensor) -> Result<Features<Tensor>, KernelError> {
        let grid = self.grid(images)?;
        Vit::new(&self.model.config().vit).encode(self, images, grid)
    }

    /// The weight of the layer `name` as matrix products take it, and the bias.
    fn layer(&mut self, name: &str) -> Result<(Operand, Tensor), KernelError> {
        self.ask(name)?;
        let weight = format!("{name}.weight");
        if let Some(operand) = self.operands.get(&weight) {
            return Ok((operand.clone(), self.parameter(&format!("{name}.bias"))?));
        }
        let wide = self.parameter(&weight)?;
        let bias = self.parameter(&format!("{name}.bias"))?;
        // The kernel of a patch convolution is a row.
        let operand = run(name, || self.operand(&wide.reshape((wide.dim(0)?, ()))?))?;
        // One copy is enough.
        self.parameters.remove(&weight);
        if self.keep {
            self.operands.insert(weight, operand.clone());
        }
        Ok((operand, bias))
    }

    /// Whether to go on to the layer `name`.
    fn ask(&mut self, name: &str) -> Result<(), KernelError> {
        match self.pulse.layer(name) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(KernelError::Interrupted),
        }
    }

    /// A weight (out, in) as matrix products take it.
    fn operand(&self, weight: &Tensor) -> candle_core::Result<Operand> {
        let rounded = weight.to_dtype(self.precision)?;
        match self.device {
            Device::Cpu => linear::packed(&rounded).map(|packed| Operand::Packed(Arc::new(packed))),
            _ => Ok(Operand::Stored(rounded)),
        }
    }

    /// A transposed convolution (in, out, 2, 2) and the BatchNorm after it as one Linear in → 4·out.
    fn upsampling(&mut self, name: &str, norm: Option<(&str, f64)>) -> Result<(Operand, Tensor), KernelError> {
        if let Some(layer) = self.layers.get(name) {
            return Ok(layer.clone());
        }
        self.ask(name)?;
        let (mut weight, mut bias) =
            (self.parameter(&format!("{name}.weight"))?, self.parameter(&format!("{name}.bias"))?);
        if let Some((norm, eps)) = norm {
            let mut of = |leaf: &str| self.parameter(&format!("{norm}.{leaf}"));
            let (gamma, beta, mean, variance) = (of("weight")?, of("bias")?, of("running_mean")?, of("running_var")?);
            (weight, bias) = run(norm, || {
                let scale = (gamma / (variance + eps)?.sqrt()?)?;
                let weight = weight.broadcast_mul(&scale.reshape((1, (), 1, 1))?)?;
                Ok((weight, (((bias - mean)? * scale)? + beta)?))
            })?;
        }
        let layer = run(name, || {
            let (inner, _, _, _) = weight.dims4()?;
            let weight = weight.permute([2, 3, 1, 0])?.contiguous()?.reshape(((), inner))?;
            Ok((self.operand(&weight)?, Tensor::cat(&[&bias, &bias, &bias, &bias], 0)?))
        })?;
        if self.keep {
            self.layers.insert(name.into(), layer.clone());
        }
        Ok(layer)
    }

    /// A convolution (out, in, side, side) as a Linear side²·in → out, and its side.
    fn convolution(&mut self, name: &str) -> Result<(usize, (Operand, Tensor)), KernelError> {
        self.ask(name)?;
        let weight = self.parameter(&format!("{name}.weight"))?;
        let (out, _, side, _) = run(name, || weight.dims4())?;
        if let Some(layer) = self.layers.get(name) {
            return Ok((side, layer.clone()));
        }
        let layer = run(name, || {
            let weight = weight.permute([0, 2, 3, 1])?.contiguous()?.reshape((out, ()))?;
            Ok((self.operand(&weight)?, Tensor::zeros(out, DType::F32, &self.device)?))
        })?;
        if self.keep {
            self.layers.insert(name.into(), layer.clone());
        }
        Ok((side, layer))
    }

    fn linear_to(
        &mut self,
        x: &Tensor,
        name: &str,
        residual: Option<&Tensor>,
        out: DType,
    ) -> Result<Tensor, KernelError> {
        let (weight, bias) = self.layer(name)?;
        run(name, || linear::forward(&x.to_dtype(self.precision)?, weight.weight(), &bias, residual, out))
    }

    fn stored(&self, name: &str) -> Result<TensorView<'a>, KernelError> {
        self.model.get(name).ok_or_else(|| KernelError::MissingParameter { name: name.into() })
    }
}

impl<P: Pulse> Ops for Eager<'_, P> {
    type Value = Tensor;
    type Grid = [usize; 2];
    type Error = KernelError;

    fn parameter(&mut self, name: &str) -> Result<Tensor, KernelError> {
        if let Some(tensor) = self.parameters.get(name) {
            return Ok(tensor.clone());
        }
        let tensor =
            tensor_of(&self.stored(name)?).map_err(|reason| KernelError::Parameter { name: name.into(), reason })?;
        let tensor = run(name, || tensor.to_device(&self.device))?;
        if self.keep {
            self.parameters.insert(name.into(), tensor.clone());
        }
        Ok(tensor)
    }

    fn patch_embed(&mut self, images: &Tensor, name: &str, patch: usize) -> Result<Tensor, KernelError> {
        self.grid(images)?;
        let rows = run(name, || tokens::patches(images, patch, None, self.precision))?;
        self.linear_to(&rows, name, None, DType::F32)
    }

    fn position(&mut self, name: &str, request: &PositionRequest) -> Result<Tensor, KernelError> {
        let key = (name.to_string(), request.grid);
        if let Some((known, table)) = self.positions.get(&key)
            && known == request
        {
            return Ok(table.clone());
        }
        let table = self.parameter(name)?;
        let out = match position::is_native(request.native, request.grid) {
            true => table,
            false => {
                let (width, values) =
                    run(name, || Ok((table.dim(D::Minus1)?, table.flatten_all()?.to_vec1::<f32>()?)))?;
                let values = position::resample(&values, width, request.native, request.grid, request.resample)?;
                let tokens = values.len() / width;
                run(name, || Tensor::from_vec(values, (1, tokens, width), &self.device))?
            }
        };
        let [rows, columns] = request.grid;
        let out = run(name, || match out.dim(1)? {
            tokens if !request.class_row && tokens == rows * columns + 1 => out.narrow(1, 1, tokens - 1)?.contiguous(),
            _ => Ok(out),
        })?;
        self.positions.insert(key, (*request, out.clone()));
        Ok(out)
    }

    fn tokens(&mut self, x: &Tensor, start: usize, len: Option<usize>) -> Result<Tensor, KernelError> {
        run("tokens", || {
            let len = len.unwrap_or_else(|| x.dim(1).unwrap_or(0).saturating_sub(start));
            x.narrow(1, start, len)?.contiguous()
        })
    }

    fn prepend_token(&mut self, token: &Tensor, x: &Tensor) -> Result<Tensor, KernelError> {
        run("prepend token", || {
            let (batch, _, width) = x.dims3()?;
            Tensor::cat(&[&token.broadcast_as((batch, token.dim(1)?, width))?.contiguous()?, x], 1)
        })
    }

    fn add(&mut self, a: &Tensor, b: &Tensor) -> Result<Tensor, KernelError> {
        run("add", || slices::sum(a, b))
    }

    fn linear(&mut self, x: &Tensor, name: &str) -> Result<Tensor, KernelError> {
        self.linear_to(x, name, None, self.precision)
    }

    fn linear_add(&mut self, residual: &Tensor, x: &Tensor, name: &str) -> Result<Tensor, KernelError> {
        self.linear_to(x, name, Some(residual), DType::F32)
    }

    fn layer_norm(&mut self, x: &Tensor, name: &str, eps: f64) -> Result<Tensor, KernelError> {
        let weight = self.parameter(&format!("{name}.weight"))?;
        let bias = self.parameter(&format!("{name}.bias"))?;
        run(name, || layer_norm::forward(&x.contiguous()?, &weight, &bias, eps, self.precision))
    }

    fn linear_gelu(&mut self, x: &Tensor, name: &str, kind: Activation) -> Result<Tensor, KernelError> {
        if kind != Activation::GeluErf || !matches!(x.device(), Device::Cpu) {
            let h = self.linear(x, name)?;
            return self.gelu(&h, kind);
        }
        let (weight, bias) = self.layer(name)?;
        run(name, || {
            let x = x.to_dtype(self.precision)?;
            Ok(linear::forward_gelu(&x, weight.weight(), &bias, self.precision, false)?.1)
        })
    }

    fn gelu(&mut self, x: &Tensor, kind: Activation) -> Result<Tensor, KernelError> {
        run("gelu", || gelu::forward(&x.contiguous()?, kind))
    }

    fn swiglu(&mut self, x: &Tensor) -> Result<Tensor, KernelError> {
        run("swiglu", || swiglu::forward(&x.contiguous()?))
    }

    fn layer_scale(&mut self, x: &Tensor, name: &str) -> Result<Tensor, KernelError> {
        let gamma = self.parameter(name)?;
        run(name, || layer_scale::forward(&x.contiguous()?, &gamma))
    }

    fn attention(&mut self, qkv: &Tensor, heads: usize) -> Result<Tensor, KernelError> {
        run("attention", || attention::forward(&qkv.contiguous()?, heads))
    }

    fn fixed_grid(&self, sides: [usize; 2]) -> [usize; 2] {
        sides
    }

    fn relative_attention(
        &mut self,
        qkv: &Tensor,
        heads: usize,
        grid: [usize; 2],
        relative: &RelativeRequest,
    ) -> Result<Tensor, KernelError> {
        let name = &relative.name;
        let relative = match relative.kind {
            RelativePosition::Decomposed { .. } => {
                let (h, w) =
                    (self.parameter(&format!("{name}.rel_pos_h"))?, self.parameter(&format!("{name}.rel_pos_w"))?);
                run(name, || Relative::decomposed(&h, &w, grid))?
            }
            RelativePosition::Table => {
                let table = self.parameter(&format!("{name}.relative_position_bias_table"))?;
                run(name, || Relative::table(&table, grid))?
            }
        };
        run(name, || attention::forward_relative(&qkv.contiguous()?, heads, &relative))
    }

    fn windows(&mut self, x: &Tensor, grid: [usize; 2], size: usize) -> Result<Tensor, KernelError> {
        run("windows", || maps::windows(x, grid, size))
    }

    fn unwindow(&mut self, x: &Tensor, grid: [usize; 2], size: usize) -> Result<Tensor, KernelError> {
        run("unwindow", || maps::unwindow(x, grid, size))
    }

    fn upsample(
        &mut self,
        map: &Map<Tensor>,
        name: &str,
        norm: Option<(&str, f64)>,
    ) -> Result<Map<Tensor>, KernelError> {
        let (weight, bias) = self.upsampling(name, norm)?;
        run(name, || {
            let x = map.value.to_dtype(self.precision)?;
            maps::shuffle(&linear::forward(&x, weight.weight(), &bias, None, DType::F32)?, map.grid)
        })
    }

    fn conv(&mut self, map: &Map<Tensor>, name: &str) -> Result<Map<Tensor>, KernelError> {
        let (side, (weight, bias)) = self.convolution(name)?;
        run(name, || {
            let layer = |around: &Tensor| linear::forward(around, weight.weight(), &bias, None, DType::F32);
            let value = maps::around(&map.value.to_dtype(self.precision)?, map.grid, side, layer)?;
            Ok(Map { value, grid: map.grid })
        })
    }

    fn repeat(&mut self, map: &Map<Tensor>, factor: usize) -> Result<Map<Tensor>, KernelError> {
        run("repeat", || maps::repeat(&map.value, map.grid, factor))
    }

    fn max_pool(&mut self, map: &Map<Tensor>, side: usize) -> Result<Map<Tensor>, KernelError> {
        run("max pool", || maps::max_pool(&map.value, map.grid, side))
    }

    fn concat_channels(&mut self, parts: &[Tensor]) -> Result<Tensor, KernelError> {
        run("concatenate channels", || Tensor::cat(parts, D::Minus1))
    }

    fn channels(&mut self, x: &Tensor, start: usize, len: usize) -> Result<Tensor, KernelError> {
        run("channels", || x.narrow(D::Minus1, start, len)?.contiguous())
    }

    fn select_token(&mut self, x: &Tensor, index: usize) -> Result<Tensor, KernelError> {
        run("select token", || x.narrow(1, index, 1)?.squeeze(1)?.contiguous())
    }

    fn mean_tokens(&mut self, x: &Tensor, start: usize) -> Result<Tensor, KernelError> {
        run("mean of tokens", || {
            let tokens = x.dim(1)?;
            if start >= tokens {
                candle_core::bail!("no token from {start} on among {tokens}");
            }
            x.narrow(1, start, tokens - start)?.mean(1)
        })
    }
}

/// A stored tensor in f32.
pub(crate) fn tensor_of(view: &TensorView<'_>) -> Result<Tensor, String> {
    fn widen<const N: usize>(bytes: &[u8], f: impl Fn([u8; N]) -> f32) -> Vec<f32> {
        bytes.as_chunks::<N>().0.iter().map(|chunk| f(*chunk)).collect()
    }
    let values = match view.dtype {
        Dtype::F32 => widen(view.bytes, f32::from_le_bytes),
        Dtype::F16 => widen(view.bytes, |b| f16::from_le_bytes(b).to_f32()),
        Dtype::BF16 => widen(view.bytes, |b| bf16::from_le_bytes(b).to_f32()),
        Dtype::F64 => widen(view.bytes, |b| f64::from_le_bytes(b) as f32),
        other => return Err(format!("its dtype is {other}, not a float")),
    };
    Tensor::from_vec(values, view.shape, &Device::Cpu).map_err(|error| error.to_string())
}

fn run<T>(operation: &str, f: impl FnOnce() -> candle_core::Result<T>) -> Result<T, KernelError> {
    f().map_err(|source| KernelError::Operation { operation: operation.into(), source })
}
