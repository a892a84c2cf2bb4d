// Products of float matrices by the MKL that Paddle brings along, for operators that need them
// inside a loop of their own. A wheel without MKL has none: `sgemm()` is null then.
#pragma once

#include <dlfcn.h>

namespace fastffn {

// cblas_sgemm: C = alpha op(A) op(B) + beta C, row-major (101), op: as it is (111), transposed (112).
typedef void (*Sgemm)(int order, int transpose_a, int transpose_b, int m, int n, int k, float alpha,
                      const float* a, int lda, const float* b, int ldb, float beta, float* c,
                      int ldc);

inline Sgemm sgemm() {
  static const Sgemm found = [] {
    // This library's run path has Paddle's folder: it is the copy that Paddle itself loads.
    void* mkl = dlopen("libmklml_intel.so", RTLD_LAZY);
    return mkl ? reinterpret_cast<Sgemm>(dlsym(mkl, "cblas_sgemm")) : nullptr;
  }();
  return found;
}

constexpr int ROW_MAJOR = 101, AS_IS = 111, TRANSPOSED = 112;

}  // namespace fastffn
