// The notation of policies: name(key=value, ...), its alternatives and ranges, and the fields that policies
// declare.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace kvsim {

class Policy;

/// One value of a spec without alternatives: a number or word, quoted text, a call (policy or part), or an
/// ordered list.
struct SpecValue {
  enum class Kind : std::uint8_t { word, text, call, list };
  Kind kind = Kind::word;
  std::string text;  // word as written, text without quotes, or the name of the call
  std::vector<std::pair<std::string, SpecValue>> arguments;  // of a call; a positional one has an empty key
  std::vector<SpecValue> items;                              // of a list

  friend bool operator==(const SpecValue&, const SpecValue&) = default;
};

/// One text may stand for at most this many specs; more is an error, never a silent cut.
inline constexpr std::uint64_t kMaxExpansions = 1'000'000;
/// Brackets of any kind may be nested this deep.
inline constexpr std::size_t kMaxSpecDepth = 64;

/// Parses one spec text and expands alternatives {a,b}, ranges a..b, a..b+s, a..b*f as a cartesian product,
/// left to right: the last one varies fastest. Throws UserError with the column and what was expected.
std::vector<SpecValue> parse_specs(std::string_view text);

/// The values of one range as text: `a..b` (step 1), `a..b+s` (exact decimals), `a..b*f` (a, a*f, a*f*f, ...
/// up to b, rounded to the nearest integer, doubles removed). A word that is no range gives itself. Throws
/// UserError.
std::vector<std::string> expand_range(std::string_view word);

/// The text of a value with nothing added: parse_specs(to_text(v)) gives v back.
std::string to_text(const SpecValue& value);

/// `text` itself where it reads back as one word, otherwise quoted.
std::string quote_if_needed(std::string_view text);

/// Visits the parameters of a policy, in declared order. Three visitors exist: one binds a spec, one prints
/// the canonical form, one describes for help.
class FieldVisitor {
 public:
  virtual ~FieldVisitor() = default;
  virtual void number(std::string_view key, std::uint32_t& value, std::uint32_t least, std::uint32_t most,
                      std::string_view help) = 0;
  virtual void number(std::string_view key, double& value, double least, double most,
                      std::string_view help) = 0;
  virtual void flag(std::string_view key, bool& value, std::string_view help) = 0;
  /// One of `choices`; value holds its index.
  virtual void choice(std::string_view key, std::size_t& value, std::span<const std::string_view> choices,
                      std::string_view help) = 0;
  virtual void text(std::string_view key, std::string& value, std::string_view help) = 0;
  /// Another policy, written in the same notation. Null = not given.
  virtual void policy(std::string_view key, std::unique_ptr<Policy>& value, std::string_view help) = 0;
  /// A list or call kept as it is (parts of compose): the policy itself interprets it.
  virtual void value(std::string_view key, SpecValue& value, std::string_view help) = 0;
};

}  // namespace kvsim
