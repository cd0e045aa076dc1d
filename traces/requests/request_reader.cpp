// Readers of request files, and the choice between them.
#include "traces/requests/request_reader.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string_view>

#include "kernels/error.h"
#include "traces/requests/byte_stream.h"

namespace kvsim {
namespace {

constexpr std::array<std::pair<RequestFormat, const char*>, 5> kFormats{
    {{RequestFormat::automatic, "auto"},
     {RequestFormat::mooncake, "mooncake"},
     {RequestFormat::oracle_general, "oracleGeneral"},
     {RequestFormat::csv, "csv"},
     {RequestFormat::plain, "plain"}}};

/// Numbers stand for themselves, other names for their 64-bit FNV-1a hash.
std::uint64_t object_of(std::string_view word) {
  std::uint64_t number = 0;
  const auto result = std::from_chars(word.data(), word.data() + word.size(), number);
  if (result.ec == std::errc() && result.ptr == word.data() + word.size()) return number;
  std::uint64_t hash = 0xCBF29CE484222325ull;
  for (const char c : word) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001B3ull;
  return hash;
}

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.front())) != 0) text.remove_prefix(1);
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.back())) != 0) text.remove_suffix(1);
  return text;
}

/// One JSON object per line; `hash_ids` are blocks, each of which stands for itself and everything before it.
class MooncakeReader final : public RequestReader {
 public:
  explicit MooncakeReader(ByteStream stream) : stream_(std::move(stream)) {}
  RequestFormat format() const override { return RequestFormat::mooncake; }
  bool has_sizes() const override { return false; }
  bool has_next() const override { return false; }
  bool has_groups() const override { return true; }
  bool read(RequestBatch& batch, std::size_t most) override {
    batch.clear();
    std::string text;
    while (batch.object.size() < most && stream_.line(text)) {
      if (trimmed(text).empty()) continue;
      batch.starts.push_back(static_cast<std::uint32_t>(batch.object.size()));
      parse(text, batch);
    }
    return !batch.starts.empty();
  }

 private:
  void parse(const std::string& text, RequestBatch& batch) const {
    try {
      const nlohmann::json record = nlohmann::json::parse(text);
      if (!record.is_object() || !record.contains("hash_ids") || !record["hash_ids"].is_array()) {
        throw UserError("{}:{}: no list hash_ids in this line", stream_.path(), stream_.line_number());
      }
      for (const nlohmann::json& id : record["hash_ids"]) {
        if (!id.is_number_integer() || (!id.is_number_unsigned() && id.get<std::int64_t>() < 0)) {
          throw UserError("{}:{}: hash_ids holds {}, expected whole numbers from 0", stream_.path(),
                          stream_.line_number(), id.dump());
        }
        batch.object.push_back(id.get<std::uint64_t>());
      }
    } catch (const nlohmann::json::exception& e) {
      std::string why = e.what();
      why = why.substr(std::min(why.size(), why.find("] ") == std::string::npos ? 0 : why.find("] ") + 2));
      throw UserError("{}:{}: malformed JSON: {}", stream_.path(), stream_.line_number(), why);
    }
  }

  ByteStream stream_;
};

/// Records of 24 bytes, little-endian: u32 time, u64 object, u32 size, i64 index of the next request from 1
/// (negative or the largest value = never).
class OracleGeneralReader final : public RequestReader {
 public:
  explicit OracleGeneralReader(ByteStream stream) : stream_(std::move(stream)) {}
  RequestFormat format() const override { return RequestFormat::oracle_general; }
  bool has_sizes() const override { return true; }
  bool has_next() const override { return true; }
  bool has_groups() const override { return false; }
  bool read(RequestBatch& batch, std::size_t most) override {
    batch.clear();
    raw_.resize(most * kRecord);
    const std::size_t got = stream_.read(raw_.data(), raw_.size());
    const std::size_t records = got / kRecord;
    if (got % kRecord != 0) {
      throw UserError(
          "{}: record {} is cut off after {} of {} bytes; the file is truncated or not oracleGeneral",
          stream_.path(), read_ + records, got % kRecord, kRecord);
    }
    for (std::size_t i = 0; i < records; ++i) {
      const char* at = raw_.data() + i * kRecord;
      std::uint64_t object;
      std::uint32_t size;
      std::int64_t next;
      std::memcpy(&object, at + 4, 8);
      std::memcpy(&size, at + 12, 4);
      std::memcpy(&next, at + 16, 8);
      batch.object.push_back(object);
      batch.size.push_back(size);
      batch.next.push_back(next_index(next, read_ + i));
    }
    read_ += records;
    return records > 0;
  }

 private:
  static constexpr std::size_t kRecord = 24;
  std::uint64_t next_index(std::int64_t next, std::uint64_t index) const {
    if (next < 0 || next == std::numeric_limits<std::int64_t>::max()) return kNoNextRequest;
    const auto value = static_cast<std::uint64_t>(next) - 1;
    if (value <= index) {
      throw UserError(
          "{}: record {} says that its object comes next at record {}, which is not after it; is this "
          "oracleGeneral?",
          stream_.path(), index, value);
    }
    return value;
  }

  ByteStream stream_;
  std::vector<char> raw_;
  std::uint64_t read_ = 0;
};

class CsvReader final : public RequestReader {
 public:
  CsvReader(ByteStream stream, const RequestFileOptions& options)
      : stream_(std::move(stream)), id_(options.id_column), size_(options.size_column) {
    look_at_header();
  }
  RequestFormat format() const override { return RequestFormat::csv; }
  bool has_sizes() const override { return size_ > 0; }
  bool has_next() const override { return false; }
  bool has_groups() const override { return false; }
  bool read(RequestBatch& batch, std::size_t most) override {
    batch.clear();
    std::string text;
    while (batch.object.size() < most && stream_.line(text)) {
      if (trimmed(text).empty() || text.front() == '#') continue;
      split(text);
      batch.object.push_back(object_of(cell(id_, "object id")));
      if (size_ > 0) batch.size.push_back(parse_size(cell(size_, "size")));
    }
    return !batch.object.empty();
  }

 private:
  void split(const std::string& text) {
    cells_.clear();
    std::size_t begin = 0;
    for (;;) {
      const std::size_t end = text.find(',', begin);
      std::string_view word =
          trimmed(std::string_view(text).substr(begin, end == std::string::npos ? end : end - begin));
      if (word.size() >= 2 && word.front() == '"' && word.back() == '"')
        word = word.substr(1, word.size() - 2);
      cells_.push_back(word);
      if (end == std::string::npos) return;
      begin = end + 1;
    }
  }
  std::string_view cell(std::uint32_t column, const char* what) const {
    if (column > cells_.size() || cells_[column - 1].empty()) {
      throw UserError("{}:{}: no {} in column {}", stream_.path(), stream_.line_number(), what, column);
    }
    return cells_[column - 1];
  }
  std::uint64_t parse_size(std::string_view word) const {
    std::int64_t value = 0;
    const auto result = std::from_chars(word.data(), word.data() + word.size(), value);
    if (result.ec != std::errc() || result.ptr != word.data() + word.size() || value < 0) {
      throw UserError("{}:{}: size '{}' does not fit, expected a whole number from 0", stream_.path(),
                      stream_.line_number(), word);
    }
    return static_cast<std::uint64_t>(value);
  }
  static bool is_number(std::string_view word) {
    double value = 0;
    const auto result = std::from_chars(word.data(), word.data() + word.size(), value);
    return result.ec == std::errc() && result.ptr == word.data() + word.size();
  }

  /// A first line without any number is a header, and is taken; its names choose the columns.
  void look_at_header() {
    const std::string start = stream_.peek(kLongestHeader);
    std::string text = start.substr(0, start.find('\n'));
    if (!text.empty() && text.back() == '\r') text.pop_back();
    split(text);
    const bool header = std::none_of(cells_.begin(), cells_.end(), is_number) && !text.empty();
    const std::size_t columns = cells_.size();
    if (header) {
      for (std::uint32_t c = 0; c < columns; ++c) {
        std::string name(cells_[c]);
        std::erase(name, '#');
        std::transform(name.begin(), name.end(), name.begin(),
                       [](unsigned char x) { return static_cast<char>(std::tolower(x)); });
        name = std::string(trimmed(name));
        if (id_ == 0 &&
            (name == "id" || name == "obj_id" || name == "object" || name == "object_id" || name == "key"))
          id_ = c + 1;
        if (size_ == 0 && (name == "size" || name == "obj_size" || name == "object_size" || name == "bytes"))
          size_ = c + 1;
      }
      if (id_ == 0) {
        throw UserError(
            "{}: no column named id, obj_id, object, object_id or key in the header '{}'; name it with "
            "--id-column",
            stream_.path(), text);
      }
      std::string taken;
      stream_.line(taken);
      return;
    }
    if (id_ == 0) {
      id_ = columns >= 3 ? 2 : 1;
      if (size_ == 0 && columns >= 2) size_ = id_ + 1;
    }
  }

  static constexpr std::size_t kLongestHeader = 4096;
  ByteStream stream_;
  std::uint32_t id_, size_;
  std::vector<std::string_view> cells_;
};

class PlainReader final : public RequestReader {
 public:
  explicit PlainReader(ByteStream stream) : stream_(std::move(stream)) {}
  RequestFormat format() const override { return RequestFormat::plain; }
  bool has_sizes() const override { return false; }
  bool has_next() const override { return false; }
  bool has_groups() const override { return false; }
  bool read(RequestBatch& batch, std::size_t most) override {
    batch.clear();
    std::string text;
    while (batch.object.size() < most && stream_.line(text)) {
      const std::string_view word = trimmed(text);
      if (word.empty()) continue;
      if (std::any_of(word.begin(), word.end(),
                      [](unsigned char c) { return std::isspace(c) != 0 || std::iscntrl(c) != 0; })) {
        throw UserError("{}:{}: expected one object id per line; name the format with --format",
                        stream_.path(), stream_.line_number());
      }
      batch.object.push_back(object_of(word));
    }
    return !batch.object.empty();
  }

 private:
  ByteStream stream_;
};

/// By content first, then by name.
RequestFormat recognise(ByteStream& stream) {
  const std::string start = stream.peek(512);
  if (start.starts_with('{')) return RequestFormat::mooncake;
  std::string path = stream.path();
  for (const char* ending : {".gz", ".zst", ".zstd"}) {
    if (path.ends_with(ending)) path.resize(path.size() - std::strlen(ending));
  }
  const bool text = std::all_of(start.begin(), start.end(),
                                [](unsigned char c) { return c >= 32 || std::isspace(c) != 0; });
  if (path.find("oracleGeneral") != std::string::npos || !text) return RequestFormat::oracle_general;
  return path.ends_with(".csv") || start.find(',') != std::string::npos ? RequestFormat::csv
                                                                        : RequestFormat::plain;
}

}  // namespace

void RequestBatch::clear() {
  object.clear();
  size.clear();
  next.clear();
  starts.clear();
}

RequestFormat parse_request_format(const std::string& name) {
  for (const auto& [format, text] : kFormats) {
    if (name == text) return format;
  }
  throw UserError("--format {} is unknown, expected auto, mooncake, oracleGeneral, csv or plain", name);
}

const char* to_text(RequestFormat format) {
  for (const auto& [known, text] : kFormats) {
    if (format == known) return text;
  }
  return "";
}

std::unique_ptr<RequestReader> open_requests(const std::string& path, const RequestFileOptions& options) {
  if (path != "-" && std::filesystem::is_directory(path))
    throw UserError("{}: is a folder, expected a file", path);
  ByteStream stream(path);
  const RequestFormat format =
      options.format == RequestFormat::automatic ? recognise(stream) : options.format;
  switch (format) {
    case RequestFormat::mooncake:
      return std::make_unique<MooncakeReader>(std::move(stream));
    case RequestFormat::oracle_general:
      return std::make_unique<OracleGeneralReader>(std::move(stream));
    case RequestFormat::csv:
      return std::make_unique<CsvReader>(std::move(stream), options);
    default:
      return std::make_unique<PlainReader>(std::move(stream));
  }
}

}  // namespace kvsim
