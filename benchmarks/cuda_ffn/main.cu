// Checks the CUDA kernels of the low-rank feed-forward, and times them. Needs no Paddle:
//
//     make check     every case against double precision; exit code 1 if anything is wrong
//     make time      a table of times on this GPU: fused, unfused, dense
//
// The cases: three types, the forms of GELU, ranks with and without padding, two different ranks,
// ragged numbers of tokens and hidden units, with and without a bias. The seed is drawn and printed.
#include "check.h"
#ifndef FASTFFN_EMULATED
#include "timing.cuh"
#endif

namespace bench {

struct Size {
  int64_t tokens, units;
  int rank1, rank2;
};

#ifdef FASTFFN_EMULATED
const Size SIZES[] = {{1, 1, 1, 1},     {65, 70, 8, 8},    {150, 200, 16, 16},
                      {77, 192, 24, 9}, {70, 129, 40, 64}, {70, 65, 100, 128}};
constexpr int MULTIPROCESSORS = 2;
constexpr int EVERY = 3;  // each size with one of the three forms: an emulation takes its time
inline bool served(float) { return true; }
inline bool served(Half) { return true; }
inline bool served(Bfloat16) { return true; }
#else
const Size SIZES[] = {{1, 1, 1, 1},        {65, 70, 8, 8},        {1000, 3072, 8, 8},
                      {4096, 3072, 16, 16}, {777, 192, 24, 9},     {1025, 1000, 32, 32},
                      {2048, 192, 32, 32}, {1300, 1290, 40, 64},  {2000, 3072, 64, 64},
                      {700, 960, 100, 128}, {1024, 3072, 128, 128}};
constexpr int EVERY = 1;
inline const cudaDeviceProp& device() {
  static const cudaDeviceProp properties = [] {
    cudaDeviceProp found;
    cudaGetDeviceProperties(&found, 0);
    must_succeed("no GPU");
    return found;
  }();
  return properties;
}
template <typename T>
bool served(T) {
  return fastffn::cuda::serves<T>(device().major, device().minor);
}
#endif

template <typename T>
bool check_type(std::mt19937& random) {
  if (!served(T())) {
    std::printf("| %s | not on this device |\n", Type<T>::NAME);
    return true;
  }
#ifndef FASTFFN_EMULATED
  const int MULTIPROCESSORS = device().multiProcessorCount;
#endif
  bool good = true;
  for (const Gelu form : {Gelu::tanh, Gelu::erf, Gelu::quick}) {
    int turn = static_cast<int>(form) + static_cast<int>(sizeof(T));
    for (const Size& size : SIZES) {
      if (turn++ % EVERY) continue;
      const Problem problem{size.tokens, size.units, size.rank1, size.rank2, form, MULTIPROCESSORS};
      good = check<T>(problem, size.units != 192, random) && good;
    }
  }
  return good;
}

inline int check_all(unsigned seed) {
  std::mt19937 random(seed);
  std::printf("seed %u; largest error relative to the largest value, against float64\n\n", seed);
  std::printf("| type | gelu | tokens | units | ranks | y | dz | d_right1 | d_bias1 | d_left2 | |\n");
  std::printf("|---|---|---|---|---|---|---|---|---|---|---|\n");
  const bool floats = check_type<float>(random);
  const bool halves = check_type<Half>(random);
  const bool bfloats = check_type<Bfloat16>(random);
  return floats && halves && bfloats ? 0 : 1;
}

}  // namespace bench

int main(int count, char** arguments) {
  const std::string command = count > 1 ? arguments[1] : "";
  const unsigned seed = count > 2 ? std::atoi(arguments[2]) : std::random_device{}();
  if (command == "check" && count <= 3) return bench::check_all(seed);
#ifndef FASTFFN_EMULATED
  if (command == "time" && count == 2) return bench::time_all(bench::device());
#endif
  std::fprintf(stderr, "usage: %s check [SEED] | time\n", arguments[0]);
  return 2;
}
