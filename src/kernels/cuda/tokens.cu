// Visible tokens back to their places among the hidden ones. L patches, K visible, d channels; `places` (B, L) says where
// each patch stands in the shuffled order.
#include "common.cuh"

// y (B, 1 + L, d) = x or `token`, plus position. Block (t, b).
template <typename T>
__device__ void unshuffle(const T *x, const float *token, const float *position, const u32 *places, float *y, u32 kept,
                          u32 d) {
  u32 t = blockIdx.x, patches = gridDim.x - 1;
  u32 place = t == 0 ? 0 : places[(u64)blockIdx.y * patches + t - 1];
  bool visible = t == 0 || place < kept;
  const T *row = x + ((u64)blockIdx.y * (1 + kept) + (t == 0 ? 0 : 1 + place)) * d;
  position += (u64)t * d;
  y += ((u64)blockIdx.y * gridDim.x + t) * d;
  for (u32 i = threadIdx.x; i < d; i += blockDim.x) y[i] = (visible ? wide(row[i]) : token[i]) + position[i];
}

extern "C" __global__ void unshuffle_f32(const float *x, const float *token, const float *position, const u32 *places,
                                         float *y, u32 kept, u32 d) {
  unshuffle<float>(x, token, position, places, y, kept, d);
}
extern "C" __global__ void unshuffle_bf16(const bf16 *x, const float *token, const float *position, const u32 *places,
                                          float *y, u32 kept, u32 d) {
  unshuffle<bf16>(x, token, position, places, y, kept, d);
}

// dx (B, 1 + K, d) from dy (B, 1 + L, d). Block (t, b).
extern "C" __global__ void unshuffle_backward(const float *dy, const u32 *places, float *dx, u32 kept, u32 d) {
  u32 t = blockIdx.x, patches = gridDim.x - 1;
  u32 place = t == 0 ? 0 : places[(u64)blockIdx.y * patches + t - 1];
  if (t != 0 && place >= kept) return;
  dx += ((u64)blockIdx.y * (1 + kept) + (t == 0 ? 0 : 1 + place)) * d;
  dy += ((u64)blockIdx.y * gridDim.x + t) * d;
  for (u32 i = threadIdx.x; i < d; i += blockDim.x) dx[i] = dy[i];
}

// partial (B, d): the sum of dy over each image's hidden patches. Block x takes channels, y an image.
extern "C" __global__ void hidden_sums(const float *dy, const u32 *places, float *partial, u32 patches, u32 kept, u32 d) {
  u32 channel = blockIdx.x * blockDim.x + threadIdx.x;
  if (channel >= d) return;
  dy += (u64)blockIdx.y * (1 + patches) * d + channel;
  places += (u64)blockIdx.y * patches;
  float sum = 0.0f;
  for (u32 j = 0; j < patches; j++) {
    if (places[j] >= kept) sum += dy[(u64)(j + 1) * d];
  }
  partial[(u64)blockIdx.y * d + channel] = sum;
}
