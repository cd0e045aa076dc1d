// Request traces from files: Mooncake's JSON lines, libCacheSim's oracleGeneral, csv and plain text.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace kvsim {

/// Consecutive requests as a file names them.
struct RequestBatch {
  std::vector<std::uint64_t> object;
  std::vector<std::uint64_t> size;  // same length, or empty: the file has no sizes
  std::vector<std::uint64_t>
      next;  // same length, or empty; index of the object's next request, kNoNextRequest = never
  std::vector<std::uint32_t> starts;  // where groups begin; empty: the file has no groups
  void clear();
};
inline constexpr std::uint64_t kNoNextRequest = ~0ull;

enum class RequestFormat : std::uint8_t { automatic, mooncake, oracle_general, csv, plain };
/// Throws UserError naming the formats.
RequestFormat parse_request_format(const std::string& name);
const char* to_text(RequestFormat format);

/// How a file is to be read where it does not say so itself.
struct RequestFileOptions {
  RequestFormat format = RequestFormat::automatic;
  /// csv: columns from 1; 0 = by the header's names, else 1 column: id, 2: id and size, more: time, id, size.
  std::uint32_t id_column = 0, size_column = 0;
};

class RequestReader {
 public:
  virtual ~RequestReader() = default;
  /// Replaces `batch` by about `most` further requests (whole groups); false when there are none.
  virtual bool read(RequestBatch& batch, std::size_t most) = 0;
  virtual RequestFormat format() const = 0;
  virtual bool has_sizes() const = 0;
  virtual bool has_next() const = 0;
  /// Groups are requests that ask for several blocks, a prefix of a conversation each.
  virtual bool has_groups() const = 0;
};

/// "-" is standard input; gzip and zstd are recognised by their first bytes. Malformed content is a UserError
/// with the line or record, when it is reached.
std::unique_ptr<RequestReader> open_requests(const std::string& path, const RequestFileOptions& options);

}  // namespace kvsim
