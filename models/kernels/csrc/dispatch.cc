// Which of the compiled paths this machine executes.
#include <cstdlib>
#include <cstring>

#include "kernels.h"

namespace fastffn {

static const Kernels& choose() {
#if defined(__x86_64__)
  const char* wish = std::getenv("FASTFFN_KERNELS");
  const bool only_portable = wish && !std::strcmp(wish, "portable");
  const bool only_avx2 = wish && !std::strcmp(wish, "avx2");
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
                          __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  if (has_avx512 && !only_avx2 && !only_portable) return avx512::table;
  if (has_avx2 && !only_portable) return avx2::table;
#endif
  return portable::table;
}

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace fastffn
