//! The way back: a model directory into the layout another library loads strictly, by the same rules run backwards.

use std::fs::File;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::apply::{claim_destination, io};
use super::hub::{TIMM_NORM_EPS, config_text};
use super::mapping::Mapping;
use super::write::{Counted, Slot, Stop, header, order};
use super::{ConvertError, Progress};
use crate::model::{Activation, Canonical, ModelConfig, ModelFile, TensorView, vit_parameters};
use crate::staged::{StagedDir, StagedFile};

/// A layout to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Layout {
    /// pytorch-image-models: a directory for `timm.create_model("local-dir:…")`, or a bare `.safetensors` file.
    Timm,
    /// transformers: a directory for `ViTModel` or `ViTForImageClassification`.
    Hf,
}

impl Layout {
    /// Every layout.
    pub const ALL: [Self; 2] = [Self::Timm, Self::Hf];

    /// The name `--to` takes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Timm => "timm",
            Self::Hf => "hf",
        }
    }
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Emission {
    /// The file or directory.
    pub path: PathBuf,
    /// Number of tensors.
    pub tensors: usize,
    /// Their bytes.
    pub bytes: u64,
    /// What the layout has no place for, in words.
    pub left_out: Vec<String>,
}

/// Writes `model` to `out` in another library's layout. `out` appears whole, or not at all; `overwrite` replaces a
/// directory with nothing but such files in it, or a file.
///
/// # Errors
/// When the layout cannot express the model, the destination is taken, or writing fails.
pub fn emit(
    model: &Canonical,
    layout: Layout,
    out: &Path,
    overwrite: bool,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Emission, ConvertError> {
    let config = model.config();
    expressible(config, layout)?;
    let tensors = match layout {
        Layout::Timm => timm_tensors(model),
        Layout::Hf => hf_tensors(model)?,
    };
    let total = tensors.iter().map(|tensor| tensor.bytes.len() as u64).sum();
    let mut done = 0;
    let mut step = |bytes: u64| {
        done += bytes;
        progress(Progress { done, total }).is_continue()
    };
    if out.extension().is_some_and(|extension| extension == "safetensors") {
        if layout == Layout::Hf {
            return Err(ConvertError::Inexpressible {
                layout: "hf",
                reason: "heads and epsilon live in the config.json of a directory".to_owned(),
                hint: "give the name of a directory",
            });
        }
        if out.exists() && !overwrite {
            let (path, why) = (out.display().to_string(), "would be replaced".to_owned());
            return Err(ConvertError::Exists { path, why, hint: "`--overwrite` replaces it" });
        }
        let mut staged = StagedFile::new(out).map_err(io("write", out))?;
        write(staged.file(), &tensors, out, &mut step)?;
        staged.commit().map_err(io("write", out))?;
    } else {
        claim_destination(out, overwrite)?;
        let staged = StagedDir::new(out).map_err(io("write", out))?;
        let path = staged.path().join(ModelFile::Model.name());
        let file = File::create_new(&path).map_err(io("write", out))?;
        write(&file, &tensors, out, &mut step)?;
        let text = match layout {
            Layout::Timm => config_text(config, false),
            Layout::Hf => hf_config(config),
        };
        std::fs::write(staged.path().join(ModelFile::Config.name()), text).map_err(io("write", out))?;
        staged.commit().map_err(io("write", out))?;
    }
    let mut left_out = Vec::new();
    if config.vit.adapters.is_some() {
        left_out.push(
            "TEC's adapters: the class token is the merged one, the rest stays in the model's own directory".to_owned(),
        );
    }
    if config.vit.decoder.is_some() {
        left_out.push("the pretraining decoder".to_owned());
    }
    Ok(Emission { path: out.to_path_buf(), tensors: tensors.len(), bytes: total, left_out })
}

/// A tensor under its new name; a slice of a parameter where the layout splits it.
struct Renamed<'m> {
    name: String,
    dtype: safetensors::Dtype,
    shape: Vec<usize>,
    bytes: &'m [u8],
}

fn timm_tensors(model: &Canonical) -> Vec<Renamed<'_>> {
    parameters(model)
        .map(|(name, view)| Renamed { name, dtype: view.dtype, shape: view.shape.to_vec(), bytes: view.bytes })
        .collect()
}

/// The model's parameters in file order; opening it proved that all are there.
fn parameters(model: &Canonical) -> impl Iterator<Item = (String, TensorView<'_>)> {
    let specs = vit_parameters(&model.config().vit);
    specs
        .into_iter()
        .filter_map(|spec| Some((model.model().get(&spec.name)?, spec.name)))
        .map(|(view, name)| (name, view))
}

fn hf_tensors(model: &Canonical) -> Result<Vec<Renamed<'_>>, ConvertError> {
    let mapping = Mapping::parse("hf-vit", include_str!("../../converters/hf-vit.toml"))?;
    let prefixed = model.config().vit.classifier.is_some();
    let layout = mapping.layouts.iter().find(|layout| layout.prefix.is_empty() != prefixed);
    let mut out = Vec::new();
    for (name, view) in parameters(model) {
        let sources = mapping.sources_of(&name);
        let parts = sources.len();
        let rows = view.shape.first().copied().unwrap_or(0);
        if parts == 0 || (parts > 1 && !rows.is_multiple_of(parts)) {
            return Err(ConvertError::Inexpressible {
                layout: "hf",
                reason: format!("`{name}` has no name there"),
                hint: "`--to timm` keeps every parameter",
            });
        }
        let mut shape = view.shape.to_vec();
        if parts > 1 {
            shape[0] = rows / parts;
        }
        for (part, source) in sources.into_iter().enumerate() {
            let bare = layout.is_none_or(|layout| layout.unprefixed.iter().any(|own| own.captures(&source).is_some()));
            let prefix = if bare { "" } else { layout.map_or("", |layout| layout.prefix.as_str()) };
            let size = view.bytes.len() / parts;
            let bytes = &view.bytes[part * size..(part + 1) * size];
            out.push(Renamed { name: format!("{prefix}{source}"), dtype: view.dtype, shape: shape.clone(), bytes });
        }
    }
    Ok(out)
}

/// Refuses what the layout has no field for.
fn expressible(config: &ModelConfig, layout: Layout) -> Result<(), ConvertError> {
    let refuse = |reason: String, hint| Err(ConvertError::Inexpressible { layout: layout.name(), reason, hint });
    let vit = &config.vit;
    match layout {
        Layout::Timm => {
            if vit.norm_eps != TIMM_NORM_EPS {
                let reason = format!(
                    "its LayerNorm epsilon is {:e}; timm's ViT has {TIMM_NORM_EPS:e} and no field for it",
                    vit.norm_eps
                );
                return refuse(reason, "`--to hf` keeps the epsilon");
            }
            if vit.final_norm && vit.classifier.is_some_and(|classifier| classifier.fc_norm) {
                return refuse(
                    "it has both `norm` and `fc_norm`; timm's ViT has one of them".to_owned(),
                    "keep the common format",
                );
            }
        }
        Layout::Hf => {
            if !vit.final_norm {
                return refuse(
                    "it has no final norm, which ViTModel always applies".to_owned(),
                    "`--to timm` has `final_norm: false`",
                );
            }
            if vit.classifier.is_some_and(|classifier| classifier.fc_norm) {
                return refuse(
                    "its head reads the mean of the patches through `fc_norm`".to_owned(),
                    "`--to timm` has `fc_norm`",
                );
            }
        }
    }
    Ok(())
}

/// The configuration of transformers' ViTModel.
fn hf_config(config: &ModelConfig) -> String {
    let vit = &config.vit;
    let [height, width] = vit.image_size;
    let architecture = if vit.classifier.is_some() { "ViTForImageClassification" } else { "ViTModel" };
    let activation = match vit.activation {
        Activation::GeluErf => "gelu",
        Activation::GeluTanh => "gelu_pytorch_tanh",
    };
    let mut json = json!({
        "architectures": [architecture],
        "model_type": "vit",
        "hidden_size": vit.width,
        "num_hidden_layers": vit.depth,
        "num_attention_heads": vit.heads,
        "intermediate_size": vit.mlp_width,
        "hidden_act": activation,
        "layer_norm_eps": vit.norm_eps,
        "image_size": if height == width { json!(height) } else { json!([height, width]) },
        "patch_size": vit.patch_size,
        "num_channels": 3,
        "qkv_bias": true,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    });
    if let Some(classifier) = vit.classifier {
        let label = |class: usize| format!("LABEL_{class}");
        let names: serde_json::Map<String, Value> =
            (0..classifier.classes).map(|c| (c.to_string(), json!(label(c)))).collect();
        let ids: serde_json::Map<String, Value> = (0..classifier.classes).map(|c| (label(c), json!(c))).collect();
        json["id2label"] = Value::Object(names);
        json["label2id"] = Value::Object(ids);
    }
    let mut text = serde_json::to_string_pretty(&json).unwrap_or_default();
    text.push('\n');
    text
}

fn write(
    file: &File,
    tensors: &[Renamed<'_>],
    out: &Path,
    step: &mut impl FnMut(u64) -> bool,
) -> Result<(), ConvertError> {
    let slots: Vec<Slot<'_>> =
        tensors.iter().map(|tensor| Slot { name: &tensor.name, dtype: tensor.dtype, shape: &tensor.shape }).collect();
    let order = order(&slots);
    let mut file = file;
    file.write_all(&header(&slots, &order)).map_err(io("write", out))?;
    let mut counted = Counted { out: file, written: 0, progress: step };
    for at in order {
        counted.write(tensors[at].bytes).map_err(|stop| match stop {
            Stop::Io(source) => io("write", out)(source),
            Stop::Interrupted => ConvertError::Interrupted,
        })?;
    }
    Ok(())
}
