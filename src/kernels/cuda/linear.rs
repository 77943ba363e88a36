//! Linear layers: the product by cuBLAS, straight into the type that is asked for, and the bias with the residual in one
//! pass.

use candle_core::{D, DType, Result, Tensor};

use super::product::{Matrix, product};
use super::{Argument, ELEMENTWISE, Grid, address, columns, device, suffix, unwritten};

pub(in crate::kernels) fn forward(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    residual: Option<&Tensor>,
    out: DType,
) -> Result<Tensor> {
    let (width, inner) = weight.dims2()?;
    let (device, rows) = (device(x)?, x.elem_count() / inner);
    let n = rows * width;
    let y = unwritten(with_last(x, width)?, out, device)?;
    multiply([rows, width, inner], (x, inner, false), (weight, inner, true), (&y, width), false)?;
    let (to, bias) = (address(&y, out, n)?, address(bias, DType::F32, width)?);
    let (count, width) = (Argument::Long(n as u64), Argument::Word(width as u32));
    // SAFETY: y of n values, the bias of `width`, and with a residual, which is f32 as y is then, n more.
    unsafe {
        match residual {
            None => {
                let name = format!("add_bias_{}", suffix(out)?);
                ELEMENTWISE.launch(device, &name, Grid::each(n), &[to, bias, count, width])?;
            }
            Some(residual) => {
                let to = address(&y, DType::F32, n)?;
                let arguments = [to, bias, address(residual, DType::F32, n)?, count, width];
                ELEMENTWISE.launch(device, "add_bias_residual", Grid::each(n), &arguments)?;
            }
        }
    }
    Ok(y)
}

pub(in crate::kernels) fn backward_input(dy: &Tensor, weight: &Tensor, out: DType) -> Result<Tensor> {
    let (width, inner) = weight.dims2()?;
    let rows = dy.elem_count() / width;
    let dx = unwritten(with_last(dy, inner)?, out, device(dy)?)?;
    let dy = dy.to_dtype(weight.dtype())?;
    multiply([rows, inner, width], (&dy, width, false), (weight, inner, false), (&dx, inner), false)?;
    Ok(dx)
}

pub(in crate::kernels) fn backward_parameters(
    x: &Tensor,
    dy: &Tensor,
    dweight: &Tensor,
    dbias: &Tensor,
    fresh: bool,
) -> Result<()> {
    let (width, inner) = dweight.dims2()?;
    let rows = x.elem_count() / inner;
    multiply([width, inner, rows], (dy, width, true), (x, inner, false), (dweight, inner), !fresh)?;
    columns::add_rows(&dy.reshape((rows, width))?, dbias, fresh)
}

/// C (m, n) = A·B for contiguous tensors with rows of so many values; `true` takes the transpose.
fn multiply(
    [m, n, k]: [usize; 3],
    (a, a_stride, a_transposed): (&Tensor, usize, bool),
    (b, b_stride, b_transposed): (&Tensor, usize, bool),
    (c, c_stride): (&Tensor, usize),
    add: bool,
) -> Result<()> {
    if a.dtype() != b.dtype() {
        candle_core::bail!("linear: {:?} times {:?}", a.dtype(), b.dtype());
    }
    let matrix = |tensor: &Tensor, len, stride, transposed| -> Result<Matrix> {
        let Argument::Long(address) = address(tensor, tensor.dtype(), len)? else {
            candle_core::bail!("an address is a number of 64 bits");
        };
        Ok(Matrix { address, dtype: tensor.dtype(), stride, transposed })
    };
    let a = matrix(a, m * k, a_stride, a_transposed)?;
    let b = matrix(b, k * n, b_stride, b_transposed)?;
    let to = matrix(c, m * n, c_stride, false)?;
    // SAFETY: three matrices of the sizes just checked.
    unsafe { product(device(c)?, [m, n, k], a, b, to, (1.0, add), None) }
}

fn with_last(x: &Tensor, width: usize) -> Result<Vec<usize>> {
    x.dim(D::Minus1)?;
    let mut shape = x.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = width;
    }
    Ok(shape)
}
