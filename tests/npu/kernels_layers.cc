// Kernels of the imitated npu that layers are made of: products, norms, lookups, activations and
// losses.

#include "forwarding.h"
#include "paddle/phi/kernels/activation_grad_kernel.h"
#include "paddle/phi/kernels/activation_kernel.h"
#include "paddle/phi/kernels/bmm_grad_kernel.h"
#include "paddle/phi/kernels/bmm_kernel.h"
#include "paddle/phi/kernels/cross_entropy_grad_kernel.h"
#include "paddle/phi/kernels/cross_entropy_kernel.h"
#include "paddle/phi/kernels/embedding_grad_kernel.h"
#include "paddle/phi/kernels/embedding_kernel.h"
#include "paddle/phi/kernels/gelu_grad_kernel.h"
#include "paddle/phi/kernels/gelu_kernel.h"
#include "paddle/phi/kernels/layer_norm_grad_kernel.h"
#include "paddle/phi/kernels/layer_norm_kernel.h"
#include "paddle/phi/kernels/log_softmax_grad_kernel.h"
#include "paddle/phi/kernels/log_softmax_kernel.h"
#include "paddle/phi/kernels/matmul_grad_kernel.h"
#include "paddle/phi/kernels/matmul_kernel.h"
#include "paddle/phi/kernels/softmax_grad_kernel.h"
#include "paddle/phi/kernels/softmax_kernel.h"
#include "paddle/phi/kernels/swiglu_grad_kernel.h"
#include "paddle/phi/kernels/swiglu_kernel.h"

FORWARD(matmul, MatmulKernel, HALF)
FORWARD(matmul_grad, MatmulGradKernel, HALF)
FORWARD(bmm, BmmKernel, HALF)
FORWARD(bmm_grad, BmmGradKernel, HALF)
FORWARD(softmax, SoftmaxKernel, HALF)
FORWARD(softmax_grad, SoftmaxGradKernel, HALF)
FORWARD(log_softmax, LogSoftmaxKernel, HALF)
FORWARD(log_softmax_grad, LogSoftmaxGradKernel, HALF)
FORWARD(gelu, GeluKernel, HALF)
FORWARD(gelu_grad, GeluGradKernel, HALF)
FORWARD(relu, ReluKernel, HALF)
FORWARD(relu_grad, ReluGradKernel, HALF)
FORWARD(silu, SiluKernel, HALF)
FORWARD(silu_grad, SiluGradKernel, HALF)
FORWARD(swish, SwishKernel, HALF)
FORWARD(swish_grad, SwishGradKernel, HALF)
FORWARD(sigmoid, SigmoidKernel, HALF)
FORWARD(sigmoid_grad, SigmoidGradKernel, HALF)
FORWARD(swiglu, SwiGLUKernel, HALF)
FORWARD(swiglu_grad, SwiGLUGradKernel, HALF)
FORWARD(tanh, TanhKernel, HALF)
FORWARD(tanh_grad, TanhGradKernel, HALF)
FORWARD(layer_norm, LayerNormKernel, HALF)
FORWARD(layer_norm_grad, LayerNormGradKernel, HALF)
FORWARD(embedding, EmbeddingKernel, HALF)
FORWARD(embedding_grad, EmbeddingGradKernel, FLOATS)
FORWARD(cross_entropy_with_softmax, CrossEntropyWithSoftmaxKernel, HALF)
FORWARD(cross_entropy_with_softmax_grad, CrossEntropyWithSoftmaxGradKernel, HALF)
