//! Why a field matters, and what to do about it.

use crate::hint::Hint;

/// (what goes wrong where it differs, what to do).
pub(super) fn reason(field: &str) -> (&'static str, Hint) {
    let export = || Hint::new().words("export with ");
    let (why, next) = match field {
        "levels" => {
            return ("a head reads other blocks' features than it was trained on", export().option("levels"));
        }
        "strides" => (
            "maps of another scale do not fit the anchors and the decoder",
            "export for the consumer, or with the neck of a fine-tuned checkpoint",
        ),
        "level_norm" => {
            let why =
                "features before and after the final norm differ in scale: 6 to 7 points were lost on it elsewhere";
            return (why, export().one_of("norm", ["raw", "final"]));
        }
        "neck" => (
            "the consumer puts a neck of its own behind maps that have been through one, or none where one is needed",
            "convert a fine-tuned checkpoint to bring its neck, or let the consumer have it",
        ),
        "prefix_tokens" => {
            let maps = Hint::new().words("take the maps of ").option("purpose");
            let maps = maps.words(" levels, upernet, cascade-mask-rcnn or vitdet, which have none");
            return ("class token and registers are taken for patches, or patches for them", maps);
        }
        "mean" | "std" | "color" => (
            "images normalised otherwise than in training cost points silently",
            "normalise as the contract says, in the consumer's data pipeline",
        ),
        "layout" => {
            let next = export().option("normalize_input").words(" or without, and normalise in exactly one place");
            return ("pixels are normalised twice, or not at all, or rows are taken for channels", next);
        }
        "image_size" | "grid" => {
            let next = export().option("size").words(" or ").set("size", "dynamic");
            return ("the position table was resampled for another image", next);
        }
        "resample" => (
            "position tables resampled by another rule differ by 3 to 8 % at other sizes than the native",
            "export with the rule the consumer was trained with",
        ),
        "patch_size" | "width" | "depth" | "heads" | "activation" | "norm_eps" | "has_final_norm" => {
            ("it is another architecture", "take another model")
        }
        "window" | "global_blocks" => {
            return ("other tokens see one another than in training", export().set("purpose", "vitdet"));
        }
        "relative_position" => {
            ("attention has a term more or less than in training", "convert the fine-tuned checkpoint itself")
        }
        "inputs" | "outputs" => {
            ("names, types or shapes are not those the consumer feeds and reads", "rename there, or export anew")
        }
        "dtype" | "calibration" => {
            let next = export().option("dtype").words(" and ").option("calibrate");
            return ("numbers have another precision", next);
        }
        "adapters" => {
            let next = export().one_of("adapters", ["keep", "drop"]);
            return ("TEC's adapters are missing, or there without being read", next);
        }
        "source_sha256" | "lineage" | "branch" => {
            ("the weights are others", "export the model the consumer was trained on")
        }
        "licence" => ("what may be done with the result differs", "read both licences"),
        _ => ("it is not what was asked for", "export anew, or change what is asked for"),
    };
    (why, next.into())
}
