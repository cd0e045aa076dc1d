// Products of tokens with query rows and quadratic forms, on the vector kernels: what output-aware scores
// share.
#include "policies/products.h"

#include <algorithm>
#include <cmath>

#include "kernels/error.h"
#include "kernels/replay.h"

namespace kvsim {

Matrix<float> transposed(MatrixView<const float> matrix) {
  Matrix<float> out(matrix.cols, matrix.rows, kRowPad);
  // A cache line of the result at a time: its rows lie a power of two apart where a prompt is that long.
  for (std::size_t begin = 0; begin < matrix.rows; begin += kRowPad) {
    const std::size_t end = std::min(matrix.rows, begin + kRowPad);
    for (std::size_t c = 0; c < matrix.cols; ++c)
      for (std::size_t r = begin; r < end; ++r) out(c, r) = matrix(r, c);
  }
  return out;
}

Matrix<float> row_products(MatrixView<const float> tokens, MatrixView<const float> rows) {
  Matrix<float> out(tokens.rows, rows.rows, kRowPad);
  accumulate_product(transposed(rows).view(), transposed(tokens).view(), out.view());
  return out;
}

Matrix<float> gram_matrix(MatrixView<const float> rows) {
  Matrix<float> padded(rows.rows, rows.cols, kRowPad);
  for (std::size_t r = 0; r < rows.rows; ++r) std::copy_n(rows.row(r), rows.cols, padded.row(r));
  Matrix<float> out(rows.cols, rows.cols, kRowPad);
  accumulate_product(padded.view(), rows, out.view());
  return out;
}

Matrix<double> inverse_factor(const Matrix<double>& matrix) {
  const std::size_t d = matrix.rows();
  KVSIM_CHECK(d == matrix.cols(), "factors of a {} x {} matrix", d, matrix.cols());
  Matrix<double> factor(d, d), inverse(d, d);  // matrix = factor factor'
  for (std::size_t c = 0; c < d; ++c) {
    for (std::size_t r = c; r < d; ++r) {
      double sum = matrix(r, c);
      for (std::size_t k = 0; k < c; ++k) sum -= factor(r, k) * factor(c, k);
      if (r == c && !(sum > 0)) return {};
      factor(r, c) = r == c ? std::sqrt(sum) : sum / factor(c, c);
    }
  }
  for (std::size_t c = 0; c < d; ++c) {
    for (std::size_t r = c; r < d; ++r) {
      double sum = r == c ? 1.0 : 0.0;
      for (std::size_t k = c; k < r; ++k) sum -= factor(r, k) * inverse(k, c);
      inverse(r, c) = sum / factor(r, r);
    }
  }
  return inverse;
}

std::vector<double> squared_lengths(MatrixView<const float> rows, const Matrix<double>& factor) {
  Matrix<float> turned(factor.cols(), factor.rows());
  for (std::size_t r = 0; r < factor.rows(); ++r)
    for (std::size_t c = 0; c < factor.cols(); ++c) turned(c, r) = static_cast<float>(factor(r, c));
  Matrix<float> product(factor.rows(), rows.rows, kRowPad);
  accumulate_product(transposed(rows).view(), turned.view(), product.view());
  std::vector<double> out(rows.rows, 0.0);
  for (std::size_t c = 0; c < product.rows(); ++c) {
    const float* x = product.row(c);
    for (std::size_t t = 0; t < out.size(); ++t)
      out[t] += static_cast<double>(x[t]) * static_cast<double>(x[t]);
  }
  return out;
}

}  // namespace kvsim
