// OBCache: what the outputs lose, to second order, when a key, a value or the pair is pruned (optimal brain
// damage).
//
// arXiv:2510.07651. For a query with attention a, logit s and output o over all it sees: value = a^2 |v|^2,
// key = (a s)^2 |v - o|^2 (the logit goes to 0), joint = |a v + a s (v - o)|^2 = value + key + 2 a^2 s (|v|^2
// - v.o); no_cross leaves the last term out. Summed over query rows. The base says whose rows, as in the code
// this follows (a derivative of the authors' first version; their second one was not to be had): h2o, the
// last `recent` queries (rows=window) or all of them (rows=all); snapkv, the same rows, the sum pooled over
// neighbours; tova, the last query, no recents and no pooling. p=1 makes the value form sum a |v|_1 (which is
// vatp's score), without the value norm the plain attention of the base. The default recent=16 is that of the
// code's needle test; it names no other. Kept sets per query head, as there. Logits carry the model's scale
// and no soft cap.
#include <array>
#include <limits>

#include "kernels/error.h"
#include "policies/obd_sums.h"
#include "policies/recipe.h"
#include "policies/registry.h"

namespace kvsim {
namespace {

constexpr PolicyTraits kTraits{
    .name = "obcache",
    .summary = "loss of the outputs when key, value or both are pruned, to second order",
    .reference = "arXiv:2510.07651; a public derivative of the authors' first code",
    .accounting = "sinks, then the `recent` newest tokens (not with base=tova) are kept first; all count",
    .windowed = true};

constexpr std::array<std::string_view, 4> kFormChoices{"joint", "value", "key", "no_cross"};
constexpr std::array<std::string_view, 3> kBaseChoices{"h2o", "snapkv", "tova"};
constexpr std::array<std::string_view, 2> kRowChoices{"window", "all"};
constexpr std::uint32_t kAny = std::numeric_limits<std::uint32_t>::max();

struct ObCache final : Policy {
  std::size_t form_ = 0;
  std::size_t base_ = 0;
  std::uint32_t recent_ = 16;
  std::size_t rows_ = 0;
  std::uint32_t p_ = 2;
  bool vnorm_ = true;
  std::size_t pool_ = 1;
  std::uint32_t kernel_ = 7;
  std::uint32_t sinks_ = 0;
  std::size_t group_ = 0;
  std::size_t unit_ = 1;
  PolicyTraits traits_ = kTraits;

  const PolicyTraits& traits() const override { return traits_; }
  void fields(FieldVisitor& f) override {
    f.choice("form", form_, kFormChoices,
             "what is pruned: key and value (without the cross term), value, or key");
    f.choice("base", base_, kBaseChoices, "whose query rows count, which recents stay, and pooling");
    f.number("recent", recent_, 1, kAny,
             "last prompt queries that vote and, but for base=tova, last tokens always kept");
    f.choice("rows", rows_, kRowChoices,
             "the last `recent` queries, or all prompt queries; base=tova: the last one");
    f.number("p", p_, 1, 2, "form=value: 2 as derived, 1 = attention times the L1 norm");
    f.flag("vnorm", vnorm_, "form=value: weigh by the norm of the value");
    f.choice("pool", pool_, kPoolChoices, "base=snapkv: how neighbours are pooled");
    f.number("kernel", kernel_, 1, 4095, "base=snapkv: tokens that a score is pooled over, odd");
    f.number("sinks", sinks_, 0, kAny, "first tokens that are always kept");
    f.choice("group", group_, kGroupChoices, "unit=kv: how the query heads of a KV head are joined");
    f.choice("unit", unit_, kUnitChoices, "what owns a kept set: a KV head or a query head");
    const bool windowed = rows_ == 0 || base_ == 2;
    if (traits_.windowed != windowed) traits_.windowed = windowed;
  }
  void prepare(Resources&) override {
    check_kernel(kTraits.name, kernel_);
    if (form_ != 1 && (p_ != 2 || !vnorm_))
      throw UserError("obcache: p=1 and vnorm=false are forms of form=value, not of form={}",
                      kFormChoices[form_]);
    if (base_ == 2 && rows_ == 1)
      throw UserError("obcache: base=tova reads the last query only, write rows=window");
  }
  Need needs() const override {
    const bool outputs = form_ != 1;
    const Need queries = traits_.windowed ? Need::window_queries : Need::all_queries;
    const Need keys = outputs ? Need::keys : Need::none;
    return queries | keys | Need::values;
  }
  std::uint32_t window() const override { return !traits_.windowed ? 0 : base_ == 2 ? 1 : recent_; }
  Unit unit() const override { return unit_ == 0 ? Unit::kv : Unit::query; }

  void score(const HeadFeatures& head, std::span<UnitScores> out) const override {
    const std::size_t tokens = head.geometry().prompt;
    const std::uint32_t recent = base_ == 2 ? 0 : recent_;
    const std::size_t free = tokens - std::min<std::size_t>(tokens, recent);
    std::vector<std::vector<double>> rows;
    for (std::size_t h = 0; h < head.geometry().group; ++h) {
      std::vector<double> row = sums(head, h);
      row.resize(free);
      if (base_ == 1) row = pooled(row, kernel_, pool_ == 0);
      rows.push_back(std::move(row));
    }
    if (unit_ == 0) rows = {join_group(rows, static_cast<Group>(group_))};
    for (std::size_t u = 0; u < rows.size(); ++u) {
      out[u].score = to_scores(rows[u]);
      out[u].score.resize(tokens, 0.0f);
      out[u].protected_tokens = protected_order(tokens, sinks_, recent);
    }
  }
  void join(const LayerGeometry&, LayerScores& scores) const override { lift_protected(scores); }

 private:
  /// The form's sum over the rows of one query head, [T].
  std::vector<double> sums(const HeadFeatures& head, std::size_t h) const {
    const ObdSums of =
        traits_.windowed ? obd_sums(head, {.count = window()}, h, form_ != 1) : obd_sums(head, h, form_ != 1);
    std::vector<double> norms(of.weight.size(), 1.0);
    if (vnorm_) norms = row_norms(head.values(), p_ == 1 ? ValueNorm::l1 : ValueNorm::l2);
    std::vector<double> row(of.weight.size());
    for (std::size_t t = 0; t < row.size(); ++t) {
      const double value = p_ == 1 ? static_cast<double>(of.weight[t]) * norms[t]
                                   : static_cast<double>(of.square[t]) * norms[t] * norms[t];
      if (form_ == 1) {
        row[t] = value;
        continue;
      }
      row[t] = static_cast<double>(of.key[t]) + (form_ == 2 ? 0.0 : value) +
               (form_ == 0 ? static_cast<double>(of.cross[t]) : 0.0);
    }
    return row;
  }
};

const RegisterPolicy<ObCache> registered{kTraits};

}  // namespace
}  // namespace kvsim
