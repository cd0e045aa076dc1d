// safetensors: eight bytes of length, a JSON header, then the tensors.
#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>

#include "kernels/error.h"
#include "traces/convert/array_source.h"
#include "traces/convert/file_bytes.h"

namespace kvsim::convert {
namespace {

constexpr std::uint64_t kMaxHeader = 100'000'000;  // the format's own limit

h5::Element element_of_dtype(const std::string& dtype) {
  struct Pair {
    const char* dtype;
    h5::Element element;
  };
  constexpr Pair kKnown[] = {
      {"F16", h5::Element::float16}, {"BF16", h5::Element::bfloat16}, {"F32", h5::Element::float32},
      {"F64", h5::Element::float64}, {"I32", h5::Element::int32},     {"I64", h5::Element::int64},
      {"U32", h5::Element::uint32},  {"U64", h5::Element::uint64},    {"I8", h5::Element::int8},
      {"U8", h5::Element::uint8},    {"BOOL", h5::Element::uint8}};
  const auto* found =
      std::find_if(std::begin(kKnown), std::end(kKnown), [&](const Pair& p) { return dtype == p.dtype; });
  return found == std::end(kKnown) ? h5::Element::other : found->element;
}

using Json = nlohmann::json;

const Json& member(const Json& object, const char* key, const std::string& where) {
  const auto found = object.find(key);
  if (found == object.end()) throw UserError("{}: the header lacks '{}'", where, key);
  return *found;
}

std::vector<std::uint64_t> numbers(const Json& json, const char* key, const std::string& where) {
  std::vector<std::uint64_t> result;
  if (!json.is_array()) throw UserError("{}: '{}' is no list", where, key);
  for (const Json& item : json) {
    if (!item.is_number_unsigned()) throw UserError("{}: '{}' holds no whole numbers", where, key);
    result.push_back(item.get<std::uint64_t>());
  }
  return result;
}

/// A name that stands twice is kept once by the parser, so it is refused while parsing.
Json parse_header(const std::string& text, const std::string& path) {
  std::set<std::string> names;
  const auto unique = [&](int depth, Json::parse_event_t event, Json& parsed) {
    if (event == Json::parse_event_t::key && depth == 1 && !names.insert(parsed.get<std::string>()).second) {
      throw UserError("{}: {} stands in the header twice", path, parsed.get<std::string>());
    }
    return true;
  };
  try {
    Json header = Json::parse(text, unique);
    if (!header.is_object()) throw UserError("{}: the header is no object", path);
    return header;
  } catch (const Json::exception& error) {
    throw UserError("{}: the header is no valid JSON: {}", path, error.what());
  }
}

class SafetensorsSource final : public ArraySource {
 public:
  explicit SafetensorsSource(const std::string& path) : file_(path) {
    const std::uint64_t size = little_endian(file_.read_text(0, 8), 0, 8);
    if (size > kMaxHeader || size > file_.size() - 8) {
      throw UserError("{}: found a header of {} bytes, expected at most {}", path, size,
                      std::min(kMaxHeader, file_.size() - 8));
    }
    begin_ = 8 + size;
    const Json header = parse_header(file_.read_text(8, size), path);
    for (const auto& [name, value] : header.items()) {
      if (!value.is_object()) throw UserError("{}: the entry '{}' is no object", path, name);
      if (name != "__metadata__") {
        add(name, value);
        continue;
      }
      for (const auto& [key, text] : value.items()) {
        if (text.is_string()) metadata_[key] = text.get<std::string>();
      }
    }
  }

  const std::string& path() const override { return file_.path(); }
  const std::map<std::string, ArrayInfo>& arrays() const override { return arrays_; }
  const std::map<std::string, std::string>& metadata() const override { return metadata_; }

  ByteReader open(const std::string& name) const override {
    return [this, at = begin_ + offset_.at(name)](std::span<std::byte> out) mutable {
      file_.read(at, out);
      at += out.size();
    };
  }

 private:
  void add(const std::string& name, const Json& entry) {
    const std::string where = file_.path() + ": " + name;
    const Json& dtype = member(entry, "dtype", where);
    if (!dtype.is_string()) throw UserError("{}: 'dtype' is no text", where);
    const auto type = dtype.get<std::string>();
    ArrayInfo info{element_of_dtype(type), type, numbers(member(entry, "shape", where), "shape", where)};
    const auto range = numbers(member(entry, "data_offsets", where), "data_offsets", where);
    if (range.size() != 2 || range[0] > range[1] || range[1] > file_.size() - begin_) {
      throw UserError("{}: its data lie out of the file (truncated?)", where);
    }
    if (info.element != h5::Element::other && info.bytes() != range[1] - range[0]) {
      throw UserError("{}: found {} bytes, expected {} for the shape {}", where, range[1] - range[0],
                      info.bytes(), h5::describe_shape(info.shape));
    }
    arrays_.emplace(name, std::move(info));
    offset_[name] = range[0];
  }

  FileBytes file_;
  std::uint64_t begin_ = 0;
  std::map<std::string, ArrayInfo> arrays_;
  std::map<std::string, std::string> metadata_;
  std::map<std::string, std::uint64_t> offset_;
};

}  // namespace

std::unique_ptr<ArraySource> open_safetensors(const std::string& path) {
  return std::make_unique<SafetensorsSource>(path);
}

std::unique_ptr<ArraySource> open_source(const std::string& path) {
  const FileBytes file(path);
  if (file.size() < 10)
    throw UserError("{}: has {} bytes, expected an .npz or safetensors file", path, file.size());
  const std::string head = file.read_text(0, 9);
  if (head.starts_with("PK")) return open_npz(path);
  if (head[8] == '{') return open_safetensors(path);
  throw UserError("{}: is neither an .npz nor a safetensors file", path);
}

}  // namespace kvsim::convert
