// What every kernel file uses. Values are read and written as f32 or bf16 and computed in f32; sums are trees of a fixed
// shape, so that a result does not depend on timing.
#pragma once

typedef unsigned int u32;
typedef unsigned long long u64;

struct bf16 {
  unsigned short bits;
};

__device__ __forceinline__ float wide(float x) { return x; }
__device__ __forceinline__ float wide(bf16 x) { return __uint_as_float((u32)x.bits << 16); }

template <typename T> struct As;
template <> struct As<float> {
  static __device__ __forceinline__ float of(float x) { return x; }
};
template <> struct As<bf16> {
  // To the nearest, ties to even; a NaN stays one.
  static __device__ __forceinline__ bf16 of(float x) {
    u32 bits = __float_as_uint(x);
    u32 rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
    bf16 out;
    out.bits = (unsigned short)((x != x ? bits | 0x400000u : rounded) >> 16);
    return out;
  }
};

// The sum over all threads of a block, in every thread. `scratch` has 32 values. The block is whole warps.
__device__ __forceinline__ float block_sum(float x, float *scratch) {
  for (int offset = 16; offset > 0; offset >>= 1) x += __shfl_xor_sync(0xffffffffu, x, offset);
  __syncthreads();
  if ((threadIdx.x & 31) == 0) scratch[threadIdx.x >> 5] = x;
  __syncthreads();
  float sum = 0.0f;
  for (u32 warp = 0; warp < (blockDim.x >> 5); warp++) sum += scratch[warp];
  return sum;
}

// The greatest value over all threads of a block, in every thread.
__device__ __forceinline__ float block_max(float x, float *scratch) {
  for (int offset = 16; offset > 0; offset >>= 1) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, offset));
  __syncthreads();
  if ((threadIdx.x & 31) == 0) scratch[threadIdx.x >> 5] = x;
  __syncthreads();
  float most = scratch[0];
  for (u32 warp = 1; warp < (blockDim.x >> 5); warp++) most = fmaxf(most, scratch[warp]);
  return most;
}
