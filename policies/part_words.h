// Parts as text: a table of words per kind of part, each with its parameters; read, written and explained
// alike.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/error.h"
#include "policies/registry.h"
#include "policies/spec.h"

namespace kvsim {

/// One value that a part may have: its word, what it starts from, its parameters, and what help says.
template <typename Part>
struct PartWord {
  std::string_view word;
  Part start;
  void (*fields)(FieldVisitor&, Part&);  // visits the parameters; null = none
  bool (*is)(const Part&);               // whether a part is written with this word
  std::string_view meaning;
  std::string_view example;  // of a compose(...) line
};

namespace part_words {

template <typename Part>
auto visit(const PartWord<Part>& word, Part& part) {
  return [&word, &part](FieldVisitor& visitor) {
    if (word.fields != nullptr) word.fields(visitor, part);
  };
}

/// `avg(5)` for one parameter, `proxy(first=4,last=16)` for several.
template <typename Part>
std::string text_of(const PartWord<Part>& word, Part part) {
  std::string text = print_fields(word.word, visit(word, part));
  if (describe_fields(visit(word, part)).size() != 1) return text;
  const std::size_t open = text.find('(') + 1;
  return text.erase(open, text.find('=') + 1 - open);
}

/// "window(64), all or none".
template <typename Part>
std::string expected(std::span<const PartWord<Part>> table) {
  std::string out;
  for (std::size_t i = 0; i < table.size(); ++i)
    out += fmt::format("{}{}",
                       i == 0                  ? ""
                       : i + 1 == table.size() ? " or "
                                               : ", ",
                       text_of(table[i], table[i].start));
  return out;
}

}  // namespace part_words

/// Throws UserError naming `key` and what it may be.
template <typename Part>
Part read_part(std::string_view key, const SpecValue& value, std::span<const PartWord<Part>> table) {
  const bool named = value.kind == SpecValue::Kind::word || value.kind == SpecValue::Kind::call;
  for (const PartWord<Part>& word : table) {
    if (!named || value.text != word.word) continue;
    // `max` and `max(7)` are two words: the one with parameters is meant by a call that has some.
    if (word.fields == nullptr && !value.arguments.empty()) continue;
    const bool twin = std::any_of(table.begin(), table.end(), [&](const auto& other) {
      return other.word == word.word && other.fields == nullptr && word.fields != nullptr;
    });
    if (twin && value.arguments.empty()) continue;
    Part part = word.start;
    bind_fields(value, part_words::visit(word, part));
    return part;
  }
  throw UserError("compose: {}={} does not fit, expected {}", key, to_text(value),
                  part_words::expected(table));
}

template <typename Part>
SpecValue write_part(const Part& part, std::span<const PartWord<Part>> table) {
  for (const PartWord<Part>& word : table)
    if (word.is(part)) return parse_specs(part_words::text_of(word, part)).front();
  throw InternalError("a part without a word");
}

}  // namespace kvsim
