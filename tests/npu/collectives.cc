// Collectives of the imitated npu: between processes of one machine, through POSIX shared memory.
//
// A communicator is one shared segment. Every rank lays up to a slot's worth in its own slot, all
// meet, all read, all meet again; what is longer goes in pieces. Point-to-point messages have a box
// for every pair of ranks: a sender of more than one slot waits for its reader, so two ranks that
// both send more than a slot first wait for each other, and give up after kWaitSeconds.

#include "device.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "paddle/phi/backends/device_ext.h"
#include "paddle/phi/common/bfloat16.h"
#include "paddle/phi/common/float16.h"

namespace host_npu {
namespace {

constexpr size_t kSlotBytes = size_t{1} << 20;
constexpr int kMostRanks = 8;
constexpr int kWaitSeconds = 120;
constexpr size_t kNameBytes = 64;

struct Shared {  // a fresh segment is zero
  std::atomic<int> attached;
  std::atomic<int> arrived;
  std::atomic<int> round;
  std::atomic<int> box_is_full[kMostRanks][kMostRanks];
  alignas(64) char slots[kMostRanks][kSlotBytes];
  alignas(64) char boxes[kMostRanks][kMostRanks][kSlotBytes];  // from, to
};

struct Communicator {
  int rank;
  int ranks;
  char name[kNameBytes];
  Shared* shared;
};

Communicator* Of(C_CCLComm handle) { return reinterpret_cast<Communicator*>(handle); }

template <class Condition>
void WaitFor(Condition condition) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(kWaitSeconds);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) {
      std::fprintf(stderr, "host npu: a collective waited %d s for the other ranks\n",
                   kWaitSeconds);
      std::abort();
    }
    sched_yield();
  }
}

void Meet(Communicator* self) {
  Shared* shared = self->shared;
  const int round = shared->round.load();
  if (shared->arrived.fetch_add(1) + 1 == self->ranks) {
    shared->arrived = 0;
    shared->round.fetch_add(1);
  } else {
    WaitFor([&] { return shared->round.load() != round; });
  }
}

size_t Width(C_DataType type) {
  switch (type) {
    case BOOL:
    case UINT8:
    case INT8:
      return 1;
    case UINT16:
    case INT16:
    case FLOAT16:
    case BFLOAT16:
      return 2;
    case UINT32:
    case INT32:
    case FLOAT32:
      return 4;
    case COMPLEX128:
      return 16;
    default:
      return 8;
  }
}

template <class T, class Sum>
void Fold(Communicator* self, void* out, size_t count, C_CCLReduceOp operation) {
  T* target = static_cast<T*>(out);
  for (size_t i = 0; i < count; ++i) {
    Sum total = static_cast<Sum>(reinterpret_cast<T*>(self->shared->slots[0])[i]);
    for (int rank = 1; rank < self->ranks; ++rank) {
      const Sum next = static_cast<Sum>(reinterpret_cast<T*>(self->shared->slots[rank])[i]);
      switch (operation) {
        case MAX:
          total = std::max(total, next);
          break;
        case MIN:
          total = std::min(total, next);
          break;
        case PRODUCT:
          total = total * next;
          break;
        default:
          total = total + next;
      }
    }
    if (operation == AVG) total = total / static_cast<Sum>(self->ranks);
    target[i] = static_cast<T>(total);
  }
}

C_Status FoldSlots(Communicator* self, void* out, size_t count, C_DataType type,
                   C_CCLReduceOp operation) {
  switch (type) {
    case FLOAT32:
      Fold<float, float>(self, out, count, operation);
      return C_SUCCESS;
    case FLOAT64:
      Fold<double, double>(self, out, count, operation);
      return C_SUCCESS;
    case FLOAT16:
      Fold<phi::dtype::float16, float>(self, out, count, operation);
      return C_SUCCESS;
    case BFLOAT16:
      Fold<phi::dtype::bfloat16, float>(self, out, count, operation);
      return C_SUCCESS;
    case INT32:
      Fold<int32_t, int32_t>(self, out, count, operation);
      return C_SUCCESS;
    case INT64:
      Fold<int64_t, int64_t>(self, out, count, operation);
      return C_SUCCESS;
    case BOOL:
    case UINT8:
      Fold<uint8_t, int>(self, out, count, operation);
      return C_SUCCESS;
    default:
      return C_FAILED;
  }
}

// Lay `bytes` out in slots piece by piece, and call read(offset, bytes of the piece) for each.
template <class Read>
C_Status Exchange(Communicator* self, const void* buffer, size_t bytes, bool contributes,
                  Read read) {
  C_Status worst = C_SUCCESS;
  for (size_t offset = 0; offset < bytes; offset += kSlotBytes) {
    const size_t piece = std::min(kSlotBytes, bytes - offset);
    if (contributes) {
      std::memcpy(self->shared->slots[self->rank], static_cast<const char*>(buffer) + offset,
                  piece);
    }
    Meet(self);
    const C_Status status = read(offset, piece);
    if (status != C_SUCCESS) worst = status;
    Meet(self);
  }
  return worst;
}

C_Status IdSize(size_t* size) {
  *size = kNameBytes;
  return C_SUCCESS;
}

C_Status MakeId(C_CCLRootId* id) {
  static std::atomic<int> made{0};
  std::memset(id->data, 0, id->sz);
  std::snprintf(static_cast<char*>(id->data), kNameBytes, "/host-npu-%d-%d", getpid(), made++);
  return C_SUCCESS;
}

C_Status Connect(size_t ranks, C_CCLRootId* id, size_t rank, C_CCLComm* handle) {
  if (ranks > kMostRanks) return C_ERROR;
  auto* self = new Communicator{static_cast<int>(rank), static_cast<int>(ranks), {}, nullptr};
  std::memcpy(self->name, id->data, kNameBytes - 1);
  const int file = shm_open(self->name, O_CREAT | O_RDWR, 0600);
  if (file < 0 || ftruncate(file, sizeof(Shared)) != 0) return C_FAILED;
  void* mapped = mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (mapped == MAP_FAILED) return C_FAILED;
  self->shared = static_cast<Shared*>(mapped);
  self->shared->attached.fetch_add(1);
  WaitFor([&] { return self->shared->attached.load() >= self->ranks; });
  if (rank == 0) shm_unlink(self->name);  // all have it open: nothing stays behind
  *handle = reinterpret_cast<C_CCLComm>(self);
  return C_SUCCESS;
}

C_Status Disconnect(C_CCLComm handle) {
  munmap(Of(handle)->shared, sizeof(Shared));
  delete Of(handle);
  return C_SUCCESS;
}

C_Status TellName(C_CCLComm handle, char* name) {
  std::strcpy(name, Of(handle)->name);
  return C_SUCCESS;
}

C_Status AllReduce(void* send, void* receive, size_t count, C_DataType type,
                   C_CCLReduceOp operation, C_CCLComm handle, C_Stream) {
  Communicator* self = Of(handle);
  char* out = static_cast<char*>(HostMemory(receive));
  return Exchange(self, HostMemory(send), count * Width(type), true,
                  [&](size_t offset, size_t bytes) {
                    return FoldSlots(self, out + offset, bytes / Width(type), type, operation);
                  });
}

C_Status Reduce(void* send, void* receive, size_t count, C_DataType type, C_CCLReduceOp operation,
                size_t root, C_CCLComm handle, C_Stream) {
  Communicator* self = Of(handle);
  const bool keeps = self->rank == static_cast<int>(root);
  char* out = keeps ? static_cast<char*>(HostMemory(receive)) : nullptr;
  return Exchange(self, HostMemory(send), count * Width(type), true,
                  [&](size_t offset, size_t bytes) {
                    if (!keeps) return C_SUCCESS;
                    return FoldSlots(self, out + offset, bytes / Width(type), type, operation);
                  });
}

C_Status Broadcast(void* buffer, size_t count, C_DataType type, size_t root, C_CCLComm handle,
                   C_Stream) {
  Communicator* self = Of(handle);
  char* values = static_cast<char*>(HostMemory(buffer));
  return Exchange(self, values, count * Width(type), self->rank == static_cast<int>(root),
                  [&](size_t offset, size_t bytes) {
                    std::memcpy(values + offset, self->shared->slots[root], bytes);
                    return C_SUCCESS;
                  });
}

C_Status AllGather(void* send, void* receive, size_t count, C_DataType type, C_CCLComm handle,
                   C_Stream) {
  Communicator* self = Of(handle);
  const size_t share = count * Width(type);
  char* out = static_cast<char*>(HostMemory(receive));
  return Exchange(self, HostMemory(send), share, true, [&](size_t offset, size_t bytes) {
    for (int rank = 0; rank < self->ranks; ++rank) {
      std::memcpy(out + rank * share + offset, self->shared->slots[rank], bytes);
    }
    return C_SUCCESS;
  });
}

C_Status ReduceScatter(void* send, void* receive, size_t count, C_DataType type,
                       C_CCLReduceOp operation, C_CCLComm handle, C_Stream) {
  Communicator* self = Of(handle);
  const size_t share = count * Width(type);
  const char* in = static_cast<const char*>(HostMemory(send));
  char* out = static_cast<char*>(HostMemory(receive));
  for (int rank = 0; rank < self->ranks; ++rank) {
    const C_Status status =
        Exchange(self, in + rank * share, share, true, [&](size_t offset, size_t bytes) {
          if (rank != self->rank) return C_SUCCESS;
          return FoldSlots(self, out + offset, bytes / Width(type), type, operation);
        });
    if (status != C_SUCCESS) return status;
  }
  return C_SUCCESS;
}

C_Status Send(void* buffer, size_t count, C_DataType type, size_t to, C_CCLComm handle, C_Stream) {
  Communicator* self = Of(handle);
  const char* values = static_cast<const char*>(HostMemory(buffer));
  auto& full = self->shared->box_is_full[self->rank][to];
  const size_t bytes = count * Width(type);
  for (size_t offset = 0; offset < bytes; offset += kSlotBytes) {
    WaitFor([&] { return full.load() == 0; });
    std::memcpy(self->shared->boxes[self->rank][to], values + offset,
                std::min(kSlotBytes, bytes - offset));
    full = 1;
  }
  return C_SUCCESS;
}

C_Status Receive(void* buffer, size_t count, C_DataType type, size_t from, C_CCLComm handle,
                 C_Stream) {
  Communicator* self = Of(handle);
  char* values = static_cast<char*>(HostMemory(buffer));
  auto& full = self->shared->box_is_full[from][self->rank];
  const size_t bytes = count * Width(type);
  for (size_t offset = 0; offset < bytes; offset += kSlotBytes) {
    WaitFor([&] { return full.load() != 0; });
    std::memcpy(values + offset, self->shared->boxes[from][self->rank],
                std::min(kSlotBytes, bytes - offset));
    full = 0;
  }
  return C_SUCCESS;
}

C_Status AllToAll(const void** send, const size_t* send_counts, const C_DataType* send_types,
                  void** receive, const size_t* receive_counts, const C_DataType* receive_types,
                  size_t rank, size_t ranks, C_CCLComm handle, C_Stream stream) {
  for (size_t distance = 0; distance < ranks; ++distance) {
    const size_t to = (rank + distance) % ranks;
    const size_t from = (rank + ranks - distance) % ranks;
    if (send_counts[to] * Width(send_types[to]) > kSlotBytes) return C_FAILED;  // would block
    if (send_counts[to] != 0) {
      Send(const_cast<void*>(send[to]), send_counts[to], send_types[to], to, handle, stream);
    }
    if (receive_counts[from] != 0) {
      Receive(receive[from], receive_counts[from], receive_types[from], from, handle, stream);
    }
  }
  return C_SUCCESS;
}

C_Status Succeed() { return C_SUCCESS; }

}  // namespace

void SetCollectives(C_DeviceInterface* interface) {
  interface->xccl_get_unique_id_size = IdSize;
  interface->xccl_get_unique_id = MakeId;
  interface->xccl_comm_init_rank = Connect;
  interface->xccl_destroy_comm = Disconnect;
  interface->xccl_get_comm_name = TellName;
  interface->xccl_all_reduce = AllReduce;
  interface->xccl_reduce = Reduce;
  interface->xccl_broadcast = Broadcast;
  interface->xccl_all_gather = AllGather;
  interface->xccl_reduce_scatter = ReduceScatter;
  interface->xccl_send = Send;
  interface->xccl_recv = Receive;
  interface->xccl_all_to_all = AllToAll;
  interface->xccl_group_start = Succeed;
  interface->xccl_group_end = Succeed;
}

}  // namespace host_npu
