//! Recording our own pass, so that a model directory carries activations to replay.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{BufWriter, Write};

use candle_core::{Device, Tensor};
use safetensors::Dtype;
use serde_json::json;

use super::{Listener, Point, Shared, VerifyError};
use crate::destination::Destination;
use crate::header::{Slot, header};
use crate::kernels::{Eager, KernelError};
use crate::model::{Canonical, Ops, Vit};

/// Writes `out`: activations of our own eager pass of `model` on synthetic images, one of the native size and one of
/// another, rectangular size, so that the position rule is on record too.
///
/// The metadata's `origin` is `self`: such a record proves that a model still says what it said when it was converted,
/// not that the conversion was right; only a record made by another program proves that. Written atomically; the same
/// model gives the same bytes on the same machine.
///
/// # Errors
/// The pass or the write failed, or `hear` ended it; nothing is left behind.
pub fn make_golden(model: &Canonical, out: impl Into<Destination>, hear: Listener<'_>) -> Result<(), VerifyError> {
    let out = out.into();
    out.check_file()?;
    let hear = Shared(RefCell::new(hear));
    let config = &model.config().vit;
    let vit = Vit::new(config);
    let mut ops = Eager::new(model).attended(&hear);
    let grid = config.grid();
    let images = synthetic_image(grid.map(|side| side * config.patch_size))?;
    let mut tensors = vec![("images".to_string(), images.clone())];
    let mut keep = |point: Point, tensor: &Tensor| tensors.push((point.to_string(), tensor.clone()));

    if config.class_token {
        keep(Point::ClassToken, &ops.parameter("cls_token")?);
    }
    keep(Point::Embedded, &vit.embed(&mut ops, &images, grid)?);
    let features = ops.features(&images)?;
    for (i, block) in features.blocks.iter().enumerate() {
        keep(Point::Block(i), block);
    }
    if let Some(norm) = &features.norm {
        keep(Point::Norm, norm);
    }
    if let Some(adapted) = vit.adapt(&mut ops, &features)? {
        keep(Point::Adapted, &adapted.adapted);
    }
    let [rows, columns] = grid;
    let large = synthetic_image([(rows + 1) * config.patch_size, (columns + 2) * config.patch_size])?;
    keep(Point::Large, ops.features(&large)?.last());
    tensors.push(("images_large".into(), large));

    let provenance = &model.config().provenance;
    let mut metadata = BTreeMap::from([
        ("origin", "self"),
        ("family", model.config().family.as_str()),
        ("source_sha256", provenance.source_sha256.as_str()),
        ("tool", concat!("tec-zoo ", env!("CARGO_PKG_VERSION"))),
    ]);
    metadata.extend(provenance.branch.as_deref().map(|branch| ("branch", branch)));
    write(&out, &metadata, &tensors)
}

fn write<'a>(
    out: &Destination,
    metadata: &BTreeMap<&str, &str>,
    tensors: &'a [(String, Tensor)],
) -> Result<(), VerifyError> {
    let failed = |source: std::io::Error| VerifyError::Write { path: out.path().display().to_string(), source };
    let slot = |(name, tensor): &'a (String, Tensor)| Slot { name, dtype: Dtype::F32, shape: tensor.dims() };
    let slots: Vec<Slot<'_>> = tensors.iter().map(slot).collect();

    let mut staged = out.file_output()?;
    let mut writer = BufWriter::new(staged.file());
    writer.write_all(&header(json!(metadata), slots.iter())).map_err(failed)?;
    for (name, tensor) in tensors {
        let values = tensor.flatten_all().and_then(|x| x.to_vec1::<f32>());
        let values = values.map_err(|source| KernelError::Operation { operation: name.clone(), source })?;
        for value in values {
            writer.write_all(&value.to_le_bytes()).map_err(failed)?;
        }
    }
    writer.flush().map_err(failed)?;
    drop(writer);
    Ok(staged.commit()?)
}

/// A (1, 3, H, W) image about as large as a normalised photograph's values: coarse squares under fine grain, from
/// integer arithmetic alone, so that every machine draws the same.
fn synthetic_image([height, width]: [usize; 2]) -> Result<Tensor, KernelError> {
    let noise = |channel: usize, y: usize, x: usize| {
        let mut h = (channel as u32 + 1).wrapping_mul(0x9e37_79b1) ^ (y as u32).wrapping_mul(0x85eb_ca6b);
        h = (h ^ (x as u32).wrapping_mul(0xc2b2_ae35)).wrapping_mul(0x27d4_eb2f);
        h = (h ^ (h >> 15)).wrapping_mul(0x2c1b_3c6d);
        (h >> 16) as f32 / 65536.0 - 0.5
    };
    let mut values = Vec::with_capacity(3 * height * width);
    for channel in 0..3 {
        for y in 0..height {
            values.extend((0..width).map(|x| 2.5 * noise(channel, y / 8, x / 8) + noise(channel + 3, y, x)));
        }
    }
    Tensor::from_vec(values, (1, 3, height, width), &Device::Cpu)
        .map_err(|source| KernelError::Operation { operation: "synthetic image".into(), source })
}
