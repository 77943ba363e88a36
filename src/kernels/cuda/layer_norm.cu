// LayerNorm over the last axis: a block a row. The row stays in the first-level cache between its passes.
#include "common.cuh"

template <typename T> __device__ float2 moments(const T *x, u32 c, float eps, float *scratch) {
  float sum = 0.0f;
  for (u32 i = threadIdx.x; i < c; i += blockDim.x) sum += wide(x[i]);
  float mean = block_sum(sum, scratch) / c;
  float squares = 0.0f;
  for (u32 i = threadIdx.x; i < c; i += blockDim.x) {
    float d = wide(x[i]) - mean;
    squares += d * d;
  }
  float2 out;
  out.x = mean;
  out.y = 1.0f / sqrtf(block_sum(squares, scratch) / c + eps);
  return out;
}

template <typename T, typename U>
__device__ void forward(const T *x, const float *weight, const float *bias, U *y, u32 c, float eps) {
  __shared__ float scratch[32];
  x += (u64)blockIdx.x * c;
  y += (u64)blockIdx.x * c;
  float2 m = moments(x, c, eps, scratch);
  for (u32 i = threadIdx.x; i < c; i += blockDim.x) y[i] = As<U>::of((wide(x[i]) - m.x) * m.y * weight[i] + bias[i]);
}

// With n = (x − μ)·s and g = dy·w: dx = s·(g − mean(g) − n·mean(g·n)). μ and s are left in `stats` (rows, 2).
template <typename T, typename U>
__device__ void backward(const T *x, const U *dy, const float *weight, float *dx, float *stats, u32 c, float eps) {
  __shared__ float scratch[32];
  x += (u64)blockIdx.x * c;
  dy += (u64)blockIdx.x * c;
  dx += (u64)blockIdx.x * c;
  float2 m = moments(x, c, eps, scratch);
  float sum_g = 0.0f, sum_gn = 0.0f;
  for (u32 i = threadIdx.x; i < c; i += blockDim.x) {
    float g = wide(dy[i]) * weight[i];
    sum_g += g;
    sum_gn += g * (wide(x[i]) - m.x) * m.y;
  }
  float mean_g = block_sum(sum_g, scratch) / c;
  float mean_gn = block_sum(sum_gn, scratch) / c;
  for (u32 i = threadIdx.x; i < c; i += blockDim.x) {
    float n = (wide(x[i]) - m.x) * m.y;
    dx[i] = m.y * (wide(dy[i]) * weight[i] - mean_g - n * mean_gn);
  }
  if (threadIdx.x == 0) {
    stats[2 * (u64)blockIdx.x] = m.x;
    stats[2 * (u64)blockIdx.x + 1] = m.y;
  }
}

// Sums over a chunk of `each` rows of dy·n, and of dy: partial (chunks, 2·c). Block x takes columns, y a chunk.
template <typename T, typename U>
__device__ void parameters(const T *x, const U *dy, const float *stats, float *partial, u32 rows, u32 c, u32 each) {
  u32 column = blockIdx.x * blockDim.x + threadIdx.x;
  if (column >= c) return;
  u32 first = blockIdx.y * each, last = min(first + each, rows);
  float dweight = 0.0f, dbias = 0.0f;
  for (u32 row = first; row < last; row++) {
    u64 at = (u64)row * c + column;
    float g = wide(dy[at]);
    dweight += g * (wide(x[at]) - stats[2 * (u64)row]) * stats[2 * (u64)row + 1];
    dbias += g;
  }
  partial[(u64)blockIdx.y * 2 * c + column] = dweight;
  partial[(u64)blockIdx.y * 2 * c + c + column] = dbias;
}

extern "C" __global__ void layer_norm_merge(const float *partial, float *dweight, float *dbias, u32 chunks, u32 c,
                                            u32 fresh) {
  u32 column = blockIdx.x * blockDim.x + threadIdx.x;
  if (column >= 2 * c) return;
  float *sums = column < c ? dweight + column : dbias + (column - c);
  float sum = fresh ? 0.0f : *sums;
  for (u32 chunk = 0; chunk < chunks; chunk++) sum += partial[(u64)chunk * 2 * c + column];
  *sums = sum;
}

#define FOR(T, U, NAME)                                                                                             \
  extern "C" __global__ void layer_norm_forward_##NAME(const T *x, const float *weight, const float *bias, U *y,   \
                                                       u32 c, float eps) {                                          \
    forward<T, U>(x, weight, bias, y, c, eps);                                                                      \
  }                                                                                                                 \
  extern "C" __global__ void layer_norm_backward_##NAME(const T *x, const U *dy, const float *weight, float *dx,   \
                                                        float *stats, u32 c, float eps) {                           \
    backward<T, U>(x, dy, weight, dx, stats, c, eps);                                                               \
  }                                                                                                                 \
  extern "C" __global__ void layer_norm_parameters_##NAME(const T *x, const U *dy, const float *stats,             \
                                                          float *partial, u32 rows, u32 c, u32 each) {              \
    parameters<T, U>(x, dy, stats, partial, rows, c, each);                                                         \
  }
FOR(float, float, f32_f32)
FOR(float, bf16, f32_bf16)
FOR(bf16, float, bf16_f32)
FOR(bf16, bf16, bf16_bf16)
