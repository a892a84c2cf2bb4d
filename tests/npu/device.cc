// A CustomDevice plugin for tests, which registers `npu` with Paddle and computes on the host.
//
// What it is: Paddle's whole plugin interface (devices, memory, generator, kernels, collectives)
// under the name that paddle-custom-npu uses on Ascend. A device pointer points at pages that
// nobody may touch (PROT_NONE), with the values elsewhere: host code that reads or writes device
// memory crashes, as it would with a card. New memory is filled with 0xCD, freed memory is gone,
// and a copy in the wrong direction ends the process.
//
// What it is not: an Ascend. It has none of CANN's kernels, and so neither their numbers nor their
// gaps; streams run at once, so a missing synchronisation cannot show; its collectives are shared
// memory, not HCCL. It says nothing about speed.
//
// HOST_NPU_DEVICES      how many devices there are (1)
// HOST_NPU_MEMORY_MIB   memory of each in MiB (8192)
// HOST_NPU_TYPES        float16: the devices deny bfloat16; untold: the plugin leaves the question
//                       for half precisions open, as Ascend's did (all of them)

#include "device.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <vector>

#include "paddle/phi/backends/device_ext.h"

namespace host_npu {
namespace {

struct Block {
  char* values;
  size_t size;
  int device;
};

size_t ReadNumber(const char* variable, size_t otherwise) {
  const char* text = std::getenv(variable);
  return text != nullptr ? std::strtoul(text, nullptr, 10) : otherwise;
}

struct Memory {
  std::mutex mutex;
  std::map<const char*, Block> blocks;  // by device pointer
  std::vector<size_t> used;             // by device
};

size_t DeviceCount() {
  static const size_t count = ReadNumber("HOST_NPU_DEVICES", 1);
  return count;
}

size_t MemorySize() {
  static const size_t size = ReadNumber("HOST_NPU_MEMORY_MIB", 8192) << 20;
  return size;
}

Memory& TheMemory() {
  // Never destroyed: Paddle frees its last tensors while the process ends.
  static Memory* memory = [] {
    auto* made = new Memory;
    made->used.resize(DeviceCount());
    return made;
  }();
  return *memory;
}

thread_local int current_device = 0;

// Find the block that a pointer points into; the caller holds the mutex.
const std::pair<const char* const, Block>* FindBlock(const void* pointer) {
  const char* address = static_cast<const char*>(pointer);
  auto& blocks = TheMemory().blocks;
  auto next = blocks.upper_bound(address);
  if (next == blocks.begin()) return nullptr;
  const auto& found = *--next;
  return address < found.first + found.second.size ? &found : nullptr;
}

void* HostOnly(const void* pointer) {
  std::lock_guard<std::mutex> lock(TheMemory().mutex);
  if (FindBlock(pointer) != nullptr) {
    std::fprintf(stderr, "host npu: %p is device memory where the host's is needed\n", pointer);
    std::abort();
  }
  return const_cast<void*>(pointer);
}

C_Status Succeed() { return C_SUCCESS; }
C_Status SucceedOn(const C_Device) { return C_SUCCESS; }

C_Status SetDevice(const C_Device device) {
  current_device = device->id;
  return C_SUCCESS;
}

C_Status GetDevice(const C_Device device) {
  device->id = current_device;
  return C_SUCCESS;
}

C_Status CountDevices(size_t* count) {
  *count = DeviceCount();
  return C_SUCCESS;
}

C_Status ListDevices(size_t* devices) {
  for (size_t i = 0; i < DeviceCount(); ++i) devices[i] = i;
  return C_SUCCESS;
}

// Streams and events are tokens: whatever is queued has run when the call returns.
template <class Token>
C_Status MakeToken(const C_Device, Token* token) {
  *token = reinterpret_cast<Token>(new char);
  return C_SUCCESS;
}

template <class Token>
C_Status DropToken(const C_Device, Token token) {
  delete reinterpret_cast<char*>(token);
  return C_SUCCESS;
}

template <class Token>
C_Status Wait(const C_Device, Token) {
  return C_SUCCESS;
}

C_Status Join(const C_Device, C_Stream, C_Event) { return C_SUCCESS; }

C_Status CallBack(const C_Device device, C_Stream stream, C_Callback callback, void* user_data) {
  C_Status status = C_SUCCESS;
  callback(device, stream, user_data, &status);
  return status;
}

C_Status Allocate(const C_Device device, void** pointer, size_t size) {
  Memory& memory = TheMemory();
  std::lock_guard<std::mutex> lock(memory.mutex);
  if (size == 0) size = 1;
  if (memory.used[device->id] + size > MemorySize()) return C_FAILED;
  void* fence = mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (fence == MAP_FAILED) return C_FAILED;
  char* values = static_cast<char*>(std::malloc(size));
  if (values == nullptr) return C_FAILED;
  std::memset(values, 0xCD, size);
  memory.blocks[static_cast<char*>(fence)] = {values, size, device->id};
  memory.used[device->id] += size;
  *pointer = fence;
  return C_SUCCESS;
}

C_Status Free(const C_Device, void* pointer, size_t) {
  Memory& memory = TheMemory();
  std::lock_guard<std::mutex> lock(memory.mutex);
  auto found = memory.blocks.find(static_cast<char*>(pointer));
  if (found == memory.blocks.end()) return C_ERROR;
  const Block block = found->second;
  memory.blocks.erase(found);
  memory.used[block.device] -= block.size;
  munmap(pointer, block.size);
  std::free(block.values);
  return C_SUCCESS;
}

C_Status AllocateOnHost(const C_Device, void** pointer, size_t size) {
  return posix_memalign(pointer, 512, size != 0 ? size : 1) == 0 ? C_SUCCESS : C_FAILED;
}

C_Status FreeOnHost(const C_Device, void* pointer, size_t) {
  std::free(pointer);
  return C_SUCCESS;
}

C_Status Set(const C_Device, void* pointer, unsigned char value, size_t size) {
  std::memset(HostMemory(pointer), value, size);
  return C_SUCCESS;
}

C_Status ToDevice(const C_Device, void* target, const void* source, size_t size) {
  std::memcpy(HostMemory(target), HostOnly(source), size);
  return C_SUCCESS;
}

C_Status ToHost(const C_Device, void* target, const void* source, size_t size) {
  std::memcpy(HostOnly(target), HostMemory(source), size);
  return C_SUCCESS;
}

C_Status OnDevice(const C_Device, void* target, const void* source, size_t size) {
  std::memmove(HostMemory(target), HostMemory(source), size);
  return C_SUCCESS;
}

C_Status Between(const C_Device, const C_Device, void* target, const void* source, size_t size) {
  return OnDevice(nullptr, target, source, size);
}

template <C_Status (*Copy)(const C_Device, void*, const void*, size_t)>
C_Status Queued(const C_Device device, C_Stream, void* target, const void* source, size_t size) {
  return Copy(device, target, source, size);
}

C_Status QueuedBetween(const C_Device, const C_Device, C_Stream, void* target, const void* source,
                       size_t size) {
  return OnDevice(nullptr, target, source, size);
}

C_Status TellMemory(const C_Device device, size_t* total, size_t* free) {
  Memory& memory = TheMemory();
  std::lock_guard<std::mutex> lock(memory.mutex);
  *total = MemorySize();
  *free = MemorySize() - memory.used[device->id];
  return C_SUCCESS;
}

C_Status ChunkSize(const C_Device, size_t* size) {
  *size = 512;
  return C_SUCCESS;
}

C_Status VersionOne(const C_Device, size_t* version) {
  *version = 1;
  return C_SUCCESS;
}

C_Status HasFloat16(const C_Device, bool* supported) {
  *supported = true;
  return C_SUCCESS;
}

bool TypesAre(const char* wanted) {
  const char* types = std::getenv("HOST_NPU_TYPES");
  return types != nullptr && std::strcmp(types, wanted) == 0;
}

C_Status HasBfloat16(const C_Device, bool* supported) {
  *supported = !TypesAre("float16");
  return C_SUCCESS;
}

// y = a x + b y, by which Paddle adds up gradients.
C_Status AddScaled(const C_Device, C_Stream, C_DataType type, size_t count, float a, void* x,
                   float b, void* y) {
  if (type != FLOAT32) return C_FAILED;
  const float* from = static_cast<const float*>(HostMemory(x));
  float* to = static_cast<float*>(HostMemory(y));
  for (size_t i = 0; i < count; ++i) to[i] = a * from[i] + b * to[i];
  return C_SUCCESS;
}

}  // namespace

void* HostMemory(const void* pointer) {
  std::lock_guard<std::mutex> lock(TheMemory().mutex);
  const auto* block = FindBlock(pointer);
  if (block == nullptr) {
    std::fprintf(stderr, "host npu: %p is no device memory (or was freed)\n", pointer);
    std::abort();
  }
  return block->second.values + (static_cast<const char*>(pointer) - block->first);
}

}  // namespace host_npu

extern "C" void InitPlugin(CustomRuntimeParams* params) {
  using namespace host_npu;  // NOLINT: the entry point must stand outside
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
  self->init_device = SucceedOn;
  self->deinit_device = SucceedOn;
  self->set_device = SetDevice;
  self->get_device = GetDevice;
  self->get_device_count = CountDevices;
  self->get_device_list = ListDevices;
  self->create_stream = MakeToken<C_Stream>;
  self->destroy_stream = DropToken<C_Stream>;
  self->query_stream = Wait<C_Stream>;
  self->synchronize_stream = Wait<C_Stream>;
  self->stream_add_callback = CallBack;
  self->create_event = MakeToken<C_Event>;
  self->destroy_event = DropToken<C_Event>;
  self->query_event = Wait<C_Event>;
  self->synchronize_event = Wait<C_Event>;
  self->record_event = Join;
  self->stream_wait_event = Join;
  self->synchronize_device = SucceedOn;
  self->device_memory_allocate = Allocate;
  self->device_memory_deallocate = Free;
  self->device_memory_set = Set;
  self->device_memory_stats = TellMemory;
  self->device_min_chunk_size = ChunkSize;
  self->host_memory_allocate = AllocateOnHost;
  self->host_memory_deallocate = FreeOnHost;
  self->memory_copy_h2d = ToDevice;
  self->memory_copy_d2h = ToHost;
  self->memory_copy_d2d = OnDevice;
  self->memory_copy_p2p = Between;
  self->async_memory_copy_h2d = Queued<ToDevice>;
  self->async_memory_copy_d2h = Queued<ToHost>;
  self->async_memory_copy_d2d = Queued<OnDevice>;
  self->async_memory_copy_p2p = QueuedBetween;
  self->get_compute_capability = VersionOne;
  self->get_runtime_version = VersionOne;
  self->get_driver_version = VersionOne;
  if (!TypesAre("untold")) {
    self->is_float16_supported = HasFloat16;
    self->is_bfloat16_supported = HasBfloat16;
  }
  self->blas_axpby = AddScaled;
  SetCollectives(self);
}
