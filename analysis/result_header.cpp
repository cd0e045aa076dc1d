// The tables and attributes that say which run a file belongs to.
#include "analysis/result_header.h"

#include <charconv>
#include <type_traits>

#include "kernels/error.h"

namespace kvsim {
namespace {

template <typename Entry, typename Read>
auto column_of(const std::vector<Entry>& entries, Read read) {
  std::vector<std::decay_t<decltype(read(entries.front()))>> column;
  column.reserve(entries.size());
  for (const Entry& entry : entries) column.push_back(read(entry));
  return column;
}

template <typename Entry, typename Value, typename Assign>
void assign_column(const h5::Group& group, std::vector<Entry>& entries, const std::vector<Value>& column,
                   Assign assign) {
  if (entries.empty()) entries.resize(column.size());
  if (column.size() != entries.size()) throw UserError("{}: its columns differ in length", group.where());
  for (std::size_t i = 0; i < column.size(); ++i) assign(entries[i], column[i]);
}

int major_of(const std::string& version) {
  int major = -1;
  std::from_chars(version.data(), version.data() + version.size(), major);
  return major;
}

struct TraceText {
  const char* name;
  std::string TraceEntry::*member;
};
constexpr TraceText kTraceTexts[] = {{"name", &TraceEntry::name},
                                     {"path", &TraceEntry::path},
                                     {"digest", &TraceEntry::digest},
                                     {"model", &TraceEntry::model},
                                     {"dtype", &TraceEntry::dtype}};
struct TraceNumber {
  const char* name;
  std::uint64_t TraceEntry::*member;
};
constexpr TraceNumber kTraceNumbers[] = {{"digest_key", &TraceEntry::digest_key},
                                         {"layers", &TraceEntry::layers},
                                         {"query_heads", &TraceEntry::query_heads},
                                         {"kv_heads", &TraceEntry::kv_heads},
                                         {"head_dim", &TraceEntry::head_dim},
                                         {"prompt", &TraceEntry::prompt},
                                         {"decode", &TraceEntry::decode}};

struct VariantText {
  const char* name;
  std::string VariantEntry::*member;
};
constexpr VariantText kVariantTexts[] = {{"variant_id", &VariantEntry::variant_id},
                                         {"policy", &VariantEntry::policy},
                                         {"spec", &VariantEntry::spec},
                                         {"reference", &VariantEntry::reference}};
struct VariantFlag {
  const char* name;
  bool VariantEntry::*member;
};
constexpr VariantFlag kVariantFlags[] = {{"nested", &VariantEntry::nested},
                                         {"oracle", &VariantEntry::oracle},
                                         {"automatic", &VariantEntry::automatic}};

struct ProvenanceText {
  const char* name;
  std::string Provenance::*member;
};
constexpr ProvenanceText kProvenanceTexts[] = {{"tool_version", &Provenance::tool_version},
                                               {"git_sha", &Provenance::git_sha},
                                               {"created", &Provenance::created},
                                               {"command_line", &Provenance::command_line},
                                               {"config", &Provenance::config},
                                               {"compiler", &Provenance::compiler},
                                               {"build_flags", &Provenance::build_flags},
                                               {"cpu", &Provenance::cpu},
                                               {"device", &Provenance::device},
                                               {"instruction_path", &Provenance::instruction_path}};

}  // namespace

void write_format(h5::Group& root, std::string_view format) {
  root.set_attribute("format", format);
  root.set_attribute("version", kFormatVersion);
}

void check_format(const h5::Group& root, std::string_view format) {
  const std::string found = root.has_attribute("format") ? root.string_attribute("format") : std::string();
  if (found != format) {
    throw UserError(
        "{}: is no {} file ({})", root.file(), format,
        found.empty() ? std::string("it has no attribute 'format'") : "its format is '" + found + "'");
  }
  const std::string version = root.string_attribute("version");
  if (major_of(version) != major_of(std::string(kFormatVersion))) {
    throw UserError(
        "{}: has version {} of {}, this program reads {}; use the program that wrote it, or a newer one",
        root.file(), version, format, kFormatVersion);
  }
}

void write_provenance(h5::Group& root, const Provenance& provenance) {
  for (const auto& [name, member] : kProvenanceTexts) root.set_attribute(name, provenance.*member);
  root.set_attribute("seed", provenance.seed);
  root.set_attribute("threads", provenance.threads);
}

Provenance read_provenance(const h5::Group& root) {
  Provenance provenance;
  for (const auto& [name, member] : kProvenanceTexts) provenance.*member = root.string_attribute(name);
  provenance.seed = static_cast<std::uint64_t>(root.int_attribute("seed"));
  provenance.threads = static_cast<int>(root.int_attribute("threads"));
  return provenance;
}

void write_traces(h5::Group& root, const std::vector<TraceEntry>& traces) {
  h5::Group group = root.create_group("traces");
  for (const auto& text : kTraceTexts) {
    group.write_column(text.name, column_of(traces, [&](const TraceEntry& t) { return t.*text.member; }));
  }
  for (const auto& number : kTraceNumbers) {
    group.write_column(number.name, column_of(traces, [&](const TraceEntry& t) { return t.*number.member; }));
  }
}

std::vector<TraceEntry> read_traces(const h5::Group& root) {
  const h5::Group group = root.group("traces");
  std::vector<TraceEntry> traces;
  for (const auto& text : kTraceTexts) {
    assign_column(group, traces, group.read_strings(text.name),
                  [&](TraceEntry& t, const std::string& value) { t.*text.member = value; });
  }
  for (const auto& number : kTraceNumbers) {
    assign_column(group, traces, group.read_column<std::uint64_t>(number.name),
                  [&](TraceEntry& t, std::uint64_t value) { t.*number.member = value; });
  }
  return traces;
}

void write_variants(h5::Group& root, const std::vector<VariantEntry>& variants) {
  h5::Group group = root.create_group("variants");
  for (const auto& text : kVariantTexts) {
    group.write_column(text.name, column_of(variants, [&](const VariantEntry& v) { return v.*text.member; }));
  }
  for (const auto& flag : kVariantFlags) {
    group.write_column(flag.name, column_of(variants, [&](const VariantEntry& v) {
                         return static_cast<std::uint8_t>(v.*flag.member ? 1 : 0);
                       }));
  }
}

std::vector<VariantEntry> read_variants(const h5::Group& root) {
  const h5::Group group = root.group("variants");
  std::vector<VariantEntry> variants;
  for (const auto& text : kVariantTexts) {
    assign_column(group, variants, group.read_strings(text.name),
                  [&](VariantEntry& v, const std::string& value) { v.*text.member = value; });
  }
  for (const auto& flag : kVariantFlags) {
    assign_column(group, variants, group.read_column<std::uint8_t>(flag.name),
                  [&](VariantEntry& v, std::uint8_t value) { v.*flag.member = value != 0; });
  }
  return variants;
}

}  // namespace kvsim
