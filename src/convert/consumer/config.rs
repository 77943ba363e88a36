//! The configuration beside the file: a template of `converters/configs` with the model's numbers in it.

use std::path::Path;

use super::Consumer;
use super::tensors::pyramid_steps;
use crate::convert::hub;
use crate::model::{Canonical, pyramid_levels};

/// The template's text with every `@name@` replaced.
pub(super) fn text(model: &Canonical, consumer: &Consumer, out: &Path) -> String {
    let config = model.config();
    let vit = &config.vit;
    let windowed: Vec<usize> = (0..vit.depth).filter(|block| !consumer.window.global_blocks.contains(block)).collect();
    let pyramid = pyramid_steps(vit.patch_size) > 0;
    let trained = consumer.brings_pyramid(vit);
    let whole = vit.mlp_width.is_multiple_of(vit.width);
    let ratio = if whole { (vit.mlp_width / vit.width).to_string() } else { hub::mlp_ratio(vit).to_string() };
    // File names are the user's: they stand in quotes, and in comments.
    let plain = |name: &str| name.replace(['\\', '\'', '"', '\n', '\r', '@'], "_");
    let name = |path: &Path| plain(&path.file_name().unwrap_or(path.as_os_str()).to_string_lossy());
    let values = [
        ("source", plain(&config.provenance.source_file)),
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("weights", name(out)),
        ("height", consumer.size[0].to_string()),
        ("width", consumer.size[1].to_string()),
        ("native", vit.image_size[0].to_string()),
        ("patch", vit.patch_size.to_string()),
        ("dim", vit.width.to_string()),
        ("depth", vit.depth.to_string()),
        ("heads", vit.heads.to_string()),
        ("hidden", vit.mlp_width.to_string()),
        ("mlp_ratio", ratio),
        ("eps", format!("{:e}", vit.norm_eps)),
        ("mean255", levels_of_255(config.preprocessing.mean)),
        ("std255", levels_of_255(config.preprocessing.std)),
        ("levels", format!("{:?}", pyramid_levels(vit.depth))),
        ("window", consumer.window.size.to_string()),
        ("cls_row", python(vit.class_token).to_owned()),
        ("windowed", format!("{windowed:?}")),
        ("final_norm", python(consumer.final_norm).to_owned()),
        ("out_type", if consumer.fc_norm { "avg_featmap" } else { "cls_token" }.to_owned()),
        ("layer_scale", if vit.layer_scale { "1.0" } else { "0" }.to_owned()),
        ("scale", if vit.layer_scale { "the model's" } else { "ones" }.to_owned()),
        ("with_fpn", python(pyramid).to_owned()),
        (
            "pyramid",
            if pyramid && !trained { ", its pyramid (fpn1, fpn2) is yet to be trained" } else { "" }.to_owned(),
        ),
    ];
    values.iter().fold(consumer.template.to_owned(), |text, (name, value)| text.replace(&format!("@{name}@"), value))
}

fn python(value: bool) -> &'static str {
    if value { "True" } else { "False" }
}

/// Per-channel numbers on 0–1, on 0–255.
fn levels_of_255(values: [f64; 3]) -> String {
    format!("{:?}", values.map(|value| (value * 255.0 * 1e6).round() / 1e6))
}
