// Text of numbers and fields in CSV files.
#include "analysis/csv.h"

#include <array>
#include <charconv>
#include <cmath>

namespace kvsim {

void append_number(std::string& out, double value) {
  if (std::isnan(value)) return;
  std::array<char, 32> text;
  const auto end = std::to_chars(text.data(), text.data() + text.size(), value).ptr;
  out.append(text.data(), end);
}

std::string csv_field(std::string_view text) {
  if (text.find_first_of(",\"\r\n") == std::string_view::npos) return std::string(text);
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"') quoted += '"';
    quoted += c;
  }
  return quoted + '"';
}

}  // namespace kvsim
