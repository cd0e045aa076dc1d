// Files that policies under test read, or find missing.
#pragma once

#include <map>
#include <string>

#include "kernels/error.h"
#include "policies/policy.h"

namespace kvsim::test {

/// No file exists.
class NoFiles final : public Resources {
 public:
  const ExternalArray& array(const std::string& file, const std::string&) override {
    throw UserError("no file {}", file);
  }
};

/// Hands out arrays by dataset, whatever the file.
class Arrays final : public Resources {
 public:
  const ExternalArray& array(const std::string& file, const std::string& dataset) override {
    const auto found = of.find(dataset);
    if (found == of.end()) throw UserError("{} has no dataset {}", file, dataset);
    return found->second;
  }
  std::map<std::string, ExternalArray> of;
};

}  // namespace kvsim::test
