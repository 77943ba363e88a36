//! The way back into segmentation and detection: for each framework the class that is to load the file, strictly and at the
//! size of its configuration, and that configuration beside the file.
//!
//! Two silent failures of others are what this is against: a file whose keys have another prefix, of which those classes
//! load nothing and say so in a log at best, and a table of another size. Here the class's keys are the authority: what it
//! has and no model has (zero relative positions, LayerScale of ones) is written, and what it has no key for is refused or
//! named.

mod config;
mod relative;
mod tensors;

use std::borrow::Cow;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;

use super::apply::io;
use super::emit::{Emission, Layout, NECK, left_out};
use super::write::{Counted, Stop};
use super::{ConvertError, Mapping, Progress};
use crate::checkpoint::write::{State, StateTensor};
use crate::destination::Destination;
use crate::hint::Hint;
use crate::model::{Activation, Canonical, Mlp, Neck, RelativePosition, VitConfig, Window};

/// The largest index buffer that is written, in bytes: that of a grid of 90 × 90 patches.
const MAX_INDEX: usize = 1 << 29;
/// iBOT's class has no field for another.
const IBOT_NORM_EPS: f64 = 1e-6;

/// A framework's class, with everything of it that depends on the model and the size.
struct Consumer {
    layout: Layout,
    mapping: Mapping,
    /// Before every key.
    prefix: &'static str,
    /// The key of the file under which the state dictionary lies.
    wrap: Option<&'static str>,
    /// Input size in pixels.
    size: [usize; 2],
    /// The same in patches, as the class counts them.
    grid: [usize; 2],
    template: &'static str,
    class_token: bool,
    final_norm: bool,
    fc_norm: bool,
    /// ViTDet's windows: the model's, or the usual ones.
    window: Window,
    /// Whether the file's position table has the input's grid; otherwise the class resizes it itself.
    resized: bool,
}

impl Consumer {
    fn new(layout: Layout, vit: &VitConfig, size: Option<[usize; 2]>) -> Result<Self, ConvertError> {
        // Relative positions are of one size: the model's, where it has some.
        let size = size.unwrap_or(match (layout, vit.relative_position) {
            (Layout::Mmdet | Layout::Detectron2, Some(RelativePosition::Decomposed { grid })) => {
                grid.map(|side| side * vit.patch_size)
            }
            (Layout::Mmseg, Some(RelativePosition::Table)) => vit.image_size,
            (Layout::Mmseg, _) => [512, 512],
            (Layout::Mmdet | Layout::Detectron2, _) => [1024, 1024],
            (Layout::Ibot, _) => [672, 1092],
            (Layout::Timm | Layout::Hf | Layout::Mmpretrain, _) => vit.image_size,
        });
        let mapping = |name: &str, text| Mapping::parse(name, text);
        let square = size[0] == size[1];
        let (mapping, prefix, wrap, template) = match layout {
            Layout::Mmseg => (
                mapping("mmseg", include_str!("../../../converters/mmseg.toml"))?,
                "",
                None,
                include_str!("../../../converters/configs/mmseg.py"),
            ),
            Layout::Mmdet => (
                mapping("vitdet", include_str!("../../../converters/vitdet.toml"))?,
                "",
                // Its loader finds nothing in a file without this key.
                Some("model"),
                include_str!("../../../converters/configs/mmdet.py"),
            ),
            Layout::Detectron2 => (
                mapping("vitdet", include_str!("../../../converters/vitdet.toml"))?,
                "backbone.net.",
                Some("model"),
                include_str!("../../../converters/configs/detectron2.py"),
            ),
            Layout::Ibot => (
                mapping("ibot", include_str!("../../../converters/ibot.toml"))?,
                "",
                Some("state_dict"),
                if square {
                    include_str!("../../../converters/configs/ibot-upernet.py")
                } else {
                    include_str!("../../../converters/configs/ibot-cascade.py")
                },
            ),
            Layout::Timm | Layout::Hf | Layout::Mmpretrain => (
                mapping("mmpretrain", include_str!("../../../converters/mmpretrain.toml"))?,
                "",
                None,
                include_str!("../../../converters/configs/mmpretrain.py"),
            ),
        };
        let vitdet = matches!(layout, Layout::Mmdet | Layout::Detectron2);
        let pooled = layout == Layout::Mmpretrain && vit.classifier.is_some_and(|classifier| classifier.fc_norm);
        Ok(Self {
            layout,
            mapping,
            prefix,
            wrap,
            size,
            // mmcv's patch embedding pads what is left of an image; the others leave it out.
            grid: size.map(|side| match layout {
                Layout::Mmpretrain => side.div_ceil(vit.patch_size),
                _ => side / vit.patch_size,
            }),
            template,
            class_token: !vitdet,
            // iBOT's segmentation commands ask for the norm on every level, its detection commands do not.
            final_norm: vit.final_norm && (layout == Layout::Mmpretrain || (layout == Layout::Ibot && square)),
            fc_norm: pooled,
            window: vit.window.clone().unwrap_or_else(|| Window::vitdet(vit.depth)),
            resized: !vitdet,
        })
    }

    /// Refuses what the class has no field for.
    fn expressible(&self, vit: &VitConfig) -> Result<(), ConvertError> {
        let refuse =
            |reason: String, hint: Hint| Err(ConvertError::Inexpressible { layout: self.layout.name(), reason, hint });
        let to = |layout: &'static str| Hint::new().set("layout", layout);
        let keep = || to("timm").words(" and ").set("layout", "hf").words(" have them");
        if vit.registers > 0 {
            return refuse(format!("it has {} register tokens, and the class has none", vit.registers), keep());
        }
        if vit.mlp == Mlp::SwiGlu {
            return refuse("its MLPs are SwiGLU".to_owned(), keep());
        }
        if vit.activation == Activation::GeluTanh {
            return refuse("its GELU is the tanh approximation; the class has the exact one".to_owned(), keep());
        }
        if self.grid.contains(&0) {
            let [height, width] = self.size;
            let reason = format!("{height}x{width} pixels hold no patch of {}", vit.patch_size);
            return refuse(reason, Hint::new().set("size", "HxW").words(" in pixels"));
        }
        let vitdet = matches!(self.layout, Layout::Mmdet | Layout::Detectron2);
        if !vitdet && (!vit.class_token || vit.window.is_some()) {
            let reason = "it has windows or no class token, as ViTDet's".to_owned();
            return refuse(reason, to("detectron2").words(" and ").set("layout", "mmdet").words(" are for it"));
        }
        let own = match vit.relative_position {
            None => self.grid,
            Some(RelativePosition::Decomposed { grid }) if vitdet => grid,
            Some(RelativePosition::Table) if self.layout == Layout::Mmseg => vit.grid(),
            Some(_) => {
                return refuse(
                    "the class has no relative positions of its kind".to_owned(),
                    "keep the common format".into(),
                );
            }
        };
        if own != self.grid {
            let reason = format!("its relative positions are for {}×{} patches", own[0], own[1]);
            return refuse(reason, Hint::new().words("leave out ").option("size"));
        }
        if vitdet {
            if vit.layer_scale {
                return refuse(
                    "it has LayerScale, and ViTDet's blocks have none".to_owned(),
                    to("mmseg").words(" keeps it"),
                );
            }
            if vit.image_size[0] != vit.image_size[1] {
                return refuse(
                    "its position table is not square, as ViT's is".to_owned(),
                    to("mmseg").words(" resizes it"),
                );
            }
            if self.size[0] != self.size[1] {
                return refuse(
                    "ViT's `img_size` is one side".to_owned(),
                    Hint::new().set("size", "1024").words("; its inputs are padded to a square"),
                );
            }
        }
        if self.layout == Layout::Mmseg && !vit.mlp_width.is_multiple_of(vit.width) {
            let reason =
                format!("its MLPs are {} wide, which no whole `mlp_ratio` of {} gives", vit.mlp_width, vit.width);
            return refuse(reason, to("mmpretrain").words(" has `feedforward_channels`"));
        }
        if self.layout == Layout::Mmseg && relative::index_bytes(self.grid).is_none_or(|bytes| bytes > MAX_INDEX) {
            let [height, width] = self.size;
            let reason =
                format!("at {height}x{width} the index of its relative positions is larger than {MAX_INDEX} bytes");
            return refuse(reason, Hint::new().set("size", "512").words("; larger images are tested in slides"));
        }
        if self.layout == Layout::Ibot && vit.norm_eps != IBOT_NORM_EPS {
            let reason = format!("its LayerNorm epsilon is {:e}; iBOT's class has {IBOT_NORM_EPS:e}", vit.norm_eps);
            return refuse(reason, to("mmseg").words(" keeps the epsilon"));
        }
        Ok(())
    }

    /// Whether iBOT's pyramid, which is part of its class, comes from the model.
    fn brings_pyramid(&self, vit: &VitConfig) -> bool {
        self.layout == Layout::Ibot && vit.patch_size == 16 && matches!(vit.neck, Some(Neck::FeaturePyramid { .. }))
    }
}

/// Writes `model` for `layout`, with the configuration beside it.
pub(super) fn emit(
    model: &Canonical,
    layout: Layout,
    size: Option<[usize; 2]>,
    destination: &Destination,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Emission, ConvertError> {
    let out = destination.path();
    let vit = &model.config().vit;
    let consumer = Consumer::new(layout, vit, size)?;
    consumer.expressible(vit)?;
    if !out.extension().is_some_and(|extension| extension == "pth" || extension == "pt") {
        return Err(ConvertError::Inexpressible {
            layout: layout.name(),
            reason: "it is a file that torch loads, with a configuration beside it".to_owned(),
            hint: "give the name of a `.pth` file".into(),
        });
    }
    let beside = out.with_extension("py");
    let text_destination = destination.beside(&beside);
    destination.check_file()?;
    text_destination.check_file()?;

    let index = if layout == Layout::Mmseg { relative::index(consumer.grid) } else { Vec::new() };
    let made = tensors::tensors(model, &consumer, &index)?;
    let state = made.tensors.iter().map(|tensor| {
        StateTensor::new(&tensor.name, tensor.dtype, &tensor.shape, &tensor.bytes).ok_or_else(|| {
            ConvertError::contradiction(format!("`{}` is {}, which torch cannot store", tensor.name, tensor.dtype))
        })
    });
    let state = State { wrap: consumer.wrap, tensors: state.collect::<Result<_, _>>()? };
    let total = state.bytes();

    let mut done = 0;
    let mut step = |bytes: u64| {
        done += bytes;
        // The file's headers come on top.
        progress(Progress { done: done.min(total), total }).is_continue()
    };
    let mut staged = destination.file_output()?;
    let mut counted = Counted { out: staged.file(), written: 0, progress: &mut step };
    state.write(&mut |bytes| {
        counted.write(bytes).map_err(|stop| match stop {
            Stop::Io(source) => io("write", out)(source),
            Stop::Interrupted => ConvertError::Interrupted,
        })
    })?;
    let mut text = text_destination.file_output()?;
    let written = config::text(model, &consumer, out);
    text.file().write_all(written.as_bytes()).map_err(io("write", &beside))?;
    staged.commit()?;
    text.commit()?;

    let mut dropped = left_out(model.config());
    if consumer.brings_pyramid(vit) {
        dropped.retain(|what| what != NECK);
    }
    dropped.extend(made.left_out.into_iter().map(Cow::into_owned));
    Ok(Emission {
        path: out.to_path_buf(),
        config: Some(PathBuf::from(&beside)),
        tensors: made.tensors.len(),
        bytes: total,
        left_out: dropped,
        added: made.added,
    })
}
