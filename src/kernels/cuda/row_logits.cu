// Attention logits of chosen query rows. x is (B, T, channels): queries first, keys `width` channels on; R rows an image,
// N heads of d channels, L = T − 1 patches.
#include "common.cuh"

// logits (B, R, N, L): block (r, n, b).
template <typename T>
__device__ void forward(const T *x, const u32 *rows, float *logits, u32 tokens, u32 channels, u32 width, u32 d,
                        float scale) {
  extern __shared__ float query[];
  u32 r = blockIdx.x, n = blockIdx.y, b = blockIdx.z;
  u32 row = rows[b * gridDim.x + r];
  x += (u64)b * tokens * channels;
  for (u32 i = threadIdx.x; i < d; i += blockDim.x) query[i] = wide(x[(u64)row * channels + n * d + i]);
  __syncthreads();
  logits += (((u64)b * gridDim.x + r) * gridDim.y + n) * (tokens - 1);
  for (u32 j = threadIdx.x; j < tokens - 1; j += blockDim.x) {
    const T *key = x + (u64)(j + 1) * channels + width + n * d;
    float sum = 0.0f;
    for (u32 i = 0; i < d; i++) sum += query[i] * wide(key[i]);
    logits[j] = sum * scale;
  }
}

// The gradient of token t's query and key in head n of image b: block (t, n, b), a thread a channel.
template <typename T>
__device__ void backward(const T *x, const u32 *rows, const float *dlogits, T *dx, u32 tokens, u32 channels, u32 width,
                         u32 d, u32 picked, float scale) {
  u32 t = blockIdx.x, n = blockIdx.y, b = blockIdx.z, patches = tokens - 1;
  x += (u64)b * tokens * channels;
  dx += ((u64)b * tokens + t) * channels;
  rows += b * picked;
  for (u32 i = threadIdx.x; i < d; i += blockDim.x) {
    float dq = 0.0f, dk = 0.0f;
    for (u32 r = 0; r < picked; r++) {
      const float *slopes = dlogits + (((u64)b * picked + r) * gridDim.y + n) * patches;
      if (t > 0) dk += slopes[t - 1] * wide(x[(u64)rows[r] * channels + n * d + i]);
      if (rows[r] == t) {
        for (u32 j = 0; j < patches; j++) dq += slopes[j] * wide(x[(u64)(j + 1) * channels + width + n * d + i]);
      }
    }
    dx[n * d + i] = As<T>::of(dq * scale);
    dx[width + n * d + i] = As<T>::of(dk * scale);
  }
}

#define FOR(T, NAME)                                                                                                \
  extern "C" __global__ void row_logits_forward_##NAME(const T *x, const u32 *rows, float *logits, u32 tokens,     \
                                                       u32 channels, u32 width, u32 d, float scale) {               \
    forward<T>(x, rows, logits, tokens, channels, width, d, scale);                                                 \
  }                                                                                                                 \
  extern "C" __global__ void row_logits_backward_##NAME(const T *x, const u32 *rows, const float *dlogits, T *dx,  \
                                                        u32 tokens, u32 channels, u32 width, u32 d, u32 picked,     \
                                                        float scale) {                                              \
    backward<T>(x, rows, dlogits, dx, tokens, channels, width, d, picked, scale);                                   \
  }
FOR(float, f32)
FOR(bf16, bf16)
