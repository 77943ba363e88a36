//! Position tables resampled by the graph itself, for images of any size.
//!
//! The two matrices of [`crate::model::position`] are computed from the lengths of the patch grid, so no Resize node is
//! needed, whose cubic forms only ONNX Runtime has in full. A weight is the cubic kernel at the distance between target
//! patch i of n and source patch j of s. That distance is a ratio whose numerator, s·(2i + 1) − n·(2j + 1), is a whole
//! number, exact in f32 (below 2²⁴ for any size admitted): only the division rounds, by 2⁻²⁴ relative.

use super::layout::{longer, patches};
use super::{Form, Record, Result, Value};
use crate::model::{PositionRequest, Resample, TensorView, position};
use crate::onnx::ExportError;
use crate::onnx::graph::{Attribute, Element, Extent, FLOAT};
use crate::onnx::payload::Payload;

/// Source patches beyond either border that a kernel without antialiasing reaches: they count as the border itself.
const REACH: usize = 2;

impl Record<'_> {
    /// The table `name` for a grid chosen at run time, (1, 1 + L, C), or (1, L, C) where it has no class row.
    pub(super) fn free_position(&mut self, name: &str, request: &PositionRequest<[Extent; 2]>) -> Result<Value> {
        let view = self.view(name)?;
        let [rows, columns] = request.native;
        let (class_row, rest, width) = halves(view, rows * columns)
            .ok_or_else(|| ExportError::unrecordable("position", format!("`{name}` is no table of patches")))?;
        self.scope = vec![name.to_owned()];
        let lengths = [self.length(request.grid[0])?, self.length(request.grid[1])?];
        let counts =
            [0, 1].map(|axis: usize| self.node("Cast", &[&lengths[axis]], vec![("to", Attribute::Int(FLOAT))]));
        let offset = self.offset(request, &counts);
        let [by_rows, by_columns] = [0, 1].map(|axis| {
            let targets = self.counter(&lengths[axis]);
            self.axis_matrix(&targets, &counts[axis], request.native[axis], request.resample, offset.as_deref())
        });

        let table = format!("{name}.patches");
        let table = self.store(&table, Element::F32, vec![rows, columns * width], Payload::Stored(rest));
        // (n rows, s rows) × (s rows, s columns · C), then (n columns, s columns) × (n rows, s columns, C)
        let tall = self.node("MatMul", &[&by_rows, &table], vec![]);
        let shape = self.integers(&[-1, columns as i64, width as i64], true);
        let tall = self.node("Reshape", &[&tall, &shape], vec![]);
        let wide = self.node("MatMul", &[&by_columns, &tall], vec![]);
        let shape = self.integers(&[1, -1, width as i64], true);
        let mut value = self.node("Reshape", &[&wide, &shape], vec![]);
        let mut tokens = patches(request.grid);
        if let Some(class_row) = class_row.filter(|_| request.class_row) {
            let row = self.store(&format!("{name}.class"), Element::F32, vec![1, 1, width], Payload::Stored(class_row));
            value = self.node("Concat", &[&row, &value], vec![("axis", Attribute::Int(1))]);
            tokens = longer(tokens, 1);
        }
        Ok(Value { name: value, form: Form::Table { tokens, channels: width } })
    }

    /// A rule's offset, as a scalar that is 0 where the table is used as it is ([`position::is_native`]): without
    /// offset, resampling to the native grid changes nothing. `None` for rules that have none.
    fn offset(&mut self, request: &PositionRequest<[Extent; 2]>, counts: &[String; 2]) -> Option<String> {
        let Resample::ScaleOffset { offset } = request.resample else { return None };
        let differences = [0, 1].map(|axis: usize| {
            let native = self.scalar(request.native[axis] as f32);
            let difference = self.node("Sub", &[&counts[axis], &native], vec![]);
            self.node("Abs", &[&difference], vec![])
        });
        let sum = self.node("Add", &[&differences[0], &differences[1]], vec![]);
        let one = self.scalar(1.0);
        let other = self.node("Min", &[&sum, &one], vec![]);
        let offset = self.scalar(offset as f32);
        Some(self.node("Mul", &[&other, &offset], vec![]))
    }

    /// The matrix (n, `source`) of one axis: `targets` are the odd numbers below 2n, (n, 1), and `count` is n, (1).
    fn axis_matrix(
        &mut self,
        targets: &str,
        count: &str,
        source: usize,
        rule: Resample,
        offset: Option<&str>,
    ) -> String {
        let antialias = rule == Resample::SizeAntialias;
        // Without antialiasing, patches beyond the borders are there too, and folded onto the borders at the end.
        let reach = if antialias { 0 } else { REACH as i64 };
        let centres: Vec<f32> = (-reach..source as i64 + reach).map(|j| (2 * j + 1) as f32).collect();
        let width = centres.len();
        let centres =
            self.store(&format!("/centres/{source}_{reach}"), Element::F32, vec![1, width], Payload::f32(&centres));

        // s·(2i + 1), (n, 1)
        let source_length = self.scalar(source as f32);
        let targets = self.node("Mul", &[targets, &source_length], vec![]);
        // (s·(2i + 1) − n·(2j + 1)) − offset·(2j + 1), over 2·(n + offset)
        let sources = self.node("Mul", &[&centres, count], vec![]);
        let mut distance = self.node("Sub", &[&targets, &sources], vec![]);
        let mut unit = count.to_owned();
        if let Some(offset) = offset {
            let shift = self.node("Mul", &[&centres, offset], vec![]);
            distance = self.node("Sub", &[&distance, &shift], vec![]);
            unit = self.node("Add", &[&unit, offset], vec![]);
        }
        if antialias {
            // When shrinking, the kernel is stretched: distances are counted in target patches.
            unit = self.node("Clip", &[&unit, &source_length], vec![]);
        }
        let two = self.scalar(2.0);
        let unit = self.node("Mul", &[&unit, &two], vec![]);
        let distance = self.node("Div", &[&distance, &unit], vec![]);
        let weights = self.cubic(&distance, if antialias { position::CUBIC_ANTIALIAS } else { position::CUBIC });
        if antialias {
            let ones =
                self.store(&format!("/ones/{source}"), Element::F32, vec![source, 1], Payload::f32(&vec![1.0; source]));
            let sums = self.node("MatMul", &[&weights, &ones], vec![]);
            return self.node("Div", &[&weights, &sums], vec![]);
        }
        let mut fold = vec![0.0_f32; width * source];
        for (row, weights) in fold.chunks_exact_mut(source).enumerate() {
            weights[row.saturating_sub(REACH).min(source - 1)] = 1.0;
        }
        let fold = self.store(&format!("/borders/{source}"), Element::F32, vec![width, source], Payload::f32(&fold));
        self.node("MatMul", &[&weights, &fold], vec![])
    }

    /// 1, 3, 5, … as many as `length`, (1), says: (n, 1).
    pub(super) fn counter(&mut self, length: &str) -> String {
        let first = self.integers(&[0], false);
        let length = self.node("Gather", &[length, &first], vec![("axis", Attribute::Int(0))]);
        let [zero, one] = [0, 1].map(|value| self.integers(&[value], false));
        let range = self.node("Range", &[&zero, &length, &one], vec![]);
        let range = self.node("Cast", &[&range], vec![("to", Attribute::Int(FLOAT))]);
        let [two, one] = [2.0, 1.0].map(|value| self.scalar(value));
        let range = self.node("Mul", &[&range, &two], vec![]);
        let range = self.node("Add", &[&range, &one], vec![]);
        let column = self.integers(&[-1, 1], true);
        self.node("Reshape", &[&range, &column], vec![])
    }

    /// Keys' kernel of coefficient `a`, which is 0 from 2 on: its inner part is 0 at 1, its outer part at 1 and at 2, so
    /// each is taken of the distance held within its bounds, and they are added.
    fn cubic(&mut self, x: &str, a: f64) -> String {
        let [one, two] = [1.0, 2.0].map(|value| self.scalar(value));
        let x = self.node("Abs", &[x], vec![]);
        // ((a + 2)·u − (a + 3))·u² + 1
        let u = self.node("Min", &[&x, &one], vec![]);
        let inner = self.polynomial(&u, &[a + 2.0, -(a + 3.0), 0.0, 1.0]);
        // ((a·v − 5a)·v + 8a)·v − 4a
        let v = self.node("Clip", &[&x, &one, &two], vec![]);
        let outer = self.polynomial(&v, &[a, -5.0 * a, 8.0 * a, -4.0 * a]);
        self.node("Add", &[&inner, &outer], vec![])
    }

    /// Horner's rule, highest power first.
    fn polynomial(&mut self, x: &str, coefficients: &[f64; 4]) -> String {
        let first = self.scalar(coefficients[0] as f32);
        let mut sum = self.node("Mul", &[x, &first], vec![]);
        for (i, coefficient) in coefficients.iter().enumerate().skip(1) {
            if *coefficient != 0.0 {
                let coefficient = self.scalar(*coefficient as f32);
                sum = self.node("Add", &[&sum, &coefficient], vec![]);
            }
            if i < 3 {
                sum = self.node("Mul", &[&sum, x], vec![]);
            }
        }
        sum
    }
}

/// The class row, if there is one, and the rows of `patches`, with the table's width.
fn halves(view: TensorView<'_>, patches: usize) -> Option<(Option<TensorView<'_>>, TensorView<'_>, usize)> {
    let width = view.shape.last().copied().filter(|width| *width > 0 && patches > 0)?;
    let rows = view.shape.iter().product::<usize>() / width;
    let row = view.bytes.len() / rows.max(1);
    let (class_row, rest) = match rows.checked_sub(patches)? {
        0 => (None, view.bytes),
        1 => {
            let (class_row, rest) = view.bytes.split_at_checked(row)?;
            (Some(class_row), rest)
        }
        _ => return None,
    };
    Some((class_row.map(|bytes| TensorView { bytes, ..view }), TensorView { bytes: rest, ..view }, width))
}
