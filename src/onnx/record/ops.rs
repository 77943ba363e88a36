//! The operations of a forward pass, each as its nodes.

use super::layout::{longer, padded, patches};
use super::maps::GraphMap;
use super::{Form, Record, Result, Value};
use crate::model::{Activation, Ops, PositionRequest, RelativeRequest, position};
use crate::onnx::ExportError;
use crate::onnx::graph::{Attribute, BATCH, Element, Extent, GRID, PATCHES};
use crate::onnx::payload::{Payload, to_f32};

impl Record<'_> {
    /// A map (B, C, rows, columns), cut to multiples of `step` rows and columns.
    fn whole_steps(&mut self, map: &str, shape: &str, step: usize) -> String {
        let axes = self.integers(&[2, 3], true);
        let step = self.integers(&[step as i64], true);
        let sides = self.node("Gather", &[shape, &axes], vec![("axis", Attribute::Int(0))]);
        let steps = self.node("Div", &[&sides, &step], vec![]);
        let ends = self.node("Mul", &[&steps, &step], vec![]);
        let starts = self.integers(&[0, 0], true);
        self.node("Slice", &[map, &starts, &ends, &axes], vec![])
    }
}

impl Ops for Record<'_> {
    type Value = Value;
    type Grid = [Extent; 2];
    type Error = ExportError;

    fn parameter(&mut self, name: &str) -> Result<Value> {
        let dims = self.view(name)?.shape.to_vec();
        Ok(Value { name: self.stored(name)?, form: Form::Stored { dims } })
    }

    fn patch_embed(&mut self, images: &Value, name: &str, patch: usize) -> Result<Value> {
        let Form::Images { sides, padding } = images.form else {
            return Err(ExportError::unrecordable("patch_embed", format!("`{}` is not an image", images.name)));
        };
        let grid = match sides {
            [Extent::Fixed(height), Extent::Fixed(width)] => {
                [height, width].map(|side| Extent::Fixed(padded(side, padding) / patch))
            }
            _ => GRID,
        };
        let tokens = patches(grid);
        let weight = self.stored(&format!("{name}.weight"))?;
        let bias = self.stored(&format!("{name}.bias"))?;
        let channels = self.view(&format!("{name}.bias"))?.shape.iter().product::<usize>();
        self.enter(name);
        let side = Attribute::Ints(vec![patch as i64; 2]);
        let mut attributes = vec![("kernel_shape", side.clone()), ("strides", side)];
        // Zeros below and to the right, by the convolution itself: as many as are missing, or could be.
        let zeros = sides.map(|side| match (side, padding) {
            (_, None) => 0,
            (Extent::Fixed(side), Some(_)) => (padded(side, padding) - side) as i64,
            (Extent::Free(_), Some(multiple)) => multiple as i64 - 1,
        });
        if zeros != [0, 0] {
            attributes.push(("pads", Attribute::Ints(vec![0, 0, zeros[0], zeros[1]])));
        }
        let mut map = self.node("Conv", &[&images.name, &weight, &bias], attributes);
        self.leave_to(1);
        if grid == GRID {
            let mut shape = self.node("Shape", &[&map], vec![]);
            if let Some(step) = padding.map(|multiple| multiple / patch).filter(|step| *step > 1) {
                map = self.whole_steps(&map, &shape, step);
                shape = self.node("Shape", &[&map], vec![]);
            }
            for (axis, extent) in [(0, BATCH), (2, GRID[0]), (3, GRID[1])] {
                self.measure(&shape, axis, extent);
            }
        }
        let shape = self.shape(&[BATCH, Extent::Fixed(channels), tokens])?;
        let rows = self.node("Reshape", &[&map, &shape], vec![]);
        let name = self.node("Transpose", &[&rows], vec![("perm", Attribute::Ints(vec![0, 2, 1]))]);
        Ok(Value { name, form: Form::Tokens { tokens, channels } })
    }

    fn position(&mut self, name: &str, request: &PositionRequest<[Extent; 2]>) -> Result<Value> {
        let [Extent::Fixed(rows), Extent::Fixed(columns)] = request.grid else {
            return self.free_position(name, request);
        };
        let grid = [rows, columns];
        let view = self.view(name)?;
        let width = view.shape.last().copied().unwrap_or(0);
        let [native_rows, native_columns] = request.native;
        let surplus = view.shape.iter().product::<usize>() > native_rows * native_columns * width && !request.class_row;
        let native = position::is_native(request.native, grid);
        if native && !surplus {
            return self.parameter(name);
        }
        let table = match native {
            true => to_f32(view),
            false => position::resample(&to_f32(view), width, request.native, grid, request.resample)
                .map_err(|error| ExportError::unrecordable("position", error.to_string()))?,
        };
        let table = &table[if surplus { width } else { 0 }..];
        let dims = vec![1, usize::from(request.class_row) + rows * columns, width];
        let name = self.store(name, Element::F32, dims.clone(), Payload::f32(table));
        Ok(Value { name, form: Form::Stored { dims } })
    }

    fn tokens(&mut self, x: &Value, start: usize, len: Option<usize>) -> Result<Value> {
        let (tokens, channels) = self.tokens_of(x)?;
        let (end, left) = match (tokens, len) {
            (_, Some(len)) => (Some(start.saturating_add(len)), Extent::Fixed(len)),
            (Extent::Fixed(tokens), None) => (Some(tokens), Extent::Fixed(tokens.saturating_sub(start))),
            (Extent::Free(_), None) => (None, PATCHES),
        };
        let beyond = |end| matches!(tokens, Extent::Fixed(tokens) if end > tokens);
        if left == Extent::Fixed(0) || end.is_some_and(beyond) {
            let end = end.unwrap_or_default();
            return Err(ExportError::unrecordable("tokens", format!("{start}..{end} is outside {tokens} tokens")));
        }
        let x = self.stacked(x)?;
        if start == 0 && (end.is_none() || left == tokens) {
            return Ok(x);
        }
        let name = self.slice(&x.name, 1, start, end);
        Ok(Value { name, form: Form::Tokens { tokens: left, channels } })
    }

    fn prepend_token(&mut self, token: &Value, x: &Value) -> Result<Value> {
        let (tokens, channels) = self.tokens_of(x)?;
        let more = match &token.form {
            Form::Stored { dims } if dims.len() == 3 => dims[1],
            _ => return Err(ExportError::unrecordable("prepend_token", format!("`{}` is not stored", token.name))),
        };
        let x = self.stacked(x)?;
        self.scope = vec!["embed".to_owned()];
        // Not Pad, Shape(start, end) or a broadcasting Concat: candle-onnx has none of them.
        let batch = match self.lengths.get(&BATCH) {
            Some(batch) => batch.clone(),
            None => {
                let shape = self.node("Shape", &[&x.name], vec![]);
                let first = self.integers(&[0], true);
                self.node("Gather", &[&shape, &first], vec![("axis", Attribute::Int(0))])
            }
        };
        let row = self.integers(&[more as i64, channels as i64], true);
        let shape = self.node("Concat", &[&batch, &row], vec![("axis", Attribute::Int(0))]);
        let token = self.node("Expand", &[&token.name, &shape], vec![]);
        let name = self.node("Concat", &[&token, &x.name], vec![("axis", Attribute::Int(1))]);
        Ok(Value { name, form: Form::Tokens { tokens: longer(tokens, more), channels } })
    }

    fn add(&mut self, a: &Value, b: &Value) -> Result<Value> {
        let alone = |x: &Value| matches!(x.form, Form::Stored { .. } | Form::Table { .. });
        let (a, b) = match (alone(a), alone(b)) {
            (true, true) => return Err(ExportError::unrecordable("add", "neither side has a batch".to_owned())),
            (true, false) => (self.stacked(b)?, a.clone()),
            (false, true) => (self.stacked(a)?, b.clone()),
            (false, false) => (self.flat(a)?, self.flat(b)?),
        };
        self.leave_to(1);
        let name = self.node("Add", &[&a.name, &b.name], vec![]);
        Ok(Value { name, form: a.form })
    }

    fn linear(&mut self, x: &Value, name: &str) -> Result<Value> {
        let view = self.view(&format!("{name}.weight"))?;
        let &[out, width] = view.shape else {
            return Err(ExportError::unrecordable("linear", format!("`{name}.weight` is not a matrix")));
        };
        if self.channels_of(x)? != width {
            return Err(ExportError::unrecordable("linear", format!("`{name}` does not take `{}`", x.name)));
        }
        let weight = self.store(&format!("{name}.weight"), Element::F32, vec![width, out], Payload::Transposed(view));
        let bias = self.stored(&format!("{name}.bias"))?;
        self.enter(name);
        let x = self.flat(x)?;
        let y = self.affine(&x.name, &weight, &bias);
        Ok(Self::with_channels(&x, y, out))
    }

    fn layer_norm(&mut self, x: &Value, name: &str, eps: f64) -> Result<Value> {
        let channels = self.channels_of(x)?;
        let weight = self.stored(&format!("{name}.weight"))?;
        let bias = self.stored(&format!("{name}.bias"))?;
        self.enter(name);
        let x = self.flat(x)?;
        let y = if self.dialect.fused_layer_norm() {
            let attributes = vec![("axis", Attribute::Int(-1)), ("epsilon", Attribute::Float(eps as f32))];
            self.node("LayerNormalization", &[&x.name, &weight, &bias], attributes)
        } else {
            self.composed_layer_norm(&x.name, &weight, &bias, eps)
        };
        Ok(Self::with_channels(&x, y, channels))
    }

    fn gelu(&mut self, x: &Value, kind: Activation) -> Result<Value> {
        let depth = self.scope.len() - 1;
        self.leave_to(depth);
        let y = match kind {
            Activation::GeluErf if self.dialect.fused_gelu() => self.node("Gelu", &[&x.name], vec![]),
            Activation::GeluTanh if self.dialect.fused_gelu() => {
                self.node("Gelu", &[&x.name], vec![("approximate", Attribute::Text("tanh"))])
            }
            Activation::GeluErf => self.composed_gelu_erf(&x.name),
            Activation::GeluTanh => self.composed_gelu_tanh(&x.name),
        };
        Ok(Value { name: y, form: x.form.clone() })
    }

    fn swiglu(&mut self, x: &Value) -> Result<Value> {
        let channels = self.channels_of(x)?;
        if channels == 0 || !channels.is_multiple_of(2) {
            return Err(ExportError::unrecordable("swiglu", format!("{channels} channels have no halves")));
        }
        let depth = self.scope.len() - 1;
        self.leave_to(depth);
        let halves = self.split(&x.name, 2);
        let sigmoid = self.node("Sigmoid", &[&halves[0]], vec![]);
        let silu = self.node("Mul", &[&halves[0], &sigmoid], vec![]);
        let gated = self.node("Mul", &[&silu, &halves[1]], vec![]);
        Ok(Self::with_channels(x, gated, channels / 2))
    }

    fn layer_scale(&mut self, x: &Value, name: &str) -> Result<Value> {
        let channels = self.channels_of(x)?;
        let gamma = self.stored(name)?;
        self.enter(name);
        let depth = self.scope.len() - 1;
        self.leave_to(depth);
        let scaled = self.node("Mul", &[&x.name, &gamma], vec![]);
        Ok(Self::with_channels(x, scaled, channels))
    }

    fn attention(&mut self, qkv: &Value, heads: usize) -> Result<Value> {
        let (tokens, channels) = self.tokens_of(qkv)?;
        let width = channels / 3;
        if heads == 0 || width % heads != 0 || channels % 3 != 0 {
            return Err(ExportError::unrecordable("attention", format!("{channels} channels for {heads} heads")));
        }
        let depth = self.scope.len() - 1;
        self.leave_to(depth);
        let fused = self.dialect.fused_attention();
        let qkv = if fused { self.stacked(qkv)? } else { self.flat(qkv)? };
        let parts = self.split(&qkv.name, 3);
        if fused {
            let heads = Attribute::Int(heads as i64);
            let attributes = vec![("kv_num_heads", heads.clone()), ("q_num_heads", heads)];
            let name = self.node("Attention", &[&parts[0], &parts[1], &parts[2]], attributes);
            return Ok(Value { name, form: Form::Tokens { tokens, channels: width } });
        }
        let name = self.composed_attention(&parts, tokens, heads, width / heads)?;
        Ok(Value { name, form: Form::Flat { tokens, channels: width } })
    }

    fn fixed_grid(&self, sides: [usize; 2]) -> [Extent; 2] {
        sides.map(Extent::Fixed)
    }

    fn relative_attention(
        &mut self,
        qkv: &Value,
        heads: usize,
        grid: [Extent; 2],
        relative: &RelativeRequest,
    ) -> Result<Value> {
        self.record_relative_attention(qkv, heads, grid, relative)
    }

    fn windows(&mut self, x: &Value, grid: [Extent; 2], size: usize) -> Result<Value> {
        self.record_windows(x, grid, size)
    }

    fn unwindow(&mut self, x: &Value, grid: [Extent; 2], size: usize) -> Result<Value> {
        self.record_unwindow(x, grid, size)
    }

    fn upsample(&mut self, map: &GraphMap, name: &str, norm: Option<(&str, f64)>) -> Result<GraphMap> {
        self.record_upsample(map, name, norm)
    }

    fn conv(&mut self, map: &GraphMap, name: &str) -> Result<GraphMap> {
        self.record_conv(map, name)
    }

    fn repeat(&mut self, map: &GraphMap, factor: usize) -> Result<GraphMap> {
        self.record_repeat(map, factor)
    }

    fn max_pool(&mut self, map: &GraphMap, side: usize) -> Result<GraphMap> {
        self.record_max_pool(map, side)
    }

    fn concat_channels(&mut self, parts: &[Value]) -> Result<Value> {
        let parts: Vec<Value> = parts.iter().map(|part| self.flat(part)).collect::<Result<_>>()?;
        let Some(first) = parts.first() else {
            return Err(ExportError::unrecordable("concat_channels", "there is nothing to concatenate".to_owned()));
        };
        let mut channels = 0;
        for part in &parts {
            channels += self.channels_of(part)?;
        }
        let names: Vec<&str> = parts.iter().map(|part| part.name.as_str()).collect();
        self.leave_to(1);
        let name = self.node("Concat", &names, vec![("axis", Attribute::Int(-1))]);
        Ok(Self::with_channels(first, name, channels))
    }

    fn channels(&mut self, x: &Value, start: usize, len: usize) -> Result<Value> {
        let all = self.channels_of(x)?;
        let end = start.saturating_add(len);
        if len == 0 || end > all {
            return Err(ExportError::unrecordable("channels", format!("{start}..{end} is outside {all} channels")));
        }
        if len == all {
            return Ok(x.clone());
        }
        self.leave_to(1);
        let name = self.slice(&x.name, -1, start, Some(end));
        Ok(Self::with_channels(x, name, len))
    }

    fn select_token(&mut self, x: &Value, index: usize) -> Result<Value> {
        let (tokens, channels) = self.tokens_of(x)?;
        if matches!(tokens, Extent::Fixed(tokens) if index >= tokens) {
            return Err(ExportError::unrecordable("select_token", format!("token {index} of {tokens}")));
        }
        let x = self.stacked(x)?;
        let index = self.integers(&[index as i64], false);
        let name = self.node("Gather", &[&x.name, &index], vec![("axis", Attribute::Int(1))]);
        Ok(Value { name, form: Form::Pooled { channels } })
    }

    fn mean_tokens(&mut self, x: &Value, start: usize) -> Result<Value> {
        let (_, channels) = self.tokens_of(x)?;
        let x = self.tokens(x, start, None)?;
        let name = self.reduce_mean(&x.name, 1, false);
        Ok(Value { name, form: Form::Pooled { channels } })
    }
}
