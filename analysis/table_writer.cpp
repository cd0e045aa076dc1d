// Writes one table twice, as HDF5 columns and as CSV.
#include "analysis/table_writer.h"

#include <cstring>
#include <utility>

#include "analysis/csv.h"
#include "kernels/error.h"

namespace kvsim {
namespace {

constexpr std::uint64_t kRowsPerFlush = 8192;

}  // namespace

TableWriter::TableWriter(h5::Group group, const std::string& csv_path, std::vector<ColumnSpec> columns,
                         std::uint64_t rows)
    : specs_(std::move(columns)), buffers_(specs_.size()), csv_(csv_path), rows_(rows) {
  for (const ColumnSpec& spec : specs_) {
    datasets_.push_back(group.create_dataset(spec.name, spec.element, {rows}));
    line_ += (line_.empty() ? "" : ",") + spec.name;
  }
  csv_.write(line_ + "\n");
  line_.clear();
}

template <typename T>
void TableWriter::store(T value) {
  KVSIM_CHECK(column_ < specs_.size() && specs_[column_].element == h5::element_for<T>(), "column {} of {}",
              column_, specs_.size());
  auto& buffer = buffers_[column_];
  const std::size_t at = buffer.size();
  buffer.resize(at + sizeof value);
  std::memcpy(buffer.data() + at, &value, sizeof value);
  if (column_++ > 0) line_ += ',';
}

void TableWriter::index(std::int32_t value, std::string_view csv_name) {
  store(value);
  line_ += csv_name;
}

void TableWriter::integer(std::int64_t value) {
  store(value);
  fmt::format_to(std::back_inserter(line_), "{}", value);
}

void TableWriter::flag(bool value) {
  store(static_cast<std::uint8_t>(value ? 1 : 0));
  line_ += value ? '1' : '0';
}

void TableWriter::number(double value) {
  store(value);
  append_number(line_, value);
}

void TableWriter::end_row() {
  KVSIM_CHECK(column_ == specs_.size(), "a row of {} columns, expected {}", column_, specs_.size());
  line_ += '\n';
  csv_.write(line_);
  line_.clear();
  column_ = 0;
  if (++buffered_ == kRowsPerFlush) flush();
}

void TableWriter::flush() {
  KVSIM_CHECK(written_ + buffered_ <= rows_, "more than {} rows", rows_);
  for (std::size_t c = 0; c < specs_.size(); ++c) {
    datasets_[c].write_raw(std::span(&written_, 1), std::span(&buffered_, 1), buffers_[c]);
    buffers_[c].clear();
  }
  written_ += std::exchange(buffered_, 0);
}

void TableWriter::finish() {
  flush();
  KVSIM_CHECK(written_ == rows_, "{} rows, expected {}", written_, rows_);
  datasets_.clear();
  csv_.finish();
}

}  // namespace kvsim
