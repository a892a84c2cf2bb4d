// A CustomDevice plugin that calls itself `npu` and keeps its tensors in host memory.
//
// Built by test_device.py. It proves that names, places and memory questions go through Paddle's
// plugin interface; it has no kernels, so Paddle falls back to the CPU's. It says nothing about
// Ascend's kernels, speed or asynchrony.

#include <cstdlib>
#include <cstring>

#include "paddle/phi/backends/device_ext.h"

namespace {

constexpr size_t kDevices = 2;
constexpr size_t kMemory = size_t{4} << 30;
int current_device = 0;

C_Status Succeed() { return C_SUCCESS; }
C_Status Ignore(const C_Device) { return C_SUCCESS; }

C_Status SetDevice(const C_Device device) {
  current_device = device->id;
  return C_SUCCESS;
}

C_Status GetDevice(const C_Device device) {
  device->id = current_device;
  return C_SUCCESS;
}

C_Status CountDevices(size_t* count) {
  *count = kDevices;
  return C_SUCCESS;
}

C_Status ListDevices(size_t* devices) {
  for (size_t i = 0; i < kDevices; ++i) devices[i] = i;
  return C_SUCCESS;
}

C_Status CreateStream(const C_Device, C_Stream* stream) {
  *stream = nullptr;
  return C_SUCCESS;
}

C_Status UseStream(const C_Device, C_Stream) { return C_SUCCESS; }

C_Status CreateEvent(const C_Device, C_Event* event) {
  *event = nullptr;
  return C_SUCCESS;
}

C_Status UseEvent(const C_Device, C_Event) { return C_SUCCESS; }
C_Status JoinEvent(const C_Device, C_Stream, C_Event) { return C_SUCCESS; }

C_Status CallBack(const C_Device device, C_Stream stream, C_Callback callback, void* user_data) {
  C_Status status = C_SUCCESS;
  callback(device, stream, user_data, &status);
  return status;
}

C_Status Allocate(const C_Device, void** pointer, size_t size) {
  *pointer = std::malloc(size);
  return *pointer ? C_SUCCESS : C_FAILED;
}

C_Status Free(const C_Device, void* pointer, size_t) {
  std::free(pointer);
  return C_SUCCESS;
}

C_Status Copy(const C_Device, void* target, const void* source, size_t size) {
  std::memcpy(target, source, size);
  return C_SUCCESS;
}

C_Status CopyInOrder(const C_Device, C_Stream, void* target, const void* source, size_t size) {
  std::memcpy(target, source, size);
  return C_SUCCESS;
}

C_Status CountMemory(const C_Device, size_t* total, size_t* free) {
  *total = kMemory;
  *free = kMemory;
  return C_SUCCESS;
}

C_Status ChunkSize(const C_Device, size_t* size) {
  *size = 512;
  return C_SUCCESS;
}

C_Status NoVersion(const C_Device, size_t* version) {
  *version = 0;
  return C_SUCCESS;
}

C_Status HasFloat16(const C_Device, bool* supported) {
  *supported = true;
  return C_SUCCESS;
}

C_Status HasNoBfloat16(const C_Device, bool* supported) {
  *supported = false;
  return C_SUCCESS;
}

}  // namespace

void InitPlugin(CustomRuntimeParams* params) {
  PADDLE_CUSTOM_RUNTIME_CHECK_VERSION(params);
  static char name[] = "npu";
  static char sub_name[] = "host";
  params->device_type = name;
  params->sub_device_type = sub_name;

  C_DeviceInterface* self = params->interface;
  std::memset(static_cast<void*>(self), 0, sizeof(C_DeviceInterface));
  self->size = sizeof(C_DeviceInterface);
  self->initialize = Succeed;
  self->finalize = Succeed;
  self->init_device = Ignore;
  self->set_device = SetDevice;
  self->get_device = GetDevice;
  self->deinit_device = Ignore;
  self->create_stream = CreateStream;
  self->destroy_stream = UseStream;
  self->query_stream = UseStream;
  self->stream_add_callback = CallBack;
  self->create_event = CreateEvent;
  self->record_event = JoinEvent;
  self->destroy_event = UseEvent;
  self->query_event = UseEvent;
  self->synchronize_device = Ignore;
  self->synchronize_stream = UseStream;
  self->synchronize_event = UseEvent;
  self->stream_wait_event = JoinEvent;
  self->device_memory_allocate = Allocate;
  self->device_memory_deallocate = Free;
  self->host_memory_allocate = Allocate;
  self->host_memory_deallocate = Free;
  self->memory_copy_h2d = Copy;
  self->memory_copy_d2h = Copy;
  self->memory_copy_d2d = Copy;
  self->async_memory_copy_h2d = CopyInOrder;
  self->async_memory_copy_d2h = CopyInOrder;
  self->async_memory_copy_d2d = CopyInOrder;
  self->get_device_count = CountDevices;
  self->get_device_list = ListDevices;
  self->device_memory_stats = CountMemory;
  self->device_min_chunk_size = ChunkSize;
  self->get_compute_capability = NoVersion;
  self->get_runtime_version = NoVersion;
  self->get_driver_version = NoVersion;
  self->is_float16_supported = HasFloat16;
  self->is_bfloat16_supported = HasNoBfloat16;
}
