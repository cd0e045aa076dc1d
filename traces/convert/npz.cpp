// NumPy's .npz: a zip archive of .npy arrays (numpy.lib.format, versions 1 to 3).
#include <algorithm>
#include <charconv>
#include <optional>
#include <vector>

#include "kernels/error.h"
#include "traces/convert/array_source.h"
#include "traces/convert/file_bytes.h"
#include "traces/convert/zip.h"

namespace kvsim::convert {
namespace {

constexpr std::uint64_t kMaxHeader = std::uint64_t{1} << 20;

/// Header of one array.
struct Npy {
  std::string descr;
  bool fortran = false;
  h5::Shape shape;
  std::uint64_t data = 0;  // bytes before the elements
};

h5::Element element_of_descr(const std::string& descr) {
  struct Pair {
    const char* descr;
    h5::Element element;
  };
  // NumPy itself has no bfloat16; ml_dtypes' one is stored as two opaque bytes.
  constexpr Pair kKnown[] = {
      {"<f2", h5::Element::float16}, {"|V2", h5::Element::bfloat16}, {"<V2", h5::Element::bfloat16},
      {"<f4", h5::Element::float32}, {"<f8", h5::Element::float64},  {"<i4", h5::Element::int32},
      {"<i8", h5::Element::int64},   {"<u4", h5::Element::uint32},   {"<u8", h5::Element::uint64},
      {"|i1", h5::Element::int8},    {"|u1", h5::Element::uint8},    {"|b1", h5::Element::uint8}};
  const auto* found =
      std::find_if(std::begin(kKnown), std::end(kKnown), [&](const Pair& p) { return descr == p.descr; });
  return found == std::end(kKnown) ? h5::Element::other : found->element;
}

/// The text of a value in the header's dictionary, e.g. (3, 4) for 'shape'.
std::string value_of(const std::string& header, const std::string& key, const std::string& where) {
  const std::size_t at = header.find("'" + key + "'");
  const std::size_t colon = at == std::string::npos ? at : header.find(':', at);
  if (colon == std::string::npos) throw UserError("{}: the array's header lacks '{}'", where, key);
  std::size_t begin = header.find_first_not_of(' ', colon + 1);
  if (begin == std::string::npos) throw UserError("{}: the array's header ends early", where);
  const char close = header[begin] == '(' ? ')' : header[begin] == '\'' ? '\'' : ',';
  const std::size_t end = header.find(close, begin + 1);
  if (end == std::string::npos) throw UserError("{}: the array's header ends early", where);
  if (close != ',') ++begin;
  return header.substr(begin, end - begin);
}

h5::Shape parse_shape(const std::string& text, const std::string& where) {
  h5::Shape shape;
  for (std::size_t at = 0; at < text.size();) {
    if (text[at] == ' ' || text[at] == ',' || text[at] == 'L') {
      ++at;
      continue;
    }
    std::uint64_t n = 0;
    const auto [end, error] = std::from_chars(text.data() + at, text.data() + text.size(), n);
    if (error != std::errc()) throw UserError("{}: found the shape ({}), expected numbers", where, text);
    shape.push_back(n);
    at = static_cast<std::size_t>(end - text.data());
  }
  return shape;
}

Npy read_header(const ByteReader& read, const std::string& where) {
  std::string head(8, '\0');
  read(std::as_writable_bytes(std::span(head)));
  if (!head.starts_with("\x93NUMPY")) throw UserError("{}: is no NumPy array", where);
  const auto version = static_cast<unsigned char>(head[6]);
  if (version < 1 || version > 3)
    throw UserError("{}: found version {} of NumPy's format, expected 1 to 3", where, version);
  std::string length(version == 1 ? 2 : 4, '\0');
  read(std::as_writable_bytes(std::span(length)));
  const std::uint64_t size = little_endian(length, 0, length.size());
  if (size > kMaxHeader)
    throw UserError("{}: found a header of {} bytes, expected at most {}", where, size, kMaxHeader);
  std::string text(size, '\0');
  read(std::as_writable_bytes(std::span(text)));
  Npy npy;
  npy.descr = value_of(text, "descr", where);
  npy.fortran = value_of(text, "fortran_order", where) == "True";
  npy.shape = parse_shape(value_of(text, "shape", where), where);
  npy.data = head.size() + length.size() + size;
  return npy;
}

/// A scalar as text: the way metadata stand in an .npz.
std::optional<std::string> scalar_text(const Npy& npy, const ByteReader& read, std::uint64_t left) {
  if (h5::element_count(npy.shape) != 1 || left > 1 << 16) return std::nullopt;
  std::string raw(left, '\0');
  read(std::as_writable_bytes(std::span(raw)));
  if (npy.descr.starts_with("<U")) {  // UTF-32; metadata are plain text
    std::string text;
    for (std::size_t at = 0; at + 4 <= raw.size(); at += 4) {
      const std::uint64_t code = little_endian(raw, at, 4);
      if (code != 0) text += code < 128 ? static_cast<char>(code) : '?';
    }
    return text;
  }
  if (npy.descr.starts_with("|S")) return raw.substr(0, raw.find('\0'));
  const auto number = [&]<typename T>(T value) {
    std::copy_n(raw.data(), sizeof value, reinterpret_cast<char*>(&value));
    return fmt::format("{}", value);
  };
  if (npy.descr == "<f8" && left == 8) return number(double{});
  if (npy.descr == "<f4" && left == 4) return number(float{});
  if (npy.descr == "<i8" && left == 8) return number(std::int64_t{});
  if (npy.descr == "<i4" && left == 4) return number(std::int32_t{});
  return std::nullopt;
}

class NpzSource final : public ArraySource {
 public:
  explicit NpzSource(const std::string& path) : file_(path), members_(read_zip_directory(file_)) {
    for (const auto& [member_name, member] : members_) {
      const std::string name =
          member_name.ends_with(".npy") ? member_name.substr(0, member_name.size() - 4) : member_name;
      const std::string where = path + ": " + name;
      const ByteReader read = open_member(file_, member_name, member);
      const Npy npy = read_header(read, where);
      if (npy.shape.empty() || npy.descr.starts_with("<U") || npy.descr.starts_with("|S")) {
        if (const auto text = scalar_text(npy, read, member.size - npy.data)) {
          metadata_[name] = *text;
          continue;
        }
      }
      if (npy.fortran && npy.shape.size() > 1) {
        throw UserError("{}: is stored column by column; save numpy.ascontiguousarray of it", where);
      }
      ArrayInfo info{element_of_descr(npy.descr), npy.descr, npy.shape};
      if (info.element != h5::Element::other && info.bytes() != member.size - npy.data) {
        throw UserError("{}: found {} bytes, expected {} for the shape {}", where, member.size - npy.data,
                        info.bytes(), h5::describe_shape(npy.shape));
      }
      arrays_[name] = info;
      member_of_[name] = member_name;
      data_[name] = npy.data;
    }
  }

  const std::string& path() const override { return file_.path(); }
  const std::map<std::string, ArrayInfo>& arrays() const override { return arrays_; }
  const std::map<std::string, std::string>& metadata() const override { return metadata_; }

  ByteReader open(const std::string& name) const override {
    const std::string& member = member_of_.at(name);
    ByteReader reader = open_member(file_, member, members_.at(member));
    std::vector<std::byte> header(data_.at(name));
    reader(header);
    return reader;
  }

 private:
  FileBytes file_;
  std::map<std::string, ZipMember> members_;
  std::map<std::string, ArrayInfo> arrays_;
  std::map<std::string, std::string> member_of_, metadata_;
  std::map<std::string, std::uint64_t> data_;
};

}  // namespace

std::unique_ptr<ArraySource> open_npz(const std::string& path) { return std::make_unique<NpzSource>(path); }

}  // namespace kvsim::convert
