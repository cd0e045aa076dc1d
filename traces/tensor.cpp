// Slab-wise reading and conversion of tensors.
#include "traces/tensor.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/error.h"
#include "traces/header.h"

namespace kvsim {
namespace {

/// Rows of one slab: a few hundred KiB, or whole chunks, so that no chunk is fetched twice.
std::uint64_t rows_per_slab(const h5::Dataset& dataset, std::uint64_t row_bytes) {
  const std::uint64_t rows = std::max<std::uint64_t>(1, kSlabBytes / std::max<std::uint64_t>(1, row_bytes));
  const h5::Shape chunk = dataset.chunk();
  if (chunk.size() < 2) return rows;
  const std::uint64_t step = std::max<std::uint64_t>(1, chunk[chunk.size() - 2]);
  return std::max(step, rows / step * step);
}

[[noreturn]] void fail_finite(const h5::Dataset& dataset, const h5::Shape& prefix, std::uint64_t row,
                              std::span<const float> values) {
  const auto bad = std::find_if(values.begin(), values.end(), [](float x) { return !std::isfinite(x); });
  const auto column = bad - values.begin();
  if (prefix.empty()) {
    throw UserError("{}: found {} at row {}, column {}, expected finite numbers", dataset.where(), *bad, row,
                    column);
  }
  throw UserError("{}: found {} at head {}, token {}, channel {}, expected finite numbers", dataset.where(),
                  *bad, prefix.back(), row, column);
}

void check_finite(const h5::Dataset& dataset, const h5::Shape& prefix, std::uint64_t row,
                  MatrixView<const float> out) {
  for (std::size_t r = 0; r < out.rows; ++r) {
    if (!all_finite(out.row_span(r))) fail_finite(dataset, prefix, row + r, out.row_span(r));
  }
}

bool contiguous(MatrixView<float> out) { return out.stride == out.cols || out.rows == 1; }

/// Converts packed rows to `out`; in one go where those are packed as well.
void place(DType type, std::span<const std::byte> raw, MatrixView<float> out) {
  if (contiguous(out)) return widen(type, raw, {out.data, out.rows * out.cols});
  const std::size_t row_bytes = out.cols * size_of(type);
  for (std::size_t r = 0; r < out.rows; ++r)
    widen(type, raw.subspan(r * row_bytes, row_bytes), out.row_span(r));
}

}  // namespace

void widen(DType type, std::span<const std::byte> raw, std::span<float> out) {
  KVSIM_CHECK(raw.size() == out.size() * size_of(type), "{} bytes for {} values", raw.size(), out.size());
  if (type == DType::float32) {
    if (!raw.empty()) std::memcpy(out.data(), raw.data(), raw.size());
  } else if (type == DType::float16) {
    to_float({reinterpret_cast<const Fp16*>(raw.data()), out.size()}, out);
  } else {
    to_float({reinterpret_cast<const Bf16*>(raw.data()), out.size()}, out);
  }
}

void narrow(DType type, std::span<const float> values, std::span<std::byte> out) {
  KVSIM_CHECK(out.size() == values.size() * size_of(type), "{} values for {} bytes", values.size(),
              out.size());
  if (type == DType::float32) {
    if (!out.empty()) std::memcpy(out.data(), values.data(), out.size());
  } else if (type == DType::float16) {
    from_float(values, {reinterpret_cast<Fp16*>(out.data()), values.size()});
  } else {
    from_float(values, {reinterpret_cast<Bf16*>(out.data()), values.size()});
  }
}

h5::Element element_of(DType type) {
  return type == DType::float32   ? h5::Element::float32
         : type == DType::float16 ? h5::Element::float16
                                  : h5::Element::bfloat16;
}

void read_rows(const h5::Dataset& dataset, const h5::Shape& prefix, std::uint64_t first,
               MatrixView<float> out, Finite finite, Staging& staging) {
  const DType type = tensor_type(dataset);
  const h5::Shape& shape = dataset.shape();
  KVSIM_CHECK(shape.size() == prefix.size() + 2 && shape.back() == out.cols, "{}: rows of {} from {}",
              dataset.where(), out.cols, h5::describe_shape(shape));
  h5::Shape offset = prefix, count(prefix.size(), 1);
  offset.insert(offset.end(), {first, 0});
  count.insert(count.end(), {0, out.cols});
  const std::uint64_t row_bytes = out.cols * size_of(type);
  const bool direct = type == DType::float32 && contiguous(out);
  const std::uint64_t step = rows_per_slab(dataset, row_bytes);
  for (std::uint64_t row = 0; row < out.rows;) {
    // The first slab ends on a multiple of the step, so that later ones hold whole chunks.
    const std::uint64_t rows = std::min<std::uint64_t>(step - (first + row) % step, out.rows - row);
    const MatrixView<float> part = out.rows_from(row, rows);
    offset[prefix.size()] = first + row;
    count[prefix.size()] = rows;
    if (direct) {
      dataset.read_raw(offset, count, std::as_writable_bytes(std::span(part.data, rows * out.cols)));
    } else {
      staging.resize(rows * row_bytes);
      dataset.read_raw(offset, count, staging);
      place(type, staging, part);
    }
    if (finite == Finite::required) check_finite(dataset, prefix, first + row, part);
    row += rows;
  }
}

}  // namespace kvsim
