// Matrices: a strided view that owns nothing, and an owning one whose rows are aligned for vector code.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <span>
#include <type_traits>

#include "kernels/memory.h"

namespace kvsim {

/// Position of a token in its sequence, from 0.
using TokenIndex = std::uint32_t;

/// Rows x cols elements at `data`; consecutive rows are `stride` elements apart (stride >= cols).
template <typename T>
struct MatrixView {
  T* data = nullptr;
  std::size_t rows = 0;
  std::size_t cols = 0;
  std::size_t stride = 0;

  T* row(std::size_t r) const { return data + r * stride; }
  T& operator()(std::size_t r, std::size_t c) const { return data[r * stride + c]; }
  std::span<T> row_span(std::size_t r) const { return {row(r), cols}; }
  bool empty() const { return rows == 0 || cols == 0; }
  MatrixView rows_from(std::size_t first, std::size_t count) const { return {row(first), count, cols, stride}; }
  operator MatrixView<const T>() const
    requires(!std::is_const_v<T>)
  {
    return {data, rows, cols, stride};
  }
};

/// Smallest multiple of `step` that is not below `n`.
constexpr std::size_t round_up(std::size_t n, std::size_t step) { return (n + step - 1) / step * step; }

/// Says that every element of a new matrix will be written before it is read.
struct Unset {};

/// Owning matrix, zero-initialised, 64-byte aligned; `stride` is `cols` rounded up to `pad` elements. Move-only.
template <typename T>
class Matrix {
 public:
  Matrix() = default;
  Matrix(std::size_t rows, std::size_t cols, std::size_t pad = 1)
      : rows_(rows), cols_(cols), stride_(round_up(cols, pad)), data_(allocate<&allocate_zeroed>(bytes()), {bytes(), &release_zeroed}) {}
  Matrix(Unset, std::size_t rows, std::size_t cols, std::size_t pad = 1)
      : rows_(rows), cols_(cols), stride_(round_up(cols, pad)), data_(allocate<&allocate_unset>(bytes()), {bytes(), &release_unset}) {}
  Matrix(Matrix&& other) noexcept = default;
  Matrix& operator=(Matrix&& other) noexcept = default;

  std::size_t rows() const { return rows_; }
  std::size_t cols() const { return cols_; }
  std::size_t stride() const { return stride_; }
  bool empty() const { return rows_ == 0 || cols_ == 0; }
  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  T* row(std::size_t r) { return data_.get() + r * stride_; }
  const T* row(std::size_t r) const { return data_.get() + r * stride_; }
  T& operator()(std::size_t r, std::size_t c) { return row(r)[c]; }
  const T& operator()(std::size_t r, std::size_t c) const { return row(r)[c]; }
  MatrixView<T> view() { return {data_.get(), rows_, cols_, stride_}; }
  MatrixView<const T> view() const { return {data_.get(), rows_, cols_, stride_}; }
  std::size_t bytes() const { return rows_ * stride_ * sizeof(T); }

 private:
  static_assert(std::is_trivially_copyable_v<T>);
  struct Release {
    std::size_t bytes = 0;
    void (*release)(void*, std::size_t) noexcept = nullptr;
    void operator()(T* p) const { release(p, bytes); }
  };
  template <void* (*kAllocate)(std::size_t)>
  static T* allocate(std::size_t bytes) {
    return bytes == 0 ? nullptr : static_cast<T*>(kAllocate(bytes));
  }

  std::size_t rows_ = 0;
  std::size_t cols_ = 0;
  std::size_t stride_ = 0;
  std::unique_ptr<T[], Release> data_;
};

}  // namespace kvsim
