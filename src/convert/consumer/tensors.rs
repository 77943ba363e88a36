//! The tensors of a class: the model's own under the class's names, and those that only the class has.

use std::borrow::Cow;

use safetensors::Dtype;

use super::{Consumer, relative};
use crate::convert::ConvertError;
use crate::convert::emit::{Layout, Renamed, parameters};
use crate::convert::numbers::to_f64;
use crate::hint::Hint;
use crate::model::position::resample;
use crate::model::{Canonical, Resample, TensorView, VitConfig, Window, neck_parameters};

/// A file's tensors and what is to be said of them.
pub(super) struct Made<'m> {
    pub(super) tensors: Vec<Renamed<'m>>,
    pub(super) left_out: Vec<Cow<'static, str>>,
    pub(super) added: Vec<String>,
}

/// `index`: the bytes of every block's relative position index, where the class has one.
pub(super) fn tensors<'m>(
    model: &'m Canonical,
    consumer: &Consumer,
    index: &'m [u8],
) -> Result<Made<'m>, ConvertError> {
    let vit = &model.config().vit;
    let mut made = Made { tensors: Vec::new(), left_out: Vec::new(), added: Vec::new() };
    for (name, view) in parameters(model) {
        let dropped: Option<&'static str> = match name.split_once('.').map_or(name.as_str(), |(first, _)| first) {
            "cls_token" if !consumer.class_token => Some("the class token"),
            "norm" if !consumer.final_norm => Some("the final norm"),
            "fc_norm" if !consumer.fc_norm => Some("the norm of the classification head"),
            "head" => Some("the classification head"),
            _ => None,
        };
        if let Some(what) = dropped {
            if !made.left_out.iter().any(|said| said == what) {
                made.left_out.push(what.into());
            }
            continue;
        }
        let own = consumer.own_name(&name)?;
        let tensor = if name == "pos_embed" && consumer.resized && vit.grid() != consumer.grid {
            made.added.push(format!(
                "the position table, resized from {} to {} patches by the class's rule (bicubic)",
                shown(vit.grid()),
                shown(consumer.grid)
            ));
            resized(own, view, vit, consumer.grid)?
        } else {
            Renamed { name: own, dtype: view.dtype, shape: view.shape.to_vec(), bytes: view.bytes.into() }
        };
        made.tensors.push(tensor);
    }
    match consumer.layout {
        Layout::Mmseg => segmentation(&mut made, consumer, vit, index)?,
        Layout::Mmdet | Layout::Detectron2 => decomposed(&mut made, consumer, vit)?,
        Layout::Ibot if consumer.brings_pyramid(vit) => trained_pyramid(&mut made, consumer, model)?,
        Layout::Ibot => pyramid(&mut made, vit),
        Layout::Timm | Layout::Hf | Layout::Mmpretrain => {}
    }
    Ok(made)
}

impl Consumer {
    /// The class's name of a parameter.
    fn own_name(&self, name: &str) -> Result<String, ConvertError> {
        match self.mapping.sources_of(name, crate::model::Mlp::Plain).as_slice() {
            [own] => Ok(format!("{}{own}", self.prefix)),
            _ => Err(ConvertError::Inexpressible {
                layout: self.layout.name(),
                reason: format!("`{name}` has no name there"),
                hint: Hint::new().set("layout", "timm").words(" keeps every parameter"),
            }),
        }
    }
}

fn shown([rows, columns]: [usize; 2]) -> String {
    format!("{rows}×{columns}")
}

fn resized<'m>(
    name: String,
    view: TensorView<'_>,
    vit: &VitConfig,
    grid: [usize; 2],
) -> Result<Renamed<'m>, ConvertError> {
    let table: Vec<f32> = to_f64(view.bytes, view.dtype).into_iter().map(|value| value as f32).collect();
    let table = resample(&table, vit.width, vit.grid(), grid, Resample::Size)
        .map_err(|error| ConvertError::contradiction(error.to_string()))?;
    let shape = vec![1, table.len() / vit.width, vit.width];
    Ok(floats(name, shape, table.into_iter()))
}

fn floats<'m>(name: String, shape: Vec<usize>, values: impl Iterator<Item = f32>) -> Renamed<'m> {
    let bytes: Vec<u8> = values.flat_map(f32::to_le_bytes).collect();
    Renamed { name, dtype: Dtype::F32, shape, bytes: Cow::Owned(bytes) }
}

fn filled<'m>(name: String, shape: &[usize], value: f32) -> Renamed<'m> {
    floats(name, shape.to_vec(), std::iter::repeat_n(value, shape.iter().product()))
}

/// What a model without them has in mmseg's `MAE`: LayerScale of ones, relative positions of zeros, and the index.
fn segmentation<'m>(
    made: &mut Made<'m>,
    consumer: &Consumer,
    vit: &VitConfig,
    index: &'m [u8],
) -> Result<(), ConvertError> {
    let tokens = 1 + consumer.grid[0] * consumer.grid[1];
    for block in 0..vit.depth {
        if !vit.layer_scale {
            for gamma in ["ls1", "ls2"] {
                let name = consumer.own_name(&format!("blocks.{block}.{gamma}.gamma"))?;
                made.tensors.push(filled(name, &[vit.width], 1.0));
            }
        }
        if vit.relative_position.is_none() {
            let table = consumer.own_name(&format!("blocks.{block}.attn.relative_position_bias_table"))?;
            made.tensors.push(filled(table, &[relative::rows(consumer.grid), vit.heads], 0.0));
        }
        // One storage for all blocks: it is a buffer nobody writes to.
        made.tensors.push(Renamed {
            name: format!("{}layers.{block}.attn.relative_position_index", consumer.prefix),
            dtype: Dtype::I64,
            shape: vec![tokens, tokens],
            bytes: index.into(),
        });
    }
    if !vit.layer_scale {
        made.added.push("LayerScale of ones".to_owned());
    }
    made.added.push(if vit.relative_position.is_none() {
        "relative position tables of zeros, with their index".to_owned()
    } else {
        "the index of the relative positions".to_owned()
    });
    Ok(())
}

/// ViTDet's decomposed relative positions, of zeros: within the windows, and over the whole image.
fn decomposed(made: &mut Made<'_>, consumer: &Consumer, vit: &VitConfig) -> Result<(), ConvertError> {
    if vit.relative_position.is_some() {
        return Ok(());
    }
    let Window { size, global_blocks } = &consumer.window;
    for block in 0..vit.depth {
        for (axis, leaf) in ["rel_pos_h", "rel_pos_w"].into_iter().enumerate() {
            let side = if global_blocks.contains(&block) { consumer.grid[axis] } else { *size };
            let name = consumer.own_name(&format!("blocks.{block}.attn.{leaf}"))?;
            made.tensors.push(filled(name, &[2 * side - 1, vit.head_width()], 0.0));
        }
    }
    made.added.push("relative positions of zeros".to_owned());
    Ok(())
}

/// Whether iBOT's class builds a pyramid for this patch size, and how many transposed convolutions its first level has.
pub(super) fn pyramid_steps(patch: usize) -> usize {
    match patch {
        16 => 2,
        8 => 1,
        _ => 0,
    }
}

/// A fine-tuned model's own pyramid, under iBOT's names.
fn trained_pyramid<'m>(made: &mut Made<'m>, consumer: &Consumer, model: &'m Canonical) -> Result<(), ConvertError> {
    let vit = &model.config().vit;
    for spec in vit.neck.iter().flat_map(|neck| neck_parameters(neck, vit.width)) {
        if let Some(view) = model.get(&spec.name) {
            let name = consumer.own_name(&spec.name)?;
            let shape = view.shape.to_vec();
            made.tensors.push(Renamed { name, dtype: view.dtype, shape, bytes: view.bytes.into() });
        }
    }
    made.tensors.push(batches());
    Ok(())
}

/// How often the pyramid's norm was updated: it counts for a norm without momentum only, and this one has some.
fn batches<'m>() -> Renamed<'m> {
    let name = "fpn1.1.num_batches_tracked".to_owned();
    Renamed { name, dtype: Dtype::I64, shape: Vec::new(), bytes: Cow::Owned(vec![0; 8]) }
}

/// iBOT's class has its pyramid inside the backbone: `fpn1` and `fpn2` are layers to be trained, and begin here as PyTorch
/// begins them, uniform within ±1/√(4C).
fn pyramid(made: &mut Made<'_>, vit: &VitConfig) {
    let width = vit.width;
    let mut draw = Draw(0);
    let mut convolution = |made: &mut Made<'_>, name: &str| {
        let bound = 1.0 / (4.0 * width as f32).sqrt();
        for (leaf, shape) in [("weight", vec![width, width, 2, 2]), ("bias", vec![width])] {
            let count = shape.iter().product();
            let values: Vec<f32> = (0..count).map(|_| bound * draw.next()).collect();
            made.tensors.push(floats(format!("{name}.{leaf}"), shape, values.into_iter()));
        }
    };
    let steps = pyramid_steps(vit.patch_size);
    if steps >= 1 {
        convolution(made, "fpn1.0");
    }
    if steps >= 2 {
        for (leaf, value) in [("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)] {
            made.tensors.push(filled(format!("fpn1.1.{leaf}"), &[width], value));
        }
        made.tensors.push(batches());
        convolution(made, "fpn1.3");
        convolution(made, "fpn2.0");
    }
    if steps > 0 {
        made.added
            .push("the pyramid's initial values, drawn as PyTorch draws them: it is yet to be trained".to_owned());
    }
}

/// SplitMix64 (Steele, Lea and Flood 2014): the same pyramid for every model, whatever the build.
struct Draw(u64);

impl Draw {
    /// Uniform in [−1, 1).
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        // 24 bits: every float of that grid is exact.
        (z >> 40) as f32 / 8_388_608.0 - 1.0
    }
}
