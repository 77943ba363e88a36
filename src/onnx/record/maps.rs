//! Nodes for what necks do with maps of rows × columns places, and for maps cut in windows.
//!
//! Maps are tokens, (B·rows·columns, C), until an operator needs them (B, C, rows, columns).

use super::layout::{ROWS, patches};
use super::{Form, Record, Result, Value};
use crate::model::Map;
use crate::onnx::ExportError;
use crate::onnx::graph::{Attribute, BATCH, Element, Extent};
use crate::onnx::payload::{Payload, to_f32};

/// A map in a graph.
pub(super) type GraphMap = Map<Value, [Extent; 2]>;

/// A grid known when the graph is written.
pub(super) fn known(operation: &'static str, grid: [Extent; 2]) -> Result<[usize; 2]> {
    match grid {
        [Extent::Fixed(rows), Extent::Fixed(columns)] => Ok([rows, columns]),
        _ => {
            Err(ExportError::unrecordable(operation, "the image's size must be known: it cannot be dynamic".to_owned()))
        }
    }
}

impl Record<'_> {
    /// `x` as an axis of each of these lengths.
    pub(super) fn reshaped(&mut self, x: &str, dims: &[Extent]) -> Result<String> {
        let shape = self.shape(dims)?;
        Ok(self.node("Reshape", &[x, &shape], vec![]))
    }

    pub(super) fn turned(&mut self, x: &str, perm: &[i64]) -> String {
        self.node("Transpose", &[x], vec![("perm", Attribute::Ints(perm.to_vec()))])
    }

    /// Channels of a map, whose places must be `grid`'s.
    pub(super) fn channels_on(&self, operation: &'static str, x: &Value, grid: [Extent; 2]) -> Result<usize> {
        match self.tokens_of(x)? {
            (tokens, channels) if tokens == patches(grid) => Ok(channels),
            (tokens, _) => {
                let [rows, columns] = grid;
                Err(ExportError::unrecordable(operation, format!("{tokens} tokens are not {rows} × {columns} places")))
            }
        }
    }

    /// `value` (1 in its first axis) as often as `x` has entries of its first axis, its other axes as long as `rest`.
    pub(super) fn expanded(&mut self, value: &str, x: &str, rest: &[Extent]) -> Result<String> {
        let shape = self.node("Shape", &[x], vec![]);
        let first = self.integers(&[0], true);
        let mut parts = vec![self.node("Gather", &[&shape, &first], vec![("axis", Attribute::Int(0))])];
        for extent in rest {
            parts.push(match extent {
                Extent::Fixed(length) => self.integers(&[*length as i64], true),
                free => self.length(*free)?,
            });
        }
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let shape = self.node("Concat", &parts, vec![("axis", Attribute::Int(0))]);
        Ok(self.node("Expand", &[value, &shape], vec![]))
    }

    /// The lengths of `grid` in whole windows of `size`, and how many windows those are; free ones are computed in the graph.
    fn in_windows(&mut self, grid: [Extent; 2], size: usize) -> Result<[(Extent, Extent); 2]> {
        let mut out = grid.map(|side| (side, side));
        for (axis, (padded, count)) in out.iter_mut().enumerate() {
            (*padded, *count) = match grid[axis] {
                Extent::Fixed(side) => {
                    let count = side.div_ceil(size);
                    (Extent::Fixed(count * size), Extent::Fixed(count))
                }
                free => {
                    let names = WINDOWED[axis];
                    if !self.lengths.contains_key(&names.0) {
                        let scope = std::mem::replace(&mut self.scope, vec!["shapes".to_owned()]);
                        let (last, side) =
                            (self.integers(&[size as i64 - 1], true), self.integers(&[size as i64], true));
                        let length = self.length(free)?;
                        let reaching = self.node("Add", &[&length, &last], vec![]);
                        let count = self.node("Div", &[&reaching, &side], vec![]);
                        let padded = self.node("Mul", &[&count, &side], vec![]);
                        let missing = self.node("Sub", &[&padded, &length], vec![]);
                        let lengths = [(names.0, padded), (names.1, count), (names.2, missing)];
                        self.lengths.extend(lengths);
                        self.scope = scope;
                    }
                    (names.0, names.1)
                }
            };
        }
        Ok(out)
    }

    /// Zeros that make one axis of (B, …, C) `padded` long, where it is shorter: `dims` are the lengths there are.
    fn filled(&mut self, map: &str, axis: usize, dims: [Extent; 4], padded: Extent, size: usize) -> Result<String> {
        let missing = match (dims[axis], padded) {
            (Extent::Fixed(side), Extent::Fixed(padded)) if side == padded => return Ok(map.to_owned()),
            (Extent::Fixed(side), Extent::Fixed(padded)) => Extent::Fixed(padded - side),
            _ => WINDOWED[axis - 1].2,
        };
        let mut zeros = dims;
        zeros[axis] = match missing {
            Extent::Fixed(_) => missing,
            // Cut from a whole window of them, because there may be none to be cut, and candle-onnx expands nothing to one.
            Extent::Free(_) => Extent::Fixed(size),
        };
        let zero = self.store("/float/zero", Element::F32, vec![1; 4], Payload::f32(&[0.0]));
        let mut zeros = self.expanded(&zero, map, &zeros[1..])?;
        if let Extent::Free(_) = missing {
            let (end, start) = (self.length(missing)?, self.integers(&[0], true));
            let axis = self.integers(&[axis as i64], true);
            zeros = self.node("Slice", &[&zeros, &start, &end, &axis], vec![]);
        }
        Ok(self.node("Concat", &[map, &zeros], vec![("axis", Attribute::Int(axis as i64))]))
    }

    pub(super) fn record_windows(&mut self, x: &Value, grid: [Extent; 2], size: usize) -> Result<Value> {
        let channels = self.channels_on("windows", x, grid)?;
        let [(high, down), (wide, across)] = self.in_windows(grid, size)?;
        let [side, wide_channels] = [size, channels].map(Extent::Fixed);
        self.leave_to(1);
        let map = self.reshaped(&x.name, &[BATCH, grid[0], grid[1], wide_channels])?;
        let map = self.filled(&map, 1, [BATCH, grid[0], grid[1], wide_channels], high, size)?;
        let map = self.filled(&map, 2, [BATCH, high, grid[1], wide_channels], wide, size)?;
        let cut = self.reshaped(&map, &[BATCH, down, side, across, side, wide_channels])?;
        let turned = self.turned(&cut, &[0, 1, 3, 2, 4, 5]);
        let name = self.reshaped(&turned, &[ROWS, wide_channels])?;
        Ok(Value { name, form: Form::Flat { tokens: Extent::Fixed(size * size), channels } })
    }

    pub(super) fn record_unwindow(&mut self, x: &Value, grid: [Extent; 2], size: usize) -> Result<Value> {
        let channels = self.channels_on("unwindow", x, [Extent::Fixed(size); 2])?;
        let [(high, down), (wide, across)] = self.in_windows(grid, size)?;
        let [side, wide_channels] = [size, channels].map(Extent::Fixed);
        self.leave_to(1);
        let cut = self.reshaped(&x.name, &[BATCH, down, across, side, side, wide_channels])?;
        let turned = self.turned(&cut, &[0, 1, 3, 2, 4, 5]);
        let mut map = self.reshaped(&turned, &[BATCH, high, wide, wide_channels])?;
        for (axis, (there, wanted)) in [(high, grid[0]), (wide, grid[1])].into_iter().enumerate() {
            let axis = 1 + axis as i64;
            map = match (there, wanted) {
                (Extent::Fixed(there), Extent::Fixed(wanted)) if there == wanted => map,
                (_, Extent::Fixed(wanted)) => self.slice(&map, axis, 0, Some(wanted)),
                (_, free) => {
                    let (end, start, axis) =
                        (self.length(free)?, self.integers(&[0], true), self.integers(&[axis], true));
                    self.node("Slice", &[&map, &start, &end, &axis], vec![])
                }
            };
        }
        let name = self.reshaped(&map, &[ROWS, wide_channels])?;
        Ok(Value { name, form: Form::Flat { tokens: patches(grid), channels } })
    }

    pub(super) fn record_upsample(
        &mut self,
        map: &GraphMap,
        name: &str,
        norm: Option<(&str, f64)>,
    ) -> Result<GraphMap> {
        let channels = self.channels_on("upsample", &map.value, map.grid)?;
        let view = self.view(&format!("{name}.weight"))?;
        let &[inner, out, 2, 2] = view.shape else {
            let reason = format!("`{name}.weight` is {:?}, not (in, out, 2, 2)", view.shape);
            return Err(ExportError::unrecordable("upsample", reason));
        };
        if inner != channels {
            return Err(ExportError::unrecordable("upsample", format!("`{name}` does not take {channels} channels")));
        }
        let (scale, shift) = self.folded(name, out, norm)?;
        // As a Linear in → 4·out, channels [down][across][out]: candle-onnx has no ConvTranspose.
        let mut weight = vec![0f32; inner * 4 * out];
        for (at, value) in to_f32(view).into_iter().enumerate() {
            let (row, channel, corner) = (at / (4 * out), at / 4 % out, at % 4);
            weight[row * 4 * out + corner * out + channel] = value * scale[channel];
        }
        let weight = self.store(&format!("{name}.weight"), Element::F32, vec![inner, 4 * out], Payload::f32(&weight));
        let bias = self.store(&format!("{name}.bias"), Element::F32, vec![4 * out], Payload::f32(&shift.repeat(4)));
        self.enter(name);
        let x = self.flat(&map.value)?;
        let wide = self.affine(&x.name, &weight, &bias);
        let [rows, columns] = map.grid;
        let corners = [[BATCH, rows, columns], [2, 2, out].map(Extent::Fixed)].concat();
        let corners = self.reshaped(&wide, &corners)?;
        let turned = self.turned(&corners, &[0, 1, 3, 2, 4, 5]);
        let name = self.reshaped(&turned, &[ROWS, Extent::Fixed(out)])?;
        let grid = self.multiplied(map.grid, 2)?;
        Ok(Map { value: Value { name, form: Form::Flat { tokens: patches(grid), channels: out } }, grid })
    }

    /// What a layer's output channels are multiplied by, and their bias, when the BatchNorm `norm` follows it.
    fn folded(&self, name: &str, out: usize, norm: Option<(&str, f64)>) -> Result<(Vec<f32>, Vec<f32>)> {
        let bias = to_f32(self.view(&format!("{name}.bias"))?);
        let Some((norm, eps)) = norm else { return Ok((vec![1.0; out], bias)) };
        let of = |leaf: &str| Ok::<_, ExportError>(to_f32(self.view(&format!("{norm}.{leaf}"))?));
        let (gamma, beta, mean, variance) = (of("weight")?, of("bias")?, of("running_mean")?, of("running_var")?);
        let deviations = variance.iter().map(|variance| (f64::from(*variance) + eps).sqrt());
        let scale: Vec<f32> = gamma.iter().zip(deviations).map(|(gamma, by)| (f64::from(*gamma) / by) as f32).collect();
        let shift = (0..out).map(|i| (bias[i] - mean[i]) * scale[i] + beta[i]).collect();
        Ok((scale, shift))
    }

    pub(super) fn record_conv(&mut self, map: &GraphMap, name: &str) -> Result<GraphMap> {
        let channels = self.channels_on("conv", &map.value, map.grid)?;
        let weight = format!("{name}.weight");
        let view = self.view(&weight)?;
        let &[out, inner, side, _] = view.shape else {
            return Err(ExportError::unrecordable("conv", format!("`{weight}` is no convolution's")));
        };
        if inner != channels {
            return Err(ExportError::unrecordable("conv", format!("`{name}` does not take {channels} channels")));
        }
        let tokens = patches(map.grid);
        if side == 1 {
            let from = to_f32(view);
            let values: Vec<f32> = (0..inner * out).map(|at| from[at % out * inner + at / out]).collect();
            let weight = self.store(&weight, Element::F32, vec![inner, out], Payload::f32(&values));
            self.enter(name);
            let x = self.flat(&map.value)?;
            let name = self.node("MatMul", &[&x.name, &weight], vec![]);
            return Ok(Map { value: Value { name, form: Form::Flat { tokens, channels: out } }, grid: map.grid });
        }
        let weight = self.stored(&weight)?;
        self.enter(name);
        let x = self.map(&map.value, map.grid)?;
        let kernel = Attribute::Ints(vec![side as i64; 2]);
        let pads = Attribute::Ints(vec![(side / 2) as i64; 4]);
        let y = self.node("Conv", &[&x, &weight], vec![("kernel_shape", kernel), ("pads", pads)]);
        Ok(Map { value: self.unmapped(&y, tokens, out)?, grid: map.grid })
    }

    pub(super) fn record_repeat(&mut self, map: &GraphMap, factor: usize) -> Result<GraphMap> {
        let channels = self.channels_on("repeat", &map.value, map.grid)?;
        self.scope = vec!["pyramid".to_owned()];
        let rows = map.grid[0];
        let grid = self.multiplied(map.grid, factor)?;
        // Each place, then each row, beside itself.
        let mut name = map.value.name.clone();
        for dims in [
            vec![ROWS, Extent::Fixed(1), Extent::Fixed(channels)],
            vec![BATCH, rows, Extent::Fixed(1), grid[1], Extent::Fixed(channels)],
        ] {
            let one = self.reshaped(&name, &dims)?;
            let axis = ("axis", Attribute::Int(if dims.len() == 3 { 1 } else { 2 }));
            name = self.node("Concat", &vec![one.as_str(); factor], vec![axis]);
        }
        let name = self.reshaped(&name, &[ROWS, Extent::Fixed(channels)])?;
        Ok(Map { value: Value { name, form: Form::Flat { tokens: patches(grid), channels } }, grid })
    }

    pub(super) fn record_max_pool(&mut self, map: &GraphMap, side: usize) -> Result<GraphMap> {
        let channels = self.channels_on("max_pool", &map.value, map.grid)?;
        if side == 0 || map.grid.iter().any(|places| matches!(places, Extent::Fixed(places) if *places < side)) {
            let [rows, columns] = map.grid;
            let reason = format!("{rows} × {columns} places hold no {side} × {side}");
            return Err(ExportError::unrecordable("max_pool", reason));
        }
        self.scope = vec!["pyramid".to_owned()];
        let x = self.map(&map.value, map.grid)?;
        let kernel = ("kernel_shape", Attribute::Ints(vec![side as i64; 2]));
        let y = self.node("MaxPool", &[&x], vec![kernel, ("strides", Attribute::Ints(vec![2; 2]))]);
        let grid = self.halved(&y, map.grid, side)?;
        Ok(Map { value: self.unmapped(&y, patches(grid), channels)?, grid })
    }

    /// (B, rows·columns, C) → (B, C, rows, columns).
    pub(super) fn map(&mut self, x: &Value, [rows, columns]: [Extent; 2]) -> Result<String> {
        let (_, channels) = self.tokens_of(x)?;
        let x = self.stacked(x)?;
        let turned = self.turned(&x.name, &[0, 2, 1]);
        self.reshaped(&turned, &[BATCH, Extent::Fixed(channels), rows, columns])
    }

    /// (B, C, rows, columns) → (B, rows·columns, C).
    fn unmapped(&mut self, map: &str, tokens: Extent, channels: usize) -> Result<Value> {
        let rows = self.reshaped(map, &[BATCH, Extent::Fixed(channels), tokens])?;
        let name = self.turned(&rows, &[0, 2, 1]);
        Ok(Value { name, form: Form::Tokens { tokens, channels } })
    }

    /// A grid `factor` times as large; free lengths are computed in the graph.
    fn multiplied(&mut self, grid: [Extent; 2], factor: usize) -> Result<[Extent; 2]> {
        let mut out = grid;
        for (axis, extent) in out.iter_mut().enumerate() {
            *extent = match *extent {
                Extent::Fixed(length) => Extent::Fixed(factor * length),
                free => {
                    let larger = larger(free, factor).ok_or_else(|| {
                        ExportError::unrecordable("pyramid", format!("axis {axis} has no {factor}-fold"))
                    })?;
                    if !self.lengths.contains_key(&larger) {
                        let scope = std::mem::replace(&mut self.scope, vec!["shapes".to_owned()]);
                        let (length, by) = (self.length(free)?, self.integers(&[factor as i64], true));
                        let length = self.node("Mul", &[&length, &by], vec![]);
                        self.lengths.insert(larger, length);
                        self.scope = scope;
                    }
                    larger
                }
            };
        }
        Ok(out)
    }

    /// The grid of `map`, what a maximum of `side` × `side` at every second place of `grid` made.
    fn halved(&mut self, map: &str, grid: [Extent; 2], side: usize) -> Result<[Extent; 2]> {
        if let Ok(grid) = known("max_pool", grid) {
            return Ok(grid.map(|places| Extent::Fixed((places - side) / 2 + 1)));
        }
        let scope = std::mem::replace(&mut self.scope, vec!["shapes".to_owned()]);
        let shape = self.node("Shape", &[map], vec![]);
        let mut out = grid;
        for (axis, extent) in out.iter_mut().enumerate() {
            let half = smaller(*extent).ok_or_else(|| {
                ExportError::unrecordable("max_pool", format!("axis {axis} has no name for its half"))
            })?;
            self.measure(&shape, 2 + axis as i64, half);
            *extent = half;
        }
        self.scope = scope;
        Ok(out)
    }
}

/// For each axis of a free grid: its length in whole windows, the number of windows, and the length that is missing.
const WINDOWED: [(Extent, Extent, Extent); 2] = [
    (Extent::Free("whole rows"), Extent::Free("windows down"), Extent::Free("rows missing")),
    (Extent::Free("whole columns"), Extent::Free("windows across"), Extent::Free("columns missing")),
];

/// Names of grids of other scales.
const SCALED: [[&str; 5]; 2] =
    [["rows/4", "rows/2", "rows", "2·rows", "4·rows"], ["columns/4", "columns/2", "columns", "2·columns", "4·columns"]];

fn at_scale(extent: Extent, steps: isize) -> Option<Extent> {
    let Extent::Free(name) = extent else { return None };
    SCALED.iter().find_map(|names| {
        let at = names.iter().position(|known| *known == name)?.checked_add_signed(steps)?;
        names.get(at).map(|name| Extent::Free(name))
    })
}

fn larger(extent: Extent, factor: usize) -> Option<Extent> {
    match factor {
        2 => at_scale(extent, 1),
        4 => at_scale(extent, 2),
        _ => None,
    }
}

fn smaller(extent: Extent) -> Option<Extent> {
    at_scale(extent, -1)
}
