// Whose attention a score looks at.
#include "policies/query_part.h"

#include <fmt/format.h>

#include <algorithm>

#include "kernels/error.h"

namespace kvsim {
namespace {

using Kind = QueryPart::Kind;
using Source = QueryRows::Source;

std::uint32_t own_window(const QueryPart& part) {
  if (part.kind == Kind::current) return 1;
  return part.kind == Kind::window || part.kind == Kind::proxy ? part.count : 0;
}

Need own_needs(const QueryPart& part) {
  switch (part.kind) {
    case Kind::all:
      return Need::prompt_attention;
    case Kind::window:
    case Kind::current:
      return Need::window_queries;
    case Kind::proxy:
      return (part.count > 0 ? Need::window_queries : Need::none) |
             (part.first > 0 ? Need::all_queries : Need::none);
    case Kind::lookahead:
      return Need::lookahead;
    case Kind::oracle:
      return Need::decode_queries;
  }
  return Need::none;
}

/// How far the authors' mask moves a window back that stands before the pseudo queries.
std::uint32_t moved_back(const QueryParts& parts) {
  const QueryPart* pseudo = lookahead_part(parts);
  return pseudo != nullptr && pseudo->repo_mask ? pseudo->count : 0;
}

}  // namespace

Need query_needs(const QueryParts& parts) {
  Need needs = Need::none;
  for (const QueryPart& part : parts) needs = needs | own_needs(part);
  return needs;
}

std::uint32_t query_window(const QueryParts& parts) {
  std::uint32_t most = 0;
  for (const QueryPart& part : parts) most = std::max(most, own_window(part));
  return most;
}

bool guesses_queries(const QueryParts& parts) {
  return std::any_of(parts.begin(), parts.end(), [](const QueryPart& part) {
    return part.kind == Kind::window || part.kind == Kind::current || part.kind == Kind::lookahead;
  });
}

bool reads_future(const QueryParts& parts) {
  return std::any_of(parts.begin(), parts.end(),
                     [](const QueryPart& part) { return part.kind == Kind::oracle; });
}

const QueryPart* lookahead_part(const QueryParts& parts) {
  const auto found = std::find_if(parts.begin(), parts.end(),
                                  [](const QueryPart& part) { return part.kind == Kind::lookahead; });
  return found == parts.end() ? nullptr : &*found;
}

void check_query(std::string_view policy, const QueryParts& parts) {
  std::vector<Kind> seen;
  for (const QueryPart& part : parts) {
    if (part.kind == Kind::all && parts.size() > 1)
      throw UserError("{}: query=all holds every prompt query already, it stands alone", policy);
    if (std::find(seen.begin(), seen.end(), part.kind) != seen.end())
      throw UserError("{}: the same query source stands twice in query, its rows would count twice", policy);
    seen.push_back(part.kind);
    if (part.kind == Kind::proxy && part.first + part.count == 0)
      throw UserError("{}: proxy needs some queries, e.g. proxy(first=0,last=16)", policy);
  }
  const auto windows =
      std::count_if(parts.begin(), parts.end(), [](const QueryPart& p) { return own_window(p) > 0; });
  if (windows > 1)
    throw UserError(
        "{}: window, current and proxy overlap at the end of the prompt, name one of them in query", policy);
  const QueryPart* pseudo = lookahead_part(parts);
  if (pseudo != nullptr && pseudo->repo_mask && pseudo != &parts.back())
    throw UserError("{}: mask=repo is made for pseudo queries behind a window, put lookahead last in query",
                    policy);
}

void check_query(std::string_view policy, const QueryParts& parts, const LayerGeometry& layer) {
  const std::uint32_t behind = moved_back(parts);
  for (const QueryPart& part : parts) {
    const std::uint32_t window = own_window(part);
    if (window > 0 && layer.prompt <= window) {
      throw UserError("{}(window={}) needs a prompt of more than {} tokens, this one has {}", policy, window,
                      window, layer.prompt);
    }
    if (part.kind == Kind::proxy && layer.prompt < part.first + part.count)
      throw UserError("{}: proxy(first={},last={}) needs as many prompt tokens, this one has {}", policy,
                      part.first, part.count, layer.prompt);
    if (part.kind == Kind::oracle && part.count > layer.decode)
      throw UserError("{}: oracle({}) but {} tokens were decoded, choose fewer", policy, part.count,
                      layer.decode);
    if (part.kind == Kind::lookahead) {
      for (const LookaheadPass& pass : part.pass.candidates(layer)) check_length(policy, pass, part.count);
    }
  }
  if (behind + query_window(parts) > layer.prompt)
    throw UserError("{}: mask=repo over {} rows needs as many prompt tokens, this one has {}", policy,
                    behind + query_window(parts), layer.prompt);
}

std::vector<QueryRows> query_rows(const QueryParts& parts, const std::string& pass) {
  const std::uint32_t behind = moved_back(parts);
  std::vector<QueryRows> out;
  for (const QueryPart& part : parts) {
    KVSIM_CHECK(part.kind != Kind::all, "all prompt queries are no set of rows");
    if (part.kind == Kind::proxy && part.first > 0)
      out.push_back({.source = Source::prompt, .first = 0, .count = part.first});
    if (const std::uint32_t window = own_window(part); window > 0)
      out.push_back({.source = Source::window, .count = window, .behind = behind});
    if (part.kind == Kind::lookahead)
      out.push_back(
          {.source = Source::lookahead, .count = part.count, .staircase = part.repo_mask, .pass = pass});
    if (part.kind == Kind::oracle) out.push_back({.source = Source::oracle, .count = part.count});
  }
  return out;
}

std::string rows_key(const QueryRows& rows) {
  return fmt::format("{}:{}:{}:{}:{}:{}", static_cast<int>(rows.source), rows.first, rows.count, rows.behind,
                     rows.staircase ? 1 : 0, rows.pass);
}

std::size_t visible_end(const QueryRows& rows, std::size_t i, std::size_t n, const LayerGeometry& layer) {
  std::size_t seen = layer.prompt;
  if (rows.source == Source::window && n == rows.count) seen = layer.prompt - n - rows.behind + i + 1;
  if (rows.source == Source::prompt) seen = rows.first + i + 1;
  if (rows.source == Source::lookahead && rows.staircase && n == rows.count) seen = layer.prompt - n + i + 1;
  // True decode queries, also where hindsight puts them in the place of a window.
  if (rows.source == Source::oracle || n != rows.count) seen = layer.prompt + i + 1;
  return seen;
}

std::size_t visible_keys(const QueryRows& rows, std::size_t i, std::size_t n, const LayerGeometry& layer) {
  const std::size_t seen = visible_end(rows, i, n, layer);
  return layer.sliding_window == 0 ? seen : std::min<std::size_t>(seen, layer.sliding_window);
}

}  // namespace kvsim
