// Copying selected ranges of datasets.
#include "traces/copy.h"

#include <algorithm>

#include "kernels/error.h"

namespace kvsim {
namespace {

constexpr std::uint64_t kPiece = std::uint64_t{1} << 22;

/// Copies one rectangle piece by piece, splitting the first axis that is longer than one.
class RectangleCopy {
 public:
  RectangleCopy(const h5::Dataset& from, h5::Dataset& to, const ByteProgress& progress)
      : from_(from), to_(to), progress_(progress) {}

  void copy(h5::Shape source, h5::Shape target, h5::Shape count) {
    const std::uint64_t bytes = h5::element_count(count) * h5::size_of(from_.element());
    const auto longest = std::find_if(count.begin(), count.end(), [](std::uint64_t n) { return n > 1; });
    if (bytes <= kPiece || longest == count.end()) return copy_piece(source, target, count, bytes);
    const auto axis = static_cast<std::size_t>(longest - count.begin());
    const std::uint64_t length = count[axis], step = std::max<std::uint64_t>(1, kPiece / (bytes / length));
    for (std::uint64_t done = 0; done < length; done += step) {
      count[axis] = std::min(step, length - done);
      copy(source, target, count);
      source[axis] += count[axis];
      target[axis] += count[axis];
    }
  }

 private:
  void copy_piece(const h5::Shape& source, const h5::Shape& target, const h5::Shape& count,
                  std::uint64_t bytes) {
    buffer_.resize(bytes);
    from_.read_raw(source, count, buffer_);
    to_.write_raw(target, count, buffer_);
    if (progress_) progress_(bytes);
  }

  const h5::Dataset& from_;
  h5::Dataset& to_;
  const ByteProgress& progress_;
  std::vector<std::byte> buffer_;
};

/// The selection with every axis spelled out, checked against the dataset.
std::vector<Axis> complete(const h5::Dataset& from, std::vector<Axis> axes) {
  KVSIM_CHECK(axes.size() <= from.shape().size(), "{}: {} axes", from.where(), axes.size());
  axes.resize(from.shape().size());
  for (std::size_t i = 0; i < axes.size(); ++i) {
    if (axes[i].ranges.empty()) axes[i] = Axis::first(from.shape()[i]);
    for (const auto& [begin, end] : axes[i].ranges) {
      if (begin > end || end > from.shape()[i]) {
        throw UserError("{}: found the shape {}, expected at least {} along axis {}", from.where(),
                        h5::describe_shape(from.shape()), end, i);
      }
    }
  }
  return axes;
}

std::uint64_t length(const Axis& axis) {
  std::uint64_t total = 0;
  for (const auto& [begin, end] : axis.ranges) total += end - begin;
  return total;
}

/// Every combination of one range per axis is a rectangle.
void copy_rectangles(RectangleCopy& copier, const std::vector<Axis>& axes, h5::Shape& source,
                     h5::Shape& target, h5::Shape& count) {
  const std::size_t axis = source.size();
  if (axis == axes.size()) return copier.copy(source, target, count);
  std::uint64_t at = 0;
  for (const auto& [begin, end] : axes[axis].ranges) {
    source.push_back(begin);
    target.push_back(at);
    count.push_back(end - begin);
    copy_rectangles(copier, axes, source, target, count);
    source.pop_back();
    target.pop_back();
    count.pop_back();
    at += end - begin;
  }
}

void copy_strings(const h5::Dataset& from, h5::Group& to, const std::string& path,
                  const std::vector<Axis>& axes) {
  const std::vector<std::string> all = from.read_strings();
  if (axes.size() != 1)
    throw UserError("{}: found strings in {} dimensions, expected one", from.where(), axes.size());
  std::vector<std::string> kept;
  for (const auto& [begin, end] : axes[0].ranges) {
    for (std::uint64_t i = begin; i < end; ++i) kept.push_back(all[i]);
  }
  to.write_column(path, kept);
}

}  // namespace

Axis Axis::of(const std::vector<std::uint32_t>& indices, std::uint64_t width) {
  Axis axis;
  for (const std::uint32_t index : indices) {
    const std::uint64_t begin = index * width;
    if (!axis.ranges.empty() && axis.ranges.back().second == begin) {
      axis.ranges.back().second += width;
    } else {
      axis.ranges.emplace_back(begin, begin + width);
    }
  }
  return axis;
}

void copy_dataset(const h5::Dataset& from, h5::Group& to, const std::string& path,
                  const std::vector<Axis>& axes, const ByteProgress& progress) {
  const std::vector<Axis> selection = complete(from, axes);
  if (from.element() == h5::Element::string) return copy_strings(from, to, path, selection);
  if (!h5::is_numeric(from.element())) {
    throw UserError("{}: found {}, expected numbers or strings", from.where(), from.describe_type());
  }
  from.check_backed();
  h5::Shape shape;
  for (const Axis& axis : selection) shape.push_back(length(axis));
  h5::Dataset target = to.create_dataset(path, from.element(), shape);
  RectangleCopy copier(from, target, progress);
  h5::Shape source, destination, count;
  copy_rectangles(copier, selection, source, destination, count);
}

TraceHeader header_of(const h5::File& file, const TraceInfo& info) {
  TraceHeader header;
  header.model = info.model;
  header.recorder = info.recorder;
  header.created = info.created;
  header.source = info.source;
  header.weights = info.weights;
  header.num_layers = info.num_layers;
  header.num_query_heads = info.num_query_heads;
  header.num_kv_heads = info.num_kv_heads;
  header.head_dim = info.head_dim;
  header.value_dim = info.value_dim;
  header.prompt_len = info.prompt_len;
  header.decode_len = info.decode_len;
  header.rope_layout = info.rope_layout;
  header.softmax_scale = file.float_attribute("softmax_scale");
  if (file.has_attribute("logit_softcap")) header.logit_softcap = file.float_attribute("logit_softcap");
  if (file.has_attribute("attention_scaling"))
    header.attention_scaling = file.float_attribute("attention_scaling");
  return header;
}

}  // namespace kvsim
