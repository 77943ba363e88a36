// The language of GPU kernels, on a CPU: a block's threads are fibers that take turns at its barriers.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <algorithm>
#include <type_traits>
#include <utility>
#include <cuda_fp16.h>
#include <cuda_bf16.h>
#include <cuda_fp8.h>

#undef __shared__
#define __shared__ static
#define __sized__
#undef __launch_bounds__
#define __launch_bounds__(...)

struct Index { unsigned x, y, z; };
extern Index threadIdx, blockIdx;
extern Index blockDim, gridDim;
constexpr int warpSize = 32;

void emulated_block_barrier();
void emulated_warp_barrier();
// Room for a value of each lane of the running thread's warp.
char *emulated_lanes();
unsigned emulated_lane();

inline void __syncthreads() { emulated_block_barrier(); }
inline void __syncwarp(unsigned = ~0u) { emulated_warp_barrier(); }

template <typename T> T emulated_from(T value, unsigned lane) {
  std::memcpy(emulated_lanes() + 16 * emulated_lane(), &value, sizeof value);
  emulated_warp_barrier();
  T out;
  std::memcpy(&out, emulated_lanes() + 16 * lane, sizeof out);
  emulated_warp_barrier();
  return out;
}
template <typename T> T __shfl_xor_sync(unsigned, T value, int mask, int = 32) {
  return emulated_from(value, emulated_lane() ^ mask);
}

inline float __uint_as_float(unsigned x) { float y; std::memcpy(&y, &x, 4); return y; }
inline unsigned __float_as_uint(float x) { unsigned y; std::memcpy(&y, &x, 4); return y; }
template <typename T> T __ldg(const T *p) { return *p; }
template <typename T> T atomicAdd(T *at, T x) { T old = *at; *at = old + x; return old; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float normcdff(float x) { return 0.5f * std::erfc(-x * 0.70710678f); }
inline double normcdf(double x) { return 0.5 * std::erfc(-x * 0.7071067811865476); }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline int min(int a, int b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
template <typename A, typename B> auto min(A a, B b) -> std::common_type_t<A, B> { return a < b ? a : b; }
template <typename A, typename B> auto max(A a, B b) -> std::common_type_t<A, B> { return a > b ? a : b; }

// A kernel by name: its arguments are read from where the launch points to.
struct EmulatedKernel { const char *name; void (*call)(void **); };
template <auto F> struct EmulatedCall;
template <typename... A, void (*F)(A...)> struct EmulatedCall<F> {
  template <std::size_t... I> static void at(void **arguments, std::index_sequence<I...>) {
    F(*static_cast<std::remove_const_t<std::remove_reference_t<A>> *>(arguments[I])...);
  }
  static void call(void **arguments) { at(arguments, std::index_sequence_for<A...>{}); }
};

// What candle's kernels ask for besides.
using std::signbit;
using std::isnan;
using std::isinf;
template <typename T> T atomicCAS(T *at, T expected, T value) { T old = *at; if (old == expected) *at = value; return old; }
template <typename T, typename U> T atomicMin(T *at, U x) { T old = *at; *at = old < (T)x ? old : (T)x; return old; }
template <typename T, typename U> T atomicMax(T *at, U x) { T old = *at; *at = old > (T)x ? old : (T)x; return old; }
inline int __float_as_int(float x) { int y; std::memcpy(&y, &x, 4); return y; }
inline float __int_as_float(int x) { float y; std::memcpy(&y, &x, 4); return y; }
inline long long __double_as_longlong(double x) { long long y; std::memcpy(&y, &x, 8); return y; }
inline double __longlong_as_double(long long x) { double y; std::memcpy(&y, &x, 8); return y; }

#define EMULATED_HALF(NAME, F)                                                            \
  inline __half NAME(__half x) { return __float2half(F(__half2float(x))); }             \
  inline __nv_bfloat16 NAME(__nv_bfloat16 x) { return __float2bfloat16(F(__bfloat162float(x))); }
EMULATED_HALF(hexp, std::exp)
EMULATED_HALF(hlog, std::log)
EMULATED_HALF(hsin, std::sin)
EMULATED_HALF(hcos, std::cos)
EMULATED_HALF(hsqrt, std::sqrt)
EMULATED_HALF(hceil, std::ceil)
EMULATED_HALF(hfloor, std::floor)
EMULATED_HALF(hrint, std::rint)
EMULATED_HALF(hrsqrt, 1.0f / std::sqrt)
EMULATED_HALF(htanh, std::tanh)
