//! The way back: a model directory into the layout another library loads strictly, by the same rules run backwards.

use std::borrow::Cow;
use std::fs::File;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::apply::io;
use super::hub::{TIMM_NORM_EPS, config_text};
use super::write::{Counted, Slot, Stop, header, order};
use super::{ConvertError, Progress, consumer, hf};
use crate::destination::Destination;
use crate::hint::Hint;
use crate::model::{Canonical, ModelConfig, ModelFile, TensorView, vit_parameters};

/// A layout to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Layout {
    /// pytorch-image-models: a directory for `timm.create_model("local-dir:…")`, or a bare `.safetensors` file.
    Timm,
    /// transformers: a directory for `ViTModel`, `ViTForImageClassification`, `Dinov2Model` or
    /// `Dinov2WithRegistersModel`.
    Hf,
    /// mmsegmentation: a `.pth` for the backbone `MAE`, at 512×512 unless another size is asked for.
    Mmseg,
    /// mmdetection: a `.pth` for `ViT` of its projects/ViTDet, at 1024.
    Mmdet,
    /// mmpretrain: a `.pth` for the backbone `VisionTransformer`, at the model's own size.
    Mmpretrain,
    /// detectron2: a `.pth` for ViTDet's `ViT` as `backbone.net`, at 1024.
    Detectron2,
    /// iBOT's evaluation: a `.pth` for its backbone `VisionTransformer`, at detection's 672×1092; of a square size, for
    /// segmentation.
    Ibot,
}

impl Layout {
    /// Every layout.
    pub const ALL: [Self; 7] =
        [Self::Timm, Self::Hf, Self::Mmseg, Self::Mmdet, Self::Mmpretrain, Self::Detectron2, Self::Ibot];

    /// The name `--to` takes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Timm => "timm",
            Self::Hf => "hf",
            Self::Mmseg => "mmseg",
            Self::Mmdet => "mmdet",
            Self::Mmpretrain => "mmpretrain",
            Self::Detectron2 => "detectron2",
            Self::Ibot => "ibot",
        }
    }
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Emission {
    /// The file or directory.
    pub path: PathBuf,
    /// The framework's configuration beside it, where one is written.
    pub config: Option<PathBuf>,
    /// Number of tensors.
    pub tensors: usize,
    /// Their bytes.
    pub bytes: u64,
    /// What the layout has no place for, in words.
    pub left_out: Vec<String>,
    /// What the layout has and the model does not, or not of this size, in words.
    pub added: Vec<String>,
}

/// Writes `model` to `out` in another library's layout. `out` appears whole, or not at all; where it may be replaced, a
/// directory is with nothing but such files in it, or a file. `size` is the input size `[H, W]` in pixels of the layouts that
/// are for one, where it is not their usual one.
///
/// # Errors
/// When the layout cannot express the model, the destination is taken, or writing fails.
pub fn emit(
    model: &Canonical,
    layout: Layout,
    size: Option<[usize; 2]>,
    out: impl Into<Destination>,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Emission, ConvertError> {
    let out = out.into();
    let config = model.config();
    expressible(config, layout, size)?;
    let tensors = match layout {
        Layout::Timm => timm_tensors(model),
        Layout::Hf => hf::tensors(model)?,
        _ => return consumer::emit(model, layout, size, &out, progress),
    };
    let total = tensors.iter().map(|tensor| tensor.bytes.len() as u64).sum();
    let mut done = 0;
    let mut step = |bytes: u64| {
        done += bytes;
        progress(Progress { done, total }).is_continue()
    };
    if out.path().extension().is_some_and(|extension| extension == "safetensors") {
        if layout == Layout::Hf {
            return Err(ConvertError::Inexpressible {
                layout: "hf",
                reason: "heads and epsilon live in the config.json of a directory".to_owned(),
                hint: "give the name of a directory".into(),
            });
        }
        let mut staged = out.file_output()?;
        write(staged.file(), &tensors, out.path(), &mut step)?;
        staged.commit()?;
    } else {
        let own = ModelFile::ALL.map(ModelFile::name);
        let staged = out.directory_output(&own)?;
        let path = staged.path().join(ModelFile::Model.name());
        let file = File::create_new(&path).map_err(io("write", out.path()))?;
        write(&file, &tensors, out.path(), &mut step)?;
        let text = if layout == Layout::Hf { hf::config_text(config) } else { config_text(config, false) };
        std::fs::write(staged.path().join(ModelFile::Config.name()), text).map_err(io("write", out.path()))?;
        staged.commit()?;
    }
    let (path, left_out) = (out.path().to_path_buf(), left_out(config));
    Ok(Emission { path, config: None, tensors: tensors.len(), bytes: total, left_out, added: Vec::new() })
}

/// A fine-tuned checkpoint's neck, among what is left out.
pub(crate) const NECK: &str = "the neck";

/// What stands beside a model and no other layout has a place for.
pub(crate) fn left_out(config: &ModelConfig) -> Vec<String> {
    let mut left_out = Vec::new();
    if config.vit.adapters.is_some() {
        left_out.push(
            "TEC's adapters: the class token is the merged one, the rest stays in the model's own directory".to_owned(),
        );
    }
    if config.vit.decoder.is_some() {
        left_out.push("the pretraining decoder".to_owned());
    }
    if config.vit.neck.is_some() {
        left_out.push(NECK.to_owned());
    }
    left_out
}

/// A tensor under its new name; a slice of a parameter where the layout splits it.
pub(crate) struct Renamed<'m> {
    pub(crate) name: String,
    pub(crate) dtype: safetensors::Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Cow<'m, [u8]>,
}

fn timm_tensors(model: &Canonical) -> Vec<Renamed<'_>> {
    parameters(model)
        .map(|(name, view)| Renamed { name, dtype: view.dtype, shape: view.shape.to_vec(), bytes: view.bytes.into() })
        .collect()
}

/// The model's parameters in file order; opening it proved that all are there.
pub(crate) fn parameters(model: &Canonical) -> impl Iterator<Item = (String, TensorView<'_>)> {
    let specs = vit_parameters(&model.config().vit);
    specs
        .into_iter()
        .filter_map(|spec| Some((model.model().get(&spec.name)?, spec.name)))
        .map(|(view, name)| (name, view))
}

/// Refuses what the layout has no field for.
fn expressible(config: &ModelConfig, layout: Layout, size: Option<[usize; 2]>) -> Result<(), ConvertError> {
    let refuse = |reason: String, hint: Hint| Err(ConvertError::Inexpressible { layout: layout.name(), reason, hint });
    let vit = &config.vit;
    if matches!(layout, Layout::Timm | Layout::Hf) && (!vit.class_token || !vit.plain_attention()) {
        let reason = "it has windows, relative positions or no class token".to_owned();
        return refuse(reason, "keep the common format, or export it".into());
    }
    if size.is_some() && matches!(layout, Layout::Timm | Layout::Hf) {
        let hint = Hint::new().words("leave out ").option("size");
        return refuse("its table keeps the model's size; the library resizes it".to_owned(), hint);
    }
    match layout {
        Layout::Timm => {
            if vit.norm_eps != TIMM_NORM_EPS {
                let reason = format!(
                    "its LayerNorm epsilon is {:e}; timm's ViT has {TIMM_NORM_EPS:e} and no field for it",
                    vit.norm_eps
                );
                return refuse(reason, Hint::new().set("layout", "hf").words(" keeps the epsilon"));
            }
            if vit.final_norm && vit.classifier.is_some_and(|classifier| classifier.fc_norm) {
                return refuse(
                    "it has both `norm` and `fc_norm`; timm's ViT has one of them".to_owned(),
                    "keep the common format".into(),
                );
            }
        }
        Layout::Hf => {
            if let Err((reason, hint)) = hf::expressible(vit) {
                return refuse(reason, hint);
            }
        }
        // Each framework's class says it itself.
        _ => {}
    }
    Ok(())
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
        counted.write(&tensors[at].bytes).map_err(|stop| match stop {
            Stop::Io(source) => io("write", out)(source),
            Stop::Interrupted => ConvertError::Interrupted,
        })?;
    }
    Ok(())
}
