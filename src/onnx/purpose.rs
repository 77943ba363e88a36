//! What a graph is for: which outputs it has, and what its maps promise to whoever reads them.

use std::borrow::Cow;

use serde::Serialize;

use super::export::{Adapters, ExportError};
use crate::hint::Hint;
use crate::model::{
    Adapted, Feature, FeatureOutput, Features, Map, ModelConfig, Neck, Ops, RelativePosition, Vit, VitConfig, Window,
    pyramid_levels, quarters,
};

/// What the graph is for, which decides its outputs. Where adapters are kept, `adapted` and `adapted_group{n}` come after them,
/// as maps where the others are.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// `last_hidden_state` (B, 1 + R + L, C).
    #[default]
    Tokens,
    /// `feature` (B, C): what the model's configuration calls its feature; `logits` (B, classes) where there is a head.
    Classification,
    /// `level{j}` (B, C, H/p, W/p): raw outputs of these blocks, shallowest first, class token and registers dropped.
    Levels(Vec<usize>),
    /// Outputs by name: what `embed` runs in a runtime.
    Features(Vec<FeatureOutput>),
    /// mmsegmentation's UperNet on MAE, or iBOT's segmentation: `p2` to `p5` (B, C, ·, ·) at strides 4, 8, 16, 32 through
    /// the neck the model carries, or the four maps `level0` to `level3` (B, C, H/p, W/p) for a neck downstream.
    UperNet(MapOptions),
    /// iBOT's Cascade Mask R-CNN: the same.
    CascadeMaskRcnn(MapOptions),
    /// ViTDet: the backbone without class token, with windows; `last_feat` (B, C, H/p, W/p), and `p2` to `p6` where the
    /// model carries a simple feature pyramid.
    VitDet,
}

/// How the maps of a purpose differ from what its consumer does by default.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct MapOptions {
    /// Blocks; the consumer's where empty.
    pub levels: Vec<usize>,
    /// Whether levels go through the final norm; the consumer's choice for the model's family where `None`.
    pub norm: Option<LevelNorm>,
    /// A pyramid without learned layers, in place of the model's neck or none.
    pub parameter_free: bool,
}

/// What a level is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LevelNorm {
    /// A block's output.
    Raw,
    /// That through the encoder's final norm.
    Final,
}

/// What stands between levels and the maps of a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum NeckUse {
    /// Nothing: the consumer has a neck of its own.
    Downstream,
    /// Repeated places and maxima.
    ParameterFree,
    /// The model's [`Neck::FeaturePyramid`].
    FeaturePyramid,
    /// The model's [`Neck::SimplePyramid`].
    SimplePyramid,
}

impl NeckUse {
    /// The name in a graph's metadata.
    pub fn name(self) -> &'static str {
        match self {
            Self::Downstream => "downstream",
            Self::ParameterFree => "parameter-free",
            Self::FeaturePyramid => "feature-pyramid",
            Self::SimplePyramid => "simple-pyramid",
        }
    }
}

/// What a purpose's maps promise.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MapContract {
    /// Blocks the maps come from, shallowest first.
    pub levels: Vec<usize>,
    /// Pixels from one place to the next, for each output.
    pub strides: Vec<f64>,
    /// What a level is.
    pub level_norm: LevelNorm,
    /// What made the maps of the levels.
    pub neck: NeckUse,
}

impl Purpose {
    /// The name it is chosen by.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Tokens => "tokens",
            Self::Classification => "classification",
            Self::Levels(_) => "levels",
            Self::Features(_) => "features",
            Self::UperNet(_) => "upernet",
            Self::CascadeMaskRcnn(_) => "cascade-mask-rcnn",
            Self::VitDet => "vitdet",
        }
    }

    /// The model as the purpose runs it: ViTDet drops the class token, registers and final norm, and attends in windows
    /// where the checkpoint does not say how.
    pub fn vit<'a>(&self, vit: &'a VitConfig) -> Cow<'a, VitConfig> {
        if *self != Self::VitDet || !vit.class_token {
            return Cow::Borrowed(vit);
        }
        let window = Some(vit.window.clone().unwrap_or_else(|| Window::vitdet(vit.depth)));
        let vit = vit.clone();
        Cow::Owned(VitConfig { class_token: false, registers: 0, final_norm: false, classifier: None, window, ..vit })
    }

    /// The image `[H, W]` a consumer works on: UperNet's crops of 512 pixels, Cascade Mask R-CNN's largest scale padded to 32
    /// pixels, ViTDet's 1024, or what a fine-tuned checkpoint was made for. The model's own size elsewhere, or where
    /// its patches do not fill that one.
    pub fn size(&self, vit: &VitConfig) -> [usize; 2] {
        let patch = vit.patch_size;
        let tuned = match vit.relative_position {
            Some(RelativePosition::Decomposed { grid }) => Some(grid.map(|side| side * patch)),
            Some(RelativePosition::Table) => Some(vit.image_size),
            None => vit.neck.map(|_| vit.image_size),
        };
        let theirs = match self {
            Self::UperNet(_) => tuned.or(Some([512, 512])),
            Self::CascadeMaskRcnn(_) => tuned.or(Some([800, 1344])),
            Self::VitDet => match vit.relative_position {
                Some(_) => tuned,
                None => Some([1024, 1024]),
            },
            _ => None,
        };
        theirs.filter(|size| size.iter().all(|side| side.is_multiple_of(patch))).unwrap_or(vit.image_size)
    }

    /// What the purpose's maps promise for a model; `None` where it has no maps.
    ///
    /// # Errors
    /// When the model cannot give them.
    pub fn maps(&self, config: &ModelConfig) -> Result<Option<MapContract>, ExportError> {
        let vit = &config.vit;
        let patch = vit.patch_size as f64;
        let contract = match self {
            Self::Tokens | Self::Classification | Self::Features(_) => return Ok(None),
            Self::Levels(levels) => {
                check_levels(levels, vit.depth)?;
                let (strides, neck) = (vec![patch; levels.len()], NeckUse::Downstream);
                MapContract { levels: levels.clone(), strides, level_norm: LevelNorm::Raw, neck }
            }
            Self::UperNet(options) | Self::CascadeMaskRcnn(options) => self.four_levels(options, config)?,
            Self::VitDet => {
                let levels = vec![vit.depth - 1];
                let (strides, neck) = match vit.neck {
                    None => (vec![patch], NeckUse::Downstream),
                    Some(Neck::SimplePyramid { .. }) => {
                        let pyramid = [0.25, 0.5, 1.0, 2.0, 4.0].map(|scale| scale * patch);
                        ([patch].into_iter().chain(pyramid).collect(), NeckUse::SimplePyramid)
                    }
                    Some(Neck::FeaturePyramid { .. }) => {
                        let reason = "the model's neck reads four levels, and ViTDet's one";
                        let hint = Hint::new().words("use ").one_of("purpose", ["upernet", "cascade-mask-rcnn"]);
                        return Err(ExportError::Neck { reason, hint });
                    }
                };
                MapContract { levels, strides, level_norm: LevelNorm::Raw, neck }
            }
        };
        Ok(Some(contract))
    }

    fn four_levels(&self, options: &MapOptions, config: &ModelConfig) -> Result<MapContract, ExportError> {
        let vit = &config.vit;
        let levels = if options.levels.is_empty() { pyramid_levels(vit.depth) } else { options.levels.clone() };
        check_levels(&levels, vit.depth)?;
        let neck = match (options.parameter_free, vit.neck) {
            (true, _) => NeckUse::ParameterFree,
            (false, None) => NeckUse::Downstream,
            (false, Some(Neck::FeaturePyramid { .. })) => NeckUse::FeaturePyramid,
            (false, Some(Neck::SimplePyramid { .. })) => {
                let reason = "the model's neck is ViTDet's, which reads one level";
                let hint = Hint::new().words("use ").set("purpose", "vitdet");
                return Err(ExportError::Neck { reason, hint });
            }
        };
        if neck != NeckUse::Downstream && levels.len() != 4 {
            let reason = "a pyramid is made of four levels";
            let hint = Hint::new().words("give four blocks to ").option("levels").words(", or leave it out");
            return Err(ExportError::Neck { reason, hint });
        }
        let level_norm = match (options.norm, vit.final_norm) {
            (Some(LevelNorm::Final), false) => {
                let reason = "the model has no final norm";
                let hint = Hint::new().words("use ").set("norm", "raw");
                return Err(ExportError::Neck { reason, hint });
            }
            (Some(norm), _) => norm,
            (None, false) => LevelNorm::Raw,
            // A neck was trained on what its checkpoint has: iBOT's code keeps the norm where `out_with_norm` was set.
            (None, true) if vit.neck.is_some() => LevelNorm::Final,
            // iBOT's segmentation is run with `out_with_norm=true` (its README), its detection and mmsegmentation's MAE
            // (`final_norm=False`) are not.
            (None, true) if matches!(self, Self::UperNet(_)) && config.family == "ibot" => LevelNorm::Final,
            (None, true) => LevelNorm::Raw,
        };
        let patch = vit.patch_size as f64;
        let strides = match neck {
            NeckUse::Downstream => vec![patch; levels.len()],
            _ => [0.25, 0.5, 1.0, 2.0].map(|scale| scale * patch).to_vec(),
        };
        Ok(MapContract { levels, strides, level_norm, neck })
    }

    /// Whether a model can be exported for the purpose.
    pub(super) fn validate(&self, config: &ModelConfig, adapters: Adapters) -> Result<(), ExportError> {
        let vit = &config.vit;
        if adapters == Adapters::Keep && vit.adapters.is_none() {
            let hint = "convert a TEC training checkpoint; released TEC files and other families have none";
            return Err(ExportError::NoAdapters { reason: "this model has none", hint: hint.into() });
        }
        self.maps(config)?;
        match self {
            Self::Features(wanted) => check_features(wanted, vit),
            Self::Classification if config.feature == Feature::Cls => check_features(&[FeatureOutput::Cls], vit),
            Self::VitDet => self.vit(vit).validate().map_err(|reason| ExportError::unrecordable("vitdet", reason)),
            _ => Ok(()),
        }
    }
}

/// An output by name; a map where it has a grid.
pub(super) struct Named<V, G> {
    pub(super) name: String,
    pub(super) value: V,
    pub(super) grid: Option<G>,
}

pub(super) type NamedOutputs<O> = Vec<Named<<O as Ops>::Value, <O as Ops>::Grid>>;

/// The named outputs of a purpose, by whichever `Ops`: the recorder writes them, the eager forward computes what they
/// are compared with. Maps are (B, L, C) here; only their layout differs in the file.
///
/// `maps` is what the purpose promises for the model, [`Purpose::maps`].
pub(super) fn outputs<O: Ops>(
    config: &ModelConfig,
    ops: &mut O,
    images: &O::Value,
    grid: O::Grid,
    purpose: &Purpose,
    maps: Option<&MapContract>,
    adapters: Adapters,
) -> Result<NamedOutputs<O>, O::Error> {
    let vit = purpose.vit(&config.vit);
    let prefix = vit.prefix_tokens();
    let vit = Vit::new(&vit);
    let features = vit.encode(ops, images, grid)?;
    let flat = |name: &str, value| Named { name: name.to_owned(), value, grid: None };
    let map = |name: String, value, grid| Named { name, value, grid: Some(grid) };
    let adapted = match adapters {
        Adapters::Keep => adapter_outputs(config, &vit, ops, &features)?,
        Adapters::Drop => Vec::new(),
    };
    if let Some(contract) = maps {
        let normed = contract.level_norm == LevelNorm::Final;
        let levels = vit.levels(ops, &features, &contract.levels, normed)?;
        let mut out = Vec::new();
        if *purpose == Purpose::VitDet {
            out.extend(levels.last().map(|last| map("last_feat".to_owned(), last.clone(), grid)));
        } else if contract.neck == NeckUse::Downstream {
            out.extend(levels.iter().enumerate().map(|(j, level)| map(format!("level{j}"), level.clone(), grid)));
        }
        let pyramid = match contract.neck {
            NeckUse::Downstream => Vec::new(),
            NeckUse::ParameterFree => vit.parameter_free_pyramid(ops, &levels, grid)?,
            NeckUse::FeaturePyramid | NeckUse::SimplePyramid => vit.pyramid(ops, &levels, grid)?,
        };
        let named = |(i, Map { value, grid }): (usize, Map<O::Value, O::Grid>)| map(format!("p{}", 2 + i), value, grid);
        out.extend(pyramid.into_iter().enumerate().map(named));
        for (name, tokens) in adapted {
            let patches = ops.tokens(&tokens, prefix, None)?;
            out.push(map(name, patches, grid));
        }
        return Ok(out);
    }
    let mut out = match purpose {
        Purpose::Classification => {
            let feature = match config.feature {
                Feature::Cls => vit.class_token(ops, &features)?,
                Feature::Mean => vit.mean(ops, &features)?,
            };
            let mut out = vec![flat("feature", feature)];
            out.extend(vit.classify(ops, &features)?.map(|logits| flat("logits", logits)));
            out
        }
        Purpose::Features(wanted) => {
            let mut out = Vec::with_capacity(wanted.len());
            for output in wanted {
                out.extend(output.of(&vit, ops, &features)?.map(|value| flat(&output.to_string(), value)));
            }
            return Ok(out);
        }
        _ => vec![flat("last_hidden_state", features.last().clone())],
    };
    out.extend(adapted.into_iter().map(|(name, value)| flat(&name, value)));
    Ok(out)
}

/// `adapted` (Z_e), and what each group of blocks contributes to it, `adapted_group{n}` (Z'_n), each (B, P + L, C).
///
/// The adapter reads the last block through the encoder's final norm, also where the purpose itself leaves that norm out.
fn adapter_outputs<O: Ops>(
    config: &ModelConfig,
    vit: &Vit<'_>,
    ops: &mut O,
    features: &Features<O::Value>,
) -> Result<Vec<(String, O::Value)>, O::Error> {
    let norm = match (&features.norm, features.blocks.last()) {
        (None, Some(last)) => Vit::new(&config.vit).norm(ops, last)?,
        (norm, _) => norm.clone(),
    };
    let features = Features { blocks: features.blocks.clone(), norm };
    let Some(Adapted { groups, adapted }) = vit.adapt(ops, &features)? else { return Ok(Vec::new()) };
    let groups = groups.into_iter().enumerate().map(|(n, group)| (format!("adapted_group{n}"), group));
    Ok([("adapted".to_owned(), adapted)].into_iter().chain(groups).collect())
}

fn check_features(wanted: &[FeatureOutput], vit: &VitConfig) -> Result<(), ExportError> {
    let twice = |(i, output): (usize, &FeatureOutput)| wanted[..i].contains(output);
    let checked = match wanted {
        [] => Err("no output was asked for".to_owned()),
        wanted if wanted.iter().enumerate().any(twice) => Err("an output was asked for twice".to_owned()),
        wanted => wanted.iter().try_for_each(|output| output.validate(vit)),
    };
    checked.map_err(|reason| ExportError::unrecordable("features", reason))
}

fn check_levels(levels: &[usize], depth: usize) -> Result<(), ExportError> {
    let reason = match levels {
        [] => "the list is empty",
        levels if levels.iter().any(|level| *level >= depth) => "one is beyond the last block",
        levels if levels.windows(2).any(|pair| pair[0] >= pair[1]) => "they do not increase",
        _ => return Ok(()),
    };
    let suggestion = quarters(depth).iter().map(usize::to_string).collect::<Vec<_>>().join(",");
    Err(ExportError::Levels { levels: levels.to_vec(), reason, last: depth - 1, suggestion })
}
