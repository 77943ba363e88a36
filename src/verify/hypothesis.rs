//! What might be wrong with a stage: each known mistake, as the alteration that would undo it.

use candle_core::{D, Tensor};

use super::replay::Replay;
use super::{Cause, Point, PositionAxes};
use crate::kernels::KernelError;
use crate::model::{Activation, Mlp, Ops, Resample, VitConfig};

/// A cause, and the pass that would prove it.
pub(super) struct Hypothesis {
    pub(super) cause: Cause,
    pub(super) config: VitConfig,
    /// Parameters to exchange for the run.
    pub(super) parameters: Vec<(String, Tensor)>,
}

impl Hypothesis {
    fn config(cause: Cause, config: VitConfig) -> Self {
        Self { cause, config, parameters: Vec::new() }
    }

    fn parameters(cause: Cause, config: &VitConfig, parameters: Vec<(String, Tensor)>) -> Self {
        Self { cause, config: config.clone(), parameters }
    }
}

/// The epsilons found in the wild, commonest first.
const EPS: [f64; 5] = [1e-6, 1e-5, 1e-12, 1e-8, 1e-3];

/// Everything that might be wrong at `point`.
pub(super) fn at(replay: &mut Replay<'_, '_>, point: Point) -> Result<Vec<Hypothesis>, KernelError> {
    let mut out = Vec::new();
    match point {
        Point::ClassToken => class_token(replay, &mut out)?,
        Point::Embedded => {
            class_token(replay, &mut out)?;
            position_axes(replay, &mut out)?;
            resample(replay.config(), &mut out);
        }
        Point::Block(i) => {
            heads(replay.config(), &mut out);
            subtle(replay.config(), &mut out);
            qkv_order(replay, i, &mut out)?;
            if replay.config().mlp == Mlp::SwiGlu {
                gate_order(replay, i, &mut out)?;
            }
            if i == 0 && replay.golden.get(Point::Embedded).is_none() {
                class_token(replay, &mut out)?;
                position_axes(replay, &mut out)?;
                resample(replay.config(), &mut out);
            }
        }
        Point::Norm => eps(replay.config(), &mut out),
        Point::Adapted => adapter_eps(replay.config(), &mut out),
        Point::Large => resample(replay.config(), &mut out),
    }
    Ok(out)
}

/// Mistakes small enough to hide below a tolerance: an eps, the GELU's approximation.
pub(super) fn subtle(config: &VitConfig, out: &mut Vec<Hypothesis>) {
    eps(config, out);
    let fits = match config.activation {
        Activation::GeluErf => Activation::GeluTanh,
        Activation::GeluTanh => Activation::GeluErf,
    };
    let cause = Cause::Activation { configured: config.activation, fits };
    out.push(Hypothesis::config(cause, VitConfig { activation: fits, ..config.clone() }));
}

fn heads(config: &VitConfig, out: &mut Vec<Hypothesis>) {
    let divisors = (1..=config.width).filter(|n| config.width.is_multiple_of(*n) && *n != config.heads);
    out.extend(divisors.map(|fits| {
        let cause = Cause::Heads { configured: config.heads, fits };
        Hypothesis::config(cause, VitConfig { heads: fits, ..config.clone() })
    }));
}

fn eps(config: &VitConfig, out: &mut Vec<Hypothesis>) {
    out.extend(EPS.into_iter().filter(|eps| *eps != config.norm_eps).map(|fits| {
        let cause = Cause::NormEps { configured: config.norm_eps, fits, adapters: false };
        Hypothesis::config(cause, VitConfig { norm_eps: fits, ..config.clone() })
    }));
}

fn adapter_eps(config: &VitConfig, out: &mut Vec<Hypothesis>) {
    let Some(adapters) = config.adapters else { return };
    out.extend(EPS.into_iter().filter(|eps| *eps != adapters.norm_eps).map(|fits| {
        let cause = Cause::NormEps { configured: adapters.norm_eps, fits, adapters: true };
        let mut altered = adapters;
        altered.norm_eps = fits;
        Hypothesis::config(cause, VitConfig { adapters: Some(altered), ..config.clone() })
    }));
}

fn resample(config: &VitConfig, out: &mut Vec<Hypothesis>) {
    let configured = config.position.resample;
    let rules = [Resample::Size, Resample::ScaleOffset { offset: 0.1 }, Resample::SizeAntialias];
    out.extend(rules.into_iter().filter(|rule| *rule != configured).map(|fits| {
        let mut altered = config.clone();
        altered.position.resample = fits;
        Hypothesis::config(Cause::PositionResample { configured, fits }, altered)
    }));
}

/// The other five orders of the thirds of block `i`'s qkv.
fn qkv_order(replay: &mut Replay<'_, '_>, i: usize, out: &mut Vec<Hypothesis>) -> Result<(), KernelError> {
    let names = ["weight", "bias"].map(|leaf| format!("blocks.{i}.attn.qkv.{leaf}"));
    let stored = [replay.ops.parameter(&names[0])?, replay.ops.parameter(&names[1])?];
    for [q, k, v] in [[1, 0, 2], [0, 2, 1], [2, 1, 0], [1, 2, 0], [2, 0, 1]] {
        let mut holds = [' '; 3];
        (holds[q], holds[k], holds[v]) = ('q', 'k', 'v');
        let mut parameters = Vec::new();
        for (name, tensor) in names.iter().zip(&stored) {
            let reordered = altered("reorder qkv", || {
                let width = tensor.dim(0)? / 3;
                let third = |n: usize| tensor.narrow(0, n * width, width);
                Tensor::cat(&[third(q)?, third(k)?, third(v)?], 0)
            })?;
            parameters.push((name.clone(), reordered));
        }
        let cause = Cause::QkvOrder { holds: holds.map(String::from).join(",") };
        out.push(Hypothesis::parameters(cause, replay.config(), parameters));
    }
    Ok(())
}

/// Gate and value of block `i`'s SwiGLU exchanged.
fn gate_order(replay: &mut Replay<'_, '_>, i: usize, out: &mut Vec<Hypothesis>) -> Result<(), KernelError> {
    let mut parameters = Vec::new();
    for leaf in ["weight", "bias"] {
        let name = format!("blocks.{i}.mlp.fc1.{leaf}");
        let stored = replay.ops.parameter(&name)?;
        let exchanged = altered("exchange gate and value", || {
            let half = stored.dim(0)? / 2;
            Tensor::cat(&[stored.narrow(0, half, half)?, stored.narrow(0, 0, half)?], 0)
        })?;
        parameters.push((name, exchanged));
    }
    out.push(Hypothesis::parameters(Cause::GateOrder, replay.config(), parameters));
    Ok(())
}

/// The table for the other axis order: MoCo v3's and MAE's sine-cosine tables are each other's transpose, which for
/// such a table is the same as swapping the halves of its channels.
fn position_axes(replay: &mut Replay<'_, '_>, out: &mut Vec<Hypothesis>) -> Result<(), KernelError> {
    let table = replay.ops.parameter("pos_embed")?;
    let [rows, columns] = replay.config().grid();
    let (patches, width) = (rows * columns, replay.config().width);
    let first = replay.config().position_rows() - patches;
    let with_class_row = |grid: Tensor| match first {
        0 => Ok(grid),
        _ => Tensor::cat(&[table.narrow(1, 0, first)?, grid], 1),
    };
    if rows == columns {
        let transposed = altered("transpose positions", || {
            let grid = table.narrow(1, first, patches)?.reshape((1, rows, columns, width))?;
            with_class_row(grid.transpose(1, 2)?.contiguous()?.reshape((1, patches, width))?)
        })?;
        let cause = Cause::PositionAxes { how: PositionAxes::GridTransposed };
        out.push(Hypothesis::parameters(cause, replay.config(), vec![("pos_embed".into(), transposed)]));
    }
    if width.is_multiple_of(2) {
        let swapped = altered("swap position halves", || {
            let half = width / 2;
            let patch = table.narrow(1, first, patches)?;
            let halves = [patch.narrow(D::Minus1, half, half)?, patch.narrow(D::Minus1, 0, half)?];
            with_class_row(Tensor::cat(&halves, D::Minus1)?)
        })?;
        let cause = Cause::PositionAxes { how: PositionAxes::HalvesSwapped };
        out.push(Hypothesis::parameters(cause, replay.config(), vec![("pos_embed".into(), swapped)]));
    }
    Ok(())
}

/// The class token merged through TEC's input adapter, where the model keeps one.
fn class_token(replay: &mut Replay<'_, '_>, out: &mut Vec<Hypothesis>) -> Result<(), KernelError> {
    let config = replay.config();
    if let Some(merged) = crate::model::Vit::new(config).merged_class_token(&mut replay.ops)? {
        let parameters = vec![("cls_token".into(), merged)];
        out.push(Hypothesis::parameters(Cause::ClassTokenNotMerged, config, parameters));
    }
    Ok(())
}

fn altered(what: &str, f: impl FnOnce() -> candle_core::Result<Tensor>) -> Result<Tensor, KernelError> {
    f().map_err(|source| KernelError::Operation { operation: what.into(), source })
}
