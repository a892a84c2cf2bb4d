// FORWARD(op, Kernel, types...): a kernel of the imitated npu that runs the CPU's kernel of the
// same name on host copies of its arguments.
//
// The signature comes from Paddle's own header of the kernel, so a line of it is one kernel.
// float16 and bfloat16 are computed in float32 and rounded at the end (the CPU has no kernels for
// them); random numbers come from the device's generator, not the CPU's. Paddle can fall back to
// the CPU's kernels by itself; a line is needed where it cannot (half precision), where it draws
// from the wrong generator, and where the fallback hands a device pointer to a CPU kernel.
#pragma once

#include <cstring>
#include <tuple>
#include <vector>

#include "device.h"
#include "paddle/phi/backends/context_pool.h"
#include "paddle/phi/core/generator.h"
#include "paddle/phi/core/kernel_registry.h"
#include "paddle/phi/core/tensor_utils.h"

namespace host_npu {

using phi::CustomContext;
using phi::DataType;
using phi::DenseTensor;
using Float16 = phi::dtype::float16;
using BFloat16 = phi::dtype::bfloat16;

constexpr bool IsHalf(DataType type) {
  return type == DataType::FLOAT16 || type == DataType::BFLOAT16;
}

inline phi::CPUContext* HostContext() {
  auto* context = phi::DeviceContextPool::Instance().Get(phi::CPUPlace());
  return static_cast<phi::CPUContext*>(context);
}

template <class Source, class Target>
DenseTensor CastElements(const DenseTensor& from) {
  DenseTensor result;
  result.Resize(from.dims());
  const Source* source = from.data<Source>();
  Target* target = HostContext()->Alloc<Target>(&result);
  for (int64_t i = 0, n = from.numel(); i < n; ++i) {
    target[i] = static_cast<Target>(static_cast<float>(source[i]));
  }
  return result;
}

// Cast a tensor on the host between float32 and a half precision.
inline DenseTensor Cast(const DenseTensor& tensor, DataType wanted) {
  if (tensor.dtype() == wanted) return tensor;
  if (tensor.dtype() == DataType::FLOAT16) return CastElements<Float16, float>(tensor);
  if (tensor.dtype() == DataType::BFLOAT16) return CastElements<BFloat16, float>(tensor);
  if (wanted == DataType::FLOAT16) return CastElements<float, Float16>(tensor);
  return CastElements<float, BFloat16>(tensor);
}

// Copy a tensor to the host, half precision as float32.
inline DenseTensor ToHostTensor(const CustomContext& context, const DenseTensor& tensor) {
  DenseTensor result;
  if (!tensor.has_allocation()) {
    result.set_meta(tensor.meta());
    return result;
  }
  if (tensor.Holder()->size() == 0 && tensor.numel() > 0) {
    // Paddle took the values away because the kernel reads nothing but the shape.
    result.Resize(tensor.dims());
    HostContext()->Alloc(&result, IsHalf(tensor.dtype()) ? DataType::FLOAT32 : tensor.dtype());
    return result;
  }
  if (tensor.place().GetType() == phi::AllocationType::CPU) {
    result = tensor;
  } else {
    phi::Copy(context, tensor, phi::CPUPlace(), true, &result);
  }
  return IsHalf(result.dtype()) ? Cast(result, DataType::FLOAT32) : result;
}

// A result of the CPU's kernel on its way back to the device.
class Output {
 public:
  explicit Output(DenseTensor* out) : out_(out) {
    if (out == nullptr) return;
    wanted_ = out->dtype();
    auto meta = out->meta();
    meta.offset = 0;
    meta.strides = phi::DenseTensorMeta::calc_strides(meta.dims);
    if (IsHalf(wanted_)) meta.dtype = DataType::FLOAT32;
    host_.set_meta(meta);
  }

  DenseTensor* on_host() { return out_ != nullptr ? &host_ : nullptr; }

  void Store(const CustomContext& context) {
    if (out_ == nullptr || !host_.has_allocation()) return;
    const bool narrow = IsHalf(wanted_) && host_.dtype() == DataType::FLOAT32;
    const DenseTensor result = narrow ? Cast(host_, wanted_) : host_;
    out_->Resize(result.dims());
    context.Alloc(out_, result.dtype());
    if (result.numel() == 0) return;
    const size_t bytes = result.numel() * phi::SizeOf(result.dtype());
    std::memcpy(HostMemory(out_->data()), result.data(), bytes);
  }

 private:
  DenseTensor* out_;
  DenseTensor host_;
  DataType wanted_ = DataType::UNDEFINED;
};

// One argument of a kernel: what the CPU's kernel gets in its place, and what comes back.
template <class T>
struct Argument {  // attributes go through as they are
  T value;
  Argument(const CustomContext&, T given) : value(given) {}
  T Get() { return value; }
  void Store(const CustomContext&) {}
};

template <>
struct Argument<const DenseTensor&> {
  DenseTensor host;
  Argument(const CustomContext& context, const DenseTensor& tensor)
      : host(ToHostTensor(context, tensor)) {}
  const DenseTensor& Get() { return host; }
  void Store(const CustomContext&) {}
};

template <>
struct Argument<const paddle::optional<DenseTensor>&> {
  paddle::optional<DenseTensor> host;
  Argument(const CustomContext& context, const paddle::optional<DenseTensor>& tensor) {
    if (tensor) host = ToHostTensor(context, *tensor);
  }
  const paddle::optional<DenseTensor>& Get() { return host; }
  void Store(const CustomContext&) {}
};

template <>
struct Argument<const std::vector<const DenseTensor*>&> {
  std::vector<DenseTensor> host;
  std::vector<const DenseTensor*> pointers;
  Argument(const CustomContext& context, const std::vector<const DenseTensor*>& tensors) {
    for (const DenseTensor* tensor : tensors) host.push_back(ToHostTensor(context, *tensor));
  }
  const std::vector<const DenseTensor*>& Get() {
    pointers.clear();
    for (const DenseTensor& tensor : host) pointers.push_back(&tensor);
    return pointers;
  }
  void Store(const CustomContext&) {}
};

template <>
struct Argument<DenseTensor*> {
  Output output;
  Argument(const CustomContext&, DenseTensor* tensor) : output(tensor) {}
  DenseTensor* Get() { return output.on_host(); }
  void Store(const CustomContext& context) { output.Store(context); }
};

template <>
struct Argument<std::vector<DenseTensor*>> {
  std::vector<Output> outputs;
  Argument(const CustomContext&, const std::vector<DenseTensor*>& tensors) {
    for (DenseTensor* tensor : tensors) outputs.emplace_back(tensor);
  }
  std::vector<DenseTensor*> Get() {
    std::vector<DenseTensor*> pointers;
    for (Output& output : outputs) pointers.push_back(output.on_host());
    return pointers;
  }
  void Store(const CustomContext& context) {
    for (Output& output : outputs) output.Store(context);
  }
};

// The device's generator in the CPU context for as long as this lives.
class BorrowGenerator {
 public:
  explicit BorrowGenerator(const CustomContext& device)
      : host_(HostContext()), own_(host_->GetGenerator()) {
    host_->SetGenerator(device.GetGenerator());
  }
  ~BorrowGenerator() { host_->SetGenerator(own_); }
  BorrowGenerator(const BorrowGenerator&) = delete;
  BorrowGenerator& operator=(const BorrowGenerator&) = delete;

 private:
  phi::CPUContext* host_;
  phi::Generator* own_;
};

template <const char* Name, DataType Type, class Signature>
struct Forward;

template <const char* Name, DataType Type, class... Args>
struct Forward<Name, Type, void (*)(const CustomContext&, Args...)> {
  static void Run(const CustomContext& context, Args... given) {
    constexpr DataType computed = IsHalf(Type) ? DataType::FLOAT32 : Type;
    const auto& found = phi::KernelFactory::Instance().SelectKernelOrThrowError(
        Name, {phi::Backend::CPU, phi::DataLayout::ALL_LAYOUT, computed});
    auto* kernel =
        found.kernel.GetVariadicKernelFn<void (*)(const phi::DeviceContext&, Args...)>();
    std::tuple<Argument<Args>...> arguments{Argument<Args>(context, given)...};
    {
      BorrowGenerator borrowed(context);
      std::apply([&](auto&... each) { (*kernel)(*HostContext(), each.Get()...); }, arguments);
    }
    std::apply([&](auto&... each) { (each.Store(context), ...); }, arguments);
  }
};

inline void LeaveOutputTypesOpen(const phi::KernelKey&, phi::Kernel* kernel) {
  for (auto& output : kernel->mutable_args_def()->output_defs()) {
    output.SetDataType(DataType::UNDEFINED);
  }
}

template <const char* Name, class Signature, DataType... Types>
struct RegisterForward {
  RegisterForward() { (RegisterType<Types>(), ...); }

  template <DataType Type>
  static void RegisterType() {
    using Run = Forward<Name, Type, Signature>;
    using Kernel = phi::KernelImpl<decltype(&Run::Run), &Run::Run>;
    phi::KernelRegistrar(phi::RegType::OUTER, Name, "npu", phi::DataLayout::ALL_LAYOUT, Type,
                         phi::KernelArgsParseFunctor<decltype(&Run::Run)>::Parse,
                         LeaveOutputTypesOpen, Kernel::Compute,
                         reinterpret_cast<void*>(&Kernel::VariadicCompute));
  }
};

}  // namespace host_npu

#define HALF phi::DataType::FLOAT16, phi::DataType::BFLOAT16
#define FLOATS phi::DataType::FLOAT32, phi::DataType::FLOAT64, HALF
#define INTEGERS phi::DataType::INT32, phi::DataType::INT64
#define NUMBERS FLOATS, INTEGERS

#define FORWARD(op, Kernel, ...)                                                     \
  static constexpr char name_of_##op[] = #op;                                        \
  static host_npu::RegisterForward<name_of_##op,                                     \
                                   decltype(&phi::Kernel<float, phi::CustomContext>), \
                                   __VA_ARGS__>                                      \
      registered_##op;
