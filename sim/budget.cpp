// Budgets as a person writes them.
#include "sim/budget.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <set>
#include <string_view>

#include "kernels/error.h"

namespace kvsim {
namespace {

struct Amount {
  double value = 0;
  bool percent = false;
};

[[noreturn]] void refuse(std::string_view item, std::string_view why) {
  throw UserError("budget '{}': {}; write for example 128, 10%, 64..4096*2, 5%..50%+5% or curve", item, why);
}

Amount parse_amount(std::string_view text, std::string_view item) {
  Amount amount;
  if (!text.empty() && text.back() == '%') {
    amount.percent = true;
    text.remove_suffix(1);
  }
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), amount.value);
  if (text.empty() || error != std::errc{} || end != text.data() + text.size()) refuse(item, "not a number of tokens or percent");
  if (!std::isfinite(amount.value) || amount.value <= 0) refuse(item, "must be above zero");
  if (amount.percent && amount.value > 100) refuse(item, "more than 100% of the prompt");
  if (!amount.percent && amount.value != std::floor(amount.value)) refuse(item, "tokens come whole");
  if (!amount.percent && amount.value > 4e9) refuse(item, "too many tokens");
  return amount;
}

std::string text_of(const Amount& amount) { return fmt::format("{}{}", amount.value, amount.percent ? "%" : ""); }

void add(BudgetList& list, const Amount& amount) {
  const std::string text = text_of(amount);
  for (const BudgetRequest& request : list.requests)
    if (request.text == text) return;
  list.requests.push_back({text, amount.value, amount.percent});
}

/// a..b, a..b+s, a..b*f
void add_range(BudgetList& list, std::string_view item, std::size_t dots) {
  const std::string_view first_text = item.substr(0, dots);
  std::string_view rest = item.substr(dots + 2);
  const std::size_t step_at = rest.find_first_of("+*");
  const Amount first = parse_amount(first_text, item);
  const Amount last = parse_amount(rest.substr(0, step_at), item);
  if (first.percent != last.percent) refuse(item, "both ends must be tokens, or both percent");
  if (last.value < first.value) refuse(item, "the range is empty");
  double step = 1;
  bool multiply = false;
  if (step_at != std::string_view::npos) {
    multiply = rest[step_at] == '*';
    std::string_view step_text = rest.substr(step_at + 1);
    if (!multiply) {
      const Amount parsed = parse_amount(step_text, item);
      if (parsed.percent != first.percent) refuse(item, "the step must be of the same kind as the ends");
      step = parsed.value;
    } else {
      const auto [end, error] = std::from_chars(step_text.data(), step_text.data() + step_text.size(), step);
      if (error != std::errc{} || end != step_text.data() + step_text.size() || !(step > 1) || !std::isfinite(step))
        refuse(item, "the factor must be a number above 1");
    }
  }
  constexpr std::size_t kMost = 100000;
  std::size_t made = 0;
  for (double exact = first.value; exact <= last.value * (1 + 1e-12); exact = multiply ? exact * step : first.value + static_cast<double>(made) * step) {
    add(list, {first.percent ? exact : std::round(exact), first.percent});
    if (++made > kMost) refuse(item, "more than 100000 budgets");
  }
}

std::vector<std::string_view> split(std::string_view text) {
  std::vector<std::string_view> items;
  while (true) {
    const std::size_t comma = text.find(',');
    std::string_view item = text.substr(0, comma);
    while (!item.empty() && item.front() == ' ') item.remove_prefix(1);
    while (!item.empty() && item.back() == ' ') item.remove_suffix(1);
    items.push_back(item);
    if (comma == std::string_view::npos) return items;
    text.remove_prefix(comma + 1);
  }
}

}  // namespace

BudgetList parse_budgets(const std::vector<std::string>& texts) {
  BudgetList list;
  for (const std::string& text : texts) {
    for (const std::string_view item : split(text)) {
      if (item.empty()) refuse(text, "an item is empty");
      if (item == "curve") {
        list.curve = true;
        continue;
      }
      const std::size_t dots = item.find("..");
      if (dots == std::string_view::npos) {
        add(list, parse_amount(item, item));
      } else {
        add_range(list, item, dots);
      }
    }
  }
  if (list.requests.empty() && !list.curve) throw UserError("no budget given; write for example --budget 64..1024*2,10%");
  return list;
}

std::vector<BudgetPoint> budget_points(const BudgetList& list, std::uint64_t prompt) {
  std::vector<BudgetPoint> points;
  for (const BudgetRequest& request : list.requests) {
    double tokens = request.value;
    if (request.percent) tokens = std::max(1.0, std::floor(request.value * static_cast<double>(prompt) / 100.0));
    points.push_back({request.text, static_cast<std::uint32_t>(tokens)});
  }
  if (list.curve) {
    std::set<std::uint32_t> seen;
    for (const BudgetPoint& point : points) seen.insert(point.tokens);
    for (std::size_t i = 0; i < kCurvePoints; ++i) {
      const double share = static_cast<double>(i) / static_cast<double>(kCurvePoints - 1);
      const auto tokens = static_cast<std::uint32_t>(std::lround(std::exp(share * std::log(static_cast<double>(prompt)))));
      if (seen.insert(tokens).second) points.push_back({fmt::format("{}", tokens), tokens});
    }
  }
  std::stable_sort(points.begin(), points.end(), [](const BudgetPoint& a, const BudgetPoint& b) { return a.tokens < b.tokens; });
  return points;
}

}  // namespace kvsim
