// The zip directory (APPNOTE 6.3.9, sections 4.3 and 4.5.3) and inflating.
#include "traces/convert/zip.h"

#include <zlib.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "kernels/error.h"

namespace kvsim::convert {
namespace {

constexpr std::uint32_t kLocal = 0x04034b50, kCentral = 0x02014b50, kEnd = 0x06054b50, kEnd64 = 0x06064b50,
                        kLocator64 = 0x07064b50;
constexpr std::uint64_t kFull16 = 0xFFFF, kFull32 = 0xFFFFFFFF;
constexpr std::uint64_t kEndSize = 22, kLocalSize = 30, kCentralSize = 46, kMaxComment = 65535;
constexpr std::uint64_t kMaxDirectory = std::uint64_t{1} << 28;
constexpr std::size_t kInput = std::size_t{1} << 18;

[[noreturn]] void damaged(const FileBytes& file, const std::string& what) {
  throw UserError("{}: is a damaged zip archive: {}", file.path(), what);
}

struct Directory {
  std::uint64_t offset = 0, size = 0, count = 0;
};

Directory find_directory(const FileBytes& file) {
  const std::uint64_t tail_size = std::min(file.size(), kEndSize + kMaxComment);
  const std::string tail = file.read_text(file.size() - tail_size, tail_size);
  std::size_t at = tail.rfind("PK\x05\x06");
  if (at == std::string::npos || tail.size() - at < kEndSize)
    damaged(file, "its directory is missing (truncated?)");
  Directory result{little_endian(tail, at + 16, 4), little_endian(tail, at + 12, 4),
                   little_endian(tail, at + 10, 2)};
  if (result.count != kFull16 && result.size != kFull32 && result.offset != kFull32) return result;
  if (at < 20 || little_endian(tail, at - 20, 4) != kLocator64) damaged(file, "the zip64 locator is missing");
  const std::string end64 = file.read_text(little_endian(tail, at - 20 + 8, 8), 56);
  if (little_endian(end64, 0, 4) != kEnd64) damaged(file, "the zip64 directory end is missing");
  return {little_endian(end64, 48, 8), little_endian(end64, 40, 8), little_endian(end64, 32, 8)};
}

/// Sizes and offset that do not fit 32 bits stand in the zip64 extra field, in this order, only those needed.
void apply_zip64(const FileBytes& file, const std::string& extra, ZipMember& member, std::uint64_t& local) {
  for (std::size_t at = 0; at + 4 <= extra.size();) {
    const std::uint64_t id = little_endian(extra, at, 2), size = little_endian(extra, at + 2, 2);
    at += 4;
    if (size > extra.size() - at) damaged(file, "an extra field runs out of its record");
    if (id == 1) {
      std::size_t next = at;
      for (std::uint64_t* field : {&member.size, &member.packed, &local}) {
        if (*field != kFull32) continue;
        if (next + 8 > at + size) damaged(file, "a zip64 field is too short");
        *field = little_endian(extra, next, 8);
        next += 8;
      }
    }
    at += size;
  }
}

void locate_data(const FileBytes& file, const std::string& name, std::uint64_t local, ZipMember& member) {
  const std::string header = file.read_text(local, kLocalSize);
  if (little_endian(header, 0, 4) != kLocal) damaged(file, name + " has no local header");
  member.data = local + kLocalSize + little_endian(header, 26, 2) + little_endian(header, 28, 2);
  if (member.data > file.size() || member.packed > file.size() - member.data)
    damaged(file, name + " runs out of the file");
  if (!member.deflated && member.packed != member.size) damaged(file, name + " is stored with two sizes");
}

/// Inflates a member piece by piece. Owns zlib's state.
class Inflater {
 public:
  Inflater(const FileBytes& file, std::string name, const ZipMember& member)
      : file_(file), name_(std::move(name)), member_(member) {
    if (member_.deflated && inflateInit2(&stream_, -MAX_WBITS) != Z_OK)
      throw InternalError("zlib cannot start");
  }
  Inflater(const Inflater&) = delete;
  Inflater& operator=(const Inflater&) = delete;
  ~Inflater() {
    if (member_.deflated) inflateEnd(&stream_);
  }

  void read(std::span<std::byte> out) {
    if (out.size() > member_.size - given_)
      damaged(file_, fmt::format("{} holds {} bytes, expected more", name_, member_.size));
    if (member_.deflated) {
      inflate_to(out);
    } else {
      file_.read(member_.data + given_, out);
    }
    for (std::size_t at = 0; at < out.size();) {  // zlib counts in 32 bits
      const std::size_t n = std::min<std::size_t>(out.size() - at, kInput);
      crc_ = ::crc32(crc_, reinterpret_cast<const Bytef*>(out.data() + at), static_cast<uInt>(n));
      at += n;
    }
    given_ += out.size();
    if (given_ == member_.size && crc_ != member_.crc) damaged(file_, name_ + " does not fit its checksum");
  }

 private:
  void inflate_to(std::span<std::byte> out) {
    while (!out.empty()) {
      if (stream_.avail_in == 0) refill();
      const auto want = static_cast<uInt>(std::min<std::size_t>(out.size(), kInput));
      stream_.next_out = reinterpret_cast<Bytef*>(out.data());
      stream_.avail_out = want;
      const int status = ::inflate(&stream_, Z_NO_FLUSH);
      const std::size_t got = want - stream_.avail_out;
      out = out.subspan(got);
      if (status != Z_OK && !(status == Z_STREAM_END && out.empty()))
        damaged(file_, name_ + " cannot be unpacked");
      if (got == 0 && stream_.avail_in > 0) damaged(file_, name_ + " cannot be unpacked");
    }
  }

  void refill() {
    const std::uint64_t n = std::min<std::uint64_t>(kInput, member_.packed - taken_);
    if (n == 0) damaged(file_, name_ + " ends early");
    input_.resize(n);
    file_.read(member_.data + taken_, input_);
    taken_ += n;
    stream_.next_in = reinterpret_cast<Bytef*>(input_.data());
    stream_.avail_in = static_cast<uInt>(n);
  }

  const FileBytes& file_;
  std::string name_;
  ZipMember member_;
  z_stream stream_{};
  std::vector<std::byte> input_;
  std::uint64_t taken_ = 0, given_ = 0;
  uLong crc_ = 0;
};

}  // namespace

std::map<std::string, ZipMember> read_zip_directory(const FileBytes& file) {
  const Directory directory = find_directory(file);
  if (directory.size > kMaxDirectory) damaged(file, "its directory is too large");
  const std::string text = file.read_text(directory.offset, directory.size);
  std::map<std::string, ZipMember> members;
  std::size_t at = 0;
  for (std::uint64_t i = 0; i < directory.count; ++i) {
    if (text.size() - at < kCentralSize || little_endian(text, at, 4) != kCentral)
      damaged(file, "its directory ends early");
    const std::uint64_t flags = little_endian(text, at + 8, 2), method = little_endian(text, at + 10, 2);
    const std::uint64_t name_size = little_endian(text, at + 28, 2),
                        extra_size = little_endian(text, at + 30, 2);
    const std::uint64_t record = kCentralSize + name_size + extra_size + little_endian(text, at + 32, 2);
    if (record > text.size() - at) damaged(file, "its directory ends early");
    const std::string name = text.substr(at + kCentralSize, name_size);
    ZipMember member;
    member.crc = static_cast<std::uint32_t>(little_endian(text, at + 16, 4));
    member.packed = little_endian(text, at + 20, 4);
    member.size = little_endian(text, at + 24, 4);
    member.deflated = method == 8;
    std::uint64_t local = little_endian(text, at + 42, 4);
    if ((flags & 1) != 0) throw UserError("{}: {} is encrypted", file.path(), name);
    if (method != 0 && method != 8)
      throw UserError("{}: {} is packed by method {}, expected stored or deflated", file.path(), name,
                      method);
    apply_zip64(file, text.substr(at + kCentralSize + name_size, extra_size), member, local);
    locate_data(file, name, local, member);
    if (!members.emplace(name, member).second) throw UserError("{}: holds {} twice", file.path(), name);
    at += record;
  }
  return members;
}

ByteReader open_member(const FileBytes& file, const std::string& name, const ZipMember& member) {
  // std::function wants something copyable; all copies share one position, as a stream has one.
  auto inflater = std::make_shared<Inflater>(file, name, member);
  return [inflater](std::span<std::byte> out) { inflater->read(out); };
}

}  // namespace kvsim::convert
