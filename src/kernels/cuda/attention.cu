// What lies between the matrix products of attention. B images, T tokens, N heads of d channels; a "head" below is one of
// the B·N.
#include "common.cuh"

// Addresses of the heads' matrices for batched products, `heads` from number `first` on: heads lie `d` values apart within
// an image, images `image` values, and a matrix begins `offset` values into an image.
extern "C" __global__ void strided(u64 base, u64 *addresses, u32 first, u32 heads, u32 n, u64 image, u64 d, u64 offset,
                                   u32 bytes) {
  u32 i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= heads) return;
  u32 head = first + i;
  addresses[i] = base + ((u64)(head / n) * image + (u64)(head % n) * d + offset) * bytes;
}

// Softmax of each row of t logits: a block a row.
template <typename T> __device__ void softmax(const float *logits, T *weights, u32 t) {
  __shared__ float scratch[32];
  logits += (u64)blockIdx.x * t;
  weights += (u64)blockIdx.x * t;
  float most = -INFINITY;
  for (u32 i = threadIdx.x; i < t; i += blockDim.x) most = fmaxf(most, logits[i]);
  most = block_max(most, scratch);
  float total = 0.0f;
  for (u32 i = threadIdx.x; i < t; i += blockDim.x) total += expf(logits[i] - most);
  float scale = 1.0f / block_sum(total, scratch);
  for (u32 i = threadIdx.x; i < t; i += blockDim.x) weights[i] = As<T>::of(expf(logits[i] - most) * scale);
}

// dS = P∘(dP − rowsum(P∘dP)), each row.
template <typename T> __device__ void softmax_backward(const T *weights, const float *slopes, T *out, u32 t) {
  __shared__ float scratch[32];
  weights += (u64)blockIdx.x * t;
  slopes += (u64)blockIdx.x * t;
  out += (u64)blockIdx.x * t;
  float sum = 0.0f;
  for (u32 i = threadIdx.x; i < t; i += blockDim.x) sum += wide(weights[i]) * slopes[i];
  sum = block_sum(sum, scratch);
  for (u32 i = threadIdx.x; i < t; i += blockDim.x) out[i] = As<T>::of(wide(weights[i]) * (slopes[i] - sum));
}

#define FOR(T, NAME)                                                                                          \
  extern "C" __global__ void attention_softmax_##NAME(const float *logits, T *weights, u32 t) {                        \
    softmax<T>(logits, weights, t);                                                                           \
  }                                                                                                           \
  extern "C" __global__ void attention_softmax_backward_##NAME(const T *weights, const float *slopes, T *out, u32 t) { \
    softmax_backward<T>(weights, slopes, out, t);                                                             \
  }
FOR(float, f32)
FOR(bf16, bf16)
