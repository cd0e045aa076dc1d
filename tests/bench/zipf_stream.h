// A seeded stream of requests whose pages follow Zipf's law.
#pragma once

#include <algorithm>
#include <cmath>

#include "kernels/philox.h"
#include "sim/pages/interner.h"
#include "sim/pages/page_stream.h"

namespace kvsim::bench {

/// Rejection-inversion sampling of ranks 1..n with probability ~ rank^-s (Hoermann and Derflinger, 1996).
class Zipf {
 public:
  Zipf(std::uint64_t n, double s) : n_(static_cast<double>(n)), s_(s) {
    low_ = integral(1.5) - 1.0;
    high_ = integral(n_ + 0.5);
    cut_ = 2.0 - inverse(integral(2.5) - std::pow(2.0, -s_));
  }
  std::uint64_t draw(Philox& philox) const {
    for (;;) {
      const double u = high_ + philox.next_double() * (low_ - high_);
      const double x = inverse(u);
      const double k = std::min(n_, std::max(1.0, std::floor(x + 0.5)));
      if (k - x <= cut_ || u >= integral(k + 0.5) - std::pow(k, -s_)) return static_cast<std::uint64_t>(k);
    }
  }

 private:
  double integral(double x) const {
    return s_ == 1.0 ? std::log(x) : (std::pow(x, 1.0 - s_) - 1.0) / (1.0 - s_);
  }
  double inverse(double u) const {
    return s_ == 1.0 ? std::exp(u) : std::pow(1.0 + u * (1.0 - s_), 1.0 / (1.0 - s_));
  }
  double n_, s_, low_, high_, cut_;
};

inline PageStream zipf_stream(std::uint64_t requests, std::uint64_t objects, double exponent) {
  PageStream stream;
  stream.name = "zipf";
  stream.pages.reserve(requests);
  Interner interner;
  Philox philox(1, 1);
  const Zipf zipf(objects, exponent);
  for (std::uint64_t i = 0; i < requests; ++i) stream.pages.push_back(interner.page_of(zipf.draw(philox)));
  stream.unique = interner.count();
  return stream;
}

}  // namespace kvsim::bench
