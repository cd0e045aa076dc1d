// The exponential of the vector kernels for one number, so that slow paths agree with fast ones to the last
// bit.
#pragma once

namespace kvsim {

/// exp(x) for x <= 700, 0 below -700; about one unit in the last place, the same bits on every machine.
double exp_plain(double x);

/// tanh(x), absolute error about 1e-16, the same bits on every machine.
double tanh_plain(double x);

}  // namespace kvsim
