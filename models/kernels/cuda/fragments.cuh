// Matrix products of one warp: 16 x 16 tiles in registers, as the tensor cores want them.
//
// A lane's place in a fragment is its quad (lane / 4: a row of a left operand or of a sum, a column
// of a right one) and its number within the quad (lane % 4: which pair of neighbouring columns of a
// left operand or a sum, rows of a right one). With TF32 the hardware's k = c and k = c + 4 are
// taken for the pair 2c and 2c + 1: the order of a sum over k is free as long as both operands have
// the same. So for every type the lanes hold pairs, and a sum becomes a left operand where it lies.
#pragma once

#include "device.cuh"

namespace fastffn::cuda {

template <typename T>
constexpr int DEPTH = sizeof(T) == 2 ? 16 : 8;  // k of one instruction
template <typename T>
struct Register {
  using Type = uint32_t;  // two values
};
template <>
struct Register<float> {
  using Type = float;
};
template <typename T>
struct Left {  // 16 x DEPTH
  typename Register<T>::Type values[4];
};
template <typename T>
struct Right {  // DEPTH x 8
  typename Register<T>::Type values[2];
};

FASTFFN_DEVICE int lane_quad() { return static_cast<int>(threadIdx.x % 32) / 4; }
FASTFFN_DEVICE int lane_pair() { return static_cast<int>(threadIdx.x % 4) * 2; }

template <typename T>
FASTFFN_DEVICE uint32_t load_pair(const T* from) {
  return *reinterpret_cast<const uint32_t*>(from);
}
FASTFFN_DEVICE float2 load_pair(const float* from) {
  return *reinterpret_cast<const float2*>(from);
}

// `from` is row-major, [16][DEPTH] at the given pitch.
template <typename T>
FASTFFN_DEVICE Left<T> load_left(const T* from, int pitch) {
  const T* here = from + lane_quad() * pitch + lane_pair();
  const T* below = here + 8 * pitch;
  if constexpr (sizeof(T) == 2) {
    return {load_pair(here), load_pair(below), load_pair(here + 8), load_pair(below + 8)};
  } else {
    const float2 upper = load_pair(here), lower = load_pair(below);
    return {upper.x, lower.x, upper.y, lower.y};
  }
}

// `from` is the operand's transpose, [8][DEPTH] at the given pitch.
template <typename T>
FASTFFN_DEVICE Right<T> load_right(const T* from, int pitch) {
  const T* here = from + lane_quad() * pitch + lane_pair();
  if constexpr (sizeof(T) == 2) {
    return {load_pair(here), load_pair(here + 8)};
  } else {
    const float2 both = load_pair(here);
    return {both.x, both.y};
  }
}

// Columns k * DEPTH and following of a 16 x 16 sum, rounded to T.
template <typename T>
FASTFFN_DEVICE Left<T> as_left(const float (&tile)[2][4], int k) {
  if constexpr (sizeof(T) == 2) {
    return {pack<T>(tile[0][0], tile[0][1]), pack<T>(tile[0][2], tile[0][3]),
            pack<T>(tile[1][0], tile[1][1]), pack<T>(tile[1][2], tile[1][3])};
  } else {
    return {tile[k][0], tile[k][2], tile[k][1], tile[k][3]};
  }
}

template <typename T>
FASTFFN_DEVICE void multiply(float (&sum)[4], const Left<T>& left, const Right<T>& right) {
  multiply_16bit<T>(sum, left.values, right.values);
}

// float32 from TF32: each factor is split into two TF32 numbers, and the products that matter are
// added outside of the tensor core, which rounds its sums towards zero (Ootomo and Yokota 2022,
// arXiv:2203.03341). The error is that of float32.
FASTFFN_DEVICE void multiply(float (&sum)[4], const Left<float>& left, const Right<float>& right) {
  uint32_t left_high[4], left_low[4], right_high[2], right_low[2];
  for (int i = 0; i < 4; ++i) {
    left_high[i] = to_tf32(left.values[i]);
    left_low[i] = to_tf32(left.values[i] - tf32_value(left_high[i]));
  }
  for (int i = 0; i < 2; ++i) {
    right_high[i] = to_tf32(right.values[i]);
    right_low[i] = to_tf32(right.values[i] - tf32_value(right_high[i]));
  }
  float product[4] = {};
  multiply_tf32(product, left_low, right_high);
  multiply_tf32(product, left_high, right_low);
  multiply_tf32(product, left_high, right_high);
  for (int i = 0; i < 4; ++i) sum[i] += product[i];
}

// 16 rows of RANK that are a left operand again and again: in registers, or read anew each time
// where they would fill those.
template <typename T, int RANK>
struct Kept {
  static constexpr int COUNT = RANK / DEPTH<T>;
  static constexpr bool IN_REGISTERS = sizeof(T) == 2 || COUNT <= 4;
  Left<T> parts[IN_REGISTERS ? COUNT : 1];
  const T* rows;

  FASTFFN_DEVICE explicit Kept(const T* from) : rows(from) {
    if constexpr (IN_REGISTERS) {
#pragma unroll
      for (int k = 0; k < COUNT; ++k) parts[k] = load_left(from + k * DEPTH<T>, RANK);
    }
  }
  FASTFFN_DEVICE Left<T> part(int k) const {
    if constexpr (IN_REGISTERS) {
      return parts[k];
    } else {
      return load_left(rows + k * DEPTH<T>, RANK);
    }
  }
};

// tile += kept · rowsᵀ, over RANK; `rows` are 16 of RANK each.
template <typename T, int RANK>
FASTFFN_DEVICE void add_product(float (&tile)[2][4], const Kept<T, RANK>& kept, const T* rows,
                                int pitch) {
#pragma unroll
  for (int k = 0; k < Kept<T, RANK>::COUNT; ++k) {
    const Left<T> left = kept.part(k);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      multiply(tile[j], left, load_right(rows + j * 8 * pitch + k * DEPTH<T>, pitch));
    }
  }
}

// sums [16][RANK] += tile · columnsᵀ, over the tile's 16 columns; `columns` are RANK of 16 each.
template <typename T, int RANK>
FASTFFN_DEVICE void add_to_sums(float (&sums)[RANK / 8][4], const float (&tile)[2][4],
                                const T* columns, int pitch) {
#pragma unroll
  for (int k = 0; k < 16 / DEPTH<T>; ++k) {
    const Left<T> left = as_left<T>(tile, k);
#pragma unroll
    for (int n = 0; n < RANK / 8; ++n) {
      multiply(sums[n], left, load_right(columns + n * 8 * pitch + k * DEPTH<T>, pitch));
    }
  }
}

}  // namespace fastffn::cuda
