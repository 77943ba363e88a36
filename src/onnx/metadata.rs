//! What travels with an exported graph: enough to preprocess an image as the model expects, and to know where the
//! weights come from. Plain texts and JSON arrays; no time stamps, so that equal models give equal files.

use super::dtype::Dtype;
use super::export::{Adapters, ExportOptions};
use super::graph::Extent;
use super::purpose::{MapContract, Purpose};
use super::record::padded;
use super::target::Dialect;
use crate::model::{Canonical, Mlp, ModelConfig, RelativePosition, Window};

/// The model's name.
pub(super) fn model_id(model: &Canonical, options: &ExportOptions) -> String {
    let directory = || model.dir().file_name().map(|name| name.to_string_lossy().into_owned());
    options.model_id.clone().or_else(directory).unwrap_or_else(|| model.config().family.clone())
}

/// The file's `doc_string`.
pub(super) fn description(model: &Canonical, options: &ExportOptions) -> String {
    let ModelConfig { family, vit, .. } = model.config();
    let outputs = match &options.purpose {
        Purpose::Tokens => "tokens",
        Purpose::Classification => "pooled feature",
        Purpose::Levels(_) | Purpose::UperNet(_) | Purpose::CascadeMaskRcnn(_) | Purpose::VitDet => "feature maps",
        Purpose::Features(_) => "features by name",
    };
    let input = match options.normalize_input {
        true => "pixels 0 to 255, normalised in the graph",
        false => "normalised as in the metadata",
    };
    let norm = if vit.final_norm { "after the final norm" } else { "of a model without a final norm" };
    format!(
        "{}: {family} ViT, width {}, {} blocks, {} heads, patch {}; {outputs} {norm}. Input RGB, {input}.",
        model_id(model, options),
        vit.width,
        vit.depth,
        vit.heads,
        vit.patch_size
    )
}

/// A configuration value as its JSON says it: texts bare, the rest as JSON.
fn json(value: impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => text,
        Ok(value) => value.to_string(),
        // Nothing in a configuration fails to serialise; a key would be missing rather than wrong.
        Err(_) => String::new(),
    }
}

fn relative(kind: RelativePosition) -> &'static str {
    match kind {
        RelativePosition::Decomposed { .. } => "decomposed",
        RelativePosition::Table => "table",
    }
}

/// A whole number without decimals.
fn number(value: f64) -> serde_json::Value {
    if value.fract() == 0.0 { serde_json::json!(value as u64) } else { serde_json::json!(value) }
}

/// What [`entries`] may say, in its order.
pub(super) const KEYS: &[&str] = &[
    "model",
    "family",
    "tool",
    "target",
    "for",
    "dtype",
    "calibration",
    "adapters",
    "levels",
    "strides",
    "level_norm",
    "neck",
    "window",
    "global_blocks",
    "relative_position",
    "color",
    "mean",
    "std",
    "interpolation",
    "crop_pct",
    "image_size",
    "padding",
    "layout",
    "patch_size",
    "grid",
    "native_image_size",
    "resample",
    "prefix_tokens",
    "width",
    "depth",
    "heads",
    "norm_eps",
    "activation",
    "has_final_norm",
    "feature",
    "source_file",
    "source_sha256",
    "branch",
    "converter",
    "lineage",
    "licence",
    "licence_evidence",
];

/// What every export of `model` says, whatever it is for.
pub(super) fn of_model(model: &Canonical) -> Vec<(String, String)> {
    const OF_EXPORTS: [&str; 7] = ["tool", "target", "for", "dtype", "image_size", "layout", "grid"];
    let options = ExportOptions::default();
    let Ok(dialect) = Dialect::new(options.target, options.opset, options.dtype) else { return Vec::new() };
    let entries =
        entries(model, model.config(), &options, dialect, model.config().vit.image_size.map(Extent::Fixed), None);
    entries.into_iter().filter(|(key, _)| !OF_EXPORTS.contains(&key.as_str())).collect()
}

/// `metadata_props`, in this order; empty values are left out.
pub(super) fn entries(
    model: &Canonical,
    config: &ModelConfig,
    options: &ExportOptions,
    dialect: Dialect,
    sides: [Extent; 2],
    maps: Option<&MapContract>,
) -> Vec<(String, String)> {
    let ModelConfig { family, vit, feature, preprocessing, provenance, licence, .. } = config;
    let patch = vit.patch_size;
    let vit = &*options.purpose.vit(vit);
    let strides = |maps: &MapContract| json(maps.strides.iter().map(|stride| number(*stride)).collect::<Vec<_>>());
    let window = |of: fn(&Window) -> String| vit.window.as_ref().map_or_else(String::new, of);
    let adapters = match (options.adapters, &vit.adapters) {
        (Adapters::Keep, _) => "kept",
        (Adapters::Drop, Some(_)) => "dropped",
        (Adapters::Drop, None) => "none",
    };
    let (image_size, grid) = match sides {
        [Extent::Fixed(height), Extent::Fixed(width)] => {
            let grid = [height, width].map(|side| padded(side, options.pad) / patch);
            (json([height, width]), json(grid))
        }
        _ => ("any".to_owned(), String::new()),
    };
    let calibration = options.calibration.as_ref().filter(|_| options.dtype == Dtype::Int8);
    let entries = [
        ("model", model_id(model, options)),
        ("family", family.clone()),
        ("tool", format!("tec-zoo {}", env!("CARGO_PKG_VERSION"))),
        ("target", dialect.target.to_string()),
        ("for", options.purpose.name().to_owned()),
        ("dtype", options.dtype.to_string()),
        ("calibration", calibration.map_or_else(String::new, |seen| format!("{} images", seen.images()))),
        ("adapters", adapters.to_owned()),
        ("levels", maps.map_or_else(String::new, |maps| json(&maps.levels))),
        ("strides", maps.map_or_else(String::new, strides)),
        ("level_norm", maps.map_or_else(String::new, |maps| json(maps.level_norm))),
        ("neck", maps.map_or_else(String::new, |maps| maps.neck.name().to_owned())),
        ("window", window(|window| json(window.size))),
        ("global_blocks", window(|window| json(&window.global_blocks))),
        ("relative_position", vit.relative_position.map_or_else(String::new, |kind| relative(kind).to_owned())),
        ("color", "RGB".to_owned()),
        ("mean", json(preprocessing.mean)),
        ("std", json(preprocessing.std)),
        ("interpolation", json(preprocessing.interpolation)),
        ("crop_pct", json(preprocessing.crop_pct)),
        ("image_size", image_size),
        ("padding", options.pad.map_or_else(String::new, json)),
        ("layout", if options.normalize_input { "uint8 NHWC" } else { "float32 NCHW" }.to_owned()),
        ("patch_size", json(patch)),
        ("grid", grid),
        ("native_image_size", json(vit.image_size)),
        ("resample", json(vit.position.resample)),
        ("prefix_tokens", json(vit.prefix_tokens())),
        ("width", json(vit.width)),
        ("depth", json(vit.depth)),
        ("heads", json(vit.heads)),
        ("norm_eps", json(vit.norm_eps)),
        ("activation", if vit.mlp == Mlp::SwiGlu { json(vit.mlp) } else { json(vit.activation) }),
        ("has_final_norm", json(vit.final_norm)),
        ("feature", json(feature)),
        ("source_file", provenance.source_file.clone()),
        ("source_sha256", provenance.source_sha256.clone()),
        ("branch", provenance.branch.clone().unwrap_or_default()),
        ("converter", provenance.converter.clone()),
        ("lineage", if provenance.lineage.is_empty() { String::new() } else { json(&provenance.lineage) }),
        ("licence", licence.spdx.clone()),
        ("licence_evidence", licence.evidence.clone()),
    ];
    entries.into_iter().filter(|(_, value)| !value.is_empty()).map(|(key, value)| (key.to_owned(), value)).collect()
}
