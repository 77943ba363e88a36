//! A model's pass over a record's images, as configured and under an altered assumption.

use std::collections::BTreeMap;

use candle_core::Tensor;

use super::{Difference, Golden, Outcome, Point, Shared, StageReport};
use crate::kernels::{Eager, KernelError};
use crate::model::{Canonical, Features, Ops, Vit, VitConfig};

/// One model against one record.
pub(super) struct Replay<'a, 'h> {
    pub(super) model: &'a Canonical,
    pub(super) golden: &'a Golden,
    pub(super) ops: Eager<'a, &'a Shared<'h>>,
    pub(super) hear: &'a Shared<'h>,
    /// What the model as configured makes, running free.
    own: BTreeMap<Point, Tensor>,
}

impl<'a, 'h> Replay<'a, 'h> {
    pub(super) fn new(model: &'a Canonical, golden: &'a Golden, hear: &'a Shared<'h>) -> Self {
        Self { model, golden, ops: Eager::new(model).attended(hear), hear, own: BTreeMap::new() }
    }

    pub(super) fn config(&self) -> &'a VitConfig {
        &self.model.config().vit
    }

    /// Runs the model as configured, free, and compares every stage of the record.
    pub(super) fn compare(&mut self, tolerance: f64) -> Result<Vec<StageReport>, KernelError> {
        let vit = Vit::new(self.config());
        let images = self.golden.images();
        let grid = self.ops.grid(images)?;
        if self.config().class_token {
            self.own.insert(Point::ClassToken, self.ops.parameter("cls_token")?);
        }
        let mut x = vit.embed(&mut self.ops, images, grid)?;
        self.own.insert(Point::Embedded, x.clone());
        let mut blocks = Vec::with_capacity(self.config().depth);
        for i in 0..self.config().depth {
            x = vit.block(&mut self.ops, &x, i, grid)?;
            self.own.insert(Point::Block(i), x.clone());
            blocks.push(x.clone());
        }
        let features = Features { blocks, norm: vit.norm(&mut self.ops, &x)? };
        if let Some(norm) = &features.norm {
            self.own.insert(Point::Norm, norm.clone());
        }
        if self.golden.get(Point::Adapted).is_some()
            && let Some(adapted) = vit.adapt(&mut self.ops, &features)?
        {
            self.own.insert(Point::Adapted, adapted.adapted);
        }
        if let Some(images) = self.golden.images_large() {
            let features = self.ops.features(images)?;
            self.own.insert(Point::Large, features.last().clone());
        }
        self.golden.points().map(|point| self.stage(point, tolerance)).collect()
    }

    fn stage(&self, point: Point, tolerance: f64) -> Result<StageReport, KernelError> {
        let difference = match (self.own.get(&point), self.golden.get(point)) {
            // A model without a final norm says something else at the larger size too; `norm` already says so.
            _ if point == Point::Large && self.lacks_norm() => None,
            (Some(ours), Some(golden)) => Some(Difference::between(ours, golden)?),
            _ => None,
        };
        let outcome = match (&difference, point) {
            (Some(difference), _) if difference.relative <= tolerance => Outcome::Holds,
            (Some(_), _) => Outcome::Diverges,
            (None, Point::Norm) => Outcome::Missing,
            (None, _) => Outcome::Skipped,
        };
        Ok(StageReport { stage: point, outcome, difference })
    }

    fn lacks_norm(&self) -> bool {
        !self.config().final_norm && self.golden.get(Point::Norm).is_some()
    }

    /// The record's tensor at `point`, or what the model itself made where the record has none.
    pub(super) fn given(&self, point: Point) -> Option<&Tensor> {
        self.golden.get(point).or_else(|| self.own.get(&point))
    }

    /// Runs one stage alone under `config`, from the record's own input of that stage, and compares.
    ///
    /// Nothing before it adds its error, so a small one shows. `None` where the record or the model lacks it.
    pub(super) fn rerun(&mut self, point: Point, config: &VitConfig) -> Result<Option<Difference>, KernelError> {
        let Some(golden) = self.golden.get(point) else {
            return Ok(None);
        };
        let vit = Vit::new(config);
        let grid = self.ops.grid(self.golden.images())?;
        let ours = match point {
            Point::ClassToken if !config.class_token => None,
            Point::ClassToken => Some(self.ops.parameter("cls_token")?),
            Point::Embedded => Some(self.embed(config)?),
            Point::Block(0) => {
                let input = match self.golden.get(Point::Embedded) {
                    Some(embedded) => embedded.clone(),
                    None => self.embed(config)?,
                };
                Some(vit.block(&mut self.ops, &input, 0, grid)?)
            }
            Point::Block(i) => match self.given(Point::Block(i - 1)).cloned() {
                Some(input) => Some(vit.block(&mut self.ops, &input, i, grid)?),
                None => None,
            },
            Point::Norm => match self.given(Point::Block(config.depth - 1)).cloned() {
                Some(input) => vit.norm(&mut self.ops, &input)?,
                None => None,
            },
            Point::Adapted => {
                let blocks = (0..config.depth).filter_map(|i| self.given(Point::Block(i)).cloned()).collect();
                let norm = self.given(Point::Norm).cloned();
                vit.adapt(&mut self.ops, &Features { blocks, norm })?.map(|adapted| adapted.adapted)
            }
            Point::Large => match self.golden.images_large() {
                Some(images) => {
                    let grid = self.ops.grid(images)?;
                    Some(vit.encode(&mut self.ops, images, grid)?.last().clone())
                }
                None => None,
            },
        };
        ours.map(|ours| Difference::between(&ours, golden)).transpose()
    }

    fn embed(&mut self, config: &VitConfig) -> Result<Tensor, KernelError> {
        let images = self.golden.images();
        let grid = self.ops.grid(images)?;
        Vit::new(config).embed(&mut self.ops, images, grid)
    }
}
