// The direction that a KV head's queries share (Q-Filters, arXiv:2503.02812).
#pragma once

#include <cstddef>
#include <vector>

#include "kernels/view.h"

namespace kvsim {

/// Gathers queries of the heads of one group, from one prompt or several, and gives the group's filter.
class QueryFilter {
 public:
  QueryFilter(std::size_t group, std::size_t channels);

  /// Queries of one head as attention reads them, [n, d].
  void add(std::size_t query_head, MatrixView<const float> queries);
  /// Mean over the heads of the leading eigenvector of their second moments, each of length 1 and turned so
  /// that the mean query projects negatively onto it, [d].
  std::vector<float> result() const;

 private:
  struct Moments {
    std::vector<double> sum;
    Matrix<double> squares;
  };
  std::vector<Moments> heads_;
};

/// Leading eigenvector of a symmetric matrix without negative eigenvalues, of length 1, by repeated squaring;
/// its sign is that of its largest column. Zero for the zero matrix.
std::vector<double> leading_eigenvector(const Matrix<double>& matrix);

}  // namespace kvsim
