// Named policies as the parts that they are made of: one small table.
#include "policies/presets.h"

#include <fmt/format.h>

#include <functional>
#include <map>

#include "policies/registry.h"

namespace kvsim {
namespace {

/// The parameters of a bound policy as text.
class Parameters {
 public:
  explicit Parameters(const Policy& policy) : spec_(parse_specs(canonical_spec(policy)).front()) {}
  std::string operator[](std::string_view key) const {
    for (const auto& [name, value] : spec_.arguments)
      if (name == key) return to_text(value);
    return {};
  }
  /// The policy under `score`, bound anew.
  std::unique_ptr<Policy> score() const {
    for (const auto& [name, value] : spec_.arguments)
      if (name == "score" && value.text != "none") return bind_policy(value);
    return nullptr;
  }

 private:
  SpecValue spec_;
};

using Line = std::optional<std::string>;
using Writer = std::function<Line(const Parameters&)>;

std::string window_parts(const Parameters& p) {
  return fmt::format("query=window({}),base=attention,reduce=[mean,{}({}),group({})],recent={},unit={}",
                     p["window"], p["pool"], p["kernel"], p["group"], p["window"], p["unit"]);
}

Line snapkv(const Parameters& p) { return fmt::format("compose({})", window_parts(p)); }
Line pyramidkv(const Parameters& p) {
  return fmt::format("compose({},layers=pyramid(beta={},form={},total={}))", window_parts(p), p["beta"],
                     p["form"], p["total"]);
}
Line cake(const Parameters& p) {
  return fmt::format("compose(query=window({0}),base=attention,reduce=[meanvar({1}),avg({2}),group(mean)],recent={0},"
                     "layers=cake(window={0},tau1={3},tau2={4},cascade={5}))",
                     p["window"], p["gamma"], p["kernel"], p["tau1"], p["tau2"], p["cascade"]);
}
Line tova(const Parameters&) {
  return "compose(query=current,base=attention,reduce=[mean,group(mean)],recent=1,unit=layer)";
}
Line h2o(const Parameters& p) {
  return fmt::format("compose(query=all,base=attention,reduce=[sum,group({})],recent={},unit={})", p["group"],
                     p["recent"], p["unit"]);
}
Line observed_attention(const Parameters& p) {
  return fmt::format("compose(query=all,base=attention,reduce=[visible,group({})],unit={})", p["group"],
                     p["unit"]);
}
Line knorm(const Parameters&) { return "compose(base=knorm)"; }
Line keydiff(const Parameters&) { return "compose(base=keydiff)"; }
Line streaming_llm(const Parameters& p) { return fmt::format("compose(base=position,sinks={})", p["sinks"]); }

std::string pseudo(const Parameters& p) {
  return fmt::format("lookahead(pass={},length={},mask={})", p["lookahead"], p["length"], p["mask"]);
}
std::string pseudo_reduce(const Parameters& p) {
  return fmt::format("base=attention,reduce=[sum,group(mean),{}({})]", p["pool"], p["kernel"]);
}
Line laq(const Parameters& p) {
  return fmt::format("compose(query={},{},unit={})", pseudo(p), pseudo_reduce(p), p["unit"]);
}
Line laq_pp(const Parameters& p) {
  const std::string window = fmt::format("window({})", p["window"]);
  const std::string query = p["length"] == "0" ? window : fmt::format("[{},{}]", window, pseudo(p));
  return fmt::format("compose(query={},{},recent={},unit={})", query, pseudo_reduce(p), p["window"],
                     p["unit"]);
}

Line vatp(const Parameters& p) {
  if (p["recent"] != "0" && p["recent_share"] != "0")
    return std::nullopt;  // two kinds of recents, ranked by position
  const bool sums = p["base"] == "h2o";
  return fmt::format(
      "compose(query={},base=attention,reduce=[{},group({})],value={},sinks={},recent={},recent_share={},"
      "unit={})",
      sums ? "all" : fmt::format("window({})", p["window"]), sums ? "sum" : "mean", p["group"], p["norm"],
      p["sinks"], p["recent"], p["recent_share"], p["unit"]);
}
Line scissorhands(const Parameters& p) {
  const bool counts = p["form"] == "count";
  return fmt::format("compose(query=window({}),base={},reduce=[{},group({})],sinks={},recent={},unit={})",
                     p["window"], counts ? "indicator(below)" : "attention", counts ? "count,minus" : "mean",
                     p["group"], p["sinks"], p["recent"], p["unit"]);
}
Line obcache(const Parameters& p) {
  if (p["p"] != "2" || p["vnorm"] != "true") return std::nullopt;  // plain attention, weighed or not
  const bool tova = p["base"] == "tova";
  const std::string query = tova                 ? "current"
                            : p["rows"] == "all" ? "all"
                                                 : fmt::format("window({})", p["recent"]);
  const std::string pool = p["base"] == "snapkv" ? fmt::format("{}({}),", p["pool"], p["kernel"]) : "";
  return fmt::format("compose(query={},base=obd({}),reduce=[sum,{}group({})],sinks={},recent={},unit={})",
                     query, p["form"], pool, p["group"], p["sinks"], tova ? "0" : p["recent"], p["unit"]);
}

/// The parts of the policy under score with `more` added, or score= itself where it has none or holds such a
/// part.
std::string with_parts(const Parameters& p, std::string_view more, std::string_view part) {
  const std::unique_ptr<Policy> inner = p.score();
  const Line line = inner && inner->unit() != Unit::layer ? preset_line(*inner) : std::nullopt;
  if (!line || line->find(part) != std::string::npos || line->find("score=") != std::string::npos)
    return fmt::format("compose(score={},{})", p["score"], more);
  return fmt::format("{},{})", line->substr(0, line->size() - 1), more);
}
Line ada(const Parameters& p) {
  return with_parts(p, fmt::format("heads=ada(alpha={},form={},total={})", p["alpha"], p["form"], p["total"]),
                    "heads=");
}
Line critical(const Parameters& p) {
  return with_parts(
      p, fmt::format("value=wo({}),select=two_stage(first={},safe={})", p["epsilon"], p["first"], p["safe"]),
      "value=");
}
Line caote_form(const Parameters& p, std::string_view value) {
  const std::unique_ptr<Policy> inner = p.score();
  if (!inner) return std::nullopt;
  if (inner->unit() != Unit::query || p["join"] == "none")
    return fmt::format("compose(score={},value={})", p["score"], value);
  const Parameters in(*inner);
  if (inner->traits().name != "h2o")
    return std::nullopt;  // joined behind the pooling: no order of parts says that
  return fmt::format("compose(query=all,base=attention,reduce=[sum,value({}),group(mean)],recent={})", value,
                     in["recent"]);
}

const std::map<std::string_view, Writer>& writers() {
  static const std::map<std::string_view, Writer> all{
      {"ada", ada},
      {"caote", [](const Parameters& p) { return caote_form(p, "caote"); }},
      {"critical", critical},
      {"fast_caote", [](const Parameters& p) { return caote_form(p, "fast_caote"); }},
      {"h2o", h2o},
      {"keydiff", keydiff},
      {"knorm", knorm},
      {"laq", laq},
      {"laq_pp", laq_pp},
      {"obcache", obcache},
      {"observed_attention", observed_attention},
      {"cake", cake},
      {"pyramidkv", pyramidkv},
      {"scissorhands", scissorhands},
      {"snapkv", snapkv},
      {"streaming_llm", streaming_llm},
      {"tova", tova},
      {"vatp", vatp}};
  return all;
}

}  // namespace

std::optional<std::string> preset_line(const Policy& policy) {
  const auto found = writers().find(policy.traits().name);
  return found == writers().end() ? std::nullopt : found->second(Parameters(policy));
}

std::vector<std::string> preset_names() {
  std::vector<std::string> out;
  for (const auto& [name, writer] : writers())
    if (find_policy(name) != nullptr && preset_line(*make_policy(name))) out.emplace_back(name);
  return out;
}

}  // namespace kvsim
