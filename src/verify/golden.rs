//! A record of activations: images, and what an encoder made of them at each point.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use candle_core::Tensor;
use serde::{Serialize, Serializer};

use super::VerifyError;
use crate::kernels::tensor_of;
use crate::model::{Stage, VitConfig, Weights};

/// A point of the pass that a record can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Point {
    /// The class token the encoder adds, (1, 1, C).
    ClassToken,
    /// Tokens entering block 0.
    Embedded,
    /// Raw output of a block.
    Block(usize),
    /// After the final norm.
    Norm,
    /// TEC's adapted feature.
    Adapted,
    /// The last output on the images of another size, under the model's position rule.
    Large,
}

impl Point {
    /// The point a tensor of a record is at; the names of the upstream references are accepted beside our own.
    fn of(name: &str) -> Option<Self> {
        Some(match name {
            "cls_token_merged" => Self::ClassToken,
            "embedded" => Self::Embedded,
            "norm" | "upstream_forward" => Self::Norm,
            "adapted" | "encoder_adaptor" => Self::Adapted,
            "last_large" | "upstream_forward_large" => Self::Large,
            _ => Self::Block(name.strip_prefix("block")?.parse().ok()?),
        })
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClassToken => f.write_str("cls_token_merged"),
            Self::Embedded => Stage::Embedded.fmt(f),
            Self::Block(i) => Stage::Block(*i).fmt(f),
            Self::Norm => Stage::Norm.fmt(f),
            Self::Adapted => Stage::Adapted.fmt(f),
            Self::Large => f.write_str("last_large"),
        }
    }
}

impl Serialize for Point {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Who computed a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// This tool, from the converted model: proves that nothing changed since, not that the conversion was right.
    #[serde(rename = "self")]
    Own,
    /// Another program.
    Upstream,
}

/// A record of activations.
///
/// Tensors of the file: `images` (B, 3, H, W), already normalised; `block{i}` (B, 1 + R + L, C), raw; `norm`; and, each
/// optional, `cls_token_merged` (1, 1, C), `embedded`, `adapted`, and `images_large` with `last_large`. Metadata may say
/// `origin` (`self` where this tool wrote it), `family` and `branch`.
#[derive(Debug)]
pub struct Golden {
    metadata: BTreeMap<String, String>,
    images: Tensor,
    images_large: Option<Tensor>,
    points: BTreeMap<Point, Tensor>,
}

impl Golden {
    /// Reads the record `path`.
    ///
    /// # Errors
    /// The file is no safetensors file, holds a tensor that is no stage, or lacks `images` or any stage.
    pub fn open(path: &Path) -> Result<Self, VerifyError> {
        let bad = |reason: String| VerifyError::NotGolden { path: path.display().to_string(), reason };
        let file = Weights::open(path)?;
        let (mut images, mut images_large, mut points) = (None, None, BTreeMap::new());
        for name in file.names() {
            let Some(view) = file.get(name) else { continue };
            let tensor = tensor_of(&view).map_err(|reason| bad(format!("`{name}`: {reason}")))?;
            match (name, Point::of(name)) {
                ("images", _) => images = Some(tensor),
                ("images_large", _) => images_large = Some(tensor),
                // The reference files hold the same thing under two names; the first, `norm`, is kept.
                (_, Some(point)) => drop(points.entry(point).or_insert(tensor)),
                _ => return Err(bad(format!("`{name}` is no stage of a pass"))),
            }
        }
        let images = images.ok_or_else(|| bad("it has no `images`".into()))?;
        if points.is_empty() {
            return Err(bad("it has images and no activations".into()));
        }
        if points.contains_key(&Point::Large) != images_large.is_some() {
            return Err(bad("`images_large` and `last_large` come together".into()));
        }
        Ok(Self { metadata: file.metadata().clone(), images, images_large, points })
    }

    /// Who computed it.
    pub fn origin(&self) -> Origin {
        match self.metadata.get("origin").map(String::as_str) {
            Some("self") => Origin::Own,
            _ => Origin::Upstream,
        }
    }

    /// What the file's metadata says about `key`.
    pub fn fact(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    /// The images, (B, 3, H, W).
    pub fn images(&self) -> &Tensor {
        &self.images
    }

    /// The images of another size.
    pub(super) fn images_large(&self) -> Option<&Tensor> {
        self.images_large.as_ref()
    }

    /// What the record holds at `point`.
    pub fn get(&self, point: Point) -> Option<&Tensor> {
        self.points.get(&point)
    }

    /// The points it holds, in the order of the pass.
    pub fn points(&self) -> impl Iterator<Item = Point> {
        self.points.keys().copied()
    }

    /// Checks every shape against what a model of this configuration makes.
    pub(super) fn fits(&self, vit: &VitConfig) -> Result<(), VerifyError> {
        let tokens = |images: &Tensor| match images.dims() {
            &[batch, 3, h, w] if batch > 0 && h > 0 && w > 0 && h % vit.patch_size == 0 && w % vit.patch_size == 0 => {
                Ok(vec![batch, vit.tokens((h / vit.patch_size) * (w / vit.patch_size)), vit.width])
            }
            shape => Err(crate::kernels::KernelError::Images { shape: shape.to_vec(), patch: vit.patch_size }),
        };
        let expected = tokens(&self.images)?;
        for (point, tensor) in &self.points {
            let expected = match (point, &self.images_large) {
                (Point::ClassToken, _) => vec![1, 1, vit.width],
                (Point::Large, Some(images)) => tokens(images)?,
                (Point::Block(i), _) if *i >= vit.depth => {
                    // Said with the shape a model without this block makes of it: none.
                    vec![]
                }
                _ => expected.clone(),
            };
            if tensor.dims() != expected {
                let (tensor, found) = (point.to_string(), tensor.dims().to_vec());
                return Err(VerifyError::Misfit { tensor, found, expected });
            }
        }
        Ok(())
    }
}
