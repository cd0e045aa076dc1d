// Objects of an HDF5 file and the small named values attached to them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "traces/h5/session.h"

namespace kvsim::h5 {

/// Anything that can carry attributes: a file's root, a group, a dataset. Move-only.
class Object {
 public:
  hid_t id() const { return handle_.get(); }
  /// Name of the file, as it was opened.
  const std::string& file() const { return file_; }
  /// Absolute path inside the file, "/" for its root.
  const std::string& path() const { return path_; }
  /// "file: /path", for messages.
  std::string where() const { return file_ + ": " + path_; }

  bool has_attribute(std::string_view name) const;
  /// Sorted bytewise.
  std::vector<std::string> attribute_names() const;
  /// Scalar attributes (or arrays of one element). Throws UserError when the attribute is missing, of another
  /// type, or of another shape. Integers of any width are read; a float attribute may be stored as an
  /// integer.
  std::string string_attribute(std::string_view name) const;
  std::int64_t int_attribute(std::string_view name) const;
  double float_attribute(std::string_view name) const;
  /// An integer, or the two-valued enumeration that h5py stores for a bool.
  bool bool_attribute(std::string_view name) const;

  /// Creates or replaces a scalar attribute (variable-length utf-8, int64, float64).
  void set_attribute(std::string_view name, std::string_view value);
  void set_attribute(std::string_view name, const char* value) {
    set_attribute(name, std::string_view(value));
  }
  void set_attribute(std::string_view name, std::int64_t value);
  void set_attribute(std::string_view name, std::uint64_t value) {
    set_attribute(name, static_cast<std::int64_t>(value));
  }
  void set_attribute(std::string_view name, std::int32_t value) {
    set_attribute(name, static_cast<std::int64_t>(value));
  }
  void set_attribute(std::string_view name, std::uint32_t value) {
    set_attribute(name, static_cast<std::int64_t>(value));
  }
  void set_attribute(std::string_view name, double value);
  /// Takes over every attribute of `from` that this object lacks and that is a scalar string or number.
  void add_attributes(const Object& from);

 protected:
  Object() = default;
  Object(Handle handle, std::string file, std::string path)
      : handle_(std::move(handle)), file_(std::move(file)), path_(std::move(path)) {}
  bool release() { return handle_.reset(); }

 private:
  Handle open_scalar(const std::string& name) const;
  void write_scalar(const std::string& name, hid_t file_type, hid_t memory_type, const void* value);

  Handle handle_;
  std::string file_;
  std::string path_;
};

}  // namespace kvsim::h5
