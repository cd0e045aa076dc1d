// Elementary functions in plain arithmetic: the same bits on every machine, which a math library does not
// promise.
#pragma once

#include <cstdint>

namespace kvsim::synth {

/// e^x for |x| < 700; relative error about 1e-15.
inline double exponential(double x) {
  constexpr double kLog2E = 1.4426950408889634, kLn2High = 0.693147180369123816490,
                   kLn2Low = 1.90821492927058770002e-10;
  const double scaled = x * kLog2E + 0.5;
  auto power = static_cast<std::int64_t>(scaled);
  if (static_cast<double>(power) > scaled) --power;
  const double r = x - static_cast<double>(power) * kLn2High - static_cast<double>(power) * kLn2Low;
  double sum = 1.0;
  for (int i = 14; i > 0; --i) sum = 1.0 + sum * r / i;  // Taylor, |r| <= 0.35
  double factor = power < 0 ? 0.5 : 2.0;
  for (std::int64_t n = power < 0 ? -power : power; n > 0; n >>= 1, factor *= factor) {
    if ((n & 1) != 0) sum *= factor;
  }
  return sum;
}

/// ln x for x >= 1.
inline double logarithm(double x) {
  double result = 0.0;
  for (; x > 1.5; x *= 0.5) result += 0.69314718055994531;
  const double z = (x - 1.0) / (x + 1.0);  // artanh series, |z| <= 0.2
  double term = z, sum = 0.0;
  for (int i = 1; i < 30; i += 2, term *= z * z) sum += term / i;
  return result + 2.0 * sum;
}

struct Rotation {
  double cosine, sine;
  Rotation then(const Rotation& other) const {
    return {cosine * other.cosine - sine * other.sine, sine * other.cosine + cosine * other.sine};
  }
};

/// Cosine and sine of x >= 0 (x below 1e9); absolute error about 1e-10 plus that of the argument.
inline Rotation rotation(double x) {
  constexpr double kTurn = 6.283185307179586;
  x -= kTurn * static_cast<double>(static_cast<std::int64_t>(x / kTurn + 0.5));
  const double y = x * 0.25, s = y * y;  // a quarter of the angle, then doubled twice: |y| <= 0.79
  double cosine = 1.0, sine = 1.0;
  for (int i = 16; i > 0; i -= 2) {
    cosine = 1.0 - cosine * s / (i * (i - 1));
    sine = 1.0 - sine * s / (i * (i + 1));
  }
  Rotation r{cosine, sine * y};
  r = r.then(r);
  return r.then(r);
}

}  // namespace kvsim::synth
