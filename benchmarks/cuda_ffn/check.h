// The kernels against the same mathematics in double precision, on fresh random numbers.
#pragma once

#include <cmath>
#include <cstring>
#include <random>
#include <string>

#include "memory.h"

namespace bench {

using fastffn::cuda::Bfloat16;
using fastffn::cuda::Gelu;
using fastffn::cuda::Gradients;
using fastffn::cuda::Half;
using fastffn::cuda::Problem;

template <typename T>
struct Type {};
template <>
struct Type<float> {
  static constexpr const char* NAME = "float32";
  static constexpr double TOLERANCE = 1e-5;  // see error_of
};
template <>
struct Type<Half> {
  static constexpr const char* NAME = "float16";
  static constexpr double TOLERANCE = 1.0 / 1024;  // two roundings to nearest
};
template <>
struct Type<Bfloat16> {
  static constexpr const char* NAME = "bfloat16";
  static constexpr double TOLERANCE = 1.0 / 128;
};

#ifdef FASTFFN_EMULATED
using fastffn::cuda::from_float;
using fastffn::cuda::to_float;
#else
inline float to_float(float x) { return x; }
inline float to_float(Half x) { return __half2float(x); }
inline float to_float(Bfloat16 x) { return __bfloat162float(x); }
template <typename T>
T from_float(float x) {
  return T(x);
}
#endif

using Doubles = std::vector<double>;

// Random numbers that T holds exactly.
template <typename T>
std::vector<T> random_values(std::mt19937& random, size_t count, float spread) {
  std::normal_distribution<float> normal(0.0f, spread);
  std::vector<T> values;
  for (size_t i = 0; i < count; ++i) values.push_back(from_float<T>(normal(random)));
  return values;
}

template <typename T>
Doubles doubles(const std::vector<T>& values) {
  Doubles all;
  for (const T value : values) all.push_back(to_float(value));
  return all;
}

// c [rows, columns] = a b; `a` is [rows, inner], or its transpose; `b` [inner, columns], or its.
inline Doubles product(const Doubles& a, bool a_transposed, const Doubles& b, bool b_transposed,
                       int64_t rows, int64_t inner, int64_t columns) {
  Doubles c(rows * columns);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t k = 0; k < inner; ++k) {
      const double factor = a[a_transposed ? k * rows + i : i * inner + k];
      for (int64_t j = 0; j < columns; ++j) {
        c[i * columns + j] += factor * b[b_transposed ? j * inner + k : k * columns + j];
      }
    }
  }
  return c;
}

inline double gelu(double u, Gelu form) {
  if (form == Gelu::erf) return 0.5 * u * std::erfc(-u / std::sqrt(2.0));
  if (form == Gelu::quick) return u / (1.0 + std::exp(-1.702 * u));
  return 0.5 * u * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (u + 0.044715 * u * u * u)));
}
inline double gelu_slope(double u, Gelu form) {
  if (form == Gelu::erf) {
    return 0.5 * std::erfc(-u / std::sqrt(2.0)) + u * std::exp(-0.5 * u * u) / std::sqrt(2 * M_PI);
  }
  if (form == Gelu::quick) {
    const double share = 1.0 / (1.0 + std::exp(-1.702 * u));
    return share + 1.702 * u * share * (1.0 - share);
  }
  const double t = std::tanh(std::sqrt(2.0 / M_PI) * (u + 0.044715 * u * u * u));
  const double inner = std::sqrt(2.0 / M_PI) * (1.0 + 3 * 0.044715 * u * u);
  return 0.5 * (1.0 + t) + 0.5 * u * (1.0 - t * t) * inner;
}

inline const char* name_of(Gelu form) {
  return form == Gelu::tanh ? "tanh" : form == Gelu::erf ? "erf" : "quick";
}

template <typename T>
struct Inputs {
  std::vector<T> z, right1, bias1, left2, dy;
};
template <typename T>
struct Results {
  std::vector<T> y, dz, d_right1, d_bias1, d_left2;
};

template <typename T>
Inputs<T> random_inputs(const Problem& problem, std::mt19937& random) {
  const int64_t tokens = problem.tokens, units = problem.units;
  const float spread = 1.0f / std::sqrt(static_cast<float>(problem.rank1));
  return {random_values<T>(random, tokens * problem.rank1, 1.5f),
          random_values<T>(random, units * problem.rank1, spread),
          random_values<T>(random, units, 0.5f),
          random_values<T>(random, units * problem.rank2, spread),
          random_values<T>(random, tokens * problem.rank2, 1.0f)};
}

template <typename T>
Results<T> run_kernels(const Problem& problem, const Inputs<T>& inputs) {
  using fastffn::cuda::workspace_bytes;
  const int64_t tokens = problem.tokens, units = problem.units;
  const Array<T> z(inputs.z), right1(inputs.right1), bias1(inputs.bias1), left2(inputs.left2);
  const Array<T> dy(inputs.dy);
  const T* bias = inputs.bias1.empty() ? nullptr : bias1.get();
  const auto y = Array<T>::nan(tokens * problem.rank2), dz = Array<T>::nan(tokens * problem.rank1);
  const auto d_right1 = Array<T>::nan(units * problem.rank1), d_bias1 = Array<T>::nan(units);
  const auto d_left2 = Array<T>::nan(units * problem.rank2);
  const auto space = Array<unsigned char>::nan(workspace_bytes<T>(problem, false));
  const auto more_space = Array<unsigned char>::nan(workspace_bytes<T>(problem, true));
  fastffn::cuda::run_forward<T>(problem, z.get(), right1.get(), bias, left2.get(), y.get(),
                                space.get(), nullptr);
  must_succeed("forward");
  const Gradients<T> gradients{dz.get(), d_right1.get(), d_bias1.get(), d_left2.get()};
  fastffn::cuda::run_backward<T>(problem, z.get(), right1.get(), bias, left2.get(), dy.get(),
                                 gradients, more_space.get(), nullptr);
  must_succeed("backward");
  return {y.values(), dz.values(), d_right1.values(), d_bias1.values(), d_left2.values()};
}

template <typename T>
Results<double> run_reference(const Problem& problem, const Inputs<T>& inputs) {
  const int64_t tokens = problem.tokens, units = problem.units;
  const int rank1 = problem.rank1, rank2 = problem.rank2;
  const Doubles z = doubles(inputs.z), right1 = doubles(inputs.right1), dy = doubles(inputs.dy);
  const Doubles left2 = doubles(inputs.left2), bias1 = doubles(inputs.bias1);
  Doubles u = product(z, false, right1, false, tokens, rank1, units);
  for (size_t i = 0; i < u.size(); ++i) u[i] += bias1.empty() ? 0.0 : bias1[i % units];
  Doubles g = u, du = product(dy, false, left2, true, tokens, rank2, units), d_bias1(units);
  for (size_t i = 0; i < u.size(); ++i) {
    g[i] = gelu(u[i], problem.form);
    du[i] *= gelu_slope(u[i], problem.form);
    d_bias1[i % units] += du[i];
  }
  return {product(g, false, left2, false, tokens, units, rank2),
          product(du, false, right1, true, tokens, units, rank1),
          product(z, true, du, false, rank1, tokens, units), d_bias1,
          product(g, true, dy, false, units, tokens, rank2)};
}

// The largest error, relative to the largest value (at least 1); infinite if anything is not a number.
template <typename T>
double error_of(const std::vector<T>& found, const Doubles& wanted) {
  double largest = 1.0, error = 0.0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    const double off = std::fabs(to_float(found[i]) - wanted[i]);
    if (!(off <= 1e30)) return INFINITY;
    error = off > error ? off : error;
    largest = std::fabs(wanted[i]) > largest ? std::fabs(wanted[i]) : largest;
  }
  return error / largest;
}

template <typename T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return !std::memcmp(a.data(), b.data(), a.size() * sizeof(T));
}
template <typename T>
bool same_bits(const Results<T>& a, const Results<T>& b) {
  return same_bits(a.y, b.y) && same_bits(a.dz, b.dz) && same_bits(a.d_right1, b.d_right1) &&
         same_bits(a.d_bias1, b.d_bias1) && same_bits(a.d_left2, b.d_left2);
}

// NaN in one token: in its own outputs and in every gradient of a weight, and nowhere else.
template <typename T>
bool nan_spreads_as_it_should(const Problem& problem, Inputs<T> inputs, const Results<T>& without) {
  const int64_t token = problem.tokens / 2;
  inputs.z[token * problem.rank1] = from_float<T>(NAN);
  const Results<T> with = run_kernels(problem, inputs);
  bool right = true;
  for (size_t i = 0; i < with.y.size(); ++i) {
    const bool hit = static_cast<int64_t>(i) / problem.rank2 == token;
    const bool same = !std::memcmp(&with.y[i], &without.y[i], sizeof(T));
    right = right && (hit ? std::isnan(to_float(with.y[i])) : same);
  }
  for (const auto* each : {&with.d_right1, &with.d_bias1, &with.d_left2}) {
    for (const T value : *each) right = right && std::isnan(to_float(value));
  }
  return right;
}

// One line of a table; false if anything is wrong.
template <typename T>
bool check(const Problem& problem, bool with_bias, std::mt19937& random) {
  Inputs<T> inputs = random_inputs<T>(problem, random);
  if (!with_bias) inputs.bias1.clear();
  const Results<T> found = run_kernels(problem, inputs);
  const Results<double> wanted = run_reference(problem, inputs);
  const double errors[] = {
      error_of(found.y, wanted.y), error_of(found.dz, wanted.dz),
      error_of(found.d_right1, wanted.d_right1), error_of(found.d_bias1, wanted.d_bias1),
      error_of(found.d_left2, wanted.d_left2)};
  double worst = 0.0;
  for (const double error : errors) worst = error > worst ? error : worst;
  const bool repeats = same_bits(found, run_kernels(problem, inputs));
  const bool keeps_nan = nan_spreads_as_it_should(problem, inputs, found);
  const bool good = worst <= Type<T>::TOLERANCE && repeats && keeps_nan;
  std::printf("| %s | %s | %lld | %lld | %d, %d | %.1e | %.1e | %.1e | %.1e | %.1e | %s |\n",
              Type<T>::NAME, name_of(problem.form),
              static_cast<long long>(problem.tokens), static_cast<long long>(problem.units),
              problem.rank1, problem.rank2, errors[0], errors[1], errors[2], errors[3], errors[4],
              good       ? "ok"
              : !repeats ? "DIFFERS WHEN REPEATED"
              : !keeps_nan ? "LOSES NAN"
                           : "TOO FAR OFF");
  std::fflush(stdout);
  return good;
}

}  // namespace bench
