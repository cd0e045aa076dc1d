// Reads the notation of policies: a recursive-descent parser, the expansion of alternatives, and the text of
// a value.
#include "policies/spec.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>

#include "kernels/error.h"

namespace kvsim {
namespace {

/// A parsed value that may still hold alternatives.
struct Node {
  enum class Kind : std::uint8_t { word, text, call, list, alternatives };
  Kind kind = Kind::word;
  std::string text;
  std::vector<std::string> keys;  // of a call, one per child
  std::vector<Node> children;
};

bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

/// Whatever has no meaning of its own may stand in a word, so that file names mostly need no quotes.
bool is_word_char(char c) {
  return static_cast<unsigned char>(c) > ' ' && c != 0x7F &&
         std::string_view(",()[]{}=\"#;'`\\").find(c) == std::string_view::npos;
}

bool is_name(std::string_view word) {
  if (word.empty() || !(std::isalpha(static_cast<unsigned char>(word[0])) != 0 || word[0] == '_'))
    return false;
  return std::all_of(word.begin(), word.end(),
                     [](char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_' || c == ':'; });
}

/// Printable, on one line, and not longer than a line can bear.
std::string shown(std::string_view text) {
  constexpr std::size_t kLongest = 80;
  std::string out;
  for (const char c : text.substr(0, kLongest)) {
    if (static_cast<unsigned char>(c) < ' ' || c == 0x7F) {
      out += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    } else {
      out += c;
    }
  }
  return text.size() > kLongest ? out + "..." : out;
}

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  Node parse() {
    Node node = value(0);
    skip_space();
    if (at_ < text_.size()) fail("the end of the spec");
    return node;
  }

 private:
  [[noreturn]] void fail(std::string_view expected) const {
    const std::string found =
        at_ < text_.size() ? fmt::format("'{}'", shown(text_.substr(at_, 1))) : "the end";
    fail_with(at_, fmt::format("expected {}, found {}", expected, found));
  }
  [[noreturn]] void fail_with(std::size_t where, const std::string& what) const {
    throw UserError("spec '{}', column {}: {}", shown(text_), where + 1, what);
  }

  void skip_space() {
    while (at_ < text_.size() && is_space(text_[at_])) ++at_;
  }
  bool next_is(char c) {
    skip_space();
    return at_ < text_.size() && text_[at_] == c;
  }
  bool accept(char c) {
    if (!next_is(c)) return false;
    ++at_;
    return true;
  }

  std::string_view word() {
    skip_space();
    const std::size_t begin = at_;
    while (at_ < text_.size() && is_word_char(text_[at_])) ++at_;
    return text_.substr(begin, at_ - begin);
  }

  Node value(std::size_t depth) {
    if (depth > kMaxSpecDepth) fail_with(at_, fmt::format("nested deeper than {} levels", kMaxSpecDepth));
    if (next_is('"')) return quoted();
    if (accept('[')) return sequence(Node::Kind::list, ']', "',' or ']'", depth);
    if (accept('{')) return sequence(Node::Kind::alternatives, '}', "',' or '}'", depth);
    const std::string_view name = word();
    const std::size_t begin = at_ - name.size();
    if (name.empty()) fail("a value");
    if (next_is('(')) {
      if (!is_name(name)) fail_with(begin, fmt::format("'{}' is no name of a policy or part", shown(name)));
      ++at_;
      return call(name, depth);
    }
    return plain(name, begin);
  }

  /// A word, or the alternatives that a range stands for.
  Node plain(std::string_view name, std::size_t begin) {
    std::vector<std::string> values;
    try {
      values = expand_range(name);
    } catch (const UserError& error) {
      fail_with(begin, error.what());
    }
    if (values.size() == 1 && values[0] == name) return {Node::Kind::word, values[0], {}, {}};
    Node node{Node::Kind::alternatives, {}, {}, {}};
    for (std::string& v : values) node.children.push_back({Node::Kind::word, std::move(v), {}, {}});
    return node;
  }

  Node quoted() {
    const std::size_t begin = at_++;
    Node node{Node::Kind::text, {}, {}, {}};
    while (at_ < text_.size() && text_[at_] != '"') {
      if (text_[at_] == '\\') ++at_;
      if (at_ < text_.size()) node.text += text_[at_++];
    }
    if (at_ >= text_.size()) fail_with(begin, "the quoted text has no closing '\"'");
    ++at_;
    return node;
  }

  Node sequence(Node::Kind kind, char close, std::string_view expected, std::size_t depth) {
    Node node{kind, {}, {}, {}};
    if (kind == Node::Kind::list && accept(close)) return node;
    do {
      node.children.push_back(value(depth + 1));
    } while (accept(','));
    if (!accept(close)) fail(expected);
    return node;
  }

  Node call(std::string_view name, std::size_t depth) {
    Node node{Node::Kind::call, std::string(name), {}, {}};
    if (accept(')')) return node;
    do {
      node.keys.push_back(key());
      node.children.push_back(value(depth + 1));
    } while (accept(','));
    if (!accept(')')) fail("',' or ')'");
    return node;
  }

  /// The name before '=', or nothing where a bare value stands.
  std::string key() {
    const std::size_t begin = at_;
    const std::string_view name = word();
    if (!name.empty() && next_is('=')) {
      if (!is_name(name)) fail_with(begin, fmt::format("'{}' is no name of a parameter", shown(name)));
      ++at_;
      return std::string(name);
    }
    at_ = begin;
    return {};
  }

  std::string_view text_;
  std::size_t at_ = 0;
};

/// How many specs a node stands for, at most one more than allowed.
std::uint64_t count(const Node& node) {
  const bool sum = node.kind == Node::Kind::alternatives;
  std::uint64_t total = sum ? 0 : 1;
  for (const Node& child : node.children) {
    const std::uint64_t n = count(child);
    total = std::min(kMaxExpansions + 1, sum ? total + n : total * n);
  }
  return total;
}

std::vector<SpecValue> expand(const Node& node) {
  std::vector<SpecValue> out;
  if (node.kind == Node::Kind::alternatives) {
    for (const Node& child : node.children) {
      for (SpecValue& v : expand(child)) out.push_back(std::move(v));
    }
    return out;
  }
  const auto kind = node.kind == Node::Kind::word   ? SpecValue::Kind::word
                    : node.kind == Node::Kind::text ? SpecValue::Kind::text
                    : node.kind == Node::Kind::call ? SpecValue::Kind::call
                                                    : SpecValue::Kind::list;
  out.push_back({kind, node.text, {}, {}});
  for (std::size_t i = 0; i < node.children.size(); ++i) {
    const std::vector<SpecValue> choices = expand(node.children[i]);
    std::vector<SpecValue> longer;
    longer.reserve(out.size() * choices.size());
    for (const SpecValue& prefix : out) {
      for (const SpecValue& choice : choices) {
        longer.push_back(prefix);
        if (kind == SpecValue::Kind::call) {
          longer.back().arguments.emplace_back(node.keys[i], choice);
        } else {
          longer.back().items.push_back(choice);
        }
      }
    }
    out = std::move(longer);
  }
  return out;
}

std::string quoted_text(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  out += '"';
  return out;
}

}  // namespace

std::vector<SpecValue> parse_specs(std::string_view text) {
  const Node node = Parser(text).parse();
  if (count(node) > kMaxExpansions) {
    throw UserError("spec '{}' stands for more than {} specs: narrow its alternatives or ranges", shown(text),
                    kMaxExpansions);
  }
  return expand(node);
}

std::string to_text(const SpecValue& value) {
  std::string out;
  switch (value.kind) {
    case SpecValue::Kind::word:
      return value.text;
    case SpecValue::Kind::text:
      return quoted_text(value.text);
    case SpecValue::Kind::call:
      out = value.text + '(';
      for (const auto& [key, argument] : value.arguments) {
        if (out.size() > value.text.size() + 1) out += ',';
        if (!key.empty()) out += key + '=';
        out += to_text(argument);
      }
      return out + ')';
    case SpecValue::Kind::list:
      out = "[";
      for (const SpecValue& item : value.items) {
        if (&item != value.items.data()) out += ',';
        out += to_text(item);
      }
      return out + ']';
  }
  throw InternalError("a spec value of unknown kind");
}

std::string quote_if_needed(std::string_view text) {
  const bool plain = !text.empty() && std::all_of(text.begin(), text.end(), is_word_char) &&
                     text.find("..") == std::string_view::npos;
  return plain ? std::string(text) : quoted_text(text);
}

}  // namespace kvsim
