// Arrays on the device.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "low_rank_ffn_launch.cuh"

namespace bench {

#ifdef FASTFFN_EMULATED
inline void* allocate(size_t bytes) { return emulation::allocate(bytes); }
inline void release(void* start) { emulation::release(start); }
inline void copy(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }
inline void must_succeed(const char*) {}
#else
inline void must_succeed(const char* what) {
  const cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(3);
}
inline void* allocate(size_t bytes) {
  void* start = nullptr;
  cudaMalloc(&start, bytes ? bytes : 1);
  must_succeed("cudaMalloc");
  return start;
}
inline void release(void* start) { cudaFree(start); }
inline void copy(void* to, const void* from, size_t bytes) {
  cudaMemcpy(to, from, bytes, cudaMemcpyDefault);
  must_succeed("cudaMemcpy");
}
#endif

template <typename T>
class Array {
 public:
  explicit Array(const std::vector<T>& values) : Array(values.size(), values.data()) {}
  // NaN, in every type.
  static Array nan(size_t count) {
    const std::vector<unsigned char> bytes(count * sizeof(T), 0xff);
    return Array(count, bytes.data());
  }
  Array(const Array&) = delete;
  ~Array() { release(start_); }

  T* get() const { return start_; }
  std::vector<T> values() const {
    std::vector<T> all(count_);
    copy(all.data(), start_, count_ * sizeof(T));
    return all;
  }

 private:
  Array(size_t count, const void* values)
      : count_(count), start_(static_cast<T*>(allocate(count * sizeof(T)))) {
    copy(start_, values, count * sizeof(T));
  }

  size_t count_;
  T* start_;
};

}  // namespace bench
