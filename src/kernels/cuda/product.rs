//! Matrix products by cuBLAS, said row by row as the rest of this crate does; sums are in f32.

use std::ffi::{c_int, c_void};

use candle_core::cuda_backend::cudarc::cublas::{result, sys};
use candle_core::{CudaDevice, DType, Result};

/// A row-major matrix, or its transpose: `rows` are `stride` values apart.
#[derive(Clone, Copy)]
pub(super) struct Matrix {
    /// Of its first value; for batched products, of the list of those.
    pub(super) address: u64,
    pub(super) dtype: DType,
    pub(super) stride: usize,
    pub(super) transposed: bool,
}

/// C (m, n) = `scale`·A (m, k)·B (k, n), added to what C holds when `add`.
///
/// # Safety
/// The matrices lie in buffers of `device` that live now; with `batch`, their addresses are lists of as many matrices.
pub(super) unsafe fn product(
    device: &CudaDevice,
    [m, n, k]: [usize; 3],
    a: Matrix,
    b: Matrix,
    c: Matrix,
    (scale, add): (f32, bool),
    batch: Option<usize>,
) -> Result<()> {
    if m == 0 || n == 0 || batch == Some(0) {
        return Ok(());
    }
    let sizes = [m, n, k, a.stride, b.stride, c.stride, batch.unwrap_or(1)].map(c_int::try_from);
    let [Ok(m), Ok(n), Ok(k), Ok(lda), Ok(ldb), Ok(ldc), Ok(count)] = sizes else {
        candle_core::bail!("a product of {m}×{k} and {k}×{n} is more than cuBLAS takes");
    };
    let blas = device.cublas_handle();
    let (scale, keep) = ((&raw const scale).cast::<c_void>(), f32::from(add));
    let keep = (&raw const keep).cast::<c_void>();
    let (compute, algorithm) =
        (sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT);
    let (ta, tb) = (operation(a), operation(b));
    let (type_a, type_b, type_c) = (kind(a.dtype)?, kind(b.dtype)?, kind(c.dtype)?);
    // cuBLAS counts columns first: to it, row-major matrices are their transposes, and Cᵀ = Bᵀ·Aᵀ.
    // SAFETY: the caller's; the scalars are read before the call returns.
    let status = unsafe {
        match batch {
            None => sys::cublasGemmEx(
                *blas.handle(),
                tb,
                ta,
                n,
                m,
                k,
                scale,
                b.address as *const c_void,
                type_b,
                ldb,
                a.address as *const c_void,
                type_a,
                lda,
                keep,
                c.address as *mut c_void,
                type_c,
                ldc,
                compute,
                algorithm,
            ),
            Some(_) => sys::cublasGemmBatchedEx(
                *blas.handle(),
                tb,
                ta,
                n,
                m,
                k,
                scale,
                b.address as *const *const c_void,
                type_b,
                ldb,
                a.address as *const *const c_void,
                type_a,
                lda,
                keep,
                c.address as *const *mut c_void,
                type_c,
                ldc,
                count,
                compute,
                algorithm,
            ),
        }
    };
    match status {
        sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS => Ok(()),
        status => candle_core::bail!("cuBLAS: a product of {m}×{k} and {k}×{n}: {:?}", result::CublasError(status)),
    }
}

fn operation(matrix: Matrix) -> sys::cublasOperation_t {
    match matrix.transposed {
        true => sys::cublasOperation_t::CUBLAS_OP_T,
        false => sys::cublasOperation_t::CUBLAS_OP_N,
    }
}

fn kind(dtype: DType) -> Result<sys::cudaDataType> {
    match dtype {
        DType::F32 => Ok(sys::cudaDataType::CUDA_R_32F),
        DType::BF16 => Ok(sys::cudaDataType::CUDA_R_16BF),
        other => super::super::slices::unsupported(other, "cuBLAS"),
    }
}
