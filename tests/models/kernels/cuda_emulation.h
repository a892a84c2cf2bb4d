// A CUDA device on a CPU, for kernels that use no more of it than models/kernels/cuda/device.cuh.
//
// The threads of a block are fibers. Between two barriers they run one after the other, in an order
// that EMULATION_ORDER chooses: ascending, descending or shuffled, so that a missing barrier shows.
// Asynchronous copies happen when they are waited for, and not before. Shared memory starts as NaN,
// global memory as well, and behind its end lies a page that must not be touched. The tensor core's
// operations gather the fragments of 32 lanes as PTX lays them out, multiply in double, and round
// sums towards zero, as the hardware does.
#pragma once

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#define __global__
#define __launch_bounds__(...)
#define FASTFFN_DEVICE inline

struct float2 {
  float x, y;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  explicit dim3(unsigned x_, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
using cudaStream_t = void*;

inline dim3 threadIdx{0, 0, 0}, blockIdx{0, 0, 0}, blockDim{0}, gridDim{0};

namespace emulation {

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "emulation: %s (block %u, thread %u)\n", what, blockIdx.x, threadIdx.x);
  std::exit(3);
}

// What a warp does together: the lanes' arguments, and the function of all of them.
struct Meeting {
  int operation = 0;
  int arrived = 0;
  void* arguments[32];
};

struct Copy {
  void* to;
  const void* from;
};

enum class State { running, at_block_barrier, at_warp_barrier, done };

struct Thread {
  ucontext_t context;  // to begin with; then `jump`, which needs no system call
  jmp_buf jump;
  bool started;
  std::vector<char> stack = std::vector<char>(256 * 1024);
  State state;
  std::vector<std::vector<Copy>> groups;  // of asynchronous copies; the last one is open
};

struct Block {
  std::vector<Thread> threads;
  std::vector<Meeting> warps;
  std::vector<unsigned char> shared;  // and 16 bytes more, to align it
  long shared_bytes = 0;
  jmp_buf scheduler;
  int current = 0;
  std::function<void()> kernel;
};

inline Block block;

inline void leave(State state) {
  Thread& self = block.threads[block.current];
  self.state = state;
  if (!_setjmp(self.jump)) _longjmp(block.scheduler, 1);
}

inline void enter() {
  block.kernel();
  if (block.threads[block.current].groups.back().size()) fail("copies that nobody waited for");
  leave(State::done);
}

// Waits until all 32 lanes are at the same operation; the last one to come works for all.
inline void meet(int operation, void* arguments, const std::function<void(void**)>& work) {
  Meeting& meeting = block.warps[block.current / 32];
  if (meeting.arrived == 0) meeting.operation = operation;
  if (meeting.operation != operation) fail("lanes of a warp are at different operations");
  meeting.arguments[block.current % 32] = arguments;
  if (++meeting.arrived == 32) {
    work(meeting.arguments);
    meeting.arrived = 0;
    const int first = block.current / 32 * 32;
    for (int i = first; i < first + 32; ++i) block.threads[i].state = State::running;
    return;
  }
  leave(State::at_warp_barrier);
}

inline void resume(Thread& thread) {
  if (_setjmp(block.scheduler)) return;
  if (thread.started) _longjmp(thread.jump, 1);
  thread.started = true;
  setcontext(&thread.context);
}

// A new one for each block.
inline std::vector<int> order_of_threads(int threads) {
  std::vector<int> order(threads);
  for (int i = 0; i < threads; ++i) order[i] = i;
  static const char* wish = std::getenv("EMULATION_ORDER");
  static const std::string name = wish ? wish : "ascending";
  static std::mt19937 random(std::random_device{}());
  if (name == "descending") std::reverse(order.begin(), order.end());
  if (name == "shuffled") std::shuffle(order.begin(), order.end(), random);
  return order;
}

inline void run_block(int threads, int shared_bytes) {
  block.threads.resize(threads);
  block.warps.assign(threads / 32, Meeting{});
  block.shared_bytes = shared_bytes;
  block.shared.assign(shared_bytes + 16, 0xff);  // NaN in every type
  for (Thread& thread : block.threads) {
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.data();
    thread.context.uc_stack.ss_size = thread.stack.size();
    thread.context.uc_link = nullptr;
    makecontext(&thread.context, enter, 0);
    thread.started = false;
    thread.state = State::running;
    thread.groups.assign(1, {});
  }
  const std::vector<int> order = order_of_threads(threads);
  for (;;) {
    bool ran = false;
    int finished = 0, waiting = 0;
    for (const int i : order) {
      Thread& thread = block.threads[i];
      if (thread.state == State::running) {
        block.current = i;
        threadIdx.x = i;
        ran = true;
        resume(thread);
      }
    }
    for (const Thread& thread : block.threads) {
      finished += thread.state == State::done;
      waiting += thread.state == State::at_block_barrier;
    }
    if (finished == threads) return;
    // As on the hardware, threads that have returned count as arrived.
    if (finished + waiting == threads) {
      for (Thread& thread : block.threads) {
        if (thread.state == State::at_block_barrier) thread.state = State::running;
      }
    } else if (!ran) {
      fail("threads wait for each other for ever");
    }
  }
}

// Global memory that ends where a page begins that must not be touched.
inline std::map<void*, std::pair<void*, size_t>> allocations;

inline void* allocate(size_t bytes) {
  const size_t page = sysconf(_SC_PAGESIZE), used = (bytes + 15) / 16 * 16;
  const size_t pages = (used + page - 1) / page * page;
  const int kind = MAP_PRIVATE | MAP_ANONYMOUS;
  void* base = mmap(nullptr, pages + page, PROT_READ | PROT_WRITE, kind, -1, 0);
  if (base == MAP_FAILED) fail("no memory");
  mprotect(static_cast<char*>(base) + pages, page, PROT_NONE);
  void* start = static_cast<char*>(base) + pages - used;
  std::memset(start, 0xff, used);
  allocations[start] = {base, pages + page};
  return start;
}

inline void release(void* start) {
  munmap(allocations.at(start).first, allocations.at(start).second);
  allocations.erase(start);
}

inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline uint32_t to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

inline float towards_zero(double exact) {
  const float nearest = static_cast<float>(exact);
  const bool too_large = std::fabs(static_cast<double>(nearest)) > std::fabs(exact);
  return too_large ? std::nextafterf(nearest, 0.0f) : nearest;
}

}  // namespace emulation

namespace fastffn::cuda {

struct Bfloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

inline float to_float(float x) { return x; }
inline float to_float(Half x) {
  const int exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
  float size = exponent ? std::ldexp(1024.0f + fraction, exponent - 25) : std::ldexp(fraction, -24);
  if (exponent == 31) size = fraction ? NAN : INFINITY;
  return x.bits & 0x8000 ? -size : size;
}
inline Half to_half(float x) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const float size = std::fabs(x);
  if (std::isnan(x)) return {0x7fff};
  if (size >= 65520.0f) return {static_cast<uint16_t>(sign | 0x7c00)};
  const int exponent = std::max(size > 0.0f ? std::ilogb(size) : -14, -14);
  // In units of the last place, halves to even; a carry moves on to the next exponent by itself.
  const auto units = static_cast<int>(std::nearbyint(std::ldexp(size, 10 - exponent)));
  return {static_cast<uint16_t>(sign + (exponent + 14) * 1024 + units)};
}
inline float to_float(Bfloat16 x) { return emulation::from_bits(uint32_t{x.bits} << 16); }
template <typename T>
inline T from_float(float x) {
  if constexpr (std::is_same_v<T, float>) {
    return x;
  } else if constexpr (std::is_same_v<T, Half>) {
    return to_half(x);
  } else {
    const uint32_t bits = emulation::to_bits(x);
    if (std::isnan(x)) return {0x7fff};
    return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
  }
}
template <typename T>
inline uint32_t pack(float low, float high) {
  const T both[2] = {from_float<T>(low), from_float<T>(high)};
  uint32_t packed;
  std::memcpy(&packed, both, 4);
  return packed;
}

inline float exponential(float x) { return std::exp(x); }
inline float fast_exponential(float x) { return std::exp(x); }
inline float fast_reciprocal(float x) { return 1.0f / x; }

inline unsigned char* shared_memory() {
  const auto address = reinterpret_cast<uintptr_t>(emulation::block.shared.data());
  return reinterpret_cast<unsigned char*>((address + 15) / 16 * 16);
}
inline void synchronize_block() { emulation::leave(emulation::State::at_block_barrier); }

inline emulation::Thread& this_thread() {
  return emulation::block.threads[emulation::block.current];
}
inline void copy_async(void* shared, const void* global) {
  const auto offset = static_cast<unsigned char*>(shared) - shared_memory();
  if (offset < 0 || offset + 16 > emulation::block.shared_bytes) {
    emulation::fail("a copy leaves shared memory");
  }
  if (offset % 16 || reinterpret_cast<uintptr_t>(global) % 16) {
    emulation::fail("a copy is not aligned");
  }
  std::memset(shared, 0xff, 16);  // nobody may read it from now on
  this_thread().groups.back().push_back({shared, global});
}
inline void close_copies() { this_thread().groups.emplace_back(); }
template <int PENDING>
inline void wait_for_copies() {
  auto& groups = this_thread().groups;
  while (static_cast<int>(groups.size()) - 1 > PENDING) {
    for (const emulation::Copy& copy : groups.front()) std::memcpy(copy.to, copy.from, 16);
    groups.erase(groups.begin());
  }
}

inline float sum_of_quad(float value) {
  float sum = value;
  emulation::meet(1, &sum, [](void** lanes) {
    for (int quad = 0; quad < 32; quad += 4) {
      float* of[4];
      for (int i = 0; i < 4; ++i) of[i] = static_cast<float*>(lanes[quad + i]);
      const float total = (*of[0] + *of[1]) + (*of[2] + *of[3]);
      for (float* each : of) *each = total;
    }
  });
  return sum;
}

struct Multiplication {
  float* d;
  const uint32_t *a, *b;
};

inline void multiply_lanes(void** lanes, int depth, double (*element)(const uint32_t*, int, int)) {
  // PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type" and "mma.m16n8k8": with
  // group = lane / 4 and t = lane % 4, register i of a holds rows group + 8 (i odd), and so on.
  const int pairs = depth == 16 ? 2 : 1;  // values in a register
  double a[16][16], b[16][8];
  const auto of = [&](int lane) { return static_cast<Multiplication*>(lanes[lane]); };
  for (int lane = 0; lane < 32; ++lane) {
    const int group = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < pairs; ++j) {
        const int row = group + i % 2 * 8, k = t * pairs + j + i / 2 * depth / 2;
        a[row][k] = element(of(lane)->a, i, j);
      }
    }
    for (int i = 0; i < 2; ++i) {
      for (int j = 0; j < pairs; ++j) {
        b[t * pairs + j + i * depth / 2][group] = element(of(lane)->b, i, j);
      }
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      double sum = of(lane)->d[i];
      for (int k = 0; k < depth; ++k) sum += a[row][k] * b[k][column];
      of(lane)->d[i] = emulation::towards_zero(sum);
    }
  }
}

template <typename T>
inline void multiply_16bit(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  Multiplication mine{d, a, b};
  emulation::meet(2, &mine, [](void** lanes) {
    multiply_lanes(lanes, 16, [](const uint32_t* registers, int i, int j) {
      T both[2];
      std::memcpy(both, registers + i, 4);
      return static_cast<double>(to_float(both[j]));
    });
  });
}

inline uint32_t to_tf32(float x) {
  const uint32_t bits = emulation::to_bits(x);
  return std::isfinite(x) ? (bits + 0x1000) & ~0x1fffu : bits;
}
inline float tf32_value(uint32_t x) { return emulation::from_bits(x); }

inline void multiply_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  Multiplication mine{d, a, b};
  emulation::meet(3, &mine, [](void** lanes) {
    multiply_lanes(lanes, 8, [](const uint32_t* registers, int i, int) {
      return static_cast<double>(emulation::from_bits(registers[i] & ~0x1fffu));
    });
  });
}

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 blocks, int threads, int shared_bytes, cudaStream_t,
            Arguments... arguments) {
  gridDim = blocks;
  blockDim = dim3(threads);
  emulation::block.kernel = [=] { kernel(arguments...); };
  for (blockIdx.y = 0; blockIdx.y < blocks.y; ++blockIdx.y) {
    for (blockIdx.x = 0; blockIdx.x < blocks.x; ++blockIdx.x) {
      emulation::run_block(threads, shared_bytes);
    }
  }
}

}  // namespace fastffn::cuda
