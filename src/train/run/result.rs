//! What a run makes, in words: a model's configuration that says what it descends from.

use std::path::Path;

use sha2::{Digest, Sha256};

use super::Base;
use super::error::RunError;
use crate::model::{DecoderConfig, Feature, Interpolation, Licence, ModelConfig, Preprocessing, Provenance, VitConfig};
use crate::train::{Recipe, Target};
use crate::zoo::sha256_of;

/// The paper's, and its predecessors': the images' own statistics are not asked.
const IMAGENET: Preprocessing = Preprocessing {
    mean: [0.485, 0.456, 0.406],
    std: [0.229, 0.224, 0.225],
    interpolation: Interpolation::Bicubic,
    crop_pct: 0.875,
};

/// Size and sha256 of a file, lower-case hex.
pub(super) fn sha256(path: &Path) -> Result<(u64, String), RunError> {
    sha256_of(path).map_err(RunError::io("read", path))
}

/// A finished hash, lower-case hex.
pub(super) fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// How images are normalised: as the base wants them.
pub(super) fn preprocessing(base: Option<&Base>) -> Preprocessing {
    base.map_or(IMAGENET, |base| base.model.config().preprocessing)
}

/// What the student `vit` of a run is as a model. The checkpoint it is made of is still to be named in its provenance.
/// `base_sha256` is of the base's `model.safetensors`.
pub(super) fn config(recipe: &Recipe, vit: &VitConfig, base: Option<&Base>, base_sha256: Option<&str>) -> ModelConfig {
    let method = &recipe.method;
    let pixels = method.target == Target::Pixels;
    let decoder = method.decoder;
    let decoder = DecoderConfig { width: decoder.width, depth: decoder.depth, heads: Some(decoder.heads) };
    let vit = VitConfig { decoder: Some(decoder), ..vit.clone() };
    let (lineage, lineage_sha256) = base.map(|base| base.lineage(base_sha256)).unwrap_or_default();
    ModelConfig {
        format: ModelConfig::FORMAT,
        family: if pixels { "mae" } else { "tec" }.to_owned(),
        vit,
        feature: if pixels { Feature::Cls } else { Feature::Mean },
        preprocessing: preprocessing(base),
        provenance: Provenance {
            source_file: String::new(),
            source_sha256: String::new(),
            source_bytes: 0,
            container: "safetensors".to_owned(),
            converter: "pretrain".to_owned(),
            branch: None,
            other_branches: Vec::new(),
            tool: concat!("tec-zoo ", env!("CARGO_PKG_VERSION")).to_owned(),
            lineage,
            lineage_sha256,
            branched_from: Vec::new(),
        },
        licence: licence(base),
    }
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
