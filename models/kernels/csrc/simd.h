// One source for every instruction set: GCC's vector extensions, as wide as the file is compiled for.
//
// A file that includes this is compiled once for each path (AVX-512, AVX2, portable) with that
// path's flags and FASTFFN_PATH as its namespace. RULE: no inline function of the standard library
// in such files (std::max, std::vector ...): the linker keeps one copy of each for the whole
// library, and it could be the one with AVX-512 in it. Only <cstdint> and builtins.
#pragma once

#include <cstdint>
#include <cstring>  // memcpy, a builtin

#if defined(__AVX512F__)
#define FASTFFN_LANES 16
#elif defined(__AVX2__)
#define FASTFFN_LANES 8
#else
#define FASTFFN_LANES 4
#endif

#define FASTFFN_INLINE static inline __attribute__((always_inline))

namespace fastffn::FASTFFN_PATH {

constexpr int LANES = FASTFFN_LANES;
// Fewer values than this are worked on by one thread: starting others would cost more.
constexpr int64_t PARALLEL_FROM = 1 << 14;

typedef float Vec __attribute__((vector_size(4 * FASTFFN_LANES)));
typedef int32_t IntVec __attribute__((vector_size(4 * FASTFFN_LANES)));

FASTFFN_INLINE Vec load(const float* from) {
  Vec v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}
FASTFFN_INLINE void store(float* to, Vec v) { __builtin_memcpy(to, &v, sizeof v); }
FASTFFN_INLINE Vec broadcast(float value) { return value - Vec{}; }

// The first `count` lanes; the others are zero, and are neither read nor written in memory.
FASTFFN_INLINE Vec load_part(const float* from, int count) {
  Vec v{};
  __builtin_memcpy(&v, from, sizeof(float) * count);
  return v;
}
FASTFFN_INLINE void store_part(float* to, Vec v, int count) {
  __builtin_memcpy(to, &v, sizeof(float) * count);
}

// Vectors of a row whose width need not be a multiple of LANES; lanes behind the end are zero.
FASTFFN_INLINE Vec load_at(const float* row, int64_t i, int64_t width) {
  return i + LANES <= width ? load(row + i) : load_part(row + i, static_cast<int>(width - i));
}
FASTFFN_INLINE void store_at(float* row, int64_t i, int64_t width, Vec v) {
  if (i + LANES <= width) {
    store(row + i, v);
  } else {
    store_part(row + i, v, static_cast<int>(width - i));
  }
}

FASTFFN_INLINE Vec as_float(IntVec v) { return (Vec)v; }
FASTFFN_INLINE IntVec as_int(Vec v) { return (IntVec)v; }
FASTFFN_INLINE Vec maximum(Vec a, Vec b) { return a > b ? a : b; }
FASTFFN_INLINE Vec minimum(Vec a, Vec b) { return a < b ? a : b; }
FASTFFN_INLINE Vec absolute(Vec v) { return as_float(as_int(v) & 0x7fffffff); }

typedef float Quad __attribute__((vector_size(16)));

// Halves are added to each other down to four lanes.
FASTFFN_INLINE float sum(Vec v) {
  float lanes[LANES];
  store(lanes, v);
  for (int half = LANES / 2; half >= 4; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
}
FASTFFN_INLINE float largest(Vec v) {
  float most = v[0];
  for (int i = 1; i < LANES; ++i) most = v[i] > most ? v[i] : most;
  return most;
}

// e^x within 2 units in the last place; 0 below -87.3, clamped (not infinite) above 88; NaN stays NaN.
FASTFFN_INLINE Vec exponential(Vec x) {
  // Of two values that do not compare, `maximum` and `minimum` give the second one.
  const Vec clamped = minimum(broadcast(88.0f), maximum(broadcast(-87.33654f), x));
  const Vec shift = broadcast(12582912.0f);  // 1.5 * 2^23: rounds to an integer, kept in low bits
  const Vec rounded = clamped * 1.44269504f + shift;
  const Vec n = rounded - shift;
  Vec r = clamped - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  Vec p = broadcast(1.9875691500e-4f);  // Cephes expf
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const IntVec power = (as_int(rounded) + 127) << 23;  // 2^n: the shift's own bits fall off the top
  const Vec result = p * as_float(power);
  return x < -87.33654f ? Vec{} : result;
}

}  // namespace fastffn::FASTFFN_PATH
