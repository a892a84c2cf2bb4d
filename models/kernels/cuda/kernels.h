// The CUDA kernels as plain C++ functions, for code that a host compiler compiles.
#pragma once

#include <cstdint>

namespace fastffn::cuda {

constexpr int RANK_LIMIT = 128;

// Of device memory, row-major and contiguous, all of one type; null where a call has no use for it.
struct LowRankCall {
  int64_t tokens, units;
  int rank1, rank2;
  int activation;  // 0 gelu by tanh, 1 gelu by erf, 2 fast_gelu
  int multiprocessors;
  const void *z, *right1, *bias1, *left2, *dy;
  void *y;                                 // of the forward pass
  void *dz, *d_right1, *d_bias1, *d_left2;  // of the backward pass
  void *workspace, *stream;
};

struct Kernels {
  int64_t (*workspace_bytes)(const LowRankCall&, bool backward);
  // Return what CUDA says went wrong, or null.
  const char* (*forward)(const LowRankCall&);
  const char* (*backward)(const LowRankCall&);
};
extern const Kernels float32_kernels, float16_kernels, bfloat16_kernels;

}  // namespace fastffn::cuda
