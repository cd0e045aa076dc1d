// Datasets: rectangular arrays in an HDF5 file, read and written whole or in rectangles.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "traces/h5/attribute.h"
#include "traces/h5/type.h"

namespace kvsim::h5 {

using Shape = std::vector<std::uint64_t>;

/// Product of the dimensions; throws UserError when it does not fit 63 bits.
std::uint64_t element_count(const Shape& shape);
/// "[3, 1088, 64]".
std::string describe_shape(const Shape& shape);

/// An open dataset. All reads first make sure that the bytes which its shape promises lie in the file, so
/// that a size out of a damaged header is never allocated.
class Dataset : public Object {
 public:
  const Shape& shape() const { return shape_; }
  Element element() const { return element_; }
  /// The element type in words, also for types we do not read.
  std::string describe_type() const;
  std::uint64_t elements() const { return element_count(shape_); }
  /// Bytes of its elements (0 for strings and other types).
  std::uint64_t bytes() const { return elements() * size_of(element_); }
  /// Dimensions of its chunks; empty when it is stored in one piece.
  Shape chunk() const;

  /// Throws UserError unless element type and shape promise no more bytes than are stored.
  void check_backed() const;

  /// Reads the rectangle [offset, offset + count) of a numeric dataset in the file's own type, unconverted
  /// and row-major, to `out`, which must hold it exactly.
  void read_raw(std::span<const std::uint64_t> offset, std::span<const std::uint64_t> count,
                std::span<std::byte> out) const;
  /// Writes a rectangle in the file's own type.
  void write_raw(std::span<const std::uint64_t> offset, std::span<const std::uint64_t> count,
                 std::span<const std::byte> in);

  /// Hands all elements to `take` in row-major order, unconverted, in pieces of about `piece_bytes`.
  void stream_raw(std::size_t piece_bytes, const std::function<void(std::span<const std::byte>)>& take) const;

  /// Writes all elements in row-major order from pieces of about `piece_bytes` that `give` fills.
  void fill_raw(std::size_t piece_bytes, const std::function<void(std::span<std::byte>)>& give);

  /// All elements, converted by HDF5 to T (slow for 16-bit types; for small datasets). An integer T wants an
  /// integer dataset, a floating T any numeric one.
  template <typename T>
  std::vector<T> read() const;
  /// A rectangle, likewise.
  template <typename T>
  std::vector<T> read(std::span<const std::uint64_t> offset, std::span<const std::uint64_t> count) const;
  /// All elements of a string dataset (fixed or variable length), row-major.
  std::vector<std::string> read_strings() const;

 private:
  friend class Group;
  Dataset(Handle handle, std::string file, std::string path);
  void read_as(hid_t memory_type, std::span<const std::uint64_t> offset, std::span<const std::uint64_t> count,
               void* out) const;

  Shape shape_;
  Element element_ = Element::other;
};

}  // namespace kvsim::h5
