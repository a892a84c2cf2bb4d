// What the kernels need of the hardware, and nothing else: the one file with PTX in it.
//
// A program that defines FASTFFN_EMULATED brings its own versions of everything here (the tests do,
// to run the kernels on a CPU).
#pragma once

#include <cstdint>

#ifndef FASTFFN_EMULATED

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define FASTFFN_DEVICE __device__ __forceinline__

namespace fastffn::cuda {

using Half = __half;
using Bfloat16 = __nv_bfloat16;

// Shared memory of the block, as much as the launch asked for.
FASTFFN_DEVICE unsigned char* shared_memory() {
  extern __shared__ __align__(16) unsigned char fastffn_shared[];
  return fastffn_shared;
}

FASTFFN_DEVICE void synchronize_block() { __syncthreads(); }

// 16 bytes from global to shared memory, both aligned to 16; there once `wait_for_copies` returns.
FASTFFN_DEVICE void copy_async(void* shared, const void* global) {
#if __CUDA_ARCH__ >= 800
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(global) : "memory");
#else
  *static_cast<uint4*>(shared) = *static_cast<const uint4*>(global);
#endif
}

// Closes a group of copies; `wait_for_copies<n>` returns when all but the last n groups are there.
FASTFFN_DEVICE void close_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int PENDING>
FASTFFN_DEVICE void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#endif
}

// The sum over the four lanes of a quad (lanes 4i to 4i + 3), in each of them.
FASTFFN_DEVICE float sum_of_quad(float value) {
  value += __shfl_xor_sync(0xffffffffu, value, 1);
  return value + __shfl_xor_sync(0xffffffffu, value, 2);
}

// Approximations of the special function unit: 2 units in the last place near 0, 1e-6 at e^±20.
FASTFFN_DEVICE float fast_exponential(float x) { return __expf(x); }
FASTFFN_DEVICE float fast_reciprocal(float x) { return __fdividef(1.0f, x); }
FASTFFN_DEVICE float exponential(float x) { return expf(x); }

FASTFFN_DEVICE float to_float(float x) { return x; }
FASTFFN_DEVICE float to_float(Half x) { return __half2float(x); }
FASTFFN_DEVICE float to_float(Bfloat16 x) { return __bfloat162float(x); }
template <typename T>
FASTFFN_DEVICE T from_float(float x);
template <>
FASTFFN_DEVICE float from_float<float>(float x) { return x; }
template <>
FASTFFN_DEVICE Half from_float<Half>(float x) { return __float2half_rn(x); }
template <>
FASTFFN_DEVICE Bfloat16 from_float<Bfloat16>(float x) { return __float2bfloat16_rn(x); }

// Two values in one register, the first in the low half.
template <typename T>
FASTFFN_DEVICE uint32_t pack(float low, float high);
template <>
FASTFFN_DEVICE uint32_t pack<Half>(float low, float high) {
  const __half2 both = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&both);
}
template <>
FASTFFN_DEVICE uint32_t pack<Bfloat16>(float low, float high) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&both);
}

// The 19 bits of a float32 that tensor cores read as TF32, rounded to nearest.
FASTFFN_DEVICE uint32_t to_tf32(float x) {
  uint32_t rounded = 0;
#if __CUDA_ARCH__ >= 800
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(x));
#endif
  return rounded;
}

FASTFFN_DEVICE float tf32_value(uint32_t x) { return __uint_as_float(x); }

// d += a b for the fragments of mma.m16n8k16 (16-bit types) and mma.m16n8k8 (TF32), as PTX ISA,
// "Matrix Fragments for mma", lays them out over the 32 lanes of a warp.
FASTFFN_DEVICE void multiply_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}
template <typename T>
FASTFFN_DEVICE void multiply_16bit(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
template <>
FASTFFN_DEVICE void multiply_16bit<Bfloat16>(float (&d)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}
template <>
FASTFFN_DEVICE void multiply_16bit<Half>(float (&d)[4], const uint32_t (&a)[4],
                                         const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#elif __CUDA_ARCH__ >= 750
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(b[0]));
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[2]), "r"(a[3]), "r"(b[1]));
#endif
}

// Starts a kernel with so many bytes of shared memory; the first error is kept by CUDA.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 blocks, int threads, int shared_bytes,
            cudaStream_t stream, Arguments... arguments) {
  if (shared_bytes > 48 * 1024) {
    const auto limit = cudaFuncAttributeMaxDynamicSharedMemorySize;
    if (cudaFuncSetAttribute(kernel, limit, shared_bytes) != cudaSuccess) return;
  }
  kernel<<<blocks, threads, shared_bytes, stream>>>(arguments...);
}

}  // namespace fastffn::cuda

#endif
