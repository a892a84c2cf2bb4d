// The inside of the low-rank feed-forward, without its hidden units in memory.
//
//     forward    u = z right1 + bias1,  g = gelu(u),  y = g left2
//     backward   dg = dy left2ᵀ,  du = dg gelu'(u),  dz = du right1ᵀ
//                d_right1 = zᵀ du,  d_bias1 = Σ du,  d_left2 = gᵀ dy
//
// with z and y [N, R], u and g [N, F]. The hidden units live in registers, in tiles of 16 tokens by
// 16 units; the backward pass computes them anew from z, once for the gradient of the tokens
// (`backward_of_tokens`, like `forward` a block of tokens to a thread block, all hidden units one
// after the other) and once for those of the weights (`backward_of_units`, a block of hidden units
// to a thread block, the tokens one after the other). The two need the same tile in transposed
// forms, and to compute it twice costs less than to transpose it or to exchange partial dz.
//
// All operands are first copied ("packed") with the rank padded to RANK, tokens and hidden units to
// BLOCK, by zeros, as rows [length][RANK] and as columns [RANK][length]: every product below then
// reads pairs of neighbours, and nothing is out of bounds.
#pragma once

#include "fragments.cuh"
#include "gelu.cuh"

namespace fastffn::cuda {

constexpr int WARPS = 8, THREADS = 32 * WARPS;
constexpr int BLOCK = 64;            // tokens and hidden units are padded to a multiple of it
constexpr int TOKEN_WARPS = 4;       // of a block of 64 tokens; the others share the hidden units
constexpr int UNITS = 16 * WARPS;    // hidden units of a thread block of `backward_of_units`
constexpr int SHARED_LIMIT = 64 * 1024;  // what compute capability 7.5 has

template <typename T>
struct Packed {
  const T* rows;     // [length][RANK]
  const T* columns;  // [RANK][length]
  int64_t length;    // padded
};

// Tiles of WIDTH tokens or hidden units in shared memory, of ROWS operands as rows and COLUMNS as
// columns. Where two sets fit, the next one is fetched while this one is used. Pitches are padded by
// eight elements: no two lanes of a warp then want the same bank.
template <typename T, int RANK, int WIDTH, int ROWS, int COLUMNS>
struct Tiles {
  static constexpr int ROW_PITCH = RANK + 8, COLUMN_PITCH = WIDTH + 8;
  static constexpr int ROW_SIZE = WIDTH * ROW_PITCH, COLUMN_SIZE = RANK * COLUMN_PITCH;
  static constexpr int SIZE = ROWS * ROW_SIZE + COLUMNS * COLUMN_SIZE;
  static constexpr int SETS = 2 * SIZE * sizeof(T) <= SHARED_LIMIT ? 2 : 1;
  static constexpr int BYTES = SETS * SIZE * sizeof(T);

  T* shared;
  const T* rows[ROWS];        // of each operand, [length][RANK]
  const T* columns[COLUMNS];  // [RANK][length]
  int64_t length;

  FASTFFN_DEVICE T* row_tile(int64_t set, int i) const {
    return shared + set % SETS * SIZE + i * ROW_SIZE;
  }
  FASTFFN_DEVICE T* column_tile(int64_t set, int i) const {
    return shared + set % SETS * SIZE + ROWS * ROW_SIZE + i * COLUMN_SIZE;
  }
  FASTFFN_DEVICE void fetch(int64_t set, int64_t first) const {
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
      copy<WIDTH, RANK>(row_tile(set, i), ROW_PITCH, rows[i] + first * RANK, RANK);
    }
#pragma unroll
    for (int i = 0; i < COLUMNS; ++i) {
      copy<RANK, WIDTH>(column_tile(set, i), COLUMN_PITCH, columns[i] + first, length);
    }
  }

  // Calls use(set, position) for each tile of [first, last), in order.
  template <typename Use>
  FASTFFN_DEVICE void for_each(int64_t first, int64_t last, Use use) const {
    fetch(0, first);
    close_copies();
    int64_t set = 0;
    for (int64_t position = first; position < last; position += WIDTH, ++set) {
      if constexpr (SETS == 2) {
        if (position + WIDTH < last) fetch(set + 1, position + WIDTH);
        close_copies();
        wait_for_copies<1>();
      } else {
        wait_for_copies<0>();
      }
      synchronize_block();
      use(set, position);
      synchronize_block();
      if constexpr (SETS == 1) {
        if (position + WIDTH < last) fetch(set + 1, position + WIDTH);
        close_copies();
      }
    }
    wait_for_copies<0>();
  }

 private:
  template <int COUNT, int LENGTH>
  FASTFFN_DEVICE static void copy(T* to, int pitch, const T* from, int64_t from_pitch) {
    constexpr int STEP = 16 / sizeof(T), STEPS = LENGTH / STEP;
    for (int i = threadIdx.x; i < COUNT * STEPS; i += THREADS) {
      const int row = i / STEPS, column = i % STEPS * STEP;
      copy_async(to + row * pitch + column, from + row * from_pitch + column);
    }
  }
};

template <typename T, int RANK>
constexpr int UNITS_AT_ONCE = RANK * sizeof(T) <= 128 ? 64 : 32;
template <typename T, int RANK>
constexpr int TOKENS_AT_ONCE = RANK * sizeof(T) <= 64 ? 64 : RANK * sizeof(T) <= 128 ? 32 : 16;
template <typename T, int RANK>
constexpr int BLOCKS_AT_ONCE = RANK * sizeof(T) <= 64 ? 2 : 1;  // of a multiprocessor: for registers

template <typename T, int RANK>
using ForwardTiles = Tiles<T, RANK, UNITS_AT_ONCE<T, RANK>, 1, 1>;
template <typename T, int RANK>
using TokenTiles = Tiles<T, RANK, UNITS_AT_ONCE<T, RANK>, 2, 1>;
template <typename T, int RANK>
using UnitTiles = Tiles<T, RANK, TOKENS_AT_ONCE<T, RANK>, 2, 2>;

// Adds up what the warps of other hidden units have of the same tokens, and writes [N, rank].
template <typename T, int RANK>
FASTFFN_DEVICE void write_tokens(const float (&sums)[RANK / 8][4], T* to, int64_t tokens, int rank) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int token_warp = warp % TOKEN_WARPS;
  float* shared = reinterpret_cast<float*>(shared_memory());
  static_assert(WARPS == 2 * TOKEN_WARPS, "two warps share the hidden units of a token");
  static_assert(RANK * 256 <= ForwardTiles<T, RANK>::BYTES, "the exchange fits into the tiles");
  float* exchange = shared + token_warp * (RANK / 8 * 4 * 32) + lane;
  if (warp >= TOKEN_WARPS) {
#pragma unroll
    for (int i = 0; i < RANK / 2; ++i) exchange[i * 32] = sums[i / 4][i % 4];
  }
  synchronize_block();
  if (warp >= TOKEN_WARPS) return;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * BLOCK + token_warp * 16 + lane_quad();
#pragma unroll
  for (int i = 0; i < RANK / 2; ++i) {
    const int64_t token = first + (i % 4 / 2) * 8;
    const int column = i / 4 * 8 + lane_pair() + i % 2;
    if (token < tokens && column < rank) {
      to[token * rank + column] = from_float<T>(sums[i / 4][i % 4] + exchange[i * 32]);
    }
  }
}

// Starts a tile with columns of hidden units from the bias.
FASTFFN_DEVICE void start_with(float (&tile)[2][4], const float* bias) {
#pragma unroll
  for (int i = 0; i < 8; ++i) tile[i / 4][i % 4] = bias[i / 4 * 8 + lane_pair() + i % 2];
}

template <typename T, int RANK, Gelu FORM>
__global__ void __launch_bounds__(THREADS, BLOCKS_AT_ONCE<T, RANK>)
    forward(Packed<T> z, Packed<T> right1, const float* bias1, Packed<T> left2, T* y,
            int64_t tokens, int rank2) {
  using Memory = ForwardTiles<T, RANK>;
  const Memory memory{reinterpret_cast<T*>(shared_memory()), {right1.rows}, {left2.columns},
                      right1.length};
  const int warp = threadIdx.x / 32;
  const int64_t token = static_cast<int64_t>(blockIdx.x) * BLOCK + warp % TOKEN_WARPS * 16;
  const Kept<T, RANK> z_kept(z.rows + token * RANK);
  float sums[RANK / 8][4] = {};
  memory.for_each(0, right1.length, [&](int64_t set, int64_t position) {
    for (int unit = warp / TOKEN_WARPS * 16; unit < UNITS_AT_ONCE<T, RANK>; unit += 32) {
      float hidden[2][4];
      start_with(hidden, bias1 + position + unit);
      add_product<T, RANK>(hidden, z_kept, memory.row_tile(set, 0) + unit * Memory::ROW_PITCH,
                           Memory::ROW_PITCH);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        hidden[i / 4][i % 4] = gelu<FORM, sizeof(T) == 2>(hidden[i / 4][i % 4]).value;
      }
      add_to_sums<T, RANK>(sums, hidden, memory.column_tile(set, 0) + unit, Memory::COLUMN_PITCH);
    }
  });
  write_tokens<T, RANK>(sums, y, tokens, rank2);
}

template <typename T, int RANK, Gelu FORM>
__global__ void __launch_bounds__(THREADS, BLOCKS_AT_ONCE<T, RANK>)
    backward_of_tokens(Packed<T> z, Packed<T> right1, const float* bias1, Packed<T> left2,
                       Packed<T> dy, T* dz, int64_t tokens, int rank1) {
  using Memory = TokenTiles<T, RANK>;
  const Memory memory{reinterpret_cast<T*>(shared_memory()),
                      {right1.rows, left2.rows},
                      {right1.columns},
                      right1.length};
  const int warp = threadIdx.x / 32;
  const int64_t token = static_cast<int64_t>(blockIdx.x) * BLOCK + warp % TOKEN_WARPS * 16;
  const Kept<T, RANK> z_kept(z.rows + token * RANK), dy_kept(dy.rows + token * RANK);
  float sums[RANK / 8][4] = {};
  memory.for_each(0, right1.length, [&](int64_t set, int64_t position) {
    for (int unit = warp / TOKEN_WARPS * 16; unit < UNITS_AT_ONCE<T, RANK>; unit += 32) {
      const int row = unit * Memory::ROW_PITCH;
      float hidden[2][4], slope[2][4] = {};
      start_with(hidden, bias1 + position + unit);
      add_product<T, RANK>(hidden, z_kept, memory.row_tile(set, 0) + row, Memory::ROW_PITCH);
      add_product<T, RANK>(slope, dy_kept, memory.row_tile(set, 1) + row, Memory::ROW_PITCH);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        slope[i / 4][i % 4] *= gelu<FORM, sizeof(T) == 2>(hidden[i / 4][i % 4]).slope;
      }
      add_to_sums<T, RANK>(sums, slope, memory.column_tile(set, 0) + unit, Memory::COLUMN_PITCH);
    }
  });
  write_tokens<T, RANK>(sums, dz, tokens, rank1);
}

// What a share of the tokens adds to the gradients of the weights: [F][RANK], [F][RANK], [F].
struct Partial {
  float *right1, *left2, *bias1;

  template <int RANK>
  FASTFFN_DEVICE static Partial of(float* all, int64_t share, int64_t units) {
    float* here = all + share * units * (2 * RANK + 1);
    return {here, here + units * RANK, here + 2 * units * RANK};
  }
};

template <int RANK>
FASTFFN_DEVICE void write_units(const float (&sums)[RANK / 8][4], float* to) {
#pragma unroll
  for (int i = 0; i < RANK / 2; ++i) {
    const int row = lane_quad() + i % 4 / 2 * 8;
    to[row * RANK + i / 4 * 8 + lane_pair() + i % 2] = sums[i / 4][i % 4];
  }
}

// blockIdx.y is the share of the tokens: `tokens_a_share` of them, a multiple of BLOCK.
template <typename T, int RANK, Gelu FORM>
__global__ void __launch_bounds__(THREADS, BLOCKS_AT_ONCE<T, RANK>)
    backward_of_units(Packed<T> z, Packed<T> right1, const float* bias1, Packed<T> left2,
                      Packed<T> dy, float* partials, int64_t tokens_a_share) {
  using Memory = UnitTiles<T, RANK>;
  const Memory memory{reinterpret_cast<T*>(shared_memory()),
                      {z.rows, dy.rows},
                      {z.columns, dy.columns},
                      z.length};
  const int64_t units = right1.length, mine = blockIdx.x * UNITS + threadIdx.x / 32 * 16;
  const bool active = mine < units;  // the others help to fetch
  const int64_t unit = active ? mine : 0;
  const Kept<T, RANK> right1_kept(right1.rows + unit * RANK), left2_kept(left2.rows + unit * RANK);
  const float upper_bias = bias1[unit + lane_quad()], lower_bias = bias1[unit + lane_quad() + 8];
  float right1_sums[RANK / 8][4] = {}, left2_sums[RANK / 8][4] = {};
  float upper_sum = 0.0f, lower_sum = 0.0f;
  const int64_t first = blockIdx.y * tokens_a_share, end = first + tokens_a_share;
  memory.for_each(first, end < z.length ? end : z.length, [&](int64_t set, int64_t) {
    if (!active) return;
    for (int token = 0; token < TOKENS_AT_ONCE<T, RANK>; token += 16) {
      const int row = token * Memory::ROW_PITCH;
      float hidden[2][4] = {{upper_bias, upper_bias, lower_bias, lower_bias},
                            {upper_bias, upper_bias, lower_bias, lower_bias}};
      float slope[2][4] = {};
      add_product<T, RANK>(hidden, right1_kept, memory.row_tile(set, 0) + row, Memory::ROW_PITCH);
      add_product<T, RANK>(slope, left2_kept, memory.row_tile(set, 1) + row, Memory::ROW_PITCH);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const Point point = gelu<FORM, sizeof(T) == 2>(hidden[i / 4][i % 4]);
        hidden[i / 4][i % 4] = point.value;
        slope[i / 4][i % 4] *= point.slope;
        (i % 4 < 2 ? upper_sum : lower_sum) += slope[i / 4][i % 4];
      }
      add_to_sums<T, RANK>(right1_sums, slope, memory.column_tile(set, 0) + token,
                           Memory::COLUMN_PITCH);
      add_to_sums<T, RANK>(left2_sums, hidden, memory.column_tile(set, 1) + token,
                           Memory::COLUMN_PITCH);
    }
  });
  if (!active) return;  // a whole warp
  const Partial partial = Partial::of<RANK>(partials, blockIdx.y, units);
  write_units<RANK>(right1_sums, partial.right1 + unit * RANK);
  write_units<RANK>(left2_sums, partial.left2 + unit * RANK);
  upper_sum = sum_of_quad(upper_sum);
  lower_sum = sum_of_quad(lower_sum);
  if (threadIdx.x % 4 == 0) {
    partial.bias1[unit + lane_quad()] = upper_sum;
    partial.bias1[unit + lane_quad() + 8] = lower_sum;
  }
}

// The gradients of the weights from the shares, added in the same order every time.
template <typename T, int RANK>
__global__ void add_shares(float* partials, int shares, int64_t padded_units, int64_t units,
                           int rank1, int rank2, T* d_right1, T* d_bias1, T* d_left2) {
  const int64_t right1_size = rank1 * units, left2_size = rank2 * units;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x;
  if (i >= right1_size + left2_size + units) return;
  float sum = 0.0f;
  for (int share = 0; share < shares; ++share) {
    const Partial partial = Partial::of<RANK>(partials, share, padded_units);
    if (i < right1_size) {
      sum += partial.right1[i % units * RANK + i / units];
    } else if (i < right1_size + left2_size) {
      const int64_t j = i - right1_size;
      sum += partial.left2[j / rank2 * RANK + j % rank2];
    } else {
      sum += partial.bias1[i - right1_size - left2_size];
    }
  }
  T* to = i < right1_size                ? d_right1 + i
          : i < right1_size + left2_size ? d_left2 + (i - right1_size)
                                         : d_bias1 + (i - right1_size - left2_size);
  *to = from_float<T>(sum);
}

// One matrix [length][rank] with any strides, copied into RANK by zeros: see the head of the file.
template <typename T>
struct PackJob {
  const T* from;  // null: zeros
  int64_t length, padded_length;
  int rank, padded_rank;
  int64_t stride, rank_stride;
  T* rows;     // either may be null
  T* columns;
  float* values;  // instead of both, of a matrix of one column: its values as float32
};
template <typename T>
struct PackJobs {
  PackJob<T> jobs[5];
};

// blockIdx.y is the job.
template <typename T>
__global__ void pack_operands(PackJobs<T> all) {
  const PackJob<T> job = all.jobs[blockIdx.y];
  const int64_t size = job.padded_length * job.padded_rank;
  const int64_t step = static_cast<int64_t>(gridDim.x) * THREADS;
  const auto at = [&](int64_t place, int64_t rank) {
    const bool there = job.from && place < job.length && rank < job.rank;
    return there ? job.from[place * job.stride + rank * job.rank_stride] : from_float<T>(0.0f);
  };
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x; i < size; i += step) {
    if (job.rows) job.rows[i] = at(i / job.padded_rank, i % job.padded_rank);
    if (job.columns) job.columns[i] = at(i % job.padded_length, i / job.padded_length);
    if (job.values) job.values[i] = to_float(at(i, 0));
  }
}

}  // namespace fastffn::cuda
