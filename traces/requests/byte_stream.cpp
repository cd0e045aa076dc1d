// Opening request files: plain, gzip and zstd by their first bytes, through Boost.Iostreams.
#include "traces/requests/byte_stream.h"

#include <algorithm>
#include <boost/iostreams/categories.hpp>
#include <boost/iostreams/filter/gzip.hpp>
#include <boost/iostreams/filter/zstd.hpp>
#include <boost/iostreams/filtering_streambuf.hpp>
#include <cstring>
#include <fstream>
#include <iostream>

#include "kernels/error.h"

namespace kvsim {
namespace io = boost::iostreams;
namespace {

constexpr std::size_t kBufferBytes = 1u << 18;

/// A device that gives bytes read ahead first and then those of a stream, so that standard input can be
/// looked at too.
class PrefixedSource {
 public:
  using char_type = char;
  using category = io::source_tag;
  PrefixedSource(std::string prefix, std::istream* rest) : prefix_(std::move(prefix)), rest_(rest) {}
  std::streamsize read(char* out, std::streamsize size) {
    if (at_ < prefix_.size()) {
      const std::size_t n = std::min(prefix_.size() - at_, static_cast<std::size_t>(size));
      std::memcpy(out, prefix_.data() + at_, n);
      at_ += n;
      return static_cast<std::streamsize>(n);
    }
    rest_->read(out, size);
    return rest_->gcount() > 0 ? rest_->gcount() : -1;
  }

 private:
  std::string prefix_;
  std::istream* rest_;
  std::size_t at_ = 0;
};

}  // namespace

struct ByteStream::Impl {
  std::ifstream file;
  io::filtering_streambuf<io::input> chain;
};

ByteStream::ByteStream(const std::string& path)
    : path_(path == "-" ? "standard input" : path), impl_(std::make_unique<Impl>()) {
  std::istream* raw = &std::cin;
  if (path != "-") {
    impl_->file.open(path, std::ios::binary);
    if (!impl_->file) throw UserError("{}: cannot be opened: {}", path, std::strerror(errno));
    raw = &impl_->file;
  }
  std::string magic(4, '\0');
  raw->read(magic.data(), 4);
  magic.resize(static_cast<std::size_t>(raw->gcount()));
  if (path != "-" && raw->bad()) throw UserError("{}: cannot be read, is it a folder?", path);
  raw->clear();
  if (magic.starts_with("\x1f\x8b")) {
    compression_ = "gzip";
    impl_->chain.push(io::gzip_decompressor());
  } else if (magic == "\x28\xb5\x2f\xfd") {
    compression_ = "zstd";
    impl_->chain.push(io::zstd_decompressor());
  }
  impl_->chain.push(PrefixedSource(std::move(magic), raw), kBufferBytes);
}

ByteStream::ByteStream(ByteStream&&) noexcept = default;
ByteStream& ByteStream::operator=(ByteStream&&) noexcept = default;
ByteStream::~ByteStream() = default;

bool ByteStream::fill() {
  buffer_.erase(0, at_);
  at_ = 0;
  const std::size_t held = buffer_.size();
  buffer_.resize(held + kBufferBytes);
  std::streamsize got = 0;
  try {
    got = impl_->chain.sgetn(buffer_.data() + held, static_cast<std::streamsize>(kBufferBytes));
  } catch (const std::exception& e) {
    throw UserError("{}: damaged or cut off {} data ({}); fetch the file again", path_, compression_,
                    e.what());
  }
  buffer_.resize(held + static_cast<std::size_t>(std::max<std::streamsize>(0, got)));
  return got > 0;
}

std::size_t ByteStream::read(char* out, std::size_t size) {
  std::size_t done = 0;
  while (done < size) {
    if (at_ == buffer_.size() && !fill()) break;
    const std::size_t n = std::min(size - done, buffer_.size() - at_);
    std::memcpy(out + done, buffer_.data() + at_, n);
    at_ += n;
    done += n;
  }
  return done;
}

bool ByteStream::line(std::string& out) {
  std::size_t searched = at_;
  for (;;) {
    const std::size_t end = buffer_.find('\n', searched);
    if (end != std::string::npos) {
      out.assign(buffer_, at_, end - at_);
      at_ = end + 1;
      break;
    }
    searched = buffer_.size() - at_;
    if (!fill()) {
      if (at_ == buffer_.size()) return false;
      out.assign(buffer_, at_, std::string::npos);
      at_ = buffer_.size();
      break;
    }
  }
  if (!out.empty() && out.back() == '\r') out.pop_back();
  ++line_number_;
  return true;
}

std::string ByteStream::peek(std::size_t size) {
  while (buffer_.size() - at_ < size && fill()) {
  }
  return buffer_.substr(at_, size);
}

}  // namespace kvsim
