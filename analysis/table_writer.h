// Writes one table twice, as HDF5 columns and as CSV, row by row and in bounded memory.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "analysis/durable_file.h"
#include "traces/h5/file.h"

namespace kvsim {

/// A column and its stored type: int32 (indices), int64, uint8 (flags) or float64.
struct ColumnSpec {
  std::string name;
  h5::Element element = h5::Element::float64;
};

/// The values of a row are given in column order, each by the function of its column's type.
class TableWriter {
 public:
  /// `rows` is the exact number that will come. The CSV file takes its name at commit_csv().
  TableWriter(h5::Group group, const std::string& csv_path, std::vector<ColumnSpec> columns,
              std::uint64_t rows);

  /// An index into a table of names; CSV gets the name, already quoted where needed.
  void index(std::int32_t value, std::string_view csv_name);
  void integer(std::int64_t value);
  void flag(bool value);
  void number(double value);  // NaN: empty in CSV
  void end_row();

  /// Writes what is buffered and closes the datasets. Fewer or more rows than promised is an InternalError.
  void finish();
  void commit_csv() { csv_.commit(); }

 private:
  template <typename T>
  void store(T value);
  void flush();

  std::vector<ColumnSpec> specs_;
  std::vector<h5::Dataset> datasets_;
  std::vector<std::vector<std::byte>> buffers_;
  DurableFile csv_;
  std::string line_;
  std::size_t column_ = 0;
  std::uint64_t rows_, written_ = 0, buffered_ = 0;
};

}  // namespace kvsim
