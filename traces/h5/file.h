// HDF5 files and their groups: what one opens, creates, lists and writes whole columns into.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "traces/h5/attribute.h"
#include "traces/h5/dataset.h"
#include "traces/h5/type.h"

namespace kvsim::h5 {

/// A group. Names may be paths below it ("rows/layer"); missing groups in between are made when something is
/// created. Only hard links are followed: a soft or external link is a UserError, so a file never leads to
/// another one. All functions throw UserError (file, path, what was found) for what the file lacks or holds
/// otherwise.
class Group : public Object {
 public:
  bool has(std::string_view name) const;
  bool has_group(std::string_view name) const;
  bool has_dataset(std::string_view name) const;
  /// Names of its direct members, sorted bytewise.
  std::vector<std::string> children() const;
  /// Absolute paths of all datasets at and below this group, sorted bytewise. UserError when groups nest
  /// deeper than kMaxDepth or members exceed kMaxMembers: hard links can form circles.
  std::vector<std::string> all_datasets() const;
  static constexpr std::size_t kMaxDepth = 16;
  static constexpr std::size_t kMaxMembers = 1 << 20;

  Group group(std::string_view name) const;
  Group create_group(std::string_view name);
  Dataset dataset(std::string_view name) const;
  /// A contiguous dataset whose space is reserved when it is first written; fails when the name is taken.
  Dataset create_dataset(std::string_view name, Element element, const Shape& shape);

  /// Writes a one-dimensional dataset. T: int8/32/64, uint8/32/64, float, double.
  template <typename T>
  void write_column(std::string_view name, std::span<const T> values);
  template <typename T>
  void write_column(std::string_view name, const std::vector<T>& values) {
    write_column(name, std::span<const T>(values));
  }
  /// Variable-length utf-8 strings.
  void write_column(std::string_view name, std::span<const std::string> values);
  void write_column(std::string_view name, const std::vector<std::string>& values) {
    write_column(name, std::span<const std::string>(values));
  }
  /// Writes a dataset of any rank, row-major.
  template <typename T>
  void write_array(std::string_view name, const Shape& shape, std::span<const T> values);

  /// Reads a one-dimensional dataset.
  template <typename T>
  std::vector<T> read_column(std::string_view name) const;
  std::vector<std::string> read_strings(std::string_view name) const;

 protected:
  Group(Handle handle, std::string file, std::string path)
      : Object(std::move(handle), std::move(file), std::move(path)) {}

 private:
  std::string child_path(std::string_view name) const;
  Dataset one_dimensional(std::string_view name) const;
  void collect_datasets(std::size_t depth, std::vector<std::string>& into) const;
};

/// An open file, seen as its root group. Move-only; closing (or its end) releases it.
class File : public Group {
 public:
  enum class Create { must_be_new, replace };

  /// For reading. UserError when the file is missing, no HDF5 file, truncated, damaged or locked by a writer.
  static File open(const std::string& path);
  /// For reading and adding to it.
  static File open_for_writing(const std::string& path);
  /// `must_be_new` fails when the file exists.
  static File create(const std::string& path, Create mode = Create::must_be_new);

  /// Hands everything written to the operating system.
  void flush();
  /// Closes now, and throws UserError when what was written cannot be stored (e.g. a full disk).
  void close();

 private:
  File(Handle file, Handle root, const std::string& path);
  Handle file_handle_;
};

}  // namespace kvsim::h5
