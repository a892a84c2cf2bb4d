// Forward and backward of a whole feed-forward on one GPU: the fused kernels, the same factors with
// the hidden units in memory, and the dense layer. Matrix products are cuBLAS's everywhere.
#pragma once

#include <cublas_v2.h>

#include <algorithm>

#include "check.h"

namespace bench {

constexpr int ROUNDS = 20;

template <typename T>
cudaDataType_t data_type() {
  return sizeof(T) == 4                     ? CUDA_R_32F
         : std::is_same<T, Half>::value ? CUDA_R_16F
                                        : CUDA_R_16BF;
}

inline cublasHandle_t blas() {
  static const cublasHandle_t handle = [] {
    cublasHandle_t made;
    if (cublasCreate(&made) != CUBLAS_STATUS_SUCCESS) {
      std::fprintf(stderr, "cuBLAS does not start\n");
      std::exit(3);
    }
    return made;
  }();
  return handle;
}

// c [rows, columns] = a b, row-major; `a` may be stored [inner, rows], `b` [columns, inner].
template <typename T>
void multiply(const T* a, bool a_transposed, const T* b, bool b_transposed, T* c, int64_t rows,
              int64_t inner, int64_t columns) {
  const float one = 1.0f, zero = 0.0f;
  const auto status = cublasGemmEx(
      blas(), b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N, a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N,
      static_cast<int>(columns), static_cast<int>(rows), static_cast<int>(inner), &one, b,
      data_type<T>(), static_cast<int>(b_transposed ? inner : columns), a, data_type<T>(),
      static_cast<int>(a_transposed ? rows : inner), &zero, c, data_type<T>(),
      static_cast<int>(columns), CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
  if (status != CUBLAS_STATUS_SUCCESS) {
    std::fprintf(stderr, "cublasGemmEx: status %d\n", static_cast<int>(status));
    std::exit(3);
  }
}

__device__ inline int64_t first_of_thread() {
  return blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
}

// u += bias, g = gelu(u): one pass, as a framework with a fused bias has it.
template <typename T>
__global__ void add_bias_and_gelu(T* u, const T* bias, T* g, int64_t size, int64_t units) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = first_of_thread(); i < size; i += step) {
    const float sum = fastffn::cuda::to_float(u[i]) + fastffn::cuda::to_float(bias[i % units]);
    u[i] = fastffn::cuda::from_float<T>(sum);
    g[i] = fastffn::cuda::from_float<T>(fastffn::cuda::gelu<Gelu::tanh, sizeof(T) == 2>(sum).value);
  }
}
// dg becomes du.
template <typename T>
__global__ void multiply_by_slope(const T* u, T* dg, int64_t size) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = first_of_thread(); i < size; i += step) {
    const float here = fastffn::cuda::to_float(u[i]);
    const float slope = fastffn::cuda::gelu<Gelu::tanh, sizeof(T) == 2>(here).slope;
    dg[i] = fastffn::cuda::from_float<T>(fastffn::cuda::to_float(dg[i]) * slope);
  }
}

// Uniform numbers from -spread to spread: products of zeros would take less power, and less time.
template <typename T>
__global__ void fill(T* to, int64_t size, float spread) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = first_of_thread(); i < size; i += step) {
    uint32_t hash = static_cast<uint32_t>(i) * 2654435761u;
    hash = (hash ^ hash >> 16) * 2246822519u;
    hash ^= hash >> 13;
    to[i] = fastffn::cuda::from_float<T>(spread * (hash * 4.656612875e-10f - 1.0f));
  }
}

// One layer's tensors, and the three ways through it.
template <typename T>
class Layer {
 public:
  Layer(int64_t tokens, int64_t width, int64_t units, int rank, int multiprocessors)
      : tokens_(tokens), width_(width), units_(units), rank_(rank),
        problem_{tokens, units, rank, rank, Gelu::tanh, multiprocessors} {
    using fastffn::cuda::workspace_bytes;
    const int64_t bytes = std::max(workspace_bytes<T>(problem_, false),
                                   workspace_bytes<T>(problem_, true));
    space_ = allocate(bytes);
    all_.push_back(space_);
  }
  Layer(const Layer&) = delete;
  ~Layer() {
    for (void* each : all_) release(each);
  }

  void run_fused() {
    multiply(x, false, left1, false, z, tokens_, width_, rank_);
    fastffn::cuda::run_forward<T>(problem_, z, right1, bias1, left2, y, space_, nullptr);
    multiply(y, false, right2, false, out, tokens_, rank_, width_);
    multiply(y, true, dout, false, d_right2, rank_, tokens_, width_);
    multiply(dout, false, right2, true, dy, tokens_, width_, rank_);
    const Gradients<T> gradients{dz, d_right1, d_bias1, d_left2};
    fastffn::cuda::run_backward<T>(problem_, z, right1, bias1, left2, dy, gradients, space_,
                                   nullptr);
    multiply(x, true, dz, false, d_left1, width_, tokens_, rank_);
    multiply(dz, false, left1, true, dx, tokens_, rank_, width_);
  }

  void run_unfused() {
    multiply(x, false, left1, false, z, tokens_, width_, rank_);
    multiply(z, false, right1, false, u, tokens_, rank_, units_);
    activate();
    multiply(g, false, left2, false, y, tokens_, units_, rank_);
    multiply(y, false, right2, false, out, tokens_, rank_, width_);
    multiply(y, true, dout, false, d_right2, rank_, tokens_, width_);
    multiply(dout, false, right2, true, dy, tokens_, width_, rank_);
    multiply(g, true, dy, false, d_left2, units_, tokens_, rank_);
    multiply(dy, false, left2, true, du, tokens_, rank_, units_);
    slope_and_bias();
    multiply(z, true, du, false, d_right1, rank_, tokens_, units_);
    multiply(du, false, right1, true, dz, tokens_, units_, rank_);
    multiply(x, true, dz, false, d_left1, width_, tokens_, rank_);
    multiply(dz, false, left1, true, dx, tokens_, rank_, width_);
  }

  void run_dense() {
    multiply(x, false, weight1, false, u, tokens_, width_, units_);
    activate();
    multiply(g, false, weight2, false, out, tokens_, units_, width_);
    multiply(g, true, dout, false, d_weight2, units_, tokens_, width_);
    multiply(dout, false, weight2, true, du, tokens_, width_, units_);
    slope_and_bias();
    multiply(x, true, du, false, d_weight1, width_, tokens_, units_);
    multiply(du, false, weight1, true, dx, tokens_, units_, width_);
  }

 private:
  T* make(int64_t count, float spread = 0.0f) {
    all_.push_back(allocate(count * sizeof(T)));
    T* start = static_cast<T*>(all_.back());
    fill<<<1024, 256>>>(start, count, spread);
    must_succeed("fill");
    return start;
  }
  void activate() { add_bias_and_gelu<<<2048, 256>>>(u, bias1, g, tokens_ * units_, units_); }
  void slope_and_bias() {
    multiply_by_slope<<<2048, 256>>>(u, du, tokens_ * units_);
    multiply(ones, false, du, false, d_bias1, 1, tokens_, units_);
  }

  std::vector<void*> all_;
  int64_t tokens_, width_, units_;
  int rank_;
  Problem problem_;
  void* space_;
  T *x = make(tokens_ * width_, 1.7f), *dout = make(tokens_ * width_, 1.7f);
  T *left1 = make(width_ * rank_, 0.1f), *right1 = make(rank_ * units_, 0.5f);
  T *left2 = make(units_ * rank_, 0.1f), *right2 = make(rank_ * width_, 0.5f);
  T *weight1 = make(width_ * units_, 0.04f), *weight2 = make(units_ * width_, 0.04f);
  T *bias1 = make(units_, 0.1f), *ones = make(tokens_, 1.0f);
  T *z = make(tokens_ * rank_), *y = make(tokens_ * rank_), *u = make(tokens_ * units_);
  T *g = make(tokens_ * units_), *out = make(tokens_ * width_), *dx = make(tokens_ * width_);
  T *dz = make(tokens_ * rank_), *dy = make(tokens_ * rank_), *du = make(tokens_ * units_);
  T *d_left1 = make(width_ * rank_), *d_right1 = make(rank_ * units_), *d_bias1 = make(units_);
  T *d_left2 = make(units_ * rank_), *d_right2 = make(rank_ * width_);
  T *d_weight1 = make(width_ * units_), *d_weight2 = make(units_ * width_);
};

// Milliseconds on the GPU's own clock.
template <typename Run>
float time_once(const Run& run) {
  static cudaEvent_t start = nullptr, stop = nullptr;
  if (!start) {
    cudaEventCreate(&start);
    cudaEventCreate(&stop);
  }
  cudaEventRecord(start);
  run();
  cudaEventRecord(stop);
  cudaEventSynchronize(stop);
  must_succeed("a timed run");
  float milliseconds = 0.0f;
  cudaEventElapsedTime(&milliseconds, start, stop);
  return milliseconds;
}

inline float median(std::vector<float> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// One line: medians of ROUNDS rounds in which the three take turns, after two that do not count.
template <typename T>
void time_layer(int64_t tokens, int64_t width, int64_t units, int rank, int multiprocessors) {
  Layer<T> layer(tokens, width, units, rank, multiprocessors);
  std::vector<float> fused, unfused, dense;
  for (int round = -2; round < ROUNDS; ++round) {
    const float times[] = {time_once([&] { layer.run_fused(); }),
                           time_once([&] { layer.run_unfused(); }),
                           time_once([&] { layer.run_dense(); })};
    if (round < 0) continue;
    fused.push_back(times[0]);
    unfused.push_back(times[1]);
    dense.push_back(times[2]);
  }
  const float mine = median(fused), chain = median(unfused), whole = median(dense);
  std::printf("| %s | %lld | %lld | %lld | %d | %.3f | %.3f | %.3f | %.2f | %.2f |\n",
              Type<T>::NAME, static_cast<long long>(tokens), static_cast<long long>(width),
              static_cast<long long>(units), rank, mine, chain, whole, chain / mine, whole / mine);
  std::fflush(stdout);
}

template <typename T>
void time_type(const cudaDeviceProp& device) {
  if (!fastffn::cuda::serves<T>(device.major, device.minor)) return;
  const int processors = device.multiProcessorCount;
  for (const int rank : {8, 16, 32, 64, 128}) time_layer<T>(16384, 768, 3072, rank, processors);
  for (const int rank : {32, 64}) time_layer<T>(16384, 768, 192, rank, processors);
  time_layer<T>(8192, 2048, 8192, 32, processors);
}

inline int time_all(const cudaDeviceProp& device) {
  int runtime = 0;
  cudaRuntimeGetVersion(&runtime);
  std::printf("%s, compute capability %d.%d, CUDA %d; forward and backward of one layer, tanh GELU, "
              "milliseconds (median of %d interleaved rounds)\n\n",
              device.name, device.major, device.minor, runtime, ROUNDS);
  std::printf("| type | tokens | width | units | rank | fused | unfused | dense | unfused / fused | "
              "dense / fused |\n|---|---|---|---|---|---|---|---|---|---|\n");
  time_type<Bfloat16>(device);
  time_type<Half>(device);
  time_type<float>(device);
  return 0;
}

}  // namespace bench
