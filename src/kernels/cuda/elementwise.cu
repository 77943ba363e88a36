// Operations on each value by itself: GELU, SwiGLU, bias and residual, sums of gradients.
#include "common.cuh"

// One thread a value; grids are at most 2^31 blocks, which no tensor fills.
#define EACH(n)                                        \
  u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; \
  if (i >= (n)) return;

__device__ __forceinline__ float gelu(float x, u32 tanh_form) {
  if (tanh_form) return 0.5f * x * (1.0f + tanhf(0.7978845608f * (x + 0.044715f * x * x * x)));
  return 0.5f * x * (1.0f + erff(x * 0.7071067812f));
}

__device__ __forceinline__ float gelu_slope(float x, u32 tanh_form) {
  if (tanh_form) {
    float t = tanhf(0.7978845608f * (x + 0.044715f * x * x * x));
    return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * 0.7978845608f * (1.0f + 3.0f * 0.044715f * x * x);
  }
  return 0.5f * (1.0f + erff(x * 0.7071067812f)) + x * 0.3989422804f * expf(-0.5f * x * x);
}

template <typename T> __device__ void gelu_forward(const T *x, T *y, u64 n, u32 tanh_form) {
  EACH(n)
  y[i] = As<T>::of(gelu(wide(x[i]), tanh_form));
}

template <typename T> __device__ void gelu_backward(const T *x, const T *dy, T *dx, u64 n, u32 tanh_form) {
  EACH(n)
  dx[i] = As<T>::of(wide(dy[i]) * gelu_slope(wide(x[i]), tanh_form));
}

// x (rows, 2·h) as [a | b], y (rows, h) = silu(a)·b
template <typename T> __device__ void swiglu_forward(const T *x, T *y, u64 n, u32 h) {
  EACH(n)
  u64 at = i / h * 2 * h + i % h;
  float a = wide(x[at]);
  y[i] = As<T>::of(a / (1.0f + expf(-a)) * wide(x[at + h]));
}

template <typename T> __device__ void swiglu_backward(const T *x, const T *dy, T *dx, u64 n, u32 h) {
  EACH(n)
  u64 at = i / h * 2 * h + i % h;
  float a = wide(x[at]), b = wide(x[at + h]), g = wide(dy[i]), s = 1.0f / (1.0f + expf(-a));
  dx[at] = As<T>::of(g * b * s * (1.0f + a * (1.0f - s)));
  dx[at + h] = As<T>::of(g * a * s);
}

// y (rows, width) += bias (width)
template <typename T> __device__ void add_bias(T *y, const float *bias, u64 n, u32 width) {
  EACH(n)
  y[i] = As<T>::of(wide(y[i]) + bias[i % width]);
}

template <typename T> __device__ void accumulate(T *sum, const T *part, u64 n) {
  EACH(n)
  sum[i] = As<T>::of(wide(sum[i]) + wide(part[i]));
}

// Runs of `run` values, one after the other in `part`, `period` apart in `sum`.
template <typename T>
__device__ void accumulate_part(T *sum, const T *part, u64 n, u64 run, u64 period, u64 offset) {
  EACH(n)
  u64 at = i / run * period + offset + i % run;
  sum[at] = As<T>::of(wide(sum[at]) + wide(part[i]));
}

extern "C" __global__ void add_bias_residual(float *y, const float *bias, const float *residual, u64 n, u32 width) {
  EACH(n)
  y[i] = y[i] + bias[i % width] + residual[i];
}

#define FOR(T, NAME)                                                                                                \
  extern "C" __global__ void gelu_forward_##NAME(const T *x, T *y, u64 n, u32 tanh_form) {                         \
    gelu_forward<T>(x, y, n, tanh_form);                                                                            \
  }                                                                                                                 \
  extern "C" __global__ void gelu_backward_##NAME(const T *x, const T *dy, T *dx, u64 n, u32 tanh_form) {          \
    gelu_backward<T>(x, dy, dx, n, tanh_form);                                                                      \
  }                                                                                                                 \
  extern "C" __global__ void swiglu_forward_##NAME(const T *x, T *y, u64 n, u32 h) { swiglu_forward<T>(x, y, n, h); } \
  extern "C" __global__ void swiglu_backward_##NAME(const T *x, const T *dy, T *dx, u64 n, u32 h) {                \
    swiglu_backward<T>(x, dy, dx, n, h);                                                                            \
  }                                                                                                                 \
  extern "C" __global__ void add_bias_##NAME(T *y, const float *bias, u64 n, u32 width) {                          \
    add_bias<T>(y, bias, n, width);                                                                                 \
  }                                                                                                                 \
  extern "C" __global__ void accumulate_##NAME(T *sum, const T *part, u64 n) { accumulate<T>(sum, part, n); }      \
  extern "C" __global__ void accumulate_part_##NAME(T *sum, const T *part, u64 n, u64 run, u64 period, u64 offset) { \
    accumulate_part<T>(sum, part, n, run, period, offset);                                                          \
  }
FOR(float, f32)
FOR(bf16, bf16)
