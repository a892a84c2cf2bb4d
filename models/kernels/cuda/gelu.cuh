// The three forms of GELU and their slopes, from one exponential and one reciprocal each.
#pragma once

#include "device.cuh"

namespace fastffn::cuda {

enum class Gelu { tanh, erf, quick };

struct Point {
  float value, slope;
};

// FAST uses the special function unit's approximations: below the rounding of 16-bit types.
template <bool FAST>
FASTFFN_DEVICE float exponential_of(float x) {
  return FAST ? fast_exponential(x) : exponential(x);
}
template <bool FAST>
FASTFFN_DEVICE float reciprocal_of(float x) {
  return FAST ? fast_reciprocal(x) : 1.0f / x;
}

// Hendrycks and Gimpel 2016 (arXiv:1606.08415): Φ(u) ≈ ½(1 + tanh w) = σ(2w), with
// w = √(2/π)(u + 0.044715u³); Φ' = 2σ(1 - σ)w'.
template <bool FAST>
FASTFFN_DEVICE Point gelu_tanh(float u) {
  const float square = u * u;
  const float twice_w = 1.5957691216f * u * (1.0f + 0.044715f * square);
  const float twice_slope = 1.5957691216f * (1.0f + 0.134145f * square);
  const float share = reciprocal_of<FAST>(1.0f + exponential_of<FAST>(-twice_w));
  return {u * share, share + u * share * (1.0f - share) * twice_slope};
}

// Φ(u) by Abramowitz and Stegun 7.1.26 (error 1.5e-7), whose e^(-u²/2) is that of Φ' as well.
template <bool FAST>
FASTFFN_DEVICE Point gelu_erf(float u) {
  const float size = fabsf(u);
  const float bell = exponential_of<FAST>(-0.5f * u * u);
  const float t = reciprocal_of<FAST>(1.0f + 0.23164189f * size);
  float tail = 0.5307027145f;
  tail = tail * t - 0.7265760135f;
  tail = tail * t + 0.7107068705f;
  tail = tail * t - 0.142248368f;
  tail = tail * t + 0.127414796f;
  tail = tail * t * bell;  // Φ(-|u|)
  const float share = u < 0.0f ? tail : 1.0f - tail;
  return {u * share, share + 0.3989422804f * u * bell};
}

// u·σ(1.702u), of the same paper: `fast_gelu`.
template <bool FAST>
FASTFFN_DEVICE Point gelu_quick(float u) {
  const float share = reciprocal_of<FAST>(1.0f + exponential_of<FAST>(-1.702f * u));
  return {u * share, share + 1.702f * u * share * (1.0f - share)};
}

template <Gelu FORM, bool FAST>
FASTFFN_DEVICE Point gelu(float u) {
  if constexpr (FORM == Gelu::tanh) return gelu_tanh<FAST>(u);
  if constexpr (FORM == Gelu::erf) return gelu_erf<FAST>(u);
  return gelu_quick<FAST>(u);
}

}  // namespace fastffn::cuda
