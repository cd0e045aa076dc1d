// Binds a spec to a policy: every argument finds its field, everything else is a one-line error.
#include <charconv>
#include <cmath>

#include "kernels/error.h"
#include "policies/registry.h"

namespace kvsim {
namespace {

std::string joined(const std::vector<std::string>& words) {
  std::string out;
  for (const std::string& word : words) out += (out.empty() ? "" : ", ") + word;
  return out;
}

class Binder final : public FieldVisitor {
 public:
  explicit Binder(const SpecValue& spec) : spec_(spec), used_(spec.arguments.size(), false) {
    for (std::size_t i = 0; i < spec.arguments.size(); ++i) {
      const std::string& key = spec.arguments[i].first;
      if (key.empty() && spec.arguments.size() > 1 && i > 0) {
        throw UserError("{}: only the first value may stand without its name, write key=value for '{}'",
                        spec.text, to_text(spec.arguments[i].second));
      }
      for (std::size_t j = 0; j < i; ++j) {
        if (spec.arguments[j].first == key)
          throw UserError("{}: parameter '{}' is given twice", spec.text, key);
      }
    }
  }

  void number(std::string_view key, std::uint32_t& value, std::uint32_t least, std::uint32_t most,
              std::string_view) override {
    const SpecValue* given = take(key);
    if (given == nullptr) return;
    std::uint64_t parsed = 0;
    const char* end = given->text.data() + given->text.size();
    const auto result = std::from_chars(given->text.data(), end, parsed);
    const bool large = result.ec == std::errc::result_out_of_range;
    if (given->kind != SpecValue::Kind::word || result.ptr != end || (result.ec != std::errc() && !large)) {
      wrong(key, *given, "a whole number");
    }
    if (large || parsed < least || parsed > most) wrong(key, *given, fmt::format("{} to {}", least, most));
    value = static_cast<std::uint32_t>(parsed);
  }

  void number(std::string_view key, double& value, double least, double most, std::string_view) override {
    const SpecValue* given = take(key);
    if (given == nullptr) return;
    double parsed = 0;
    const char* end = given->text.data() + given->text.size();
    const auto result = std::from_chars(given->text.data(), end, parsed);
    if (given->kind != SpecValue::Kind::word || result.ptr != end || result.ec != std::errc() ||
        !std::isfinite(parsed)) {
      wrong(key, *given, "a number");
    }
    if (parsed < least || parsed > most) wrong(key, *given, fmt::format("{} to {}", least, most));
    value = parsed;
  }

  void flag(std::string_view key, bool& value, std::string_view) override {
    const SpecValue* given = take(key);
    if (given == nullptr) return;
    const bool yes = given->text == "true";
    if (given->kind != SpecValue::Kind::word || (!yes && given->text != "false"))
      wrong(key, *given, "true or false");
    value = yes;
  }

  void choice(std::string_view key, std::size_t& value, std::span<const std::string_view> choices,
              std::string_view) override {
    const SpecValue* given = take(key);
    if (given == nullptr) return;
    const std::vector<std::string> words(choices.begin(), choices.end());
    for (std::size_t i = 0; i < words.size(); ++i) {
      if (given->kind == SpecValue::Kind::word && given->text == words[i]) {
        value = i;
        return;
      }
    }
    wrong(key, *given, "one of " + joined(words));
  }

  void text(std::string_view key, std::string& value, std::string_view) override {
    const SpecValue* given = take(key);
    if (given == nullptr) return;
    if (given->kind != SpecValue::Kind::word && given->kind != SpecValue::Kind::text)
      wrong(key, *given, "a text");
    value = given->text;
  }

  void policy(std::string_view key, std::unique_ptr<Policy>& value, std::string_view) override {
    const SpecValue* given = take(key);
    if (given == nullptr) return;
    if (given->kind != SpecValue::Kind::word && given->kind != SpecValue::Kind::call)
      wrong(key, *given, "a policy");
    value = given->kind == SpecValue::Kind::word && given->text == "none" ? nullptr : bind_policy(*given);
  }

  void value(std::string_view key, SpecValue& value, std::string_view) override {
    if (const SpecValue* given = take(key)) value = *given;
  }

  /// To be called after the visit: what no field took is unknown.
  void finish() const {
    for (std::size_t i = 0; i < used_.size(); ++i) {
      if (used_[i]) continue;
      const std::string& key = spec_.arguments[i].first;
      if (declared_.empty()) throw UserError("{} takes no parameters", spec_.text);
      const std::string near = nearest_name(key, declared_);
      throw UserError("{} has no parameter '{}'{}; it has {}", spec_.text, key,
                      near.empty() ? "" : fmt::format(", did you mean '{}'?", near), joined(declared_));
    }
  }

 private:
  const SpecValue* take(std::string_view key) {
    declared_.emplace_back(key);
    for (std::size_t i = 0; i < used_.size(); ++i) {
      const std::string& given = spec_.arguments[i].first;
      if (given == key || (given.empty() && declared_.size() == 1)) {
        for (std::size_t j = i + 1; j < used_.size(); ++j) {
          if (spec_.arguments[j].first == key)
            throw UserError("{}: parameter '{}' is given twice", spec_.text, key);
        }
        used_[i] = true;
        return &spec_.arguments[i].second;
      }
    }
    return nullptr;
  }

  [[noreturn]] void wrong(std::string_view key, const SpecValue& given, std::string_view expected) const {
    throw UserError("{}: {}={} does not fit, expected {}", spec_.text, key, to_text(given), expected);
  }

  const SpecValue& spec_;
  std::vector<bool> used_;
  std::vector<std::string> declared_;
};

}  // namespace

void bind_fields(const SpecValue& spec, const std::function<void(FieldVisitor&)>& fields) {
  Binder binder(spec);
  fields(binder);
  binder.finish();
}

std::unique_ptr<Policy> bind_policy(const SpecValue& spec) {
  if (spec.kind != SpecValue::Kind::word && spec.kind != SpecValue::Kind::call) {
    throw UserError("'{}' is no policy, expected name or name(key=value,...)", to_text(spec));
  }
  std::unique_ptr<Policy> policy = make_policy(spec.text);
  bind_fields(spec, [&policy](FieldVisitor& visitor) { policy->fields(visitor); });
  return policy;
}

}  // namespace kvsim
