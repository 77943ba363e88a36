//! From claims to parameters: which tensors make up each parameter of each file, and the architecture their shapes say.

use std::collections::{BTreeMap, BTreeSet};

use safetensors::Dtype;

use super::claims::{Claims, Fate, shown};
use super::mapping::{FinalNorm, Mapping};
use super::problems::{Ambiguous, Misshaped, Missing, Problems, Unclaimed};
use crate::checkpoint::{Checkpoint, TensorEntry};
use crate::model::{
    AdapterConfig, ClassifierConfig, DecoderConfig, Mlp, Neck, ParameterSpec, PositionConfig, PositionKind,
    RelativePosition, VitConfig, Window, adapter_parameters, neck_parameters, vit_parameters,
};

/// Largest sizes accepted before any arithmetic on them; [`VitConfig::validate`] has the last word.
const MAX_SIDE: usize = 1 << 19;
const MAX_PATCHES: usize = 1 << 28;

/// Where a parameter's values come from: indices into `Checkpoint::tensors`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Values {
    Copy(usize),
    /// Joined along the first dimension, in this order.
    Concat(Vec<usize>),
    /// The class token through TEC's input adapter.
    Merge(Box<MergeInputs>),
    /// The class token plus the first row of the position table.
    Fold {
        token: usize,
        table: usize,
    },
    /// All but the first `skip` values.
    Tail {
        of: usize,
        skip: usize,
    },
}

/// The tensors of TEC's input adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MergeInputs {
    pub(crate) token: usize,
    pub(crate) fc1: [usize; 2],
    pub(crate) fc2: [usize; 2],
}

/// One parameter to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) values: Values,
}

type Pieces = BTreeMap<String, Piece>;

/// The parameters of each file, in the order they are written, and the architecture (with one head, until a fact says
/// how many).
#[derive(Debug)]
pub(crate) struct Assembly {
    pub(crate) model: Vec<Piece>,
    pub(crate) adapters: Vec<Piece>,
    pub(crate) neck: Vec<Piece>,
    pub(crate) decoder: Vec<Piece>,
    pub(crate) vit: VitConfig,
    /// Patches of the position table.
    pub(crate) patches: usize,
    /// Heads, where a table of relative positions says how many.
    pub(crate) heads: Option<usize>,
}

/// Puts the claimed tensors together and holds them against the one authority on names and shapes.
///
/// `no_final_norm`: a configuration beside the weights says that there is none.
pub(crate) fn assemble(
    mapping: &Mapping,
    checkpoint: &Checkpoint,
    claims: &Claims,
    no_final_norm: bool,
) -> Result<Assembly, Box<Problems>> {
    let mut gather = Gather {
        entries: checkpoint.tensors(),
        problems: Problems { converter: mapping.name.clone(), ..Problems::default() },
        model: Pieces::new(),
        adapters: Pieces::new(),
        neck: Pieces::new(),
        decoder: Vec::new(),
        parts: BTreeMap::new(),
    };
    gather.collect(claims);
    gather.join();
    gather.merge(mapping);
    if mapping.fold_class_position {
        gather.fold();
    }
    if mapping.window.is_some() {
        gather.shorten();
    }
    let Gather { mut problems, mut model, mut adapters, mut neck, decoder, .. } = gather;

    let tensors = checkpoint.tensors().len();
    let mut sizes = Sizes::infer(mapping, &model, &adapters, !neck.is_empty(), tensors, &mut problems);
    sizes.final_norm &= !no_final_norm;
    let mut vit = sizes.config(mapping);
    vit.adapters = Sizes::adapters(mapping, &adapters, vit.width);
    vit.neck = neck_config(mapping, &neck);
    vit.decoder = decoder_config(mapping, &decoder);
    let within = |config: &VitConfig| {
        let most = [config.width, config.mlp_width, config.patch_size, config.registers].into_iter().max().unwrap_or(0);
        let adapters = config.adapters.map_or(0, |a| a.groups.max(a.blocks_per_group).max(a.mlp_width));
        let pyramid = match config.neck {
            Some(Neck::SimplePyramid { width, .. }) => width,
            _ => 0,
        };
        let relative = match config.relative_position {
            Some(RelativePosition::Decomposed { grid: [rows, columns] }) => rows.max(columns),
            _ => 0,
        };
        let window = config.window.as_ref().map_or(0, |window| window.size);
        most.max(adapters).max(pyramid).max(relative).max(window) <= MAX_SIDE
            && config.image_size.iter().all(|side| *side <= MAX_PATCHES * MAX_SIDE)
    };
    if !within(&vit) {
        problems.absurd.push(format!("width {}, MLP {}, patch {}", vit.width, vit.mlp_width, vit.patch_size));
        return Err(Box::new(problems));
    }

    let model = require(mapping, &vit_parameters(&vit), &mut model, &sizes, &mut problems);
    let specs = vit.adapters.map(|config| adapter_parameters(&config, vit.width)).unwrap_or_default();
    let adapters = require(mapping, &specs, &mut adapters, &sizes, &mut problems);
    let specs = vit.neck.map(|neck| neck_parameters(&neck, vit.width)).unwrap_or_default();
    let neck = require(mapping, &specs, &mut neck, &sizes, &mut problems);
    if let Some(config) = &vit.adapters
        && config.groups.checked_mul(config.blocks_per_group) != Some(vit.depth)
    {
        let (groups, per_group) = (config.groups, config.blocks_per_group);
        problems.absurd.push(format!("adapters over {groups} × {per_group} blocks; the model has {}", vit.depth));
    }
    if problems.is_empty() {
        Ok(Assembly { model, adapters, neck, decoder, patches: vit.patches(), heads: sizes.heads, vit })
    } else {
        Err(Box::new(problems))
    }
}

struct Gather<'c> {
    entries: &'c [TensorEntry],
    problems: Problems,
    model: Pieces,
    adapters: Pieces,
    neck: Pieces,
    decoder: Vec<Piece>,
    /// Parts of a joined parameter by position, and how many it takes.
    parts: BTreeMap<String, (usize, BTreeMap<usize, usize>)>,
}

impl Gather<'_> {
    fn piece(&self, name: &str, at: usize) -> Piece {
        let entry = &self.entries[at];
        Piece { name: name.to_owned(), dtype: entry.dtype, shape: entry.shape.clone(), values: Values::Copy(at) }
    }

    fn collect(&mut self, claims: &Claims) {
        for (at, (key, fate)) in claims.fates.iter().enumerate() {
            match fate {
                Fate::Model(target) => {
                    let piece = self.piece(target, at);
                    if self.model.insert(target.clone(), piece).is_some() {
                        self.problems.duplicated.push((target.clone(), shown(&self.entries[at])));
                    }
                }
                Fate::Adapter(target) => {
                    let piece = self.piece(target, at);
                    if self.adapters.insert(target.clone(), piece).is_some() {
                        self.problems.duplicated.push((target.clone(), shown(&self.entries[at])));
                    }
                }
                Fate::Neck(target) => {
                    let piece = self.piece(target, at);
                    if self.neck.insert(target.clone(), piece).is_some() {
                        self.problems.duplicated.push((target.clone(), shown(&self.entries[at])));
                    }
                }
                Fate::Concat { to, part, parts } => {
                    let (_, held) = self.parts.entry(to.clone()).or_insert_with(|| (*parts, BTreeMap::new()));
                    if held.insert(*part, at).is_some() {
                        self.problems.duplicated.push((to.clone(), shown(&self.entries[at])));
                    }
                }
                Fate::Decoder(name) => {
                    let piece = self.piece(name, at);
                    self.float(&piece);
                    self.decoder.push(piece);
                }
                Fate::Ignored | Fate::OtherBranch | Fate::Beside => {}
                Fate::Unclaimed => {
                    let (key, shape) = (shown(&self.entries[at]), self.entries[at].shape.clone());
                    self.problems.unclaimed.push(Unclaimed { key, shape });
                }
                Fate::Ambiguous { first, second } => {
                    let rules = [first.clone(), second.clone()];
                    self.problems.ambiguous.push(Ambiguous { key: key.clone(), rules });
                }
            }
        }
        let mut seen = BTreeSet::new();
        for piece in &self.decoder {
            if !seen.insert(&piece.name) {
                self.problems.duplicated.push((piece.name.clone(), piece.name.clone()));
            }
        }
    }

    fn float(&mut self, piece: &Piece) {
        if !is_float(piece.dtype) {
            self.problems.not_float.push((piece.name.clone(), piece.dtype));
        }
    }

    /// Joins split parameters. A part that is absent leaves its target missing.
    fn join(&mut self) {
        for (name, (all, parts)) in std::mem::take(&mut self.parts) {
            if parts.len() < all {
                continue;
            }
            let order: Vec<usize> = parts.values().copied().collect();
            let first = &self.entries[order[0]];
            let alike = order.iter().all(|at| {
                let entry = &self.entries[*at];
                entry.dtype == first.dtype && entry.shape == first.shape && !entry.shape.is_empty()
            });
            let mut shape = first.shape.clone();
            let rows = shape.first().and_then(|rows| rows.checked_mul(order.len()));
            match (alike, rows) {
                (true, Some(rows)) => shape[0] = rows,
                _ => {
                    let odd = order.iter().find(|at| self.entries[**at].shape != first.shape).unwrap_or(&order[0]);
                    let (found, expected) = (self.entries[*odd].shape.clone(), first.shape.clone());
                    self.problems.misshaped.push(Misshaped { name: format!("{name} (part)"), found, expected });
                    continue;
                }
            }
            let piece = Piece { name: name.clone(), dtype: first.dtype, shape, values: Values::Concat(order) };
            if self.model.insert(name.clone(), piece).is_some() {
                self.problems.duplicated.push((name.clone(), name));
            }
        }
    }

    /// When the input adapter is there, the class token moves to it and the merged one takes its place.
    fn merge(&mut self, mapping: &Mapping) {
        let Some(merge) = &mapping.merge else { return };
        let at = |pieces: &Pieces, name: &str| match pieces.get(name)?.values {
            Values::Copy(at) => Some(at),
            _ => None,
        };
        let adapter = |linear: &str, leaf: &str| at(&self.adapters, &format!("{linear}.{leaf}"));
        let pair = |linear: &str| Some([adapter(linear, "weight")?, adapter(linear, "bias")?]);
        let inputs = pair(&merge.fc1).zip(pair(&merge.fc2)).zip(at(&self.model, &merge.to));
        let Some(((fc1, fc2), token)) = inputs else { return };
        let kept = Piece { name: merge.token.clone(), ..self.piece(&merge.token, token) };
        let values = Values::Merge(Box::new(MergeInputs { token, fc1, fc2 }));
        let merged = Piece { name: merge.to.clone(), dtype: Dtype::F32, shape: kept.shape.clone(), values };
        self.adapters.insert(merge.token.clone(), kept);
        self.model.insert(merge.to.clone(), merged);
    }

    /// A model without class token has no use for the row that a pretraining's table kept for it.
    fn shorten(&mut self) {
        let Some(Piece { shape, values: Values::Copy(at), .. }) = self.model.get("pos_embed") else { return };
        let (at, &[1, rows, width]) = (*at, shape.as_slice()) else { return };
        let square = |count: usize| count.isqrt().pow(2) == count;
        if rows > 1 && square(rows - 1) && !square(rows) {
            let (shape, values) = (vec![1, rows - 1, width], Values::Tail { of: at, skip: width });
            let patches = Piece { shape, values, ..self.piece("pos_embed", at) };
            self.model.insert(patches.name.clone(), patches);
        }
    }

    /// Where registers come between class token and patches, the class token takes its row of the position table.
    fn fold(&mut self) {
        let stored = |name: &str| match self.model.get(name) {
            Some(Piece { dtype, shape, values: Values::Copy(at), .. }) if is_float(*dtype) => match *shape.as_slice() {
                [1, rows, width] => Some((*at, rows, width)),
                _ => None,
            },
            _ => None,
        };
        let (Some((token, 1, width)), Some((table, rows @ 1.., columns))) = (stored("cls_token"), stored("pos_embed"))
        else {
            return;
        };
        if !self.model.contains_key("reg_token") || width != columns {
            return;
        }
        let shape = vec![1, 1, width];
        let folded =
            Piece { dtype: Dtype::F32, shape, values: Values::Fold { token, table }, ..self.piece("cls_token", token) };
        let (shape, values) = (vec![1, rows - 1, width], Values::Tail { of: table, skip: width });
        let patches = Piece { shape, values, ..self.piece("pos_embed", table) };
        self.model.extend([folded, patches].map(|piece| (piece.name.clone(), piece)));
    }
}

/// What the shapes say; a size whose tensors are missing is `None`.
struct Sizes {
    width: Option<usize>,
    patch: Option<usize>,
    patches: Option<usize>,
    mlp: Option<usize>,
    form: Mlp,
    layer_scale: bool,
    registers: usize,
    depth: usize,
    final_norm: bool,
    classifier: Option<ClassifierConfig>,
    class_token: bool,
    window: Option<Window>,
    relative: Option<RelativePosition>,
    heads: Option<usize>,
}

impl Sizes {
    fn infer(
        mapping: &Mapping,
        model: &Pieces,
        adapters: &Pieces,
        has_neck: bool,
        tensors: usize,
        problems: &mut Problems,
    ) -> Self {
        let side = |name: &str, dim: usize| model.get(name).and_then(|piece| piece.shape.get(dim)).copied();
        let has = |linear: &str| ["weight", "bias"].iter().any(|leaf| model.contains_key(&format!("{linear}.{leaf}")));
        let fc_norm = has("fc_norm");
        let indices: BTreeSet<usize> = model.keys().filter_map(|name| index_after(name, "blocks.")).collect();
        // A hostile index must not decide how many parameters are listed as missing.
        let depth = match indices.last() {
            Some(last) if *last < tensors => last + 1,
            Some(last) => {
                problems.absurd.push(format!("block {last} in a file of {tensors} tensors"));
                indices.len()
            }
            None => 1,
        };
        let final_norm = match mapping.final_norm {
            FinalNorm::Always => true,
            FinalNorm::UnlessNeck => has("norm") || !has_neck,
            FinalNorm::UnlessFcNorm => has("norm") || !fc_norm,
            FinalNorm::Optional => has("norm") || adapters.contains_key("encoder_adapter.norm_in.weight"),
        };
        let registers = side("reg_token", 1).unwrap_or(0);
        let class_token = mapping.window.is_none();
        // A table that goes with registers has no row for the class token.
        let class_row = usize::from(class_token && registers == 0);
        let rows = side("pos_embed", 1);
        let sensible = |rows: &usize| (1 + class_row..=MAX_PATCHES).contains(rows);
        if rows.is_some_and(|rows| !sensible(&rows)) {
            problems.absurd.push(format!("position table of {} rows", rows.unwrap_or(0)));
        }
        // A gate and its value lie in one matrix, of twice the rows that the second Linear reads.
        let (fc1, fc2) = (side("blocks.0.mlp.fc1.weight", 0), side("blocks.0.mlp.fc2.weight", 1));
        let gated = fc1.zip(fc2).is_some_and(|(fc1, fc2)| fc2.checked_mul(2) == Some(fc1));
        let width =
            side("pos_embed", 2).or_else(|| side("cls_token", 2)).or_else(|| side("patch_embed.proj.weight", 0));
        // A table of offsets between places of an axis.
        let axis = |block: usize, axis: &str| {
            side(&format!("blocks.{block}.attn.rel_pos_{axis}"), 0).map(|offsets| offsets.div_ceil(2).max(1))
        };
        let decomposed = axis(0, "h").is_some() || axis(0, "w").is_some();
        let table = side("blocks.0.attn.relative_position_bias_table", 1);
        let heads = match side("blocks.0.attn.rel_pos_h", 1) {
            Some(head_width) => width.and_then(|width| width.checked_div(head_width)).filter(|heads| *heads > 0),
            None => table.filter(|heads| *heads > 0),
        };
        let window = mapping.window.map(|size| Window { size, ..Window::vitdet(depth) }).map(|window| {
            let seen =
                (0..depth).find(|block| !window.global_blocks.contains(block)).and_then(|block| axis(block, "h"));
            Window { size: seen.unwrap_or(window.size), ..window }
        });
        let relative = if decomposed {
            let global = window.as_ref().and_then(|window| window.global_blocks.first().copied()).unwrap_or(0);
            let grid = ["h", "w"].map(|name| axis(global, name).unwrap_or(1));
            Some(RelativePosition::Decomposed { grid })
        } else {
            table.map(|_| RelativePosition::Table)
        };
        Self {
            width,
            patch: side("patch_embed.proj.weight", 2),
            patches: rows.filter(sensible).map(|rows| rows - class_row),
            mlp: if gated { fc2 } else { fc1 },
            form: if gated { Mlp::SwiGlu } else { Mlp::Plain },
            layer_scale: model.keys().any(|name| name.ends_with(".ls1.gamma") || name.ends_with(".ls2.gamma")),
            registers,
            depth,
            final_norm,
            classifier: has("head").then(|| ClassifierConfig {
                classes: side("head.weight", 0).or_else(|| side("head.bias", 0)).unwrap_or(1),
                fc_norm,
            }),
            class_token,
            window,
            relative,
            heads,
        }
    }

    fn config(&self, mapping: &Mapping) -> VitConfig {
        let patch = self.patch.unwrap_or(1).clamp(1, MAX_SIDE);
        VitConfig {
            image_size: [patch, patch * self.patches.unwrap_or(1)],
            patch_size: patch,
            width: self.width.unwrap_or(1),
            depth: self.depth,
            heads: self.heads.unwrap_or(1),
            mlp_width: self.mlp.unwrap_or(1),
            mlp: self.form,
            layer_scale: self.layer_scale,
            registers: self.registers,
            class_token: self.class_token,
            window: self.window.clone(),
            relative_position: self.relative,
            neck: None,
            norm_eps: mapping.norm_eps.unwrap_or(1e-6),
            activation: mapping.activation,
            final_norm: self.final_norm,
            position: PositionConfig { kind: PositionKind::Learned, resample: mapping.resample_of(self.registers) },
            classifier: self.classifier,
            adapters: None,
            decoder: None,
        }
    }

    fn adapters(mapping: &Mapping, adapters: &Pieces, width: usize) -> Option<AdapterConfig> {
        if adapters.is_empty() {
            return None;
        }
        let side = |name: &str, dim: usize| adapters.get(name).and_then(|piece| piece.shape.get(dim)).copied();
        let groups: BTreeSet<usize> =
            adapters.keys().filter_map(|name| index_after(name, "encoder_adapter.groups.")).collect();
        Some(AdapterConfig {
            groups: groups.len().max(1),
            blocks_per_group: side("encoder_adapter.groups.0.fuse.weight", 1).unwrap_or(1) / width.max(1),
            mlp_width: side("encoder_adapter.groups.0.mlp.fc1.weight", 0).unwrap_or(1),
            norm_eps: mapping.adapter_norm_eps.unwrap_or(1e-5),
            input_mlp_width: side("input_adapter.fc1.weight", 0),
        })
    }

    /// Whether the shape the architecture gives `name` rests on sizes the file really says.
    fn knows(&self, name: &str) -> bool {
        self.width.is_some()
            && (name != "pos_embed" || self.patches.is_some())
            && (!name.starts_with("patch_embed") || self.patch.is_some())
            && (!name.contains(".mlp.") || self.mlp.is_some())
            // The grid is a fact: `settled` looks at it.
            && !name.ends_with(".relative_position_bias_table")
    }
}

/// Whether what only facts decide, the native grid, fits the tables of relative positions.
pub(crate) fn settled(mapping: &Mapping, model: &[Piece], vit: &VitConfig) -> Result<(), Box<Problems>> {
    let mut problems = Problems { converter: mapping.name.clone(), ..Problems::default() };
    let tables = vit_parameters(vit).into_iter().filter(|spec| spec.name.ends_with(".relative_position_bias_table"));
    for spec in tables {
        if let Some(piece) = model.iter().find(|piece| piece.name == spec.name && piece.shape != spec.shape) {
            let (found, expected) = (piece.shape.clone(), spec.shape);
            problems.misshaped.push(Misshaped { name: spec.name, found, expected });
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(Box::new(problems)) }
}

/// The neck that the claimed tensors are of.
fn neck_config(mapping: &Mapping, neck: &Pieces) -> Option<Neck> {
    if neck.is_empty() {
        return None;
    }
    let width = (2..=5).find_map(|scale| neck.get(&format!("neck.p{scale}.lateral.weight"))?.shape.first().copied());
    Some(match width {
        Some(width) => Neck::SimplePyramid { width, norm_eps: mapping.neck_norm_eps.unwrap_or(1e-6) },
        // nn.BatchNorm2d's default.
        None => Neck::FeaturePyramid { norm_eps: mapping.neck_norm_eps.unwrap_or(1e-5) },
    })
}

fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F64)
}

/// The number in `blocks.{i}.…`.
fn index_after(name: &str, prefix: &str) -> Option<usize> {
    name.strip_prefix(prefix)?.split('.').next()?.parse().ok()
}

fn decoder_config(mapping: &Mapping, decoder: &[Piece]) -> Option<DecoderConfig> {
    let facts = mapping.decoder.as_ref()?;
    let width = *decoder.iter().find(|piece| piece.name == facts.width)?.shape.last()?;
    let counts = |piece: &&Piece| facts.blocks.iter().any(|block| block.captures(&piece.name).is_some());
    let depth = decoder.iter().filter(counts).count();
    let heads = facts.heads.filter(|heads| width > 0 && width.is_multiple_of(*heads));
    Some(DecoderConfig { width, depth, heads })
}

/// Takes the parameters `specs` names out of `pieces`, in that order, and reports what is missing, misshaped or too much.
fn require(
    mapping: &Mapping,
    specs: &[ParameterSpec],
    pieces: &mut Pieces,
    sizes: &Sizes,
    problems: &mut Problems,
) -> Vec<Piece> {
    let mut out = Vec::with_capacity(specs.len());
    for spec in specs {
        let Some(piece) = pieces.remove(&spec.name) else {
            let shape = sizes.knows(&spec.name).then(|| spec.shape.clone());
            let sources = mapping.sources_of(&spec.name, sizes.form);
            problems.missing.push(Missing { name: spec.name.clone(), shape, sources });
            continue;
        };
        if piece.shape != spec.shape && sizes.knows(&spec.name) {
            let (found, expected) = (piece.shape.clone(), spec.shape.clone());
            problems.misshaped.push(Misshaped { name: spec.name.clone(), found, expected });
        }
        if !is_float(piece.dtype) {
            problems.not_float.push((spec.name.clone(), piece.dtype));
        }
        out.push(piece);
    }
    for (name, piece) in std::mem::take(pieces) {
        problems.unexpected.push(Unclaimed { key: name, shape: piece.shape });
    }
    out
}
