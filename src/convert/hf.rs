//! transformers' side of the way back: which of its classes a model is, under which names, with which configuration.

use std::borrow::Cow;

use serde_json::{Map, Value, json};

use super::ConvertError;
use super::emit::{Renamed, parameters};
use super::mapping::Mapping;
use crate::hint::Hint;
use crate::model::{Activation, Canonical, Mlp, ModelConfig, VitConfig};

/// Largest `mlp_ratio` looked for: transformers has whole numbers, and released models have 4.
const MAX_RATIO: usize = 64;

/// Whether it is a `Dinov2…` rather than a `ViT…`: only these have LayerScale, registers or SwiGLU.
fn is_dinov2(vit: &VitConfig) -> bool {
    vit.layer_scale || vit.registers > 0 || vit.mlp == Mlp::SwiGlu
}

/// Refuses what the class has no field for, with the reason and a hint.
pub(super) fn expressible(vit: &VitConfig) -> Result<(), (String, Hint)> {
    let timm = |words: &'static str| Hint::new().set("layout", "timm").words(words);
    let refuse = |reason: &str, words| Err((reason.to_owned(), timm(words)));
    if !vit.final_norm {
        return refuse("it has no final norm, which ViTModel always applies", " has `final_norm: false`");
    }
    if vit.classifier.is_some_and(|classifier| classifier.fc_norm) {
        return refuse("its head reads the mean of the patches through `fc_norm`", " has `fc_norm`");
    }
    if !is_dinov2(vit) {
        return Ok(());
    }
    if !vit.layer_scale {
        return refuse(
            "it has registers or SwiGLU without the LayerScale that Dinov2Model always applies",
            " has each by itself",
        );
    }
    if vit.classifier.is_some() {
        return refuse("its head reads one token, where Dinov2ForImageClassification's reads two", " keeps the head");
    }
    if vit.image_size[0] != vit.image_size[1] {
        return refuse("its position table is not square, as Dinov2Model's is", " has `img_size`");
    }
    match mlp_ratio(vit) {
        Some(_) => Ok(()),
        None => Err((
            format!("its MLPs are {} wide, which no whole `mlp_ratio` of {} gives", vit.mlp_width, vit.width),
            timm(" has fractions"),
        )),
    }
}

/// The whole number from which `Dinov2MLP` or `Dinov2SwiGLUFFN` gets the hidden width.
fn mlp_ratio(vit: &VitConfig) -> Option<usize> {
    (1..=MAX_RATIO).find(|ratio| {
        let hidden = vit.width * ratio;
        vit.mlp_width
            == match vit.mlp {
                Mlp::Plain => hidden,
                Mlp::SwiGlu => (hidden * 2 / 3).div_ceil(8) * 8,
            }
    })
}

/// The model's tensors under transformers' names.
pub(super) fn tensors(model: &Canonical) -> Result<Vec<Renamed<'_>>, ConvertError> {
    let vit = &model.config().vit;
    let dinov2 = is_dinov2(vit);
    let mapping = if dinov2 {
        Mapping::parse("hf-dinov2", include_str!("../../converters/hf-dinov2.toml"))?
    } else {
        Mapping::parse("hf-vit", include_str!("../../converters/hf-vit.toml"))?
    };
    let prefixed = vit.classifier.is_some();
    let layout = mapping.layouts.iter().find(|layout| layout.prefix.is_empty() != prefixed);
    let mut out = Vec::new();
    for (name, view) in parameters(model) {
        let sources = mapping.sources_of(&name, vit.mlp);
        let parts = sources.len();
        let rows = view.shape.first().copied().unwrap_or(0);
        if parts == 0 || (parts > 1 && !rows.is_multiple_of(parts)) {
            return Err(ConvertError::Inexpressible {
                layout: "hf",
                reason: format!("`{name}` has no name there"),
                hint: Hint::new().set("layout", "timm").words(" keeps every parameter"),
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
            let bytes = view.bytes[part * size..(part + 1) * size].into();
            out.push(Renamed { name: format!("{prefix}{source}"), dtype: view.dtype, shape: shape.clone(), bytes });
        }
        if dinov2 && name == "cls_token" {
            // Stands in for masked patches in pretraining: transformers has it in the file, and no feature reads it.
            let bytes = Cow::Owned(vec![0; view.bytes.len()]);
            let name = "embeddings.mask_token".to_owned();
            out.push(Renamed { name, dtype: view.dtype, shape: vec![1, vit.width], bytes });
        }
    }
    if !vit.has_class_position() {
        let table = out.iter_mut().find(|tensor| tensor.name == "embeddings.position_embeddings");
        if let Some(table) = table {
            with_zero_row(table);
        }
    }
    Ok(out)
}

/// The class token holds its position already; transformers adds one, so one of zeros.
fn with_zero_row(table: &mut Renamed<'_>) {
    let row = table.bytes.len() / table.shape[1].max(1);
    let mut bytes = vec![0; row];
    bytes.extend_from_slice(&table.bytes);
    table.bytes = Cow::Owned(bytes);
    table.shape[1] += 1;
}

/// The text of transformers' `config.json`.
pub(super) fn config_text(config: &ModelConfig) -> String {
    let vit = &config.vit;
    let [height, width] = vit.image_size;
    let activation = match vit.activation {
        Activation::GeluErf => "gelu",
        Activation::GeluTanh => "gelu_pytorch_tanh",
    };
    let mut json = json!({
        "hidden_size": vit.width,
        "num_hidden_layers": vit.depth,
        "num_attention_heads": vit.heads,
        "hidden_act": activation,
        "layer_norm_eps": vit.norm_eps,
        "image_size": if height == width { json!(height) } else { json!([height, width]) },
        "patch_size": vit.patch_size,
        "num_channels": 3,
        "qkv_bias": true,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    });
    let more = if is_dinov2(vit) { dinov2_fields(vit) } else { vit_fields(vit) };
    if let (Value::Object(fields), Value::Object(more)) = (&mut json, more) {
        fields.extend(more);
    }
    // A value built of strings, numbers and maps always prints.
    let mut text = serde_json::to_string_pretty(&json).unwrap_or_default();
    text.push('\n');
    text
}

fn vit_fields(vit: &VitConfig) -> Value {
    let architecture = if vit.classifier.is_some() { "ViTForImageClassification" } else { "ViTModel" };
    let mut json = json!({
        "architectures": [architecture],
        "model_type": "vit",
        "intermediate_size": vit.mlp_width,
    });
    if let Some(classifier) = vit.classifier {
        let label = |class: usize| format!("LABEL_{class}");
        let names: Map<String, Value> = (0..classifier.classes).map(|c| (c.to_string(), json!(label(c)))).collect();
        let ids: Map<String, Value> = (0..classifier.classes).map(|c| (label(c), json!(c))).collect();
        json["id2label"] = Value::Object(names);
        json["label2id"] = Value::Object(ids);
    }
    json
}

fn dinov2_fields(vit: &VitConfig) -> Value {
    let mut json = json!({
        "architectures": ["Dinov2Model"],
        "model_type": "dinov2",
        "mlp_ratio": mlp_ratio(vit),
        "use_swiglu_ffn": vit.mlp == Mlp::SwiGlu,
        "layerscale_value": 1.0,
    });
    if vit.registers > 0 {
        json["architectures"] = json!(["Dinov2WithRegistersModel"]);
        json["model_type"] = json!("dinov2_with_registers");
        json["num_register_tokens"] = json!(vit.registers);
    }
    json
}
