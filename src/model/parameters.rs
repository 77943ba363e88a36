//! The one authority on parameter names and shapes. Names are timm's.

use super::{AdapterConfig, RelativePosition, VitConfig};

/// Name and shape of one parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParameterSpec {
    /// timm name, such as `blocks.0.attn.qkv.weight`.
    pub name: String,
    /// Shape, as PyTorch has it: a Linear's weight is (out, in).
    pub shape: Vec<usize>,
}

impl ParameterSpec {
    /// Number of values.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

fn spec(name: impl Into<String>, shape: &[usize]) -> ParameterSpec {
    ParameterSpec { name: name.into(), shape: shape.to_vec() }
}

fn pair(out: &mut Vec<ParameterSpec>, prefix: &str, weight: &[usize]) {
    out.push(spec(format!("{prefix}.weight"), weight));
    out.push(spec(format!("{prefix}.bias"), &weight[..1]));
}

/// The parameters of `model.safetensors`, in file order.
pub fn vit_parameters(config: &VitConfig) -> Vec<ParameterSpec> {
    let c = config.width;
    let mut out = Vec::new();
    if config.class_token {
        out.push(spec("cls_token", &[1, 1, c]));
    }
    if config.registers > 0 {
        out.push(spec("reg_token", &[1, config.registers, c]));
    }
    out.push(spec("pos_embed", &[1, config.position_rows(), c]));
    pair(&mut out, "patch_embed.proj", &[c, 3, config.patch_size, config.patch_size]);
    for i in 0..config.depth {
        pair(&mut out, &format!("blocks.{i}.norm1"), &[c]);
        pair(&mut out, &format!("blocks.{i}.attn.qkv"), &[3 * c, c]);
        pair(&mut out, &format!("blocks.{i}.attn.proj"), &[c, c]);
        relative_tables(&mut out, config, i);
        if config.layer_scale {
            out.push(spec(format!("blocks.{i}.ls1.gamma"), &[c]));
        }
        pair(&mut out, &format!("blocks.{i}.norm2"), &[c]);
        pair(&mut out, &format!("blocks.{i}.mlp.fc1"), &[config.mlp.fc1_rows(config.mlp_width), c]);
        pair(&mut out, &format!("blocks.{i}.mlp.fc2"), &[c, config.mlp_width]);
        if config.layer_scale {
            out.push(spec(format!("blocks.{i}.ls2.gamma"), &[c]));
        }
    }
    if config.final_norm {
        pair(&mut out, "norm", &[c]);
    }
    if let Some(classifier) = config.classifier {
        if classifier.fc_norm {
            pair(&mut out, "fc_norm", &[c]);
        }
        pair(&mut out, "head", &[classifier.classes, c]);
    }
    out
}

fn relative_tables(out: &mut Vec<ParameterSpec>, config: &VitConfig, i: usize) {
    // Offsets between two of `side` places.
    let offsets = |side: usize| 2 * side - 1;
    match config.relative_position {
        None => {}
        Some(RelativePosition::Decomposed { grid }) => {
            let [rows, columns] = config.window_of(i).map_or(grid, |size| [size, size]);
            for (axis, side) in [("h", rows), ("w", columns)] {
                let shape = [offsets(side), config.head_width()];
                out.push(spec(format!("blocks.{i}.attn.rel_pos_{axis}"), &shape));
            }
        }
        Some(RelativePosition::Table) => {
            let [rows, columns] = config.grid();
            let shape = [offsets(rows) * offsets(columns) + 3, config.heads];
            out.push(spec(format!("blocks.{i}.attn.relative_position_bias_table"), &shape));
        }
    }
}

/// The parameters of `adapters.safetensors`, in file order, for an encoder of width `c`.
///
/// `input_adapter.cls_token` is the class token *before* the input adapter; the model's `cls_token` is the merged one.
pub fn adapter_parameters(config: &AdapterConfig, c: usize) -> Vec<ParameterSpec> {
    let mut out = Vec::new();
    if let Some(hidden) = config.input_mlp_width {
        out.push(spec("input_adapter.cls_token", &[1, 1, c]));
        pair(&mut out, "input_adapter.fc1", &[hidden, c]);
        pair(&mut out, "input_adapter.fc2", &[c, hidden]);
    }
    pair(&mut out, "encoder_adapter.norm_in", &[config.groups * config.blocks_per_group * c]);
    for g in 0..config.groups {
        pair(&mut out, &format!("encoder_adapter.groups.{g}.fuse"), &[c, config.blocks_per_group * c]);
        pair(&mut out, &format!("encoder_adapter.groups.{g}.mlp.fc1"), &[config.mlp_width, c]);
        pair(&mut out, &format!("encoder_adapter.groups.{g}.mlp.fc2"), &[c, config.mlp_width]);
    }
    pair(&mut out, "encoder_adapter.norm_out", &[c]);
    out
}
