// Tables as text.
#include "analysis/text_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "analysis/csv.h"

namespace kvsim {
namespace {

/// Characters, not bytes: continuation bytes of UTF-8 take no place.
std::size_t width_of(const std::string& text) {
  return static_cast<std::size_t>(std::count_if(
      text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}

std::string padded(const std::string& text, std::size_t width, bool right) {
  const std::string blanks(width - std::min(width, width_of(text)), ' ');
  return right ? blanks + text : text + blanks;
}

std::string markdown_cell(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '|') out += '\\';
    out += c;
  }
  return out;
}

std::string render_csv(const TextTable& table) {
  std::string out;
  const auto line = [&](const std::vector<std::string>& cells) {
    for (std::size_t c = 0; c < cells.size(); ++c) out += (c == 0 ? "" : ",") + csv_field(cells[c]);
    out += '\n';
  };
  line(table.header);
  for (const auto& row : table.rows) line(row);
  return out;
}

}  // namespace

std::string TextTable::render(TableFormat format) const {
  if (format == TableFormat::csv) return render_csv(*this);
  const bool markdown = format == TableFormat::markdown;
  std::vector<std::size_t> width;
  for (const auto& cell : header) width.push_back(width_of(cell));
  for (const auto& row : rows) {
    for (std::size_t c = 0; c < row.size(); ++c)
      width[c] = std::max(width[c], width_of(markdown ? markdown_cell(row[c]) : row[c]));
  }
  std::string out;
  const auto line = [&](const std::vector<std::string>& cells) {
    std::string text = markdown ? "|" : "";
    for (std::size_t c = 0; c < cells.size(); ++c) {
      text += markdown ? " " : c == 0 ? "" : "  ";
      text += padded(markdown ? markdown_cell(cells[c]) : cells[c], width[c], numeric[c]);
      if (markdown) text += " |";
    }
    text.erase(text.find_last_not_of(' ') + 1);
    out += text + "\n";
  };
  line(header);
  if (markdown) {
    out += "|";
    for (std::size_t c = 0; c < header.size(); ++c)
      out += std::string(width[c] + 1, '-') + (numeric[c] ? ":|" : "-|");
    out += "\n";
  }
  for (const auto& row : rows) line(row);
  return out;
}

std::string short_number(double value) { return std::isnan(value) ? "-" : fmt::format("{:.4g}", value); }

std::string exact_number(double value) {
  std::string out;
  append_number(out, value);
  return out;
}

}  // namespace kvsim
