// What every path provides, as a table of functions; `kernels()` is that of this machine's path.
#pragma once

#include <cstdint>

namespace fastffn {

enum Activation { TANH_GELU, ERF_GELU, FAST_GELU };

// A feed-forward of two pairs of factors: left1 [outer, rank], right1 [rank, hidden], bias1 [hidden],
// left2 [hidden, rank], right2 [rank, outer], bias2 [outer]; x is [tokens, outer]. See low_rank_ffn.inc.
struct LowRankShape {
  int64_t tokens, outer, hidden;
  int rank;
  Activation activation;
};
struct LowRankTensors {
  const float *x, *left1, *right1, *bias1, *left2, *right2, *bias2;
};
struct LowRankGradients {
  float *x, *left1, *right1, *bias1, *left2, *right2, *bias2;
};

// Where the rows of a tensor [batch, head, row, ...] are: strides in floats.
struct Rows {
  const float* data;
  int64_t batch, head, row;
};

// softmax(q kT / sqrt(head_size) + mask) v, of which some weights are dropped.
struct Attention {
  int64_t batch, heads, queries, keys, head_size;  // head_size <= ATTENTION_MOST_HEAD_SIZE
  Rows q, k, v;
  const float* mask;   // [queries, keys], null: causal, and the last query sees all keys
  int64_t mask_batch;  // from one sequence's mask to the next one's, 0: one mask for all
  float dropout;       // the share of dropped weights; the others are divided by what stays
  uint64_t seed;       // of the random numbers, which depend on it and on the weight's place alone
};

constexpr int64_t ATTENTION_MOST_HEAD_SIZE = 256;

// The gradient with queries == keys, and q, k and v in one tensor, as is their gradient.
// `d_qkv` is that of the first of `splits` parts of the queries, the others are in `partial`, each
// as large as it; more than one: all are zero before.
struct AttentionGradient {
  const float* out;
  const float* statistics;
  const float* d_out;
  float* d_qkv;
  float* partial;
  int64_t splits;
};

// `rate` is corrected for moments that began at 0, `kept` what the weight decay leaves.
struct AdamwStep {
  float rate, kept, epsilon, beta1, beta2, gradient_factor;
};

struct Kernels {
  const char* path;  // "avx512", "avx2" or "portable"
  // exps[i] = e^values[i], i < count: what `doctor` and the tests try.
  void (*exponentials)(const float* values, float* exps, int64_t count);
  // g = activation(u + bias), [rows, columns]; then the way back: dg becomes du in place, g is made again, and
  // the sums of du over rows are added to dbias. `sums` is [threads, columns].
  void (*activate_hidden)(Activation, const float* u, const float* bias, int64_t rows, int64_t columns, float* g);
  void (*activate_hidden_backward)(Activation, const float* u, const float* bias, int64_t rows, int64_t columns,
                                   float* dg, float* g, float* dbias, float* sums, int threads);
  // Floats of `scratch`, which lies on a cache line, and out, z and y [tokens, rank]; then the way back.
  int64_t (*low_rank_forward_scratch)(const LowRankShape&, int threads);
  void (*low_rank_forward)(const LowRankShape&, const LowRankTensors&, float* out, float* z, float* y,
                           float* scratch, int threads);
  int64_t (*low_rank_backward_scratch)(const LowRankShape&, int threads);
  void (*low_rank_backward)(const LowRankShape&, const LowRankTensors&, const float* z, const float* y,
                            const float* dout, const LowRankGradients&, float* scratch, int threads);
  // y = (x - mean) * rstd * weight + bias along rows of `width`; mean and rstd: [rows].
  void (*layer_norm)(const float* x, const float* weight, const float* bias, float* y, float* mean,
                     float* rstd, int64_t rows, int64_t width, float epsilon);
  void (*layer_norm_backward)(const float* dy, const float* x, const float* weight,
                              const float* mean, const float* rstd, float* dx, float* dweight,
                              float* dbias, float* sums, int64_t groups, int64_t rows,
                              int64_t width);
  // losses[n] = mask[n] * -log softmax(logits[n])[labels[n]]; with `gradient` that of their sum
  // replaces the logits [rows, vocabulary]. Labels must be below `vocabulary`.
  void (*cross_entropy)(float* logits, int64_t rows, int64_t vocabulary, const int64_t* labels,
                        const float* mask, float* losses, bool gradient);
  // out[row] = bias; total = the sum of all rows of values. See linear.inc.
  void (*repeat_row)(const float* bias, float* out, int64_t rows, int64_t width);
  void (*sum_rows)(const float* values, float* total, float* parts, int64_t groups, int64_t rows,
                   int64_t width);
  // kept[i] = values[i] * (0 or 1 / (1 - probability)).
  void (*dropout)(const float* values, float* kept, int64_t count, uint32_t first_key,
                  uint32_t second_key, float probability);
  // out [batch, queries, heads * head_size]; statistics [batch, heads, 2, queries]: the largest score
  // of each row and 1 / the sum of e^(score - largest), may be null.
  void (*attention)(const Attention& problem, float* out, float* statistics);
  void (*attention_gradient)(const Attention& problem, const AttentionGradient& gradient);
  // One thread's work on a piece of a parameter.
  double (*sum_of_squares)(const float* values, int64_t count);
  void (*adamw)(const AdamwStep&, float* parameter, const float* gradient, float* moment1, float* moment2,
                int64_t count);
};

// Chosen once: the widest path that the processor executes, or the narrower one that the
// environment variable FASTFFN_KERNELS names.
const Kernels& kernels();

namespace portable {
extern const Kernels table;
}
namespace avx2 {
extern const Kernels table;
}
namespace avx512 {
extern const Kernels table;
}

}  // namespace fastffn
