// Compiled once for each type: FASTFFN_TYPE is device.cuh's name of it, FASTFFN_TABLE the table's.
#include "kernels.h"

#include "low_rank_ffn_launch.cuh"

namespace fastffn::cuda {

static_assert(RANK_LIMIT == LARGEST_RANK, "one limit");
using T = FASTFFN_TYPE;

static Problem problem_of(const LowRankCall& call) {
  const auto form = static_cast<Gelu>(call.activation);
  return {call.tokens, call.units, call.rank1, call.rank2, form, call.multiprocessors};
}

static const T* in(const void* values) { return static_cast<const T*>(values); }
static T* out(void* values) { return static_cast<T*>(values); }

static const char* last_error() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

static int64_t workspace(const LowRankCall& call, bool backward) {
  return workspace_bytes<T>(problem_of(call), backward);
}

static const char* forward_call(const LowRankCall& call) {
  run_forward<T>(problem_of(call), in(call.z), in(call.right1), in(call.bias1), in(call.left2),
                 out(call.y), call.workspace, static_cast<cudaStream_t>(call.stream));
  return last_error();
}

static const char* backward_call(const LowRankCall& call) {
  const Gradients<T> gradients{out(call.dz), out(call.d_right1), out(call.d_bias1),
                               out(call.d_left2)};
  run_backward<T>(problem_of(call), in(call.z), in(call.right1), in(call.bias1), in(call.left2),
                  in(call.dy), gradients, call.workspace, static_cast<cudaStream_t>(call.stream));
  return last_error();
}

extern const Kernels FASTFFN_TABLE;
const Kernels FASTFFN_TABLE = {workspace, forward_call, backward_call};

}  // namespace fastffn::cuda
