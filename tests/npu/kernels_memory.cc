// Kernels of the imitated npu that move and fill memory. Views need contiguous, strided_copy and
// fill from the device itself: Paddle has no fallback for them; its fallback of full writes through
// the device pointer.

#include "forwarding.h"

namespace {

using host_npu::BFloat16;
using host_npu::DataType;
using host_npu::DenseTensor;
using host_npu::Float16;
using host_npu::HostMemory;

// Call visit(position in order, offset in memory) for every element of a strided tensor.
template <class Visit>
void ForEachElement(const phi::DDim& dims, const phi::DDim& strides, Visit visit) {
  const int rank = dims.size();
  const int64_t count = phi::product(dims);
  std::vector<int64_t> index(rank, 0);
  int64_t offset = 0;
  for (int64_t position = 0; position < count; ++position) {
    visit(position, offset);
    for (int axis = rank - 1; axis >= 0; --axis) {
      offset += strides[axis];
      if (++index[axis] < dims[axis]) break;
      offset -= strides[axis] * dims[axis];
      index[axis] = 0;
    }
  }
}

template <typename T, typename Context>
void Contiguous(const Context& context, const DenseTensor& in, DenseTensor* out) {
  auto meta = in.meta();
  meta.offset = 0;
  meta.strides = phi::DenseTensorMeta::calc_strides(meta.dims);
  out->set_meta(meta);
  T* allocated = context.template Alloc<T>(out);
  if (in.numel() == 0) return;
  const T* source = static_cast<const T*>(HostMemory(in.data()));
  T* target = static_cast<T*>(HostMemory(allocated));
  ForEachElement(in.dims(), in.strides(),
                 [&](int64_t position, int64_t offset) { target[position] = source[offset]; });
}

template <typename T, typename Context>
void StridedCopy(const Context&, const DenseTensor& in, const std::vector<int64_t>& dims,
                 const std::vector<int64_t>& strides, int64_t offset, DenseTensor* out) {
  auto meta = out->meta();
  meta.dims = common::make_ddim(dims);
  meta.strides = common::make_ddim(strides);
  meta.offset = offset;
  out->set_meta(meta);
  if (in.numel() == 0) return;
  const T* source = static_cast<const T*>(HostMemory(in.data()));
  T* target = static_cast<T*>(HostMemory(out->data()));
  std::vector<int64_t> from;
  from.reserve(in.numel());
  ForEachElement(in.dims(), in.strides(),
                 [&](int64_t, int64_t place) { from.push_back(place); });
  ForEachElement(meta.dims, meta.strides, [&](int64_t position, int64_t place) {
    target[place] = source[from[position]];
  });
}

template <typename T, typename Context>
void Fill(const Context& context, const DenseTensor&, const phi::Scalar& value, DenseTensor* out) {
  context.template Alloc<T>(out);
  if (out->numel() == 0) return;
  const T filling = value.to<T>();
  T* target = static_cast<T*>(HostMemory(out->data()));
  ForEachElement(out->dims(), out->strides(),
                 [&](int64_t, int64_t offset) { target[offset] = filling; });
}

template <typename T, typename Context>
void Full(const Context& context, const phi::IntArray& shape, const phi::Scalar& value, DataType,
          DenseTensor* out) {
  out->Resize(common::make_ddim(shape.GetData()));
  Fill<T, Context>(context, *out, value, out);
}

}  // namespace

#define EVERY_TYPE                                                                     \
  bool, uint8_t, int8_t, int16_t, int32_t, int64_t, float, double, Float16, BFloat16, \
      phi::dtype::complex<float>, phi::dtype::complex<double>

PD_REGISTER_PLUGIN_KERNEL(contiguous, npu, ALL_LAYOUT, Contiguous, EVERY_TYPE) {}
PD_REGISTER_PLUGIN_KERNEL(strided_copy, npu, ALL_LAYOUT, StridedCopy, EVERY_TYPE) {}
PD_REGISTER_PLUGIN_KERNEL(fill, npu, ALL_LAYOUT, Fill, EVERY_TYPE) {}
PD_REGISTER_PLUGIN_KERNEL(full, npu, ALL_LAYOUT, Full, EVERY_TYPE) {}
