// The operators that Paddle for CUDA knows: shapes, memory and gradients; the work is in kernels.cu.
#include <cuda_runtime.h>

#include "paddle/extension.h"

#include "kernels.h"

namespace fastffn::cuda {

using paddle::Tensor;

static const Kernels& kernels_of(const Tensor& tensor) {
  switch (tensor.dtype()) {
    case paddle::DataType::FLOAT32: return float32_kernels;
    case paddle::DataType::FLOAT16: return float16_kernels;
    case paddle::DataType::BFLOAT16: return bfloat16_kernels;
    default: PD_THROW("no CUDA kernel for tensors of this type");
  }
}

static void check(const Tensor& tensor, const std::vector<int64_t>& shape, const Tensor& z,
                  const char* name) {
  PD_CHECK(tensor.shape() == shape, name, " does not fit the other tensors");
  PD_CHECK(tensor.dtype() == z.dtype(), name, " is of another type than z");
  PD_CHECK(tensor.is_gpu() && tensor.place() == z.place(), name, " is not on the GPU of z");
}

static int count_multiprocessors() {
  int device = 0, count = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count;
}

// Checks every input, and fills in all but results and workspace.
static LowRankCall prepare(const Tensor& z, const Tensor& right1, const Tensor& bias1,
                           const Tensor& left2, int activation) {
  PD_CHECK(z.shape().size() == 2 && right1.shape().size() == 2 && left2.shape().size() == 2,
           "z, right1 and left2 are matrices");
  const int64_t rank1 = z.shape()[1], units = right1.shape()[1], rank2 = left2.shape()[1];
  PD_CHECK(1 <= rank1 && rank1 <= RANK_LIMIT && 1 <= rank2 && rank2 <= RANK_LIMIT && units > 0,
           "ranks from 1 to 128, and hidden units");
  PD_CHECK(0 <= activation && activation <= 2, "no such activation");
  check(z, z.shape(), z, "z");
  check(right1, {rank1, units}, z, "right1");
  check(bias1, {units}, z, "bias1");
  check(left2, {units, rank2}, z, "left2");
  LowRankCall call{};
  call.tokens = z.shape()[0];
  call.units = units;
  call.rank1 = static_cast<int>(rank1);
  call.rank2 = static_cast<int>(rank2);
  call.activation = activation;
  call.multiprocessors = count_multiprocessors();
  call.z = z.data();
  call.right1 = right1.data();
  call.bias1 = bias1.data();
  call.left2 = left2.data();
  call.stream = z.stream();
  return call;
}

static Tensor workspace_for(const LowRankCall& call, const Tensor& z, bool backward) {
  const int64_t bytes = kernels_of(z).workspace_bytes(call, backward);
  return paddle::empty({bytes}, paddle::DataType::UINT8, z.place());
}

static void must_succeed(const char* error) {
  PD_CHECK(!error, "a CUDA kernel of fastffn fails: ", error ? error : "");
}

static std::vector<Tensor> low_rank_inner(const Tensor& z, const Tensor& right1,
                                          const Tensor& bias1, const Tensor& left2,
                                          int activation) {
  LowRankCall call = prepare(z, right1, bias1, left2, activation);
  Tensor y = paddle::empty({call.tokens, call.rank2}, z.dtype(), z.place());
  if (call.tokens == 0) return {y};
  Tensor workspace = workspace_for(call, z, false);
  call.workspace = workspace.data();
  call.y = y.data();
  must_succeed(kernels_of(z).forward(call));
  return {y};
}

static std::vector<Tensor> low_rank_inner_grad(const Tensor& z, const Tensor& right1,
                                               const Tensor& bias1, const Tensor& left2,
                                               const Tensor& dy, int activation) {
  LowRankCall call = prepare(z, right1, bias1, left2, activation);
  check(dy, {call.tokens, call.rank2}, z, "the gradient");
  if (call.tokens == 0) {
    std::vector<Tensor> none;
    for (const Tensor* each : {&z, &right1, &bias1, &left2}) {
      none.push_back(paddle::full(each->shape(), 0, each->dtype(), each->place()));
    }
    return none;
  }
  Tensor dz = paddle::empty_like(z), d_right1 = paddle::empty_like(right1);
  Tensor d_bias1 = paddle::empty_like(bias1), d_left2 = paddle::empty_like(left2);
  Tensor workspace = workspace_for(call, z, true);
  call.workspace = workspace.data();
  call.dy = dy.data();
  call.dz = dz.data();
  call.d_right1 = d_right1.data();
  call.d_bias1 = d_bias1.data();
  call.d_left2 = d_left2.data();
  must_succeed(kernels_of(z).backward(call));
  return {dz, d_right1, d_bias1, d_left2};
}

static std::vector<std::vector<int64_t>> low_rank_inner_shape(const std::vector<int64_t>& z,
                                                              const std::vector<int64_t>&,
                                                              const std::vector<int64_t>&,
                                                              const std::vector<int64_t>& left2,
                                                              int) {
  return {{z[0], left2[1]}};
}

static std::vector<paddle::DataType> low_rank_inner_type(paddle::DataType z, paddle::DataType,
                                                         paddle::DataType, paddle::DataType, int) {
  return {z};
}

}  // namespace fastffn::cuda

PD_BUILD_OP(fastffn_cuda_low_rank_inner)
    .Inputs({"z", "right1", "bias1", "left2"})
    .Outputs({"y"})
    .Attrs({"activation: int"})
    .SetKernelFn(PD_KERNEL(fastffn::cuda::low_rank_inner))
    .SetInferShapeFn(PD_INFER_SHAPE(fastffn::cuda::low_rank_inner_shape))
    .SetInferDtypeFn(PD_INFER_DTYPE(fastffn::cuda::low_rank_inner_type));

PD_BUILD_GRAD_OP(fastffn_cuda_low_rank_inner)
    .Inputs({"z", "right1", "bias1", "left2", paddle::Grad("y")})
    .Outputs({paddle::Grad("z"), paddle::Grad("right1"), paddle::Grad("bias1"),
              paddle::Grad("left2")})
    .Attrs({"activation: int"})
    .SetKernelFn(PD_KERNEL(fastffn::cuda::low_rank_inner_grad));
