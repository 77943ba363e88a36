//! `config.json`: timm's hub configuration, with which `timm.create_model("local-dir:DIR")` builds the same model, plus
//! the `tec_zoo` section that timm ignores.

use serde_json::{Value, json};

use crate::model::{Activation, Interpolation, Mlp, ModelConfig, VitConfig};

/// LayerNorm epsilon of timm's plain ViT; its configuration has no field for another.
pub(crate) const TIMM_NORM_EPS: f64 = 1e-6;

/// The file's text; `own` adds the `tec_zoo` section.
pub(crate) fn config_text(config: &ModelConfig, own: bool) -> String {
    let mut json = timm_config(config);
    if own && let Value::Object(fields) = &mut json {
        fields.insert("tec_zoo".to_owned(), json!(config));
    }
    // A value built of strings, numbers and maps always prints.
    let mut text = serde_json::to_string_pretty(&json).unwrap_or_default();
    text.push('\n');
    text
}

fn timm_config(config: &ModelConfig) -> Value {
    let vit = &config.vit;
    let [height, width] = vit.image_size;
    let classes = vit.classifier.map_or(0, |classifier| classifier.classes);
    let fc_norm = vit.classifier.is_some_and(|classifier| classifier.fc_norm);
    let pool = if fc_norm { "avg" } else { "token" };
    let preprocessing = &config.preprocessing;
    let interpolation = match preprocessing.interpolation {
        Interpolation::Bicubic => "bicubic",
        Interpolation::Bilinear => "bilinear",
    };
    let image_size = if height == width { json!(height) } else { json!([height, width]) };
    let mut args = json!({
        "img_size": image_size,
        "patch_size": vit.patch_size,
        "embed_dim": vit.width,
        "depth": vit.depth,
        "num_heads": vit.heads,
        "mlp_ratio": mlp_ratio(vit),
        // With `fc_norm`, timm's final norm is that one.
        "final_norm": vit.final_norm || fc_norm,
        "fc_norm": fc_norm,
        // The field of the same name beside this one describes the weights; only this one builds the model.
        "global_pool": pool,
    });
    if vit.mlp == Mlp::Plain && vit.activation == Activation::GeluTanh {
        args["act_layer"] = json!("gelu_tanh");
    }
    if vit.layer_scale {
        // The value is what timm would begin a training with.
        args["init_values"] = json!(1e-5);
    } else if vit.mlp == Mlp::SwiGlu {
        args["init_values"] = Value::Null;
    }
    if vit.registers > 0 {
        args["reg_tokens"] = json!(vit.registers);
        args["no_embed_class"] = json!(true);
    }
    json!({
        "architecture": architecture(vit),
        "num_classes": classes,
        "num_features": vit.width,
        "global_pool": pool,
        "model_args": args,
        "pretrained_cfg": {
            "tag": config.family,
            "custom_load": false,
            "input_size": [3, height, width],
            "fixed_input_size": true,
            "interpolation": interpolation,
            "crop_pct": preprocessing.crop_pct,
            "crop_mode": "center",
            "mean": preprocessing.mean,
            "std": preprocessing.std,
            "num_classes": classes,
            "pool_size": null,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "license": config.licence.spdx,
        },
    })
}

/// The ratio of which timm takes `int(width · ratio)` rows.
pub(crate) fn mlp_ratio(vit: &VitConfig) -> f64 {
    let (rows, width) = (vit.mlp.fc1_rows(vit.mlp_width) as f64, vit.width as f64);
    let ratio = rows / width;
    if (ratio * width) < rows { ratio.next_up() } else { ratio }
}

/// A model timm registers; `model_args` then says every size, so for other widths the nearest will do.
fn architecture(vit: &VitConfig) -> &'static str {
    match (vit.width, vit.patch_size) {
        // The MLP's class is the one thing `model_args` cannot say.
        _ if vit.mlp == Mlp::SwiGlu => "vit_giant_patch14_dinov2",
        (0..=256, _) => "vit_tiny_patch16_224",
        (257..=512, 8) => "vit_small_patch8_224",
        (257..=512, _) => "vit_small_patch16_224",
        (513..=896, 8) => "vit_base_patch8_224",
        (513..=896, _) => "vit_base_patch16_224",
        (897..=1152, 14) => "vit_large_patch14_224",
        (897..=1152, _) => "vit_large_patch16_224",
        _ => "vit_huge_patch14_224",
    }
}
