// Expands the ranges of the notation: a..b, a..b+s in exact decimals, a..b*f rounded to integers.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>

#include "kernels/error.h"
#include "policies/spec.h"

namespace kvsim {
namespace {

/// units * 10^-places, so that 0.1..0.5+0.1 hits 0.3 exactly.
struct Decimal {
  std::int64_t units = 0;
  int places = 0;
};

/// More digits than these do not fit the exact arithmetic.
constexpr int kMaxDigits = 15;
constexpr double kLargestExact = 9007199254740992.0;  // 2^53

std::optional<double> whole_number(std::string_view text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(value)) return std::nullopt;
  return value;
}

/// The decimal that `text`, a valid number, writes; nothing when it has too many digits.
std::optional<Decimal> decimal(std::string_view text) {
  Decimal out;
  const bool negative = text.front() == '-';
  if (negative) text.remove_prefix(1);
  int exponent = 0;
  if (const std::size_t e = text.find_first_of("eE"); e != std::string_view::npos) {
    std::string_view digits = text.substr(e + 1);
    if (!digits.empty() && digits.front() == '+') digits.remove_prefix(1);
    if (std::from_chars(digits.data(), digits.data() + digits.size(), exponent).ec != std::errc())
      return std::nullopt;
    text = text.substr(0, e);
  }
  int digits = 0;
  bool fraction = false;
  for (const char c : text) {
    if (c == '.') {
      fraction = true;
      continue;
    }
    if (c < '0' || c > '9') return std::nullopt;  // inf, nan
    digits += out.units != 0 || c != '0' ? 1 : 0;
    if (digits > kMaxDigits) return std::nullopt;
    out.units = out.units * 10 + (c - '0');
    out.places += fraction ? 1 : 0;
  }
  out.places -= exponent;
  for (; out.places < 0; ++out.places) {
    if (++digits > kMaxDigits) return std::nullopt;
    out.units *= 10;
  }
  if (out.places > kMaxDigits) return std::nullopt;
  if (negative) out.units = -out.units;
  return out;
}

std::optional<std::int64_t> at_places(Decimal d, int places) {
  for (; d.places < places; ++d.places) {
    if (__builtin_mul_overflow(d.units, std::int64_t{10}, &d.units)) return std::nullopt;
  }
  return d.units;
}

std::string decimal_text(std::int64_t units, int places) {
  std::string digits = std::to_string(units < 0 ? -units : units);
  const auto p = static_cast<std::size_t>(places);
  if (digits.size() <= p) digits.insert(0, p + 1 - digits.size(), '0');
  if (p > 0) {
    digits.insert(digits.end() - places, '.');
    while (digits.back() == '0') digits.pop_back();
    if (digits.back() == '.') digits.pop_back();
  }
  if (units < 0) digits.insert(digits.begin(), '-');
  return digits;
}

std::vector<std::string> arithmetic(std::string_view range, std::string_view a, std::string_view b,
                                    std::string_view s) {
  const auto first = decimal(a), last = decimal(b), step = decimal(s);
  if (!first || !last || !step) throw UserError("range '{}' has more than {} digits", range, kMaxDigits);
  const int places = std::max({first->places, last->places, step->places});
  const auto from = at_places(*first, places), to = at_places(*last, places), by = at_places(*step, places);
  if (!from || !to || !by) throw UserError("range '{}' has more than {} digits", range, kMaxDigits);
  if (*by <= 0) throw UserError("range '{}' needs a step above 0", range);
  if (*from > *to) throw UserError("range '{}' is empty: {} is above {}", range, a, b);
  std::int64_t span = 0;
  if (__builtin_sub_overflow(*to, *from, &span) || static_cast<std::uint64_t>(span / *by) >= kMaxExpansions) {
    throw UserError("range '{}' has more than {} values", range, kMaxExpansions);
  }
  std::vector<std::string> out;
  for (std::int64_t i = 0; i <= span / *by; ++i) out.push_back(decimal_text(*from + i * *by, places));
  return out;
}

std::vector<std::string> geometric(std::string_view range, double a, double b, double f) {
  if (!(f > 1)) throw UserError("range '{}' needs a factor above 1", range);
  if (!(a > 0)) throw UserError("range '{}' needs a start above 0", range);
  if (a > b) throw UserError("range '{}' is empty: {} is above {}", range, a, b);
  if (b > kLargestExact) throw UserError("range '{}' ends above 2^53", range);
  if (std::log(b / a) / std::log(f) >= static_cast<double>(kMaxExpansions)) {
    throw UserError("range '{}' has more than {} values", range, kMaxExpansions);
  }
  constexpr double kRounding = 1 + 1e-12;  // products of an inexact factor may land a hair above b
  std::vector<std::string> out;
  for (double v = a; v <= b * kRounding; v *= f) {
    std::string text = std::to_string(std::llround(v));
    if (out.empty() || out.back() != text) out.push_back(std::move(text));
  }
  return out;
}

}  // namespace

std::vector<std::string> expand_range(std::string_view word) {
  const std::size_t dots = word.find("..");
  if (dots == std::string_view::npos) return {std::string(word)};
  const std::string_view a = word.substr(0, dots);
  const auto first = whole_number(a);
  if (!first) return {std::string(word)};  // a path such as ../scores.h5
  std::string_view rest = word.substr(dots + 2);
  double last = 0;
  const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), last);
  const auto length = static_cast<std::size_t>(end - rest.data());
  if (error != std::errc() || !std::isfinite(last))
    throw UserError("range '{}' needs a number after '..'", word);
  const std::string_view b = rest.substr(0, length);
  rest.remove_prefix(length);
  if (rest.empty()) return arithmetic(word, a, b, "1");
  const char kind = rest.front();
  const std::string_view by = rest.substr(1);
  const auto number = whole_number(by);
  if ((kind != '+' && kind != '*') || !number) {
    throw UserError("range '{}' goes on with '{}', expected '+step' or '*factor'", word, rest);
  }
  return kind == '+' ? arithmetic(word, a, b, by) : geometric(word, *first, last, *number);
}

}  // namespace kvsim
