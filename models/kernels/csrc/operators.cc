// The operators that Paddle knows: shapes, memory and gradients; the work is in the .inc files.
// The one file with Paddle's headers, which take seconds to compile: one `*_operator.inc` a family.
#include <omp.h>

#include <algorithm>
#include <cmath>

#include "paddle/extension.h"

#include "kernels.h"
#include "matrix_product.h"

// What the library's loader asks first: the name of the path, without Paddle.
extern "C" __attribute__((visibility("default"))) const char* fastffn_kernels_path() { return fastffn::kernels().path; }

// Whether there is an MKL to multiply large matrices with.
extern "C" __attribute__((visibility("default"))) bool fastffn_multiplies() { return fastffn::sgemm() != nullptr; }

#include "cross_entropy_operator.inc"
#include "exponentials_operator.inc"
#include "low_rank_ffn_operator.inc"
#include "dense_ffn_operator.inc"
#include "layer_norm_operator.inc"
#include "dropout_operator.inc"
#include "linear_operator.inc"
#include "attention_operator.inc"
#include "adamw_operator.inc"
