//! What a run makes: a model in the common format that says what it descends from.

use std::io::Read as _;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::error::RunError;
use super::{Base, state};
use crate::convert::config_text;
use crate::model::{
    Canonical, DecoderConfig, Feature, Interpolation, Licence, ModelConfig, ModelFile, Preprocessing, Provenance,
    VitConfig,
};
use crate::staged::StagedDir;
use crate::train::{Recipe, Step, Target};

/// The paper's, and its predecessors': the images' own statistics are not asked.
const IMAGENET: Preprocessing = Preprocessing {
    mean: [0.485, 0.456, 0.406],
    std: [0.229, 0.224, 0.225],
    interpolation: Interpolation::Bicubic,
    crop_pct: 0.875,
};

/// Size and sha256 of a file, lower-case hex.
pub(super) fn sha256(path: &Path) -> Result<(u64, String), RunError> {
    let mut file = std::fs::File::open(path).map_err(RunError::io("read", path))?;
    let (mut hash, mut bytes, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 18]);
    loop {
        match file.read(&mut buffer).map_err(RunError::io("read", path))? {
            0 => break,
            count => {
                hash.update(&buffer[..count]);
                bytes += count as u64;
            }
        }
    }
    Ok((bytes, hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()))
}

/// How images are normalised: as the base wants them.
pub(super) fn preprocessing(base: Option<&Base>) -> Preprocessing {
    base.map_or(IMAGENET, |base| base.model.config().preprocessing)
}

/// Writes what `step` has made of `recipe` and `base` as the model directory `out`, and proves it by opening it.
/// `checkpoint` is where it can be made again from.
pub(super) fn write(
    out: &Path,
    recipe: &Recipe,
    base: Option<&Base>,
    checkpoint: &Path,
    step: &Step<'_>,
) -> Result<Canonical, RunError> {
    let config = config(recipe, step.vit(), base, checkpoint)?;
    let mut trained = step.trained()?;
    if config.vit.adapters.is_none() {
        // An input adapter alone has done its work once the class token is merged.
        trained.retain(|tensor| tensor.file != ModelFile::Adapters);
    }
    let staged = StagedDir::new(out).map_err(RunError::io("write", out))?;
    for file in [ModelFile::Model, ModelFile::Adapters, ModelFile::Decoder] {
        let tensors = trained.iter().filter(|tensor| tensor.file == file);
        let tensors: Vec<_> =
            tensors.map(|tensor| (&tensor.spec.name[..], tensor.spec.shape.clone(), &tensor.values[..])).collect();
        if !tensors.is_empty() {
            let path = staged.path().join(file.name());
            state::write(&path, &tensors).map_err(RunError::io("write", &path))?;
        }
    }
    let path = staged.path().join(ModelFile::Config.name());
    std::fs::write(&path, config_text(&config, true)).map_err(RunError::io("write", &path))?;
    staged.commit().map_err(RunError::io("write", out))?;
    Ok(Canonical::open(out)?)
}

fn config(recipe: &Recipe, vit: &VitConfig, base: Option<&Base>, checkpoint: &Path) -> Result<ModelConfig, RunError> {
    let method = &recipe.method;
    let pixels = method.target == Target::Pixels;
    let decoder = method.decoder;
    let decoder = DecoderConfig { width: decoder.width, depth: decoder.depth, heads: Some(decoder.heads) };
    let vit = VitConfig { decoder: Some(decoder), ..vit.clone() };
    let (source_bytes, source_sha256) = sha256(&checkpoint.join(super::checkpoint::STATE))?;
    let name = checkpoint.file_name().unwrap_or_default().to_string_lossy();
    Ok(ModelConfig {
        format: ModelConfig::FORMAT,
        family: if pixels { "mae" } else { "tec" }.to_owned(),
        vit,
        feature: if pixels { Feature::Cls } else { Feature::Mean },
        preprocessing: preprocessing(base),
        provenance: Provenance {
            source_file: format!("{name}/{}", super::checkpoint::STATE),
            source_sha256,
            source_bytes,
            container: "safetensors".to_owned(),
            converter: "pretrain".to_owned(),
            branch: None,
            other_branches: Vec::new(),
            tool: concat!("tec-zoo ", env!("CARGO_PKG_VERSION")).to_owned(),
            lineage: base.map(Base::lineage).unwrap_or_default(),
        },
        licence: licence(base),
    })
}

/// A child may be used as its base may.
fn licence(base: Option<&Base>) -> Licence {
    match base {
        Some(base) => {
            let own = &base.model.config().licence;
            let evidence = format!("trained from `{}`, whose licence is carried on: {}", base.name, own.evidence);
            Licence { spdx: own.spdx.clone(), evidence: evidence.trim_end_matches([' ', ':']).to_owned() }
        }
        None => {
            Licence { spdx: "unknown".to_owned(), evidence: "trained without a base; who trained it says".to_owned() }
        }
    }
}
