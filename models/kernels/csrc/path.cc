// Compiled once for each instruction set, with FASTFFN_PATH naming the namespace (see simd.h).
#include <omp.h>

#include "kernels.h"
#include "simd.h"

#include "activations.inc"
#include "cross_entropy.inc"
#include "exponentials.inc"
#include "tile_products.inc"
// Made of the above.
#include "hidden_units.inc"
#include "low_rank_ffn.inc"
#include "layer_norm.inc"
#include "dropout.inc"
#include "linear.inc"
#include "attention_blocks.inc"
#include "attention.inc"
#include "attention_rows.inc"
#include "attention_gradient.inc"
#include "adamw.inc"

#define FASTFFN_STRING(x) #x
#define FASTFFN_NAME(x) FASTFFN_STRING(x)

namespace fastffn::FASTFFN_PATH {

const Kernels table = {
    .path = FASTFFN_NAME(FASTFFN_PATH),
    .exponentials = exponentials,
    .activate_hidden = activate_hidden,
    .activate_hidden_backward = activate_hidden_backward,
    .low_rank_forward_scratch = low_rank_forward_scratch,
    .low_rank_forward = low_rank_forward,
    .low_rank_backward_scratch = low_rank_backward_scratch,
    .low_rank_backward = low_rank_backward,
    .layer_norm = layer_norm,
    .layer_norm_backward = layer_norm_backward,
    .cross_entropy = cross_entropy,
    .repeat_row = repeat_row,
    .sum_rows = sum_rows,
    .dropout = dropout,
    .attention = attention,
    .attention_gradient = attention_gradient,
    .sum_of_squares = sum_of_squares,
    .adamw = adamw,
};

}  // namespace fastffn::FASTFFN_PATH
