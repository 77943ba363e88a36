//! Why a field matters, and what to do about it.

/// (what goes wrong where it differs, what to do).
pub(super) fn reason(field: &str) -> (&'static str, &'static str) {
    match field {
        "levels" => ("a head reads other blocks' features than it was trained on", "export with --levels"),
        "strides" => (
            "maps of another scale do not fit the anchors and the decoder",
            "export for the consumer, or with the neck of a fine-tuned checkpoint",
        ),
        "level_norm" => (
            "features before and after the final norm differ in scale: 6 to 7 points were lost on it elsewhere",
            "export with --norm raw or --norm final",
        ),
        "neck" => (
            "the consumer puts a neck of its own behind maps that have been through one, or none where one is needed",
            "convert a fine-tuned checkpoint to bring its neck, or let the consumer have it",
        ),
        "prefix_tokens" => (
            "class token and registers are taken for patches, or patches for them",
            "take the maps of --for levels, upernet, cascade-mask-rcnn or vitdet, which have none",
        ),
        "mean" | "std" | "color" => (
            "images normalised otherwise than in training cost points silently",
            "normalise as the contract says, in the consumer's data pipeline",
        ),
        "layout" => (
            "pixels are normalised twice, or not at all, or rows are taken for channels",
            "export with --normalize-input or without, and normalise in exactly one place",
        ),
        "image_size" | "grid" => {
            ("the position table was resampled for another image", "export with --size or --dynamic")
        }
        "resample" => (
            "position tables resampled by another rule differ by 3 to 8 % at other sizes than the native",
            "export with the rule the consumer was trained with",
        ),
        "patch_size" | "width" | "depth" | "heads" | "activation" | "norm_eps" | "has_final_norm" => {
            ("it is another architecture", "take another model")
        }
        "window" | "global_blocks" => ("other tokens see one another than in training", "export with --for vitdet"),
        "relative_position" => {
            ("attention has a term more or less than in training", "convert the fine-tuned checkpoint itself")
        }
        "inputs" | "outputs" => {
            ("names, types or shapes are not those the consumer feeds and reads", "rename there, or export anew")
        }
        "dtype" | "calibration" => ("numbers have another precision", "export with --dtype and --calibrate"),
        "adapters" => {
            ("TEC's adapters are missing, or there without being read", "export with --adapters keep or drop")
        }
        "source_sha256" | "lineage" | "branch" => {
            ("the weights are others", "export the model the consumer was trained on")
        }
        "licence" => ("what may be done with the result differs", "read both licences"),
        _ => ("it is not what was asked for", "export anew, or change what is asked for"),
    }
}
