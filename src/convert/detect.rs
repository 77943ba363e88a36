//! Which family a checkpoint is of, by its structure and its position table.

use super::assemble::assemble;
use super::facts::native_grid;
use super::mapping::{Layout, Mapping};
use super::plan::Candidate;
use super::position::check_position;
use super::sidecar::Sidecar;
use super::{ConvertError, Request};
use crate::checkpoint::Checkpoint;

/// Every family that this checkpoint has an encoder for, the ones that fit first. A family fits when each tensor is
/// accounted for, no parameter is missing, and the position table is of its kind.
///
/// # Errors
/// When a tensor cannot be read.
pub fn detect(checkpoint: &Checkpoint, sidecar: Option<&Sidecar>) -> Result<Vec<Candidate>, ConvertError> {
    let mut candidates = Vec::new();
    for mapping in Mapping::all()? {
        let layouts = mapping.fitting_layouts(checkpoint);
        if layouts.is_empty() {
            continue;
        }
        let mut reasons = Vec::new();
        let mut fits = false;
        for layout in &layouts {
            match verdict(&mapping, layout, checkpoint, sidecar)? {
                Ok(reason) => {
                    fits = true;
                    reasons = vec![reason];
                }
                Err(reason) if !fits => reasons.push(reason),
                Err(_) => {}
            }
        }
        reasons.dedup();
        let branches = branches(&layouts);
        candidates.push(Candidate { family: mapping.name().to_owned(), branches, fits, reasons });
    }
    candidates.sort_by_key(|candidate| !candidate.fits);
    Ok(candidates)
}

/// Names of the branches among `layouts`, each once.
pub(crate) fn branches(layouts: &[&Layout]) -> Vec<String> {
    let mut names: Vec<String> = layouts.iter().filter_map(|layout| layout.branch.clone()).collect();
    names.sort();
    names.dedup();
    names
}

/// Why a layout of a family fits, or why it does not.
fn verdict(
    mapping: &Mapping,
    layout: &Layout,
    checkpoint: &Checkpoint,
    sidecar: Option<&Sidecar>,
) -> Result<Result<String, String>, ConvertError> {
    // A configuration beside the weights says whose names they are.
    let beside = sidecar.and_then(|sidecar| sidecar.kind);
    if beside.is_some() && mapping.sidecar != beside {
        return Ok(Err("the config.json beside the file is of another tool".to_owned()));
    }
    let claims = mapping.claims(layout, checkpoint);
    let request = Request { sidecar: sidecar.cloned(), ..Request::default() };
    let assembly = match assemble(mapping, checkpoint, &claims, request.no_final_norm()) {
        Ok(assembly) => assembly,
        Err(problems) => return Ok(Err(problems.summary())),
    };
    let position = check_position(mapping, checkpoint, &assembly, native_grid(&assembly, &request).ok())?;
    Ok(match position {
        Ok((kind, _)) => {
            let norm = if assembly.vit.final_norm { "" } else { ", no final norm" };
            Ok(format!("every tensor accounted for in {}{norm}; {kind}", layout.describe()))
        }
        Err(error) => Err(error.to_string().lines().next().unwrap_or_default().to_owned()),
    })
}
