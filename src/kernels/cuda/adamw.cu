// AdamW over all parameters at once.
#include "common.cuh"

// `decays` has a byte for each 64 values: parameters begin on multiples of 64.
extern "C" __global__ void adamw(float *p, float *m, float *v, const float *g, const unsigned char *decays, u64 n,
                                 float one_minus_b1, float b2, float one_minus_b2, float step_size, float root,
                                 float eps, float keep) {
  u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  float gradient = g[i];
  float first = m[i] + one_minus_b1 * (gradient - m[i]);
  float second = v[i] * b2 + one_minus_b2 * gradient * gradient;
  m[i] = first;
  v[i] = second;
  p[i] = p[i] * (decays[i / 64] ? keep : 1.0f) - step_size * first / (sqrtf(second) / root + eps);
}
