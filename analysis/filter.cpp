// Conditions on columns.
#include "analysis/filter.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <cmath>

#include "kernels/error.h"

namespace kvsim {
namespace {

constexpr std::array<std::string_view, 8> kOperators{"==", "!=", "<=", ">=", "<", ">", "~", "="};

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  Filter parse() {
    Filter filter;
    filter.alternatives.emplace_back();
    for (;;) {
      filter.alternatives.back().push_back(comparison());
      skip_blanks();
      if (at_ == text_.size()) return filter;
      if (word("and") || word("&&")) continue;
      if (!word("or") && !word("||")) fail("'and' or 'or'");
      filter.alternatives.emplace_back();
    }
  }

 private:
  [[noreturn]] void fail(std::string_view expected) const {
    throw UserError(
        "condition '{}': expected {} at column {}; write for example 'output_error<0.1 and policy!=random'",
        text_, expected, at_ + 1);
  }
  void skip_blanks() {
    while (at_ < text_.size() && text_[at_] == ' ') ++at_;
  }
  bool word(std::string_view expected) {
    if (!text_.substr(at_).starts_with(expected)) return false;
    at_ += expected.size();
    return true;
  }

  Comparison comparison() {
    Comparison result;
    skip_blanks();
    while (at_ < text_.size() &&
           (std::isalnum(static_cast<unsigned char>(text_[at_])) != 0 || text_[at_] == '_')) {
      result.column += text_[at_++];
    }
    if (result.column.empty()) fail("a column's name");
    skip_blanks();
    const auto found = std::find_if(kOperators.begin(), kOperators.end(), [&](auto op) { return word(op); });
    if (found == kOperators.end()) fail("one of == != < <= > >= ~");
    result.op = *found == "=" ? "==" : std::string(*found);
    skip_blanks();
    result.text = value();
    double number = 0;
    const char* end = result.text.data() + result.text.size();
    const auto [stop, error] = std::from_chars(result.text.data(), end, number);
    if (error == std::errc{} && stop == end) result.number = number;
    return result;
  }

  std::string value() {
    std::string out;
    if (at_ < text_.size() && (text_[at_] == '"' || text_[at_] == '\'')) {
      const char quote = text_[at_++];
      while (at_ < text_.size() && text_[at_] != quote) out += text_[at_++];
      if (at_ == text_.size()) fail("a closing quote");
      ++at_;
      return out;
    }
    int depth = 0;
    while (at_ < text_.size() && (text_[at_] != ' ' || depth > 0)) {
      depth += text_[at_] == '(' || text_[at_] == '[';
      depth -= text_[at_] == ')' || text_[at_] == ']';
      out += text_[at_++];
    }
    if (out.empty()) fail("a value");
    return out;
  }

  std::string_view text_;
  std::size_t at_ = 0;
};

}  // namespace

bool Comparison::holds(double value) const {
  if (!number || op == "~")
    throw UserError("condition '{}{}{}': {} is a number, compare it with one", column, op, text, column);
  if (std::isnan(value)) return false;
  if (op == "==") return value == *number;
  if (op == "!=") return value != *number;
  if (op == "<") return value < *number;
  if (op == "<=") return value <= *number;
  if (op == ">") return value > *number;
  return value >= *number;
}

bool Comparison::holds(const std::string& value) const {
  if (op == "==") return value == text;
  if (op == "!=") return value != text;
  if (op == "~") return value.find(text) != std::string::npos;
  throw UserError("condition '{}{}{}': {} holds names, compare it with ==, != or ~", column, op, text,
                  column);
}

Filter Filter::parse(std::string_view text) { return Parser(text).parse(); }

std::vector<std::string> Filter::columns() const {
  std::vector<std::string> names;
  for (const auto& conjunction : alternatives) {
    for (const Comparison& comparison : conjunction) names.push_back(comparison.column);
  }
  return names;
}

}  // namespace kvsim
