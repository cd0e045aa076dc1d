// Reading and writing datasets.
#include "traces/h5/dataset.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "kernels/error.h"

namespace kvsim::h5 {
namespace {

static_assert(std::endian::native == std::endian::little,
              "raw reads take stored little-endian values as they are");

/// Deflate never shrinks by more than this (zlib's documented bound); more is damage or an attack on memory.
constexpr std::uint64_t kMaxCompression = 1100;

hid_t memory_type(Element element) {
  switch (element) {
    case Element::int8:
      return H5T_NATIVE_INT8;
    case Element::int32:
      return H5T_NATIVE_INT32;
    case Element::int64:
      return H5T_NATIVE_INT64;
    case Element::uint8:
      return H5T_NATIVE_UINT8;
    case Element::uint32:
      return H5T_NATIVE_UINT32;
    case Element::uint64:
      return H5T_NATIVE_UINT64;
    case Element::float32:
      return H5T_NATIVE_FLOAT;
    case Element::float64:
      return H5T_NATIVE_DOUBLE;
    default:
      return -1;
  }
}

struct Selection {
  Handle file, memory;
};

/// Dataspaces of one rectangle in the file and of the packed array in memory.
Selection select(const Dataset& dataset, std::span<const std::uint64_t> offset,
                 std::span<const std::uint64_t> count) {
  const Shape& shape = dataset.shape();
  KVSIM_CHECK(offset.size() == shape.size() && count.size() == shape.size(),
              "{}: a rectangle of {} dimensions in {}", dataset.where(), count.size(), describe_shape(shape));
  const std::vector<hsize_t> start(offset.begin(), offset.end()), extent(count.begin(), count.end());
  for (std::size_t i = 0; i < shape.size(); ++i) {
    KVSIM_CHECK(start[i] <= shape[i] && extent[i] <= shape[i] - start[i],
                "{}: rectangle {} + {} out of {} (dim {})", dataset.where(), start[i], extent[i], shape[i],
                i);
  }
  Selection result;
  result.file = Handle(require(H5Dget_space(dataset.id()), dataset.where(), "read the shape"), H5Sclose);
  if (shape.empty()) {
    result.memory = Handle(H5Screate(H5S_SCALAR), H5Sclose);
    return result;
  }
  require(
      H5Sselect_hyperslab(result.file.get(), H5S_SELECT_SET, start.data(), nullptr, extent.data(), nullptr),
      dataset.where(), "select a part");
  const int rank = static_cast<int>(extent.size());
  result.memory = Handle(
      require(H5Screate_simple(rank, extent.data(), nullptr), dataset.where(), "describe a part"), H5Sclose);
  return result;
}

/// Cuts an array into rectangles of about `piece_bytes` whose elements follow each other in row-major order.
template <typename Visit>
void for_each_piece(const Shape& shape, std::uint64_t item, std::size_t piece_bytes, const Visit& visit) {
  const std::uint64_t total = element_count(shape) * item;
  if (total == 0) return;
  if (shape.empty()) return visit(shape, shape, total);
  // A piece is a run of indices along `axis` with everything behind it; indices before it are counted
  // through.
  std::size_t axis = 0;
  std::uint64_t row = total / shape[0];
  while (row > piece_bytes && axis + 1 < shape.size()) row /= shape[++axis];
  const std::uint64_t step = std::max<std::uint64_t>(1, piece_bytes / row);
  Shape offset(shape.size(), 0), count = shape;
  std::fill_n(count.begin(), axis, 1);
  for (;;) {
    count[axis] = std::min(step, shape[axis] - offset[axis]);
    visit(offset, count, count[axis] * row);
    offset[axis] += count[axis];
    for (std::size_t i = axis; offset[i] == shape[i]; --i) {
      if (i == 0) return;
      offset[i] = 0;
      ++offset[i - 1];
    }
  }
}

}  // namespace

std::uint64_t element_count(const Shape& shape) {
  std::uint64_t count = 1;
  for (const std::uint64_t n : shape) {
    if (n != 0 && count > (std::uint64_t{1} << 62) / n) {
      throw UserError("the shape {} is larger than any file", describe_shape(shape));
    }
    count *= n;
  }
  return count;
}

std::string describe_shape(const Shape& shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + "]";
}

Dataset::Dataset(Handle handle, std::string file, std::string path)
    : Object(std::move(handle), std::move(file), std::move(path)) {
  const Handle type(require(H5Dget_type(id()), where(), "read the element type"), H5Tclose);
  element_ = classify(type.get());
  const Handle space(require(H5Dget_space(id()), where(), "read the shape"), H5Sclose);
  if (H5Sget_simple_extent_type(space.get()) == H5S_NULL)
    throw UserError("{}: found an empty (null) dataset", where());
  const int rank = require(H5Sget_simple_extent_ndims(space.get()), where(), "read the shape");
  std::vector<hsize_t> extent(static_cast<std::size_t>(rank));
  if (rank > 0)
    require(H5Sget_simple_extent_dims(space.get(), extent.data(), nullptr), where(), "read the shape");
  shape_.assign(extent.begin(), extent.end());
}

std::string Dataset::describe_type() const {
  const Session session;
  const Handle type(require(H5Dget_type(id()), where(), "read the element type"), H5Tclose);
  return h5::describe_type(type.get());
}

Shape Dataset::chunk() const {
  const Session session;
  const Handle plist(require(H5Dget_create_plist(id()), where(), "read the storage layout"), H5Pclose);
  if (H5Pget_layout(plist.get()) != H5D_CHUNKED) return {};
  std::vector<hsize_t> extent(shape_.size());
  require(H5Pget_chunk(plist.get(), static_cast<int>(extent.size()), extent.data()), where(),
          "read the storage layout");
  return Shape(extent.begin(), extent.end());
}

void Dataset::check_backed() const {
  const Session session;
  const Handle plist(require(H5Dget_create_plist(id()), where(), "read the storage layout"), H5Pclose);
  if (H5Pget_layout(plist.get()) == H5D_VIRTUAL || H5Pget_external_count(plist.get()) > 0) {
    throw UserError("{}: its data lie in another file, which is not read; copy them into this one", where());
  }
  const Handle type(require(H5Dget_type(id()), where(), "read the element type"), H5Tclose);
  const std::uint64_t item = std::max<std::uint64_t>(1, H5Tget_size(type.get()));
  const std::uint64_t count = element_count(shape_);
  const std::uint64_t limit = std::numeric_limits<std::int64_t>::max() / item;
  if (count > limit)
    throw UserError("{}: the shape {} is larger than any file", where(), describe_shape(shape_));
  const std::uint64_t promised = count * item;
  const std::uint64_t stored = H5Dget_storage_size(id());
  const bool filtered = H5Pget_layout(plist.get()) == H5D_CHUNKED && H5Pget_nfilters(plist.get()) > 0;
  hsize_t file_bytes = 0;
  const Handle file(require(H5Iget_file_id(id()), where(), "find the file"), H5Fclose);
  require(H5Fget_filesize(file.get(), &file_bytes), where(), "read the file's size");
  const bool enough = filtered ? promised / kMaxCompression <= stored : promised <= stored;
  if (!enough || stored > file_bytes) {
    throw UserError("{}: found {} stored bytes (file: {}), expected {} for the shape {}", where(), stored,
                    static_cast<std::uint64_t>(file_bytes), promised, describe_shape(shape_));
  }
}

void Dataset::read_as(hid_t type, std::span<const std::uint64_t> offset, std::span<const std::uint64_t> count,
                      void* out) const {
  const Selection selection = select(*this, offset, count);
  require(H5Dread(id(), type, selection.memory.get(), selection.file.get(), H5P_DEFAULT, out), where(),
          "read");
}

void Dataset::read_raw(std::span<const std::uint64_t> offset, std::span<const std::uint64_t> count,
                       std::span<std::byte> out) const {
  const Session session;
  KVSIM_CHECK(is_numeric(element_), "{} is {}", where(), describe_type());
  const std::uint64_t bytes = element_count(Shape(count.begin(), count.end())) * size_of(element_);
  KVSIM_CHECK(bytes == out.size(), "{}: {} bytes for a part of {}", where(), out.size(), bytes);
  if (bytes == 0) return;
  const Handle type(require(H5Dget_type(id()), where(), "read the element type"), H5Tclose);
  read_as(type.get(), offset, count, out.data());
}

void Dataset::write_raw(std::span<const std::uint64_t> offset, std::span<const std::uint64_t> count,
                        std::span<const std::byte> in) {
  const Session session;
  KVSIM_CHECK(is_numeric(element_), "{} is {}", where(), describe_type());
  const std::uint64_t bytes = element_count(Shape(count.begin(), count.end())) * size_of(element_);
  KVSIM_CHECK(bytes == in.size(), "{}: {} bytes for a part of {}", where(), in.size(), bytes);
  if (bytes == 0) return;
  const Handle type(require(H5Dget_type(id()), where(), "read the element type"), H5Tclose);
  const Selection selection = select(*this, offset, count);
  require(H5Dwrite(id(), type.get(), selection.memory.get(), selection.file.get(), H5P_DEFAULT, in.data()),
          where(), "write");
}

void Dataset::stream_raw(std::size_t piece_bytes,
                         const std::function<void(std::span<const std::byte>)>& take) const {
  check_backed();
  std::vector<std::byte> buffer;
  for_each_piece(shape_, size_of(element_), piece_bytes,
                 [&](const Shape& offset, const Shape& count, std::uint64_t bytes) {
                   buffer.resize(bytes);
                   read_raw(offset, count, buffer);
                   take(buffer);
                 });
}

void Dataset::fill_raw(std::size_t piece_bytes, const std::function<void(std::span<std::byte>)>& give) {
  std::vector<std::byte> buffer;
  for_each_piece(shape_, size_of(element_), piece_bytes,
                 [&](const Shape& offset, const Shape& count, std::uint64_t bytes) {
                   buffer.resize(bytes);
                   give(buffer);
                   write_raw(offset, count, buffer);
                 });
}

template <typename T>
std::vector<T> Dataset::read() const {
  return read<T>(Shape(shape_.size(), 0), shape_);
}

template <typename T>
std::vector<T> Dataset::read(std::span<const std::uint64_t> offset,
                             std::span<const std::uint64_t> count) const {
  const Session session;
  constexpr Element kWanted = element_for<T>();
  if (is_integer(kWanted) ? !is_integer(element_) : !is_numeric(element_)) {
    throw UserError("{}: found {}, expected {}", where(), describe_type(),
                    is_integer(kWanted) ? "integers" : "numbers");
  }
  check_backed();
  std::vector<T> values(element_count(Shape(count.begin(), count.end())));
  if (!values.empty()) read_as(memory_type(kWanted), offset, count, values.data());
  return values;
}

std::vector<std::string> Dataset::read_strings() const {
  const Session session;
  const Handle type(require(H5Dget_type(id()), where(), "read the element type"), H5Tclose);
  if (element_ != Element::string)
    throw UserError("{}: found {}, expected strings", where(), describe_type());
  check_backed();
  const std::uint64_t count = elements();
  std::vector<std::string> result;
  if (count == 0) return result;
  result.reserve(count);
  if (H5Tis_variable_str(type.get()) > 0) {
    std::vector<char*> pointers(count, nullptr);
    const Handle space(require(H5Dget_space(id()), where(), "read the shape"), H5Sclose);
    require(H5Dread(id(), type.get(), H5S_ALL, H5S_ALL, H5P_DEFAULT, pointers.data()), where(), "read");
    for (const char* text : pointers) result.emplace_back(text == nullptr ? "" : text);
    static_cast<void>(H5Dvlen_reclaim(type.get(), space.get(), H5P_DEFAULT, pointers.data()));
    return result;
  }
  const std::size_t size = H5Tget_size(type.get());
  std::vector<char> packed(count * size);
  require(H5Dread(id(), type.get(), H5S_ALL, H5S_ALL, H5P_DEFAULT, packed.data()), where(), "read");
  for (std::uint64_t i = 0; i < count; ++i) {
    const char* begin = packed.data() + i * size;
    result.emplace_back(begin, std::find(begin, begin + size, '\0'));
  }
  return result;
}

template std::vector<std::int8_t> Dataset::read<std::int8_t>() const;
template std::vector<std::int32_t> Dataset::read<std::int32_t>() const;
template std::vector<std::int64_t> Dataset::read<std::int64_t>() const;
template std::vector<std::uint8_t> Dataset::read<std::uint8_t>() const;
template std::vector<std::uint32_t> Dataset::read<std::uint32_t>() const;
template std::vector<std::uint64_t> Dataset::read<std::uint64_t>() const;
template std::vector<float> Dataset::read<float>() const;
template std::vector<double> Dataset::read<double>() const;
template std::vector<std::int8_t> Dataset::read<std::int8_t>(std::span<const std::uint64_t>,
                                                             std::span<const std::uint64_t>) const;
template std::vector<std::int32_t> Dataset::read<std::int32_t>(std::span<const std::uint64_t>,
                                                               std::span<const std::uint64_t>) const;
template std::vector<std::int64_t> Dataset::read<std::int64_t>(std::span<const std::uint64_t>,
                                                               std::span<const std::uint64_t>) const;
template std::vector<std::uint8_t> Dataset::read<std::uint8_t>(std::span<const std::uint64_t>,
                                                               std::span<const std::uint64_t>) const;
template std::vector<std::uint32_t> Dataset::read<std::uint32_t>(std::span<const std::uint64_t>,
                                                                 std::span<const std::uint64_t>) const;
template std::vector<std::uint64_t> Dataset::read<std::uint64_t>(std::span<const std::uint64_t>,
                                                                 std::span<const std::uint64_t>) const;
template std::vector<float> Dataset::read<float>(std::span<const std::uint64_t>,
                                                 std::span<const std::uint64_t>) const;
template std::vector<double> Dataset::read<double>(std::span<const std::uint64_t>,
                                                   std::span<const std::uint64_t>) const;

}  // namespace kvsim::h5
