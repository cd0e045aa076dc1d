// What HeadFeatures offers when nobody overrides it, and the results that variants share.
#include <algorithm>
#include <string>

#include "kernels/error.h"
#include "policies/policy.h"

namespace kvsim {
namespace {

[[noreturn]] void not_offered(const char* what) {
  throw InternalError(std::string("these features offer no ") + what + ": a need was not declared");
}

}  // namespace

std::size_t HeadFeatures::count(const QueryRows& rows) const {
  const LayerGeometry& layer = geometry();
  if (rows.source == QueryRows::Source::window || rows.source == QueryRows::Source::prompt) {
    KVSIM_CHECK(rows.count > 0 && rows.first + rows.count <= layer.prompt, "query rows {} + {} of {}", rows.first, rows.count,
                layer.prompt);
    return rows.count;
  }
  std::size_t most = layer.decode;
  if (rows.source == QueryRows::Source::lookahead) {
    most = 0;
    for (const LookaheadPass& pass : layer.lookaheads) {
      if (pass.name == rows.pass) most = pass.queries;
    }
    KVSIM_CHECK(most > 0, "no lookahead pass '{}'", rows.pass);
  }
  return rows.count == 0 ? most : std::min<std::size_t>(rows.count, most);
}

MatrixView<const float> HeadFeatures::queries(const QueryRows&, std::size_t) const { not_offered("queries"); }
MatrixView<const float> HeadFeatures::attention(const QueryRows&, std::size_t) const { not_offered("attention rows"); }
MatrixView<const float> HeadFeatures::outputs(const QueryRows&, std::size_t) const { not_offered("attention outputs"); }
MatrixView<const float> HeadFeatures::prompt_queries(std::size_t) const { not_offered("prompt queries"); }
void HeadFeatures::each_prompt_tile(std::size_t, const std::function<void(const PromptTile&)>&) const {
  not_offered("attention of all prompt queries");
}
MatrixView<const float> HeadFeatures::output_projection(std::size_t) const { not_offered("output projection"); }
std::span<const float> HeadFeatures::second_pass(const std::string&, std::size_t) const { not_offered("second pass"); }
std::span<const std::uint32_t> HeadFeatures::budgets() const { not_offered("budgets"); }

std::span<const float> HeadFeatures::shared(const std::string& key,
                                            const std::function<std::vector<float>()>& compute) const {
  Shared* entry = nullptr;
  {
    const std::lock_guard lock(shared_mutex_);
    std::unique_ptr<Shared>& place = shared_[key];
    if (!place) place = std::make_unique<Shared>();
    entry = place.get();
  }
  std::call_once(entry->once, [&] { entry->value = compute(); });
  return entry->value;
}

}  // namespace kvsim
