// Products of tokens with query rows and quadratic forms, on the vector kernels: what output-aware scores
// share.
#pragma once

#include <vector>

#include "kernels/view.h"

namespace kvsim {

/// [cols, rows] of a matrix, its rows padded for the kernels.
Matrix<float> transposed(MatrixView<const float> matrix);

/// out(t, i) = tokens row t . rows row i, [tokens, rows], token-major as attention weights are; row stride a
/// multiple of kRowPad. Float with compensated sums: relative to the norms the error stays below 1e-6.
Matrix<float> row_products(MatrixView<const float> tokens, MatrixView<const float> rows);

/// Sum over the rows of x' x, [d, d].
Matrix<float> gram_matrix(MatrixView<const float> rows);

/// F with x' M^-1 x = |F x|^2 for a symmetric positive definite M [d, d]: the inverse of Cholesky's lower
/// factor. Empty where M is not positive definite.
Matrix<double> inverse_factor(const Matrix<double>& matrix);

/// |F x|^2 of every row x, in double.
std::vector<double> squared_lengths(MatrixView<const float> rows, const Matrix<double>& factor);

}  // namespace kvsim
