//! The `config.json` that timm and transformers keep beside the weights: it says what tensors cannot.

use std::path::Path;

use serde_json::Value;

use super::mapping::SidecarKind;
use crate::model::{Interpolation, Preprocessing};

/// Longest configuration read; real ones have a few kilobytes (label names included, some hundred).
const MAX_BYTES: u64 = 16 << 20;

/// What a configuration beside the weights says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sidecar {
    pub(crate) kind: Option<SidecarKind>,
    /// timm's architecture or transformers' model type.
    pub(crate) name: Option<String>,
    pub(crate) heads: Option<usize>,
    pub(crate) norm_eps: Option<f64>,
    pub(crate) image_size: Option<[usize; 2]>,
    /// Whether it says that the encoder has no norm of its own at the end.
    pub(crate) no_final_norm: bool,
    pub(crate) activation: Option<String>,
    pub(crate) licence: Option<String>,
    pub(crate) preprocessing: Option<Preprocessing>,
}

impl Sidecar {
    /// Reads `config.json` next to the checkpoint `path` (or in it, for a directory). Another tool's file, or none, is
    /// `None`: what it would have said is then asked for.
    pub fn beside(path: &Path) -> Option<Self> {
        let dir = if path.is_dir() { path } else { path.parent()? };
        let file = dir.join("config.json");
        if std::fs::metadata(&file).ok()?.len() > MAX_BYTES {
            return None;
        }
        Self::parse(&std::fs::read_to_string(file).ok()?)
    }

    /// Reads the text of a timm or transformers configuration; `None` when it is neither.
    pub fn parse(text: &str) -> Option<Self> {
        let json: Value = serde_json::from_str(text).ok()?;
        let string = |value: &Value| value.as_str().map(str::to_owned);
        if let Some(architecture) = json.get("architecture").and_then(string) {
            let args = json.get("model_args");
            let arg = |name: &str| args.and_then(|args| args.get(name));
            return Some(Self {
                kind: Some(SidecarKind::Timm),
                name: Some(architecture),
                heads: arg("num_heads").and_then(count),
                norm_eps: None,
                image_size: arg("img_size").and_then(size),
                no_final_norm: arg("final_norm") == Some(&Value::Bool(false))
                    || arg("fc_norm") == Some(&Value::Bool(true)),
                activation: arg("act_layer").and_then(string),
                licence: json.pointer("/pretrained_cfg/license").and_then(string),
                preprocessing: json.get("pretrained_cfg").and_then(preprocessing),
            });
        }
        let model_type = json.get("model_type").and_then(string)?;
        Some(Self {
            kind: Some(SidecarKind::Transformers),
            name: Some(model_type),
            heads: json.get("num_attention_heads").and_then(count),
            norm_eps: json.get("layer_norm_eps").and_then(Value::as_f64),
            image_size: json.get("image_size").and_then(size),
            no_final_norm: false,
            activation: json.get("hidden_act").and_then(string),
            licence: None,
            preprocessing: None,
        })
    }
}

fn count(value: &Value) -> Option<usize> {
    usize::try_from(value.as_u64()?).ok()
}

fn size(value: &Value) -> Option<[usize; 2]> {
    match value {
        Value::Array(sides) => match sides.as_slice() {
            [height, width] => Some([count(height)?, count(width)?]),
            _ => None,
        },
        side => count(side).map(|side| [side, side]),
    }
}

fn preprocessing(config: &Value) -> Option<Preprocessing> {
    let triple = |name: &str| -> Option<[f64; 3]> {
        let values = config.get(name)?.as_array()?;
        let values: Vec<f64> = values.iter().filter_map(Value::as_f64).collect();
        values.try_into().ok()
    };
    let interpolation = match config.get("interpolation")?.as_str()? {
        "bicubic" => Interpolation::Bicubic,
        "bilinear" => Interpolation::Bilinear,
        _ => return None,
    };
    let crop_pct = config.get("crop_pct")?.as_f64()?;
    Some(Preprocessing { mean: triple("mean")?, std: triple("std")?, interpolation, crop_pct })
}
