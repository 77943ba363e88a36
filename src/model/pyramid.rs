//! Maps at several scales: what segmenters and detectors take from a ViT, and the necks that make them.
//!
//! A map of rows × columns places is kept as tokens, (B, rows·columns, C), until it leaves.

use super::neck::SCALES;
use super::{Activation, Features, Neck, Ops, Vit};

/// A map and its size.
#[derive(Debug, Clone)]
pub struct Map<V, G = [usize; 2]> {
    /// (B, rows·columns, C).
    pub value: V,
    /// `[rows, columns]`.
    pub grid: G,
}

type Maps<O> = Vec<Map<<O as Ops>::Value, <O as Ops>::Grid>>;

impl Vit<'_> {
    /// Outputs of the blocks `levels` without class token and registers, (B, L, C) each; through the final norm where
    /// `normed`.
    pub fn levels<O: Ops>(
        &self,
        ops: &mut O,
        features: &Features<O::Value>,
        levels: &[usize],
        normed: bool,
    ) -> Result<Vec<O::Value>, O::Error> {
        let config = self.config();
        let mut out = Vec::with_capacity(levels.len());
        for block in features.blocks.iter().enumerate().filter(|(i, _)| levels.contains(i)).map(|(_, block)| block) {
            let block = match normed {
                true => ops.layer_norm(block, "norm", config.norm_eps)?,
                false => block.clone(),
            };
            out.push(ops.tokens(&block, config.prefix_tokens(), None)?);
        }
        Ok(out)
    }

    /// The model's own neck on four levels of `grid`: the maps `p2`, `p3`, `p4`, `p5`, and of a
    /// [`Neck::SimplePyramid`], which reads the last level alone, `p6`. None where the model has no neck.
    pub fn pyramid<O: Ops>(&self, ops: &mut O, levels: &[O::Value], grid: O::Grid) -> Result<Maps<O>, O::Error> {
        let mut out = Vec::with_capacity(5);
        match (self.config().neck, levels) {
            (Some(Neck::FeaturePyramid { norm_eps }), [_, _, _, _]) => {
                for (scale, level) in SCALES.iter().zip(levels) {
                    let level = Map { value: level.clone(), grid };
                    out.push(scaled(ops, level, *scale, Norm::Batch(norm_eps))?);
                }
            }
            (Some(Neck::SimplePyramid { norm_eps, .. }), [.., last]) => {
                for scale in SCALES {
                    let last = Map { value: last.clone(), grid };
                    let mut map = scaled(ops, last, scale, Norm::Layer(norm_eps))?;
                    for layer in ["lateral", "output"] {
                        map = ops.conv(&map, &format!("neck.p{scale}.{layer}"))?;
                        map.value = ops.layer_norm(&map.value, &format!("neck.p{scale}.{layer}_norm"), norm_eps)?;
                    }
                    out.push(map);
                }
                if let Some(coarsest) = out.last() {
                    let coarser = ops.max_pool(coarsest, 1)?;
                    out.push(coarser);
                }
            }
            _ => {}
        }
        Ok(out)
    }

    /// Four levels of `grid` at four scales without a learned layer: each place four by four times, two by two times,
    /// as it is, and the 2×2 maximum.
    pub fn parameter_free_pyramid<O: Ops>(
        &self,
        ops: &mut O,
        levels: &[O::Value],
        grid: O::Grid,
    ) -> Result<Maps<O>, O::Error> {
        let mut out = Vec::with_capacity(levels.len());
        for (scale, level) in SCALES.iter().zip(levels) {
            let level = Map { value: level.clone(), grid };
            out.push(match scale {
                2 => ops.repeat(&level, 4)?,
                3 => ops.repeat(&level, 2)?,
                4 => level,
                _ => ops.max_pool(&level, 2)?,
            });
        }
        Ok(out)
    }
}

/// What stands between the two transposed convolutions at ×4, with its epsilon.
#[derive(Clone, Copy)]
enum Norm {
    Batch(f64),
    Layer(f64),
}

/// `map` at a neck's `scale`.
fn scaled<O: Ops>(
    ops: &mut O,
    map: Map<O::Value, O::Grid>,
    scale: usize,
    norm: Norm,
) -> Result<Map<O::Value, O::Grid>, O::Error> {
    const NORM: &str = "neck.p2.norm";
    match scale {
        2 => {
            let mut map = match norm {
                Norm::Batch(eps) => ops.upsample(&map, "neck.p2.up1", Some((NORM, eps)))?,
                Norm::Layer(eps) => {
                    let mut map = ops.upsample(&map, "neck.p2.up1", None)?;
                    map.value = ops.layer_norm(&map.value, NORM, eps)?;
                    map
                }
            };
            map.value = ops.gelu(&map.value, Activation::GeluErf)?;
            ops.upsample(&map, "neck.p2.up2", None)
        }
        3 => ops.upsample(&map, "neck.p3.up1", None),
        4 => Ok(map),
        _ => ops.max_pool(&map, 2),
    }
}
