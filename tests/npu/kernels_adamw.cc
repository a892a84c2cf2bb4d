// AdamW of the imitated npu on half-precision parameters (AMP O2). The CPU's kernel knows no
// float32 master copy: it updates the master here, and the parameter is the master rounded.

#include "forwarding.h"
#include "paddle/phi/kernels/adamw_kernel.h"

namespace {

using host_npu::BFloat16;
using host_npu::CustomContext;
using host_npu::DataType;
using host_npu::DenseTensor;
using host_npu::Float16;
using Scalar = phi::Scalar;
using OptionalTensor = paddle::optional<DenseTensor>;

constexpr char kName[] = "adamw";
using Signature = decltype(&phi::AdamwDenseKernel<float, CustomContext>);
using OnFloat32 = host_npu::Forward<kName, DataType::FLOAT32, Signature>;

template <typename T, typename Context>
void AdamW(const Context& context, const DenseTensor& param, const DenseTensor& grad,
           const DenseTensor& learning_rate, const DenseTensor& moment1,
           const DenseTensor& moment2, const OptionalTensor& moment2_max,
           const DenseTensor& beta1_pow, const DenseTensor& beta2_pow,
           const OptionalTensor& master, const OptionalTensor& skip_update, const Scalar& beta1,
           const Scalar& beta2, const Scalar& epsilon, float lr_ratio, float decay,
           bool with_decay, bool lazy, int64_t rows_per_thread, bool multi_precision,
           bool use_global_beta_pow, bool amsgrad, DenseTensor* param_out,
           DenseTensor* moment1_out, DenseTensor* moment2_out, DenseTensor* moment2_max_out,
           DenseTensor* beta1_pow_out, DenseTensor* beta2_pow_out, DenseTensor* master_out) {
  OnFloat32::Run(context, master ? *master : param, grad, learning_rate, moment1, moment2,
                 moment2_max, beta1_pow, beta2_pow, paddle::none, skip_update, beta1, beta2,
                 epsilon, lr_ratio, decay, with_decay, lazy, rows_per_thread, false,
                 use_global_beta_pow, amsgrad, master ? master_out : param_out, moment1_out,
                 moment2_out, moment2_max_out, beta1_pow_out, beta2_pow_out, nullptr);
  if (!master) return;
  host_npu::Output rounded(param_out);
  *rounded.on_host() = host_npu::ToHostTensor(context, *master_out);
  rounded.Store(context);
}

}  // namespace

PD_REGISTER_PLUGIN_KERNEL(adamw, npu, ALL_LAYOUT, AdamW, Float16, BFloat16) {}
