// Opening of GPUs, and how much memory they need.
#include "kernels/cuda/device.h"

#include <algorithm>

#include "kernels/cuda/curve.h"
#include "kernels/cuda/head.h"
#include "kernels/error.h"

namespace kvsim::cuda {
namespace {

class CudaDevice final : public Device {
 public:
  CudaDevice(int index, std::size_t memory, std::string name)
      : context_(index, memory), name_(std::move(name)) {}
  ~CudaDevice() override { cudaSetDevice(context_.index); }

  std::unique_ptr<DeviceHead> load(const HeadInput& head) override;
  std::size_t head_bytes(const DeviceShape& shape) const override { return CudaHead::bytes(shape); }
  std::size_t work_bytes(const DeviceShape& shape) const override;
  /// Rows are blocks of a grid; values lie in the registers of one block.
  DeviceLimits limits() const override { return {65535, 256}; }
  std::size_t memory() const override { return context_.pool.limit(); }
  std::string name() const override { return name_; }
  Timing timing() const;

 private:
  Context context_;
  std::string name_;
};

std::unique_ptr<DeviceHead> CudaDevice::load(const HeadInput& head) {
  KVSIM_CHECK(head.prompt > 0 && head.prompt <= head.keys.rows, "prompt of {} in {} tokens", head.prompt,
              head.keys.rows);
  KVSIM_CHECK(head.values.rows == head.keys.rows && head.queries.cols == head.keys.cols &&
                  head.position.size() == head.queries.rows,
              "{} values, {} keys, {} queries, {} positions", head.values.rows, head.keys.rows,
              head.queries.rows, head.position.size());
  KVSIM_CHECK(head.queries.rows > 0 && head.queries.rows <= limits().rows, "{} rows", head.queries.rows);
  KVSIM_CHECK(head.values.cols > 0 && head.values.cols <= limits().value_dim, "values of {} numbers",
              head.values.cols);
  const OnDevice on(context_.index);
  return std::make_unique<CudaHead>(context_, head);
}

Timing CudaDevice::timing() const {
  const OnDevice on(context_.index);
  context_.stream.wait();
  context_.downloads.wait();
  const Context& c = context_;
  return {c.unpacked.since(c.load_start), c.attended_keys.since(c.unpacked), c.summed.since(c.attended_keys),
          c.ranked.since(c.summed),       c.counted.since(c.measure_start),  c.curved.since(c.counted),
          c.downloaded.since(c.curved)};
}

/// Adds up arrays as the pool counts them.
class Bytes {
 public:
  Bytes& add(std::size_t count, std::size_t each) {
    sum_ += Pool::rounded(count * each);
    return *this;
  }
  std::size_t sum() const { return sum_; }

 private:
  std::size_t sum_ = 0;
};

void add_softmax(Bytes& bytes, std::size_t rows, std::size_t tokens) {
  const std::size_t stride = padded(tokens, kTokenPad), slices = rows * (stride / kSoftmaxSlice);
  bytes.add(rows * stride, sizeof(float))
      .add(slices, sizeof(int))
      .add(slices, sizeof(double))
      .add(rows, sizeof(int))
      .add(rows, sizeof(double));
}

std::size_t pad_of_values(const DeviceShape& shape) {
  return static_cast<std::size_t>(padded_value_dim(static_cast<int>(shape.value_dim)));
}

}  // namespace

std::size_t CudaHead::bytes(const DeviceShape& shape) {
  const std::size_t tokens = shape.prompt + shape.decode, stride = row_stride(shape.rows),
                    value_pad = pad_of_values(shape);
  Bytes bytes;
  bytes.add(tokens * padded(shape.key_dim, kKeyPad), sizeof(float))
      .add(tokens * value_pad, sizeof(float))
      .add(tokens * stride, sizeof(float));
  bytes.add(shape.rows * shape.value_dim, sizeof(float))
      .add(shape.rows * shape.value_dim, sizeof(float))
      .add(stride, sizeof(float));
  bytes.add(stride, sizeof(double));
  bytes.add(shape.prompt * stride, sizeof(__nv_bfloat16)).add(shape.prompt * stride, sizeof(__nv_bfloat16));
  bytes.add(shape.prompt * value_pad, sizeof(__nv_bfloat16))
      .add(shape.prompt * value_pad, sizeof(__nv_bfloat16));
  bytes.add(shape.rows * padded(shape.prompt, kTokenPad), shape.prompt > kNarrowRanks ? 4 : 2);
  bytes.add(kFractions * stride, sizeof(std::uint32_t)).add(kFractions * stride, sizeof(std::uint32_t));
  return bytes.sum();
}

std::size_t CudaDevice::work_bytes(const DeviceShape& shape) const {
  const OnDevice on(context_.index);
  const std::size_t tokens = shape.prompt + shape.decode, stride = row_stride(shape.rows),
                    value_pad = pad_of_values(shape);
  Bytes bytes;
  for (std::size_t i = 0; i < context_.shipments.size();
       ++i)  // as floats: a matrix may not fit the stored type
    bytes.add(tokens * shape.key_dim, sizeof(float))
        .add(tokens * shape.value_dim, sizeof(float))
        .add(shape.rows * shape.key_dim, sizeof(float));
  const std::size_t queries = std::max(shape.rows, shape.attended_rows);
  bytes.add(queries * padded(shape.key_dim, kKeyPad), sizeof(float)).add(queries, sizeof(std::uint32_t));
  bytes.add(output_chunks(shape.prompt, tokens) * shape.rows * value_pad, sizeof(double));
  add_softmax(bytes, queries, tokens);
  const std::size_t sorted = long_rank_rows(shape.rows, tokens);
  if (sorted > 0) bytes.add(long_rank_bytes(sorted, tokens), 1);
  if (shape.attended_rows > 0) bytes.add(shape.prompt * row_stride(shape.attended_rows), sizeof(float));
  bytes.add(std::max<std::size_t>(shape.attended_sums, 1) * shape.prompt, sizeof(double));
  if (shape.rankings == 0) return bytes.sum();
  const std::size_t cells = shape.rankings * shape.counts * padded(shape.rows, kResultPad),
                    line = padded(shape.prompt, kTokenPad);
  const std::size_t lone =
      std::min<std::size_t>(shape.rankings, kLoneGroups);  // every ranking may have counts of its own
  bytes.add(std::max<std::size_t>(kLoneGroups, segment_lines(shape.rankings)) * line, 1)
      .add(lone * shape.rows * line, 1);
  bytes.add(cells, 2 * sizeof(float)).add(cells, (1 + kFractions) * sizeof(std::uint32_t));
  if (shape.deltas) bytes.add(cells * shape.value_dim, sizeof(float));
  Sizes size;  // what own_order asks for
  size.prompt = static_cast<int>(shape.prompt);
  size.tokens = static_cast<int>(tokens);
  size.rows = static_cast<int>(shape.rows);
  size.stride = static_cast<int>(stride);
  size.rank_stride = static_cast<int>(line);
  size.value_dim = static_cast<int>(shape.value_dim);
  size.value_pad = static_cast<int>(value_pad);
  bytes.add(own_order_bytes(size, shape.counts, static_cast<std::uint32_t>(shape.prompt)), 1);
  // Orders, steps, counts, descriptions; a count for every row under a sliding window.
  const std::size_t limits_of_rows = shape.row_limits ? shape.counts * stride : 0;
  bytes.add(shape.rankings * (shape.prompt * 5 / 4 + 4 * shape.counts + 32 + limits_of_rows),
            sizeof(std::uint32_t));
  return bytes.sum();
}

std::vector<DeviceInfo> devices() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();  // no driver, or no GPU: not an error of the caller
    return {};
  }
  std::vector<DeviceInfo> out;
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp property{};
    check(cudaGetDeviceProperties(&property, i), "cudaGetDeviceProperties");
    out.push_back({property.name, property.major, property.minor, property.multiProcessorCount,
                   property.totalGlobalMem});
  }
  return out;
}

std::size_t free_memory(int index) {
  const OnDevice on(index);
  std::size_t free = 0, all = 0;
  check(cudaMemGetInfo(&free, &all), "cudaMemGetInfo");
  return free;
}

std::unique_ptr<Device> open_device(int index, std::size_t memory_bytes) {
  const std::size_t free = free_memory(index);
  const OnDevice on(index);
  cudaDeviceProp property{};
  check(cudaGetDeviceProperties(&property, index), "cudaGetDeviceProperties");
  const std::string name = "cuda:" + std::to_string(index) + " " + property.name + " (sm_" +
                           std::to_string(property.major) + std::to_string(property.minor) + ")";
  return std::make_unique<CudaDevice>(index, memory_bytes == 0 ? free : std::min(memory_bytes, free), name);
}

Timing timing_of(Device& device) {
  const auto* const ours = dynamic_cast<const CudaDevice*>(&device);
  KVSIM_CHECK(ours != nullptr, "timing of {}", device.name());
  return ours->timing();
}

}  // namespace kvsim::cuda
