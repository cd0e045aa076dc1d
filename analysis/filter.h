// Conditions on columns: 'output_error<0.1 and policy!=random or variant~window=32'.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace kvsim {

/// column, one of == = != < <= > >= ~ (text that contains), value.
struct Comparison {
  std::string column, op, text;
  std::optional<double> number;  // the value, where it is a number

  /// NaN satisfies nothing. Throws UserError when the value is no number.
  bool holds(double value) const;
  /// Throws UserError for an order (<, >=, ...) on text.
  bool holds(const std::string& value) const;
};

/// Alternatives ("or") of conjunctions ("and").
struct Filter {
  std::vector<std::vector<Comparison>> alternatives;

  /// Values may be bare (up to a blank outside brackets) or in quotes. Throws UserError naming what was
  /// expected where.
  static Filter parse(std::string_view text);
  std::vector<std::string> columns() const;
};

}  // namespace kvsim
