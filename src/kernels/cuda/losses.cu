// The losses with their gradients, and the normalisation of targets.
#include "common.cuh"

// out = Σ x · factor, by one block.
extern "C" __global__ void total(const float *x, float *out, u64 n, float factor) {
  __shared__ float scratch[32];
  float sum = 0.0f;
  for (u64 i = threadIdx.x; i < n; i += blockDim.x) sum += x[i];
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) *out = sum * factor;
}

// prediction and target (rows, c); gradient = (prediction − target)·`scale`; sums (rows): each row's squares. A block a row.
template <typename T>
__device__ void squared_error(const T *prediction, const float *target, T *gradient, float *sums, u32 c, float scale) {
  __shared__ float scratch[32];
  u64 row = blockIdx.x;
  prediction += row * c;
  target += row * c;
  gradient += row * c;
  float squares = 0.0f;
  for (u32 i = threadIdx.x; i < c; i += blockDim.x) {
    float difference = wide(prediction[i]) - target[i];
    squares += difference * difference;
    gradient[i] = As<T>::of(difference * scale);
  }
  squares = block_sum(squares, scratch);
  if (threadIdx.x == 0) sums[row] = squares;
}

#define FOR(T, NAME)                                                                                               \
  extern "C" __global__ void squared_error_##NAME(const T *prediction, const float *target, T *gradient,           \
                                                  float *sums, u32 c, float scale) {                               \
    squared_error<T>(prediction, target, gradient, sums, c, scale);                                                \
  }
FOR(float, f32)
FOR(bf16, bf16)

// Each row of l logits: sums = −Σ softmax(target/τ)·log softmax(prediction); gradient = (softmax(prediction) − wanted)·
// `scale`. A block a row.
extern "C" __global__ void soft_cross_entropy(const float *prediction, const float *target, float *gradient,
                                              float *sums, u32 l, float inverse_tau, float scale) {
  __shared__ float scratch[32];
  prediction += (u64)blockIdx.x * l;
  target += (u64)blockIdx.x * l;
  gradient += (u64)blockIdx.x * l;
  float most = -INFINITY, most_wanted = -INFINITY;
  for (u32 i = threadIdx.x; i < l; i += blockDim.x) {
    most = fmaxf(most, prediction[i]);
    most_wanted = fmaxf(most_wanted, target[i]);
  }
  most = block_max(most, scratch);
  most_wanted = block_max(most_wanted, scratch);
  float all = 0.0f, all_wanted = 0.0f;
  for (u32 i = threadIdx.x; i < l; i += blockDim.x) {
    all += expf(prediction[i] - most);
    all_wanted += expf((target[i] - most_wanted) * inverse_tau);
  }
  float log_all = logf(block_sum(all, scratch));
  all_wanted = block_sum(all_wanted, scratch);
  float loss = 0.0f;
  for (u32 i = threadIdx.x; i < l; i += blockDim.x) {
    float log_q = prediction[i] - most - log_all;
    float wanted = expf((target[i] - most_wanted) * inverse_tau) / all_wanted;
    loss -= wanted * log_q;
    gradient[i] = (expf(log_q) - wanted) * scale;
  }
  loss = block_sum(loss, scratch);
  if (threadIdx.x == 0) sums[blockIdx.x] = loss;
}

// Each row of c values to zero mean and unit variance, σ² unbiased. A block a row.
extern "C" __global__ void normalise_channels(const float *x, float *y, u32 c, float eps) {
  __shared__ float scratch[32];
  x += (u64)blockIdx.x * c;
  y += (u64)blockIdx.x * c;
  float sum = 0.0f;
  for (u32 i = threadIdx.x; i < c; i += blockDim.x) sum += x[i];
  float mean = block_sum(sum, scratch) / c;
  float squares = 0.0f;
  for (u32 i = threadIdx.x; i < c; i += blockDim.x) squares += (x[i] - mean) * (x[i] - mean);
  float scale = 1.0f / sqrtf(block_sum(squares, scratch) / (c - 1.0f) + eps);
  for (u32 i = threadIdx.x; i < c; i += blockDim.x) y[i] = (x[i] - mean) * scale;
}

// Each channel of (L, c) so, over the patches: block x takes channels, y an image.
extern "C" __global__ void normalise_patches(const float *x, float *y, u32 patches, u32 c, float eps) {
  u32 channel = blockIdx.x * blockDim.x + threadIdx.x;
  if (channel >= c) return;
  x += (u64)blockIdx.y * patches * c + channel;
  y += (u64)blockIdx.y * patches * c + channel;
  float sum = 0.0f;
  for (u32 j = 0; j < patches; j++) sum += x[(u64)j * c];
  float mean = sum / patches, squares = 0.0f;
  for (u32 j = 0; j < patches; j++) squares += (x[(u64)j * c] - mean) * (x[(u64)j * c] - mean);
  float scale = 1.0f / sqrtf(squares / (patches - 1.0f) + eps);
  for (u32 j = 0; j < patches; j++) y[(u64)j * c] = (x[(u64)j * c] - mean) * scale;
}
