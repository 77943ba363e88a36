// Sums over the rows of (rows, c), in two steps: over the rows of each chunk, then over the chunks.
#include "common.cuh"

// partial (chunks, c): block x takes columns, block y a chunk of `each` rows.
template <typename T> __device__ void column_sums(const T *x, float *partial, u32 rows, u32 c, u32 each) {
  u32 column = blockIdx.x * blockDim.x + threadIdx.x;
  if (column >= c) return;
  u32 first = blockIdx.y * each, last = min(first + each, rows);
  float sum = 0.0f;
  for (u32 row = first; row < last; row++) sum += wide(x[(u64)row * c + column]);
  partial[(u64)blockIdx.y * c + column] = sum;
}

extern "C" __global__ void column_sums_f32(const float *x, float *partial, u32 rows, u32 c, u32 each) {
  column_sums<float>(x, partial, rows, c, each);
}
extern "C" __global__ void column_sums_bf16(const bf16 *x, float *partial, u32 rows, u32 c, u32 each) {
  column_sums<bf16>(x, partial, rows, c, each);
}

// sums (c) = or += the chunks' sums, first chunk first.
extern "C" __global__ void merge(const float *partial, float *sums, u32 chunks, u32 c, u32 fresh) {
  u32 column = blockIdx.x * blockDim.x + threadIdx.x;
  if (column >= c) return;
  float sum = fresh ? 0.0f : sums[column];
  for (u32 chunk = 0; chunk < chunks; chunk++) sum += partial[(u64)chunk * c + column];
  sums[column] = sum;
}
