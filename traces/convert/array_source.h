// Named arrays of a foreign file.
#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>

#include "traces/h5/dataset.h"

namespace kvsim::convert {

struct ArrayInfo {
  h5::Element element = h5::Element::other;
  std::string stored_as;  // the type in the file's own words, for messages
  h5::Shape shape;
  std::uint64_t bytes() const { return h5::element_count(shape) * h5::size_of(element); }
};

/// Hands out an array's bytes in order: fills the whole span, or throws UserError.
using ByteReader = std::function<void(std::span<std::byte>)>;

/// An open file of named arrays, little-endian and row-major.
class ArraySource {
 public:
  virtual ~ArraySource() = default;
  virtual const std::string& path() const = 0;
  virtual const std::map<std::string, ArrayInfo>& arrays() const = 0;
  /// Named texts: model, prompt_len, ...
  virtual const std::map<std::string, std::string>& metadata() const = 0;
  /// A reader that stands at the array's begin. The source must outlive it.
  virtual ByteReader open(const std::string& name) const = 0;
};

/// Opens a file by its first bytes. Throws UserError when it is neither .npz nor safetensors, or damaged.
std::unique_ptr<ArraySource> open_source(const std::string& path);
std::unique_ptr<ArraySource> open_npz(const std::string& path);
std::unique_ptr<ArraySource> open_safetensors(const std::string& path);

}  // namespace kvsim::convert
