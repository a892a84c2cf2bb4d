// Random kernels of the imitated npu: Paddle's fallback would draw from the CPU's generator, so
// that saving and restoring the device's random state would change nothing.

#include "forwarding.h"
#include "paddle/phi/kernels/bernoulli_kernel.h"
#include "paddle/phi/kernels/dropout_grad_kernel.h"
#include "paddle/phi/kernels/dropout_kernel.h"
#include "paddle/phi/kernels/exponential_kernel.h"
#include "paddle/phi/kernels/gaussian_kernel.h"
#include "paddle/phi/kernels/multinomial_kernel.h"
#include "paddle/phi/kernels/randint_kernel.h"
#include "paddle/phi/kernels/randperm_kernel.h"
#include "paddle/phi/kernels/truncated_gaussian_random_kernel.h"
#include "paddle/phi/kernels/uniform_inplace_kernel.h"
#include "paddle/phi/kernels/uniform_kernel.h"

FORWARD(gaussian, GaussianKernel, NUMBERS)
FORWARD(uniform, UniformKernel, NUMBERS)
FORWARD(truncated_gaussian_random, TruncatedGaussianRandomKernel, NUMBERS)
FORWARD(randint, RandintKernel, INTEGERS)
FORWARD(randperm, RandpermKernel, NUMBERS)
FORWARD(bernoulli, BernoulliKernel, NUMBERS)
FORWARD(multinomial, MultinomialKernel, FLOATS)
FORWARD(exponential, ExponentialKernel, FLOATS)
FORWARD(gaussian_inplace, GaussianInplaceKernel, FLOATS)
FORWARD(uniform_inplace, UniformInplaceKernel, FLOATS)
FORWARD(dropout, DropoutRawKernel, FLOATS)
FORWARD(dropout_grad, DropoutGradRawKernel, FLOATS)
