// The launches of low_rank_ffn.cuh for one matrix problem, on one stream.
//
// Everything is in row-major order: z [tokens, rank1], right1 [rank1, units], bias1 [units] or null,
// left2 [units, rank2], y and dy [tokens, rank2]. Ranks up to 128; at least one token. The workspace
// is device memory of the size that `workspace_bytes` tells, aligned to 256 bytes; what it holds
// before and after does not matter. Nothing is allocated, nothing waits.
#pragma once

#include <type_traits>

#include "low_rank_ffn.cuh"

namespace fastffn::cuda {

constexpr int LARGEST_RANK = 128;

struct Problem {
  int64_t tokens, units;
  int rank1, rank2;
  Gelu form;
  int multiprocessors;  // of the device: how far the backward pass is split
};

// float32 and bfloat16 need compute capability 8.0, float16 7.5.
template <typename T>
bool serves(int major, int minor) {
  return std::is_same<T, Half>::value ? major * 10 + minor >= 75 : major >= 8;
}

inline int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

inline int padded_rank(const Problem& problem) {
  const int rank = problem.rank1 > problem.rank2 ? problem.rank1 : problem.rank2;
  return rank <= 16 ? 16 : rank <= 32 ? 32 : rank <= 64 ? 64 : LARGEST_RANK;
}

// Shares of the tokens in the gradient of the weights: two blocks a multiprocessor if they suffice.
inline int count_shares(const Problem& problem) {
  const int64_t blocks = round_up(problem.units, UNITS) / UNITS;
  const int64_t wish = round_up(2 * problem.multiprocessors, blocks) / blocks;
  const int64_t most = round_up(problem.tokens, BLOCK) / BLOCK;
  const int64_t blocks_a_share = (most + wish - 1) / wish;
  return static_cast<int>((most + blocks_a_share - 1) / blocks_a_share);
}

// Pieces of the workspace, one behind the other; with no workspace, only how much they need.
class Pieces {
 public:
  explicit Pieces(void* workspace) : base_(static_cast<unsigned char*>(workspace)) {}

  template <typename E>
  E* take(int64_t count) {
    unsigned char* here = base_ ? base_ + used_ : nullptr;
    used_ += round_up(count * sizeof(E), 256);
    return reinterpret_cast<E*>(here);
  }
  int64_t used() const { return used_; }

 private:
  unsigned char* base_;
  int64_t used_ = 0;
};

// Where the packed operands lie, and how they get there.
template <typename T>
struct Operands {
  Packed<T> z{}, right1{}, left2{}, dy{};
  float* bias1 = nullptr;
  float* partials = nullptr;
  PackJobs<T> jobs{};
  int job_count = 0;

  Operands(const Problem& problem, bool backward, Pieces& pieces)
      : rank_(padded_rank(problem)) {
    const int64_t tokens = round_up(problem.tokens, BLOCK);
    const int64_t units = round_up(problem.units, BLOCK);
    const int rank1 = problem.rank1, rank2 = problem.rank2;
    z = add({nullptr, problem.tokens, tokens, rank1, rank_, rank1, 1}, true, backward, pieces);
    right1 = add({nullptr, problem.units, units, rank1, rank_, 1, problem.units}, true, backward,
                 pieces);
    left2 = add({nullptr, problem.units, units, rank2, rank_, rank2, 1}, backward, !backward,
                pieces);
    bias1 = pieces.take<float>(units);
    jobs.jobs[job_count++] = {nullptr, problem.units, units,   1,    1,
                              1,       1,             nullptr, nullptr, bias1};
    if (backward) {
      dy = add({nullptr, problem.tokens, tokens, rank2, rank_, rank2, 1}, true, true, pieces);
      partials = pieces.take<float>(count_shares(problem) * units * (2 * rank_ + 1));
    }
  }

  void pack(const T* z_from, const T* right1_from, const T* left2_from, const T* bias1_from,
            const T* dy_from, cudaStream_t stream) {
    const T* sources[] = {z_from, right1_from, left2_from, bias1_from, dy_from};
    int64_t largest = 0;
    for (int i = 0; i < job_count; ++i) {
      jobs.jobs[i].from = sources[i];
      const int64_t size = jobs.jobs[i].padded_length * jobs.jobs[i].padded_rank;
      largest = size > largest ? size : largest;
    }
    const int64_t blocks = round_up(largest, THREADS) / THREADS;
    const dim3 grid(static_cast<unsigned>(blocks < 1024 ? blocks : 1024), job_count);
    launch(pack_operands<T>, grid, THREADS, 0, stream, jobs);
  }

 private:
  Packed<T> add(PackJob<T> job, bool rows, bool columns, Pieces& pieces) {
    const int64_t size = job.padded_length * rank_;
    job.rows = rows ? pieces.take<T>(size) : nullptr;
    job.columns = columns ? pieces.take<T>(size) : nullptr;
    jobs.jobs[job_count++] = job;
    return {job.rows, job.columns, job.padded_length};
  }

  int rank_;
};

template <typename T>
int64_t workspace_bytes(const Problem& problem, bool backward) {
  Pieces pieces(nullptr);
  Operands<T>(problem, backward, pieces);
  return pieces.used();
}

template <typename T, int RANK, Gelu FORM>
void launch_forward(const Problem& problem, const Operands<T>& packed, T* y, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(packed.z.length / BLOCK));
  launch(forward<T, RANK, FORM>, grid, THREADS, ForwardTiles<T, RANK>::BYTES, stream, packed.z,
         packed.right1, static_cast<const float*>(packed.bias1), packed.left2, y, problem.tokens,
         problem.rank2);
}

template <typename T>
struct Gradients {
  T *z, *right1, *bias1, *left2;
};

template <typename T, int RANK, Gelu FORM>
void launch_backward(const Problem& problem, const Operands<T>& packed,
                     const Gradients<T>& gradients, cudaStream_t stream) {
  const float* bias1 = packed.bias1;
  const dim3 token_grid(static_cast<unsigned>(packed.z.length / BLOCK));
  launch(backward_of_tokens<T, RANK, FORM>, token_grid, THREADS, TokenTiles<T, RANK>::BYTES, stream,
         packed.z, packed.right1, bias1, packed.left2, packed.dy, gradients.z, problem.tokens,
         problem.rank1);
  const int shares = count_shares(problem);
  const int64_t padded_units = packed.right1.length;
  const int64_t tokens_a_share = (packed.z.length / BLOCK + shares - 1) / shares * BLOCK;
  const dim3 unit_grid(static_cast<unsigned>(round_up(padded_units, UNITS) / UNITS), shares);
  launch(backward_of_units<T, RANK, FORM>, unit_grid, THREADS, UnitTiles<T, RANK>::BYTES, stream,
         packed.z, packed.right1, bias1, packed.left2, packed.dy, packed.partials, tokens_a_share);
  const int64_t sums = problem.units * (problem.rank1 + problem.rank2 + 1);
  const dim3 sum_grid(static_cast<unsigned>(round_up(sums, THREADS) / THREADS));
  launch(add_shares<T, RANK>, sum_grid, THREADS, 0, stream, packed.partials, shares, padded_units,
         problem.units, problem.rank1, problem.rank2, gradients.right1, gradients.bias1,
         gradients.left2);
}

// Calls use.template run<RANK, FORM>() for the problem's.
template <Gelu FORM, typename Use>
void with_rank(const Problem& problem, const Use& use) {
  switch (padded_rank(problem)) {
    case 16: return use.template run<16, FORM>();
    case 32: return use.template run<32, FORM>();
    case 64: return use.template run<64, FORM>();
    default: return use.template run<LARGEST_RANK, FORM>();
  }
}
template <typename Use>
void with_sizes(const Problem& problem, const Use& use) {
  switch (problem.form) {
    case Gelu::tanh: return with_rank<Gelu::tanh>(problem, use);
    case Gelu::erf: return with_rank<Gelu::erf>(problem, use);
    case Gelu::quick: return with_rank<Gelu::quick>(problem, use);
  }
}

template <typename T>
struct ForwardLaunch {
  const Problem& problem;
  const Operands<T>& packed;
  T* y;
  cudaStream_t stream;
  template <int RANK, Gelu FORM>
  void run() const {
    launch_forward<T, RANK, FORM>(problem, packed, y, stream);
  }
};
template <typename T>
struct BackwardLaunch {
  const Problem& problem;
  const Operands<T>& packed;
  const Gradients<T>& gradients;
  cudaStream_t stream;
  template <int RANK, Gelu FORM>
  void run() const {
    launch_backward<T, RANK, FORM>(problem, packed, gradients, stream);
  }
};

// y = gelu(z right1 + bias1) left2.
template <typename T>
void run_forward(const Problem& problem, const T* z, const T* right1, const T* bias1,
                 const T* left2, T* y, void* workspace, cudaStream_t stream) {
  Pieces pieces(workspace);
  Operands<T> packed(problem, false, pieces);
  packed.pack(z, right1, left2, bias1, nullptr, stream);
  with_sizes(problem, ForwardLaunch<T>{problem, packed, y, stream});
}

// The gradients of z, right1, bias1 and left2, shaped like those.
template <typename T>
void run_backward(const Problem& problem, const T* z, const T* right1, const T* bias1,
                  const T* left2, const T* dy, const Gradients<T>& gradients, void* workspace,
                  cudaStream_t stream) {
  Pieces pieces(workspace);
  Operands<T> packed(problem, true, pieces);
  packed.pack(z, right1, left2, bias1, dy, stream);
  with_sizes(problem, BackwardLaunch<T>{problem, packed, gradients, stream});
}

}  // namespace fastffn::cuda
