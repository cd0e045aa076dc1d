// Text of numbers and fields in CSV files, the same bytes on every machine.
#pragma once

#include <string>
#include <string_view>

namespace kvsim {

/// Appends the shortest text that reads back as the same double ('.' decimals, no locale); NaN appends
/// nothing.
void append_number(std::string& out, double value);

/// The field as RFC 4180 wants it: in quotes, inner quotes doubled, where it holds a comma, quote or line
/// break.
std::string csv_field(std::string_view text);

}  // namespace kvsim
