// The fused attention of the imitated npu: a custom operator with the name, the arguments and the
// order of them that Ascend's plugin has, computed on host copies in float32.
//
// FLASH_ATTENTION_CALLS is a file that gets a line for each call; FLASH_ATTENTION_FAULT makes the
// operator useless in one way: "raises", "wrong" (its output is doubled), "wrong gradient" (that of
// the queries is), "own random numbers" (dropout does not follow Paddle's generator), "whole output"
// or "whole gradient" (it has no dropout).

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <string>
#include <vector>

#include "paddle/common/exception.h"
#include "paddle/phi/api/ext/op_meta_info.h"
#include "paddle/phi/api/include/api.h"

namespace {

using paddle::Tensor;
using OptionalTensor = paddle::optional<Tensor>;

std::string FromEnvironment(const char* name) {
  const char* value = std::getenv(name);
  return value != nullptr ? value : "";
}

void Record(const char* pass) {
  const std::string file = FromEnvironment("FLASH_ATTENTION_CALLS");
  if (!file.empty()) std::ofstream(file, std::ios::app) << pass << '\n';
}

Tensor ToHost(const Tensor& tensor) {
  return paddle::experimental::cast(tensor.copy_to(paddle::CPUPlace(), true),
                                    paddle::DataType::FLOAT32);
}

Tensor ToDevice(const Tensor& host, const Tensor& like) {
  return paddle::experimental::cast(host, like.dtype()).copy_to(like.place(), true);
}

Tensor Zeros(const std::vector<int64_t>& shape) {
  return paddle::experimental::full(shape, 0.0, paddle::DataType::FLOAT32, paddle::CPUPlace());
}

// Offsets into [batch, time, heads, size] and [batch, heads, time, keys].
struct Sizes {
  int64_t batch, time, keys, heads, size;

  int64_t Row(int64_t b, int64_t t, int64_t length, int64_t h) const {
    return ((b * length + t) * heads + h) * size;
  }
  int64_t Weights(int64_t b, int64_t h, int64_t t) const {
    return ((b * heads + h) * time + t) * keys;
  }
};

Sizes SizesOf(const Tensor& query, const Tensor& key) {
  const auto shape = query.shape();
  return {shape[0], shape[1], key.shape()[1], shape[2], shape[3]};
}

float Dot(const float* a, const float* b, int64_t size) {
  float sum = 0;
  for (int64_t i = 0; i < size; ++i) sum += a[i] * b[i];
  return sum;
}

// 1 / (1 - dropout) where a weight is kept, 0 where not; drawn on the device.
Tensor DrawKept(const Tensor& query, const std::vector<int64_t>& shape, float dropout) {
  Tensor chance = paddle::experimental::full(shape, 1.0 - dropout, paddle::DataType::FLOAT32,
                                             query.place());
  Tensor kept = ToHost(paddle::experimental::bernoulli(chance));
  static int64_t calls = 0;
  const bool own = FromEnvironment("FLASH_ATTENTION_FAULT") == "own random numbers";
  const int64_t shift = own ? ++calls : 0;
  Tensor scaled = Zeros(shape);
  for (int64_t i = 0, n = kept.numel(); i < n; ++i) {
    scaled.data<float>()[i] = kept.data<float>()[(i + shift) % n] / (1 - dropout);
  }
  return scaled;
}

std::vector<Tensor> Forward(const Tensor& query, const Tensor& key, const Tensor& value,
                            const OptionalTensor& fixed_seed_offset,
                            const OptionalTensor& attn_mask, float dropout, bool causal,
                            bool return_softmax, bool is_test, bool is_triangle_upper_mask) {
  Record("forward");
  const std::string fault = FromEnvironment("FLASH_ATTENTION_FAULT");
  if (fault == "raises") PD_THROW("no kernel for this card");
  if (attn_mask || !causal) PD_THROW("causal attention alone is imitated");
  const Sizes sizes = SizesOf(query, key);
  const Tensor q = ToHost(query), k = ToHost(key), v = ToHost(value);
  const std::vector<int64_t> shape{sizes.batch, sizes.heads, sizes.time, sizes.keys};
  const bool drops = dropout > 0 && !is_test && fault != "whole output";
  Tensor weights = Zeros(shape), out = Zeros(query.shape());
  Tensor kept = drops ? DrawKept(query, shape, dropout) : Zeros({1});
  const float scale = (fault == "wrong" ? 2 : 1), root = std::sqrt(float(sizes.size));
  for (int64_t b = 0; b < sizes.batch; ++b) {
    for (int64_t h = 0; h < sizes.heads; ++h) {
      for (int64_t t = 0; t < sizes.time; ++t) {
        float* row = weights.data<float>() + sizes.Weights(b, h, t);
        float largest = -std::numeric_limits<float>::infinity(), sum = 0;
        for (int64_t s = 0; s <= t; ++s) {
          row[s] = Dot(q.data<float>() + sizes.Row(b, t, sizes.time, h),
                       k.data<float>() + sizes.Row(b, s, sizes.keys, h), sizes.size) / root;
          largest = std::max(largest, row[s]);
        }
        for (int64_t s = 0; s <= t; ++s) sum += row[s] = std::exp(row[s] - largest);
        float* result = out.data<float>() + sizes.Row(b, t, sizes.time, h);
        for (int64_t s = 0; s <= t; ++s) {
          row[s] /= sum;
          const float keep = drops ? kept.data<float>()[sizes.Weights(b, h, t) + s] : 1;
          const float* values = v.data<float>() + sizes.Row(b, s, sizes.keys, h);
          for (int64_t i = 0; i < sizes.size; ++i) result[i] += scale * keep * row[s] * values[i];
        }
      }
    }
  }
  return {ToDevice(out, query), weights.copy_to(query.place(), true),
          kept.copy_to(query.place(), true)};
}

std::vector<Tensor> Backward(const Tensor& query, const Tensor& key, const Tensor& value,
                             const Tensor& softmax, const Tensor& kept_mask,
                             const Tensor& out_grad, float dropout, bool causal,
                             bool return_softmax, bool is_test, bool is_triangle_upper_mask) {
  Record("backward");
  const Sizes sizes = SizesOf(query, key);
  const Tensor q = ToHost(query), k = ToHost(key), v = ToHost(value), grad = ToHost(out_grad);
  const Tensor weights = ToHost(softmax), kept = ToHost(kept_mask);
  Tensor dq = Zeros(query.shape()), dk = Zeros(key.shape()), dv = Zeros(value.shape());
  const std::string fault = FromEnvironment("FLASH_ATTENTION_FAULT");
  const bool drops = kept.numel() > 1 && fault != "whole gradient";
  const bool wrong = fault == "wrong gradient";
  const float root = std::sqrt(float(sizes.size));
  std::vector<float> slopes(sizes.keys);
  for (int64_t b = 0; b < sizes.batch; ++b) {
    for (int64_t h = 0; h < sizes.heads; ++h) {
      for (int64_t t = 0; t < sizes.time; ++t) {
        const int64_t at = sizes.Weights(b, h, t), row_q = sizes.Row(b, t, sizes.time, h);
        const float* row = weights.data<float>() + at;
        float mean = 0;
        for (int64_t s = 0; s <= t; ++s) {
          const int64_t row_k = sizes.Row(b, s, sizes.keys, h);
          const float keep = drops ? kept.data<float>()[at + s] : 1;
          for (int64_t i = 0; i < sizes.size; ++i) {
            dv.data<float>()[row_k + i] += keep * row[s] * grad.data<float>()[row_q + i];
          }
          slopes[s] = keep * Dot(grad.data<float>() + row_q, v.data<float>() + row_k, sizes.size);
          mean += slopes[s] * row[s];
        }
        for (int64_t s = 0; s <= t; ++s) {
          const int64_t row_k = sizes.Row(b, s, sizes.keys, h);
          const float slope = row[s] * (slopes[s] - mean) / root;
          for (int64_t i = 0; i < sizes.size; ++i) {
            dq.data<float>()[row_q + i] += (wrong ? 2 : 1) * slope * k.data<float>()[row_k + i];
            dk.data<float>()[row_k + i] += slope * q.data<float>()[row_q + i];
          }
        }
      }
    }
  }
  return {ToDevice(dq, query), ToDevice(dk, key), ToDevice(dv, value)};
}

using Shape = std::vector<int64_t>;
using OptionalShape = paddle::optional<Shape>;
using Type = paddle::DataType;
using OptionalType = paddle::optional<Type>;

std::vector<Shape> InferShape(const Shape& query, const Shape& key, const Shape& value,
                              const OptionalShape&, const OptionalShape&) {
  const Shape weights{query[0], query[2], query[1], key[1]};
  return {query, weights, weights};
}

std::vector<Type> InferType(const Type& query, const Type& key, const Type& value,
                            const OptionalType&, const OptionalType&) {
  return {query, Type::FLOAT32, Type::FLOAT32};
}

}  // namespace

PD_BUILD_OP(flash_attention_npu)
    .Inputs({"query", "key", "value", paddle::Optional("fixed_seed_offset"),
             paddle::Optional("attn_mask")})
    .Outputs({"out", "softmax", "kept"})
    .Attrs({"dropout: float", "causal: bool", "return_softmax: bool", "is_test: bool",
            "is_triangle_upper_mask: bool"})
    .SetKernelFn(PD_KERNEL(Forward))
    .SetInferShapeFn(PD_INFER_SHAPE(InferShape))
    .SetInferDtypeFn(PD_INFER_DTYPE(InferType));

PD_BUILD_GRAD_OP(flash_attention_npu)
    .Inputs({"query", "key", "value", "softmax", "kept", paddle::Grad("out")})
    .Outputs({paddle::Grad("query"), paddle::Grad("key"), paddle::Grad("value")})
    .Attrs({"dropout: float", "causal: bool", "return_softmax: bool", "is_test: bool",
            "is_triangle_upper_mask: bool"})
    .SetKernelFn(PD_KERNEL(Backward));
