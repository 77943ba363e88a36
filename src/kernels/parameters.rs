//! The trainable parameters of a model: one flat buffer with the optimizer's moments, one for the gradients.
//!
//! Parameters lie in the order they are used in, so the backward pass finishes them from the end: what is done can be sent
//! to other processes while the rest is computed. Each starts on a multiple of 64 values, which are zero in between.

use std::collections::HashMap;
use std::ops::Range;

use candle_core::{DType, Device, Tensor};

use super::KernelError;
use crate::model::ParameterSpec;

/// Values each parameter is padded to a multiple of.
pub(super) const ALIGNMENT: usize = 64;

/// Place of one parameter in the flat buffers.
#[derive(Debug, Clone, PartialEq)]
pub struct Slot {
    /// Name and shape.
    pub spec: ParameterSpec,
    /// Its values.
    pub range: Range<usize>,
    /// Values up to the next parameter.
    pub padded: usize,
    /// Whether weight decay applies: to tensors of rank 2 and more.
    pub decays: bool,
}

/// A model's trainable parameters, their gradients, and AdamW's moments.
#[derive(Debug)]
pub struct Parameters {
    slots: Vec<Slot>,
    index: HashMap<String, usize>,
    /// (3·N): values, first moments, second moments.
    state: Tensor,
    /// (N)
    gradients: Tensor,
    /// (N) in bf16, refreshed after each update, when matrix products run in bf16.
    rounded: Option<Tensor>,
    /// (N / 64), u8: whether decay applies to those 64 values.
    #[cfg(feature = "cuda")]
    decays: Tensor,
    /// Tensors that are used but not trained, such as sine-cosine tables.
    fixed: HashMap<String, Tensor>,
    count: usize,
    precision: DType,
}

impl Parameters {
    /// Parameters with the given values, row-major f32; moments are zero. Matrix products run in `precision`, F32 or BF16.
    ///
    /// # Errors
    /// A name comes twice, a value does not have its shape, or memory is short.
    pub fn new(
        values: Vec<(ParameterSpec, Vec<f32>)>,
        fixed: Vec<(ParameterSpec, Vec<f32>)>,
        precision: DType,
        device: &Device,
    ) -> Result<Self, KernelError> {
        let (mut slots, mut index, mut at) = (Vec::new(), HashMap::new(), 0);
        let total: usize = values.iter().map(|(spec, _)| spec.elements().next_multiple_of(ALIGNMENT)).sum();
        let mut state = vec![0f32; 3 * total];
        for (spec, value) in values {
            let (len, name) = (spec.elements(), spec.name.clone());
            let bad = |reason: String| KernelError::Parameter { name: name.clone(), reason };
            if value.len() != len {
                return Err(bad(format!("it has {} values, its shape {:?} needs {len}", value.len(), spec.shape)));
            }
            if index.insert(name.clone(), slots.len()).is_some() {
                return Err(bad("it is there twice".into()));
            }
            state[at..at + len].copy_from_slice(&value);
            let padded = len.next_multiple_of(ALIGNMENT);
            slots.push(Slot { range: at..at + len, padded, decays: spec.shape.len() > 1, spec });
            at += padded;
        }
        let operation = |source| KernelError::Operation { operation: "parameters".into(), source };
        let fixed = fixed
            .into_iter()
            .map(|(spec, value)| Ok((spec.name, Tensor::from_vec(value, spec.shape, device)?)))
            .collect::<candle_core::Result<_>>()
            .map_err(operation)?;
        let state = Tensor::from_vec(state, 3 * total, device).map_err(operation)?;
        let gradients = Tensor::zeros(total, DType::F32, device).map_err(operation)?;
        #[cfg(feature = "cuda")]
        let decays = {
            let each = |slot: &Slot| vec![u8::from(slot.decays); slot.padded / ALIGNMENT];
            let all: Vec<u8> = slots.iter().flat_map(each).collect();
            Tensor::from_vec(all, total / ALIGNMENT, device).map_err(operation)?
        };
        let mut this = Self {
            #[cfg(feature = "cuda")]
            decays,
            slots,
            index,
            state,
            gradients,
            rounded: None,
            fixed,
            count: total,
            precision,
        };
        this.refresh().map_err(operation)?;
        Ok(this)
    }

    /// Every parameter's place, in order.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Values of the flat buffers, padding included: N.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Values, first and second moments: (3·N), f32.
    pub fn state(&self) -> &Tensor {
        &self.state
    }

    /// Gradients: (N), f32.
    pub fn gradients(&self) -> &Tensor {
        &self.gradients
    }

    /// (N / 64), u8: whether decay applies to those 64 values.
    #[cfg(feature = "cuda")]
    pub(super) fn decays(&self) -> &Tensor {
        &self.decays
    }

    /// The type matrix products run in.
    pub fn precision(&self) -> DType {
        self.precision
    }

    /// Number of the parameter called `name`.
    pub(super) fn find(&self, name: &str) -> Result<usize, KernelError> {
        self.index.get(name).copied().ok_or_else(|| KernelError::MissingParameter { name: name.into() })
    }

    /// A tensor that is not trained.
    pub(super) fn fixed(&self, name: &str) -> Result<&Tensor, KernelError> {
        self.fixed.get(name).ok_or_else(|| KernelError::MissingParameter { name: name.into() })
    }

    /// A tensor that is not trained.
    pub(crate) fn fixed_tensor(&self, name: &str) -> candle_core::Result<&Tensor> {
        self.fixed(name).map_err(candle_core::Error::wrap)
    }

    /// The values of a parameter, f32, a view.
    pub(crate) fn value(&self, slot: usize) -> candle_core::Result<Tensor> {
        self.view(&self.state, slot)
    }

    /// The values of a parameter in the type of matrix products, a view.
    pub(super) fn operand(&self, slot: usize) -> candle_core::Result<Tensor> {
        self.view(self.rounded.as_ref().unwrap_or(&self.state), slot)
    }

    /// The gradient of a parameter, f32, a view.
    pub(crate) fn gradient(&self, slot: usize) -> candle_core::Result<Tensor> {
        self.view(&self.gradients, slot)
    }

    fn view(&self, buffer: &Tensor, slot: usize) -> candle_core::Result<Tensor> {
        let Slot { spec, range, .. } = &self.slots[slot];
        buffer.narrow(0, range.start, range.len())?.reshape(spec.shape.as_slice())
    }

    /// Brings the rounded copy up to date after the values changed.
    pub(crate) fn refresh(&mut self) -> candle_core::Result<()> {
        if self.precision != DType::F32 {
            self.rounded = Some(self.state.narrow(0, 0, self.count)?.to_dtype(self.precision)?);
        }
        Ok(())
    }

    /// Replaces values and moments by `state` (3·N).
    pub(crate) fn restore(&mut self, state: Vec<f32>) -> Result<(), KernelError> {
        let run = |this: &mut Self| {
            this.state = Tensor::from_vec(state, 3 * this.count, this.state.device())?;
            this.refresh()
        };
        run(self).map_err(|source| KernelError::Operation { operation: "restore".into(), source })
    }
}
