// The direction that a KV head's queries share (Q-Filters, arXiv:2503.02812).
#include "policies/query_filter.h"

#include <algorithm>
#include <cmath>

#include "kernels/error.h"
#include "policies/products.h"

namespace kvsim {
namespace {

double trace_of(const Matrix<double>& matrix) {
  double sum = 0;
  for (std::size_t i = 0; i < matrix.rows(); ++i) sum += matrix(i, i);
  return sum;
}

}  // namespace

std::vector<double> leading_eigenvector(const Matrix<double>& matrix) {
  const std::size_t d = matrix.rows();
  Matrix<double> power(d, d);
  std::copy_n(matrix.data(), d * matrix.stride(), power.data());
  constexpr int kSquarings = 24;  // M^(2^24): eigenvalues 1e-6 apart, relative, are told apart
  for (int i = 0; i < kSquarings; ++i) {
    const double trace = trace_of(power);
    if (!(trace > 0)) return std::vector<double>(d, 0.0);
    Matrix<double> next(d, d);
    for (std::size_t r = 0; r < d; ++r) {
      for (std::size_t k = 0; k < d; ++k) {
        const double factor = power(r, k) / trace / trace;
        for (std::size_t c = 0; c < d; ++c) next(r, c) += factor * power(k, c);
      }
    }
    power = std::move(next);
    if (std::abs(trace_of(power) - 1) < 1e-15) break;  // one eigenvalue is left
  }
  std::size_t column = 0;
  for (std::size_t c = 1; c < d; ++c)
    if (power(c, c) > power(column, column)) column = c;
  std::vector<double> vector(d);
  double square = 0;
  for (std::size_t r = 0; r < d; ++r) {
    vector[r] = power(r, column);
    square += vector[r] * vector[r];
  }
  for (double& x : vector) x /= std::sqrt(square);
  return vector;
}

QueryFilter::QueryFilter(std::size_t group, std::size_t channels) {
  for (std::size_t h = 0; h < group; ++h)
    heads_.push_back({std::vector<double>(channels, 0.0), Matrix<double>(channels, channels)});
}

void QueryFilter::add(std::size_t query_head, MatrixView<const float> queries) {
  Moments& of = heads_.at(query_head);
  KVSIM_CHECK(queries.cols == of.sum.size(), "queries of {} channels for a filter of {}", queries.cols,
              of.sum.size());
  const Matrix<float> gram = gram_matrix(queries);
  for (std::size_t t = 0; t < queries.rows; ++t)
    for (std::size_t c = 0; c < queries.cols; ++c) of.sum[c] += static_cast<double>(queries(t, c));
  for (std::size_t r = 0; r < gram.rows(); ++r)
    for (std::size_t c = 0; c < gram.cols(); ++c)
      of.squares(r, c) += static_cast<double>(gram(std::max(r, c), std::min(r, c)));
}

std::vector<float> QueryFilter::result() const {
  std::vector<double> mean(heads_.at(0).sum.size(), 0.0);
  for (const Moments& of : heads_) {
    const std::vector<double> direction = leading_eigenvector(of.squares);
    double along = 0;
    for (std::size_t c = 0; c < mean.size(); ++c) along += direction[c] * of.sum[c];
    const double sign = along > 0 ? -1.0 : 1.0;
    for (std::size_t c = 0; c < mean.size(); ++c)
      mean[c] += sign * direction[c] / static_cast<double>(heads_.size());
  }
  std::vector<float> filter;
  for (const double x : mean) filter.push_back(static_cast<float>(x));
  return filter;
}

}  // namespace kvsim
