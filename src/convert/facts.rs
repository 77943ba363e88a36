//! What no tensor says: from a flag, else from the configuration beside the weights, else from the family's published
//! table, else asked for. Never guessed.

use serde::Serialize;

use super::assemble::Assembly;
use super::mapping::Mapping;
use super::{ConvertError, Request, Unknown};
use crate::hint::Hint;
use crate::model::Activation;

/// A fact and who said it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fact {
    /// `heads`, `norm_eps`, `image_size`, `branch`, `activation`, `family` or `position`.
    pub name: &'static str,
    /// The value, as text.
    pub value: String,
    /// `flag`, `config.json`, `published`, `shapes`, `values` or `structure`.
    pub origin: &'static str,
}

impl Fact {
    pub(crate) fn new(name: &'static str, value: impl Into<String>, origin: &'static str) -> Self {
        Self { name, value: value.into(), origin }
    }
}

/// Heads and eps, or the options that would supply them.
pub(crate) struct Resolved {
    pub(crate) heads: usize,
    pub(crate) norm_eps: f64,
    pub(crate) activation: Activation,
}

pub(crate) fn resolve(
    mapping: &Mapping,
    assembly: &Assembly,
    request: &Request,
    facts: &mut Vec<Fact>,
    unknowns: &mut Vec<Unknown>,
) -> Result<Resolved, ConvertError> {
    let sidecar = request.sidecar_for(mapping);
    let width = assembly.vit.width;
    let beside = sidecar.and_then(|sidecar| sidecar.heads);
    let registered = sidecar.and_then(|sidecar| registered_heads(mapping, sidecar.name.as_deref()?));
    if let (Some(seen), Some(asked)) = (assembly.heads, request.heads.or(beside))
        && seen != asked
    {
        let reason = format!("the tables of relative positions are for {seen} heads, not {asked}");
        let hint = Some(Hint::new().words("leave out ").option("heads"));
        return Err(ConvertError::Contradiction { reason, hint });
    }
    let heads = agreed("heads", request.heads, beside)?
        .or_else(|| assembly.heads.map(|heads| (heads, "shapes")))
        .or_else(|| registered.map(|heads| (heads, "published")))
        .or_else(|| mapping.published_heads(width).map(|heads| (heads, "published")));
    let heads = match heads {
        Some((heads, origin)) => {
            if heads == 0 || !width.is_multiple_of(heads) {
                let reason = format!("{heads} heads do not divide the width, {width}");
                let hint = Some(Hint::new().set("heads", "N").words(" sets another number"));
                return Err(ConvertError::Contradiction { reason, hint });
            }
            facts.push(Fact::new("heads", heads.to_string(), origin));
            heads
        }
        None => {
            let why = format!(
                "attention heads: no tensor says them, and none are published for `{}` at width {width}",
                mapping.name
            );
            unknowns.push(Unknown { option: "heads", value: "N", why });
            1
        }
    };
    let beside = sidecar.and_then(|sidecar| sidecar.norm_eps);
    let eps = agreed("norm_eps", request.norm_eps, beside)?.or_else(|| mapping.norm_eps.map(|eps| (eps, "published")));
    let norm_eps = match eps {
        Some((eps, origin)) => {
            facts.push(Fact::new("norm_eps", format!("{eps:e}"), origin));
            eps
        }
        None => {
            let why = format!("LayerNorm epsilon: `{}` files do not share one", mapping.name);
            unknowns.push(Unknown { option: "norm_eps", value: "X", why });
            1e-6
        }
    };
    let activation = match sidecar.and_then(|sidecar| sidecar.activation.as_deref()) {
        None => mapping.activation,
        Some("gelu") => Activation::GeluErf,
        Some("gelu_tanh" | "gelu_pytorch_tanh" | "gelu_new") => Activation::GeluTanh,
        Some(other) => {
            return Err(ConvertError::contradiction(format!(
                "the config.json beside the file asks for the activation `{other}`; plain ViTs here have GELU"
            )));
        }
    };
    Ok(Resolved { heads, norm_eps, activation })
}

/// What was asked for, or what the configuration says; two answers must be the same.
fn agreed<T: PartialEq + Copy + std::fmt::Debug>(
    option: &'static str,
    asked: Option<T>,
    beside: Option<T>,
) -> Result<Option<(T, &'static str)>, ConvertError> {
    match (asked, beside) {
        (Some(asked), Some(beside)) if asked != beside => {
            let reason =
                format!("`{option}` {asked:?} contradicts the config.json beside the file, which says {beside:?}");
            let hint = Hint::new().words("leave out ").option(option);
            let hint = Some(hint.words(", or move the file away from that config.json"));
            Err(ConvertError::Contradiction { reason, hint })
        }
        (Some(asked), _) => Ok(Some((asked, "flag"))),
        (None, beside) => Ok(beside.map(|value| (value, "config.json"))),
    }
}

/// Heads of a timm model that is registered under this name; `vit_small_patch16_224` is a `vit_small`, unless it is listed
/// itself.
fn registered_heads(mapping: &Mapping, architecture: &str) -> Option<usize> {
    let belongs =
        |name: &str| architecture.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with("_patch"));
    mapping.architectures.iter().find(|(name, _)| belongs(name)).map(|(_, heads)| *heads)
}

/// Rows and columns of patches of a native image.
pub(crate) fn native_grid(assembly: &Assembly, request: &Request) -> Result<[usize; 2], ConvertError> {
    let patch = assembly.vit.patch_size;
    let patches = assembly.patches;
    // Another tool's configuration may describe the size a model is *used* at, but its table is of the size it says.
    let beside = request.sidecar.as_ref().and_then(|sidecar| sidecar.image_size);
    if let Some((size, _)) = agreed("image_size", request.image_size, beside)? {
        let grid = size.map(|side| side / patch);
        let fits = size.iter().all(|side| side % patch == 0) && grid[0].checked_mul(grid[1]) == Some(patches);
        if fits {
            return Ok(grid);
        }
        let [height, width] = size;
        return Err(ConvertError::contradiction(format!(
            "an image of {height}×{width} has not the {patches} patches of side {patch} that the position table has"
        )));
    }
    let side = patches.isqrt();
    if side * side == patches {
        return Ok([side, side]);
    }
    let why = format!("native image size: {patches} patches of side {patch} are no square");
    Err(ConvertError::Unknown { unknowns: vec![Unknown { option: "image_size", value: "HxW", why }] })
}

impl Request {
    /// The configuration beside the weights, where this dialect keeps one.
    pub(crate) fn sidecar_for(&self, mapping: &Mapping) -> Option<&super::Sidecar> {
        self.sidecar.as_ref().filter(|sidecar| sidecar.kind.is_some() && sidecar.kind == mapping.sidecar)
    }

    /// Whether the configuration beside the weights says that there is no final norm.
    pub(crate) fn no_final_norm(&self) -> bool {
        self.sidecar.as_ref().is_some_and(|sidecar| sidecar.no_final_norm)
    }
}
