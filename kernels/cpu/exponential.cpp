// The scalar exponential: the same operations as exp_double of lanes-inl.h, one by one.
#include "kernels/cpu/exponential.h"

#include <bit>
#include <cmath>
#include <cstdint>

namespace kvsim {

double exp_plain(double x) {
  if (!(x >= -700.0)) return 0.0;
  const double shifted = x * 0x1.71547652b82fep0 + 0x1.8p52;
  const double n = shifted - 0x1.8p52;
  const double r = (x - n * 0x1.62e42fee00000p-1) - n * 0x1.a39ef35793c76p-33;
  constexpr double kInverseFactorials[] = {1.0 / 479001600.0,
                                           1.0 / 39916800.0,
                                           1.0 / 3628800.0,
                                           1.0 / 362880.0,
                                           1.0 / 40320.0,
                                           1.0 / 5040.0,
                                           1.0 / 720.0,
                                           1.0 / 120.0,
                                           1.0 / 24.0,
                                           1.0 / 6.0,
                                           0.5,
                                           1.0,
                                           1.0};
  double p = 1.0 / 6227020800.0;
  for (const double term : kInverseFactorials) p = p * r + term;
  return p * std::bit_cast<double>((std::bit_cast<std::uint64_t>(shifted) + 1023) << 52);
}

double tanh_plain(double x) {
  const double e = exp_plain(-2.0 * std::fabs(x));
  return std::copysign((1.0 - e) / (1.0 + e), x);
}

}  // namespace kvsim
