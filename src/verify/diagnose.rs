//! From a divergence to its cause: the hypothesis that makes the numbers come out, or else the evidence around them.

use super::hypothesis::{self, Hypothesis};
use super::replay::Replay;
use super::{Cause, Diagnosis, Difference, Golden, Point, VerifyError, weights};
use crate::model::Canonical;

/// How many times closer than the configuration a hypothesis must come to be believed.
///
/// Between two right settings the rounding noise decides, and differs by less than 2. The faintest real mistake, eps
/// 1e-5 for 1e-6 over tokens of variance 1, is 8 to 45 times the noise at block 0 of the reference models.
const DECISIVE: f64 = 5.0;

/// Hypotheses this close to the best are as good; the commonest of them is taken.
const TIE: f64 = 2.0;

/// Finds the cause of the first divergence, or of a better fit where nothing diverges.
pub(super) fn diagnose(
    replay: &mut Replay<'_, '_>,
    first: Option<Point>,
    tolerance: f64,
    alternatives: &[(String, Canonical)],
) -> Result<Option<Diagnosis>, VerifyError> {
    let Some(point) = first else {
        return below_tolerance(replay, tolerance);
    };
    if point == Point::Norm && !replay.config().final_norm {
        return Ok(Some(Diagnosis::likely(Cause::FinalNormMissing, None)));
    }
    let config = replay.config();
    let configured = replay.rerun(point, config)?;
    if let Some(configured) = configured {
        let hypotheses = hypothesis::at(replay, point)?;
        if let Some(diagnosis) = best(replay, point, hypotheses, configured, tolerance)? {
            return Ok(Some(diagnosis));
        }
    }
    let as_configured = configured.map(|difference| difference.relative);
    let likely = |cause| Ok(Some(Diagnosis::likely(cause, as_configured)));
    if configured.is_some_and(|difference| difference.relative <= tolerance) {
        // The stage is right by itself: what shows here is a small error of every stage before it.
        return match below_tolerance(replay, tolerance)? {
            Some(diagnosis) => Ok(Some(diagnosis)),
            None => likely(Cause::Rounding),
        };
    }
    if point == Point::Norm && weights::norm_is_initial(replay)? {
        return likely(Cause::FinalNormLost);
    }
    if let Point::Block(i) = point
        && replay.config().layer_scale
        && weights::scale_is_initial(replay, i)?
    {
        return likely(Cause::LayerScaleLost);
    }
    if let Some(stored) = weights::rounded_to(replay.model) {
        return likely(Cause::Precision { stored });
    }
    if let Some(diagnosis) = alternative(replay, point, as_configured, tolerance, alternatives)? {
        return Ok(Some(diagnosis));
    }
    likely(branch(replay.model, replay.golden).unwrap_or(Cause::DifferentWeights))
}

/// With every stage in the tolerance, an eps or the GELU's approximation may still be wrong: block 0, whose tokens have
/// the least variance, is where an eps speaks loudest.
fn below_tolerance(replay: &mut Replay<'_, '_>, tolerance: f64) -> Result<Option<Diagnosis>, VerifyError> {
    let config = replay.config();
    let Some(configured) = replay.rerun(Point::Block(0), config)? else {
        return Ok(None);
    };
    let mut hypotheses = Vec::new();
    hypothesis::subtle(config, &mut hypotheses);
    best(replay, Point::Block(0), hypotheses, configured, tolerance)
}

/// The hypothesis that fits decisively better than the configuration does.
fn best(
    replay: &mut Replay<'_, '_>,
    point: Point,
    hypotheses: Vec<Hypothesis>,
    configured: Difference,
    tolerance: f64,
) -> Result<Option<Diagnosis>, VerifyError> {
    let mut tried = Vec::with_capacity(hypotheses.len());
    for hypothesis in hypotheses {
        for (name, tensor) in &hypothesis.parameters {
            replay.ops.substitute(name, tensor.clone())?;
        }
        let difference = replay.rerun(point, &hypothesis.config)?;
        for (name, _) in &hypothesis.parameters {
            replay.ops.restore(name);
        }
        if let Some(difference) = difference.filter(|difference| difference.rms.is_finite()) {
            tried.push((hypothesis.cause, difference));
        }
    }
    let Some(least) = tried.iter().map(|(_, difference)| difference.rms).min_by(f64::total_cmp) else {
        return Ok(None);
    };
    // Written so that an exact fit against an inexact configuration counts, and 0 against 0 does not.
    if least * DECISIVE >= configured.rms {
        return Ok(None);
    }
    let chosen = tried.into_iter().find(|(_, difference)| difference.rms <= least * TIE);
    Ok(chosen.map(|(cause, difference)| {
        let proven = difference.relative <= tolerance;
        Diagnosis::replayed(cause, configured.relative, difference.relative, proven)
    }))
}

/// An alternative model that makes the record's numbers at `point`.
fn alternative(
    replay: &Replay<'_, '_>,
    point: Point,
    as_configured: Option<f64>,
    tolerance: f64,
    alternatives: &[(String, Canonical)],
) -> Result<Option<Diagnosis>, VerifyError> {
    for (label, model) in alternatives {
        if replay.golden.fits(&model.config().vit).is_err() {
            continue;
        }
        let stages = Replay::new(model, replay.golden, replay.hear).compare(tolerance)?;
        let found = stages.iter().find(|stage| stage.stage == point).and_then(|stage| stage.difference);
        if let Some(found) = found.filter(|found| found.relative <= tolerance) {
            let taken = replay.model.config().provenance.branch.clone();
            let cause = Cause::Branch { taken, fits: vec![label.clone()] };
            return Ok(Some(Diagnosis::replayed(cause, as_configured.unwrap_or(f64::INFINITY), found.relative, true)));
        }
    }
    Ok(None)
}

/// The branch that provenance and the record's metadata point to.
fn branch(model: &Canonical, golden: &Golden) -> Option<Cause> {
    let provenance = &model.config().provenance;
    let taken = provenance.branch.clone()?;
    let fits = match golden.fact("branch") {
        Some(recorded) if recorded == taken => return None,
        Some(recorded) => vec![recorded.to_string()],
        None if provenance.other_branches.is_empty() => return None,
        None => provenance.other_branches.clone(),
    };
    Some(Cause::Branch { taken: Some(taken), fits })
}
