//! An update in the making: micro-batches come one at a time, so that memory for one of them is enough.

use std::ops::ControlFlow;

use candle_core::Tensor;

use super::phase::{Phase, enter};
use super::worker::on_a_worker;
use super::{Intermediates, MicroBatch, Step, StepError, StepReport, Terms, kernel};
use crate::kernels::norm;
use crate::train::distributed::{Reduction, World};

/// Gradients of the micro-batches so far. Dropped unfinished, it leaves the weights as they were.
pub struct Update<'s, 'b, 'w> {
    pub(super) step: &'s mut Step<'b>,
    pub(super) world: &'w World,
    pub(super) micro_batches: usize,
    /// Which parameters have a gradient by now.
    pub(super) written: Vec<bool>,
    pub(super) sum: Option<Reduction<'w>>,
    pub(super) passes: Vec<Terms>,
    pub(super) seen: Option<Intermediates>,
}

impl Update<'_, '_, '_> {
    /// Adds the gradients of `batch`. With the last one, what is done is sent to the other processes while the rest is
    /// computed. `hear` is told what the pass is at, at every block, and may end the update.
    ///
    /// # Errors
    /// [`StepError::Batch`]; one more than was announced; the other processes cannot be reached; [`StepError::Interrupted`]
    /// where `hear` ended it: what is left to do with the update then is to drop it.
    pub fn add(
        &mut self,
        batch: &MicroBatch,
        hear: &mut (dyn FnMut(Phase) -> ControlFlow<()> + Send),
    ) -> Result<(), StepError> {
        if self.passes.len() == self.micro_batches {
            return Err(self.miscounted(self.micro_batches + 1));
        }
        let weight = 1.0 / (self.micro_batches * self.world.size()) as f64;
        let last = self.passes.len() + 1 == self.micro_batches;
        let (step, written, sum) = (&mut *self.step, &mut self.written, &mut self.sum);
        let mut lost = None;
        let (terms, seen) = on_a_worker(&step.device.clone(), || {
            let mut finished = |from| {
                if let (true, Some(sum)) = (last, &mut *sum)
                    && let Err(error) = sum.start(from)
                {
                    lost.get_or_insert(error);
                }
            };
            step.pass(batch, weight, written, &mut finished, hear)
        })?;
        if let Some(error) = lost {
            return Err(error.into());
        }
        self.passes.push(terms);
        self.seen = Some(seen);
        Ok(())
    }

    /// Moves the weights, with learning rate `lr`. Every process makes the same update, and reports the same. `hear` is told
    /// what is done, and may end the update before the weights move.
    ///
    /// # Errors
    /// [`StepError::NonFinite`] before anything is changed; [`StepError::NoGradient`] in the first update; fewer micro-batches
    /// than were announced; [`StepError::Interrupted`].
    pub fn finish(
        mut self,
        lr: f64,
        hear: &mut (dyn FnMut(Phase) -> ControlFlow<()> + Send),
    ) -> Result<StepReport, StepError> {
        enter(Phase::Reduction, hear)?;
        let report = self.sum()?;
        enter(Phase::Optimizer, hear)?;
        let step = self.step;
        let settings = step.settings.adamw;
        step.updates.iter_mut().for_each(|updates| *updates += 1);
        on_a_worker(&step.device.clone(), || {
            kernel("adamw", || {
                settings.update(&step.parameters, &step.updates, lr)?;
                step.parameters.refresh()
            })
        })?;
        (step.step, step.inspected) = (report.step, true);
        Ok(report)
    }

    /// Stops short of moving the weights: the gradients are in [`Parameters::gradients`](crate::kernels::Parameters), and what
    /// the last micro-batch's pass went through is returned.
    ///
    /// # Errors
    /// As [`Self::finish`].
    pub fn gradients(mut self) -> Result<(StepReport, Option<Intermediates>), StepError> {
        let report = self.sum()?;
        Ok((report, self.seen))
    }

    /// Sums gradients and losses over all processes, and looks at them.
    fn sum(&mut self) -> Result<StepReport, StepError> {
        if self.passes.len() < self.micro_batches {
            return Err(self.miscounted(self.passes.len()));
        }
        if let Some(sum) = self.sum.take() {
            sum.finish()?;
        }
        let step = self.step.step + 1;
        // The only wait for the device in an update.
        let mean = |name: &str, term: fn(&Terms) -> Option<&Tensor>| -> Result<Option<f64>, StepError> {
            let values = self.passes.iter().filter_map(term).map(|t| t.to_scalar::<f32>().map(f64::from));
            let values = kernel(name, || values.collect::<candle_core::Result<Vec<f64>>>())?;
            let mut mean = [values.iter().sum::<f64>() / (values.len() * self.world.size()).max(1) as f64];
            // A loss that is no number in one process is none in any: all stop together.
            self.world.sum(&mut mean)?;
            match (!values.is_empty()).then_some(mean[0]) {
                Some(value) if !value.is_finite() => Err(StepError::NonFinite { term: name.into(), value, step }),
                mean => Ok(mean),
            }
        };
        let feature = mean("the feature loss", |terms| terms.feature.as_ref())?;
        let attention = mean("the attention loss", |terms| terms.attention.as_ref())?;
        let pixels = mean("the pixel loss", |terms| terms.pixels.as_ref())?;
        let grad_norm = kernel("gradient norm", || norm(self.step.parameters.gradients()))?;
        if !grad_norm.is_finite() || !self.step.inspected {
            self.step.inspect_gradients(&self.written, step)?;
        }
        let loss = [feature, attention, pixels].into_iter().flatten().sum();
        Ok(StepReport { step, loss, feature, attention, pixels, grad_norm })
    }

    fn miscounted(&self, count: usize) -> StepError {
        let reason = format!("an update of {} micro-batches was given {count}", self.micro_batches);
        StepError::Setup { reason }
    }
}
