// Reading rectangles of a tensor as float: raw 16-bit data through a small buffer, converted by vector code.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/dtype.h"
#include "kernels/view.h"
#include "traces/h5/dataset.h"

namespace kvsim {

/// Reusable staging memory of a reader; grows to about one mebibyte (or one chunk of a chunked dataset).
using Staging = std::vector<std::byte>;

/// Bytes that are read at a time: they and their conversion stay in the second-level cache.
inline constexpr std::size_t kSlabBytes = std::size_t{1} << 19;

enum class Finite : bool { ignored, required };

/// Reads rows [first, first + out.rows) of the matrix that lies at `prefix` (indices of the leading
/// dimensions) of `dataset` to `out`; its last dimension must be out.cols. The dataset is float16, bfloat16
/// or float32 and was checked on open. With Finite::required the first NaN or infinity is a UserError naming
/// path, head (the last index of `prefix`) and row.
void read_rows(const h5::Dataset& dataset, const h5::Shape& prefix, std::uint64_t first,
               MatrixView<float> out, Finite finite, Staging& staging);

/// Raw little-endian values of type `type` as float; sizes must agree.
void widen(DType type, std::span<const std::byte> raw, std::span<float> out);
/// And back, rounded to nearest even.
void narrow(DType type, std::span<const float> values, std::span<std::byte> out);

/// Our element type as HDF5's.
h5::Element element_of(DType type);

}  // namespace kvsim
