// The parts of compose as text: which words and calls stand for which part, read and written back in full.
#include "policies/compose_parts.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <string_view>

#include "kernels/error.h"
#include "policies/registry.h"

namespace kvsim {
namespace {

[[noreturn]] void wrong_part(std::string_view key, const SpecValue& value, std::string_view expected) {
  throw UserError("compose: {}={} does not fit, expected {}", key, to_text(value), expected);
}

bool is_plain(const SpecValue& value) {
  return value.kind == SpecValue::Kind::word ||
         (value.kind == SpecValue::Kind::call && value.arguments.empty());
}

/// One numeric argument of a part, by the binder that policies use.
template <typename Number>
Number argument(const SpecValue& value, std::string_view key, Number fallback, Number least, Number most) {
  Number out = fallback;
  bind_fields(value, [&](FieldVisitor& visitor) { visitor.number(key, out, least, most, ""); });
  return out;
}

SpecValue word(std::string text) { return {SpecValue::Kind::word, std::move(text), {}, {}}; }

SpecValue call(std::string name, std::string key, std::string text) {
  return {SpecValue::Kind::call, std::move(name), {{std::move(key), word(std::move(text))}}, {}};
}

constexpr std::uint32_t kAny = std::numeric_limits<std::uint32_t>::max();
constexpr std::string_view kReducers = "a list of mean, sum, visible, avg(k), max(k), group(rule)";

Reducer read_reducer(const SpecValue& value, const SpecValue& whole) {
  using Kind = Reducer::Kind;
  if (is_plain(value) && value.text == "mean") return {.kind = Kind::mean};
  if (is_plain(value) && value.text == "sum") return {.kind = Kind::sum};
  if (is_plain(value) && value.text == "visible") return {.kind = Kind::visible};
  if (value.kind == SpecValue::Kind::call && (value.text == "avg" || value.text == "max")) {
    const auto width = argument<std::uint32_t>(value, "width", 1, 1, 4095);
    check_kernel("compose: " + value.text, width);
    return {.kind = value.text == "avg" ? Kind::avg : Kind::max, .width = width};
  }
  if (value.text == "group" && (value.kind == SpecValue::Kind::word || value.kind == SpecValue::Kind::call)) {
    std::size_t rule = 0;
    bind_fields(value, [&](FieldVisitor& visitor) { visitor.choice("rule", rule, kGroupChoices, ""); });
    return {.kind = Kind::group, .group = static_cast<Group>(rule)};
  }
  wrong_part("reduce", whole, kReducers);
}

SpecValue write_reducer(const Reducer& reducer) {
  const auto positional = [](std::string name, std::string text) {
    return call(std::move(name), "", std::move(text));
  };
  switch (reducer.kind) {
    case Reducer::Kind::mean:
      return word("mean");
    case Reducer::Kind::sum:
      return word("sum");
    case Reducer::Kind::visible:
      return word("visible");
    case Reducer::Kind::avg:
      return positional("avg", fmt::format("{}", reducer.width));
    case Reducer::Kind::max:
      return positional("max", fmt::format("{}", reducer.width));
    case Reducer::Kind::group:
      return positional("group", std::string(kGroupChoices[static_cast<std::size_t>(reducer.group)]));
  }
  throw InternalError("unknown reducer");
}

}  // namespace

QueryPart read_query(const SpecValue& value) {
  constexpr std::uint32_t kKvpressWindow = 64;
  if (is_plain(value) && value.text == "none") return {};
  if (is_plain(value) && value.text == "all") return {QuerySource::all, 0};
  if (value.text == "window" && value.kind != SpecValue::Kind::text && value.kind != SpecValue::Kind::list) {
    return {QuerySource::window, argument<std::uint32_t>(value, "queries", kKvpressWindow, 1, kAny)};
  }
  wrong_part("query", value, "window(w), all or none");
}

SpecValue write_query(const QueryPart& part) {
  if (part.source == QuerySource::window) return call("window", "", fmt::format("{}", part.window));
  return word(part.source == QuerySource::all ? "all" : "none");
}

std::vector<Reducer> read_reducers(const SpecValue& value) {
  std::vector<Reducer> out;
  if (value.kind != SpecValue::Kind::list) {
    out.push_back(read_reducer(value, value));
  }
  for (const SpecValue& item : value.items) out.push_back(read_reducer(item, value));
  return out;
}

SpecValue write_reducers(const std::vector<Reducer>& reducers) {
  SpecValue out{SpecValue::Kind::list, {}, {}, {}};
  for (const Reducer& reducer : reducers) out.items.push_back(write_reducer(reducer));
  return out;
}

std::optional<HeadShare> read_heads(const SpecValue& value) {
  if (is_plain(value) && value.text == "uniform") return std::nullopt;
  if (value.text == "ada" && value.kind != SpecValue::Kind::text) {
    return HeadShare{argument(value, "alpha", HeadShare{}.alpha, 0.0, 1.0), HeadShare::Form::guarantee,
                     false};
  }
  wrong_part("heads", value, "uniform or ada(alpha)");
}

SpecValue write_heads(const std::optional<HeadShare>& part) {
  return part ? call("ada", "alpha", fmt::format("{}", part->alpha)) : word("uniform");
}

std::optional<LayerSlope> read_layers(const SpecValue& value) {
  if (is_plain(value) && value.text == "uniform") return std::nullopt;
  if (value.text == "pyramid" && value.kind != SpecValue::Kind::text) {
    return LayerSlope{argument(value, "beta", LayerSlope{}.beta, 1.0, 1e6), false, LayerSlope::Form::kvpress};
  }
  wrong_part("layers", value, "uniform or pyramid(beta)");
}

SpecValue write_layers(const std::optional<LayerSlope>& part) {
  return part ? call("pyramid", "beta", fmt::format("{}", part->beta)) : word("uniform");
}

}  // namespace kvsim
