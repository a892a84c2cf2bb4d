// Kernels of the imitated npu for arithmetic, reductions and rearranging.

#include "forwarding.h"
#include "paddle/phi/kernels/activation_grad_kernel.h"
#include "paddle/phi/kernels/activation_kernel.h"
#include "paddle/phi/kernels/amp_kernel.h"
#include "paddle/phi/kernels/arg_min_max_kernel.h"
#include "paddle/phi/kernels/clip_grad_kernel.h"
#include "paddle/phi/kernels/clip_kernel.h"
#include "paddle/phi/kernels/concat_grad_kernel.h"
#include "paddle/phi/kernels/concat_kernel.h"
#include "paddle/phi/kernels/elementwise_add_grad_kernel.h"
#include "paddle/phi/kernels/elementwise_add_kernel.h"
#include "paddle/phi/kernels/elementwise_divide_grad_kernel.h"
#include "paddle/phi/kernels/elementwise_divide_kernel.h"
#include "paddle/phi/kernels/elementwise_multiply_grad_kernel.h"
#include "paddle/phi/kernels/elementwise_multiply_kernel.h"
#include "paddle/phi/kernels/elementwise_subtract_grad_kernel.h"
#include "paddle/phi/kernels/elementwise_kernel.h"
#include "paddle/phi/kernels/elementwise_subtract_kernel.h"
#include "paddle/phi/kernels/expand_grad_kernel.h"
#include "paddle/phi/kernels/expand_kernel.h"
#include "paddle/phi/kernels/gather_grad_kernel.h"
#include "paddle/phi/kernels/gather_kernel.h"
#include "paddle/phi/kernels/index_select_grad_kernel.h"
#include "paddle/phi/kernels/index_select_kernel.h"
#include "paddle/phi/kernels/mean_all_grad_kernel.h"
#include "paddle/phi/kernels/mean_all_kernel.h"
#include "paddle/phi/kernels/reduce_max_grad_kernel.h"
#include "paddle/phi/kernels/reduce_max_kernel.h"
#include "paddle/phi/kernels/reduce_mean_grad_kernel.h"
#include "paddle/phi/kernels/reduce_mean_kernel.h"
#include "paddle/phi/kernels/reduce_sum_grad_kernel.h"
#include "paddle/phi/kernels/reduce_sum_kernel.h"
#include "paddle/phi/kernels/scale_kernel.h"
#include "paddle/phi/kernels/scatter_grad_kernel.h"
#include "paddle/phi/kernels/scatter_kernel.h"
#include "paddle/phi/kernels/squared_l2_norm_kernel.h"
#include "paddle/phi/kernels/stack_grad_kernel.h"
#include "paddle/phi/kernels/stack_kernel.h"
#include "paddle/phi/kernels/top_k_kernel.h"
#include "paddle/phi/kernels/tril_triu_kernel.h"
#include "paddle/phi/kernels/where_grad_kernel.h"
#include "paddle/phi/kernels/where_kernel.h"

FORWARD(add, AddKernel, NUMBERS)
FORWARD(add_grad, AddGradKernel, HALF)
FORWARD(subtract, SubtractKernel, HALF)
FORWARD(subtract_grad, SubtractGradKernel, HALF)
FORWARD(multiply, MultiplyKernel, HALF)
FORWARD(multiply_grad, MultiplyGradKernel, NUMBERS)
FORWARD(divide, DivideKernel, HALF)
FORWARD(divide_grad, DivideGradKernel, HALF)
FORWARD(mean, MeanKernel, HALF)
FORWARD(mean_grad, ReduceMeanGradKernel, HALF)
FORWARD(mean_all, MeanAllKernel, HALF)
FORWARD(mean_all_grad, MeanAllGradKernel, HALF)
FORWARD(sum, SumKernel, HALF)
FORWARD(sum_grad, ReduceSumGradKernel, HALF)
FORWARD(max, MaxKernel, HALF)
FORWARD(max_grad, ReduceMaxGradKernel, HALF)
FORWARD(scale, ScaleKernel, HALF)
FORWARD(pow, PowKernel, HALF)
FORWARD(pow_grad, PowGradKernel, HALF)
FORWARD(rsqrt, RsqrtKernel, HALF)
FORWARD(rsqrt_grad, RsqrtGradKernel, HALF)
FORWARD(sqrt, SqrtKernel, HALF)
FORWARD(exp, ExpKernel, HALF)
FORWARD(exp_grad, ExpGradKernel, HALF)
FORWARD(where, WhereKernel, HALF)
FORWARD(where_grad, WhereGradKernel, HALF)
FORWARD(expand, ExpandKernel, HALF)
FORWARD(expand_grad, ExpandGradKernel, HALF)
FORWARD(concat, ConcatKernel, HALF)
FORWARD(concat_grad, ConcatGradKernel, HALF)
FORWARD(stack, StackKernel, HALF)
FORWARD(stack_grad, StackGradKernel, HALF)
FORWARD(triu, TriuKernel, HALF)
FORWARD(tril, TrilKernel, HALF)
FORWARD(topk, TopkKernel, HALF)
FORWARD(argmax, ArgMaxKernel, HALF)
FORWARD(scatter, ScatterKernel, HALF)
FORWARD(scatter_grad, ScatterGradKernel, HALF)
FORWARD(maximum, MaximumKernel, HALF)
FORWARD(minimum, MinimumKernel, HALF)
FORWARD(square, SquareKernel, HALF)
FORWARD(square_grad, SquareGradKernel, HALF)
FORWARD(squared_l2_norm, SquaredL2NormKernel, HALF)
FORWARD(clip, ClipKernel, HALF)
FORWARD(clip_grad, ClipGradKernel, HALF)
FORWARD(gather, GatherKernel, HALF)
FORWARD(gather_grad, GatherGradKernel, HALF)
FORWARD(index_select, IndexSelectKernel, HALF)
FORWARD(index_select_grad, IndexSelectGradKernel, NUMBERS)
FORWARD(check_finite_and_unscale, CheckFiniteAndUnscaleKernel, HALF)
