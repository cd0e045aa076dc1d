// Prints the canonical form of a policy, and describes its parameters for help.
#include <fmt/format.h>

#include <limits>

#include "policies/registry.h"

namespace kvsim {
namespace {

std::string policy_text(const std::unique_ptr<Policy>& policy) {
  return policy ? canonical_spec(*policy) : "none";
}

class Printer final : public FieldVisitor {
 public:
  void number(std::string_view key, std::uint32_t& value, std::uint32_t, std::uint32_t,
              std::string_view) override {
    add(key, fmt::format("{}", value));
  }
  void number(std::string_view key, double& value, double, double, std::string_view) override {
    add(key, fmt::format("{}", value));
  }
  void flag(std::string_view key, bool& value, std::string_view) override {
    add(key, value ? "true" : "false");
  }
  void choice(std::string_view key, std::size_t& value, std::span<const std::string_view> choices,
              std::string_view) override {
    add(key, std::string(choices[value]));
  }
  void text(std::string_view key, std::string& value, std::string_view) override {
    add(key, quote_if_needed(value));
  }
  void policy(std::string_view key, std::unique_ptr<Policy>& value, std::string_view) override {
    add(key, policy_text(value));
  }
  void value(std::string_view key, SpecValue& value, std::string_view) override { add(key, to_text(value)); }

  std::string arguments;

 private:
  void add(std::string_view key, const std::string& text) {
    arguments += fmt::format("{}{}={}", arguments.empty() ? "" : ",", key, text);
  }
};

class Describer final : public FieldVisitor {
 public:
  void number(std::string_view key, std::uint32_t& value, std::uint32_t least, std::uint32_t most,
              std::string_view help) override {
    const bool open = most == std::numeric_limits<std::uint32_t>::max();
    add(key, "integer", fmt::format("{}", value),
        open ? fmt::format(">= {}", least) : fmt::format("{} to {}", least, most), help);
  }
  void number(std::string_view key, double& value, double least, double most,
              std::string_view help) override {
    const bool open = most >= std::numeric_limits<double>::max();
    add(key, "number", fmt::format("{}", value),
        open ? fmt::format(">= {}", least) : fmt::format("{} to {}", least, most), help);
  }
  void flag(std::string_view key, bool& value, std::string_view help) override {
    add(key, "flag", value ? "true" : "false", "true, false", help);
  }
  void choice(std::string_view key, std::size_t& value, std::span<const std::string_view> choices,
              std::string_view help) override {
    std::string words;
    for (const std::string_view word : choices) words += fmt::format("{}{}", words.empty() ? "" : ", ", word);
    add(key, "word", std::string(choices[value]), std::move(words), help);
  }
  void text(std::string_view key, std::string& value, std::string_view help) override {
    add(key, "text", value.empty() ? "(required)" : quote_if_needed(value), "", help);
  }
  void policy(std::string_view key, std::unique_ptr<Policy>& value, std::string_view help) override {
    add(key, "policy", value ? std::string(value->traits().name) : "none", "any policy", help);
  }
  void value(std::string_view key, SpecValue& value, std::string_view help) override {
    add(key, "part", to_text(value), "", help);
  }

  std::vector<FieldDescription> fields;

 private:
  void add(std::string_view key, std::string type, std::string text, std::string range,
           std::string_view help) {
    fields.push_back(
        {std::string(key), std::move(type), std::move(text), std::move(range), std::string(help)});
  }
};

}  // namespace

std::string print_fields(std::string_view name, const std::function<void(FieldVisitor&)>& fields) {
  Printer printer;
  fields(printer);
  return printer.arguments.empty() ? std::string(name) : fmt::format("{}({})", name, printer.arguments);
}

std::vector<FieldDescription> describe_fields(const std::function<void(FieldVisitor&)>& fields) {
  Describer describer;
  fields(describer);
  return std::move(describer.fields);
}

std::string canonical_spec(const Policy& policy) {
  // One description serves all visitors; printing only reads.
  return print_fields(policy.traits().name, [&](FieldVisitor& v) { const_cast<Policy&>(policy).fields(v); });
}

std::vector<FieldDescription> describe_fields(std::string_view name) {
  const std::unique_ptr<Policy> policy = make_policy(name);
  return describe_fields([&](FieldVisitor& visitor) { policy->fields(visitor); });
}

}  // namespace kvsim
