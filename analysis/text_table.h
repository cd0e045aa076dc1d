// Tables as text: for the terminal, Markdown and CSV.
#pragma once

#include <string>
#include <vector>

namespace kvsim {

enum class TableFormat { table, markdown, csv };

/// Cells are text already; in CSV they are quoted where needed.
struct TextTable {
  std::vector<std::string> header;
  std::vector<bool> numeric;  // [columns]: right-aligned
  std::vector<std::vector<std::string>> rows;

  std::string render(TableFormat format) const;
};

/// Four significant digits; "-" for NaN.
std::string short_number(double value);
/// Every digit that is needed to read the same double back; empty for NaN.
std::string exact_number(double value);

}  // namespace kvsim
