// One KV head on a GPU as the curve kernels read it, made by plain kernels of its own, for cuda_curve_bench.
#pragma once

#include <cublas_v2.h>

#include <algorithm>
#include <functional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "kernels/cuda/curve.h"
#include "kernels/cuda/raii.h"
#include "tests/kernels/peaky_head.h"

namespace kvsim {

/// Device memory.
template <typename T>
class OnGpu {
 public:
  OnGpu() = default;
  explicit OnGpu(std::size_t size) : size_(size) {
    cuda::check(cudaMalloc(&data_, std::max<std::size_t>(size, 1) * sizeof(T)), "cudaMalloc");
  }
  explicit OnGpu(const std::vector<T>& from) : OnGpu(from.data(), from.size()) {}
  OnGpu(const T* from, std::size_t size) : OnGpu(size) {
    cuda::check(cudaMemcpy(data_, from, size * sizeof(T), cudaMemcpyHostToDevice), "cudaMemcpy to the device");
  }
  ~OnGpu() { cudaFree(data_); }
  OnGpu(OnGpu&& other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(other.size_) {}
  OnGpu& operator=(OnGpu&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  T* get() const { return data_; }
  std::vector<T> host() const {
    std::vector<T> out(size_);
    cuda::check(cudaMemcpy(out.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost), "cudaMemcpy from the device");
    return out;
  }
  /// Sets all bits: NaN where they are floats.
  void poison() { cuda::check(cudaMemset(data_, 0xff, size_ * sizeof(T)), "cudaMemset"); }

 private:
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

inline double median_ms(const cuda::Stream& stream, int repeats, const std::function<void()>& work) {
  std::vector<float> times;
  cudaEvent_t begin{}, end{};
  cuda::check(cudaEventCreate(&begin), "cudaEventCreate");
  cuda::check(cudaEventCreate(&end), "cudaEventCreate");
  for (int i = 0; i < repeats + 3; ++i) {
    cuda::check(cudaEventRecord(begin, stream.get()), "cudaEventRecord");
    work();
    cuda::check(cudaEventRecord(end, stream.get()), "cudaEventRecord");
    cuda::check(cudaEventSynchronize(end), "cudaEventSynchronize");
    float ms = 0;
    cuda::check(cudaEventElapsedTime(&ms, begin, end), "cudaEventElapsedTime");
    if (i >= 3) times.push_back(ms);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  std::sort(times.begin(), times.end());
  return static_cast<double>(times[times.size() / 2]);
}

/// Logits to weights in place, one thread per row; rows beyond the last weigh 0.
static __global__ void softmax_kernel(float* weights, __nv_bfloat16* high, __nv_bfloat16* low, cuda::Sizes size, int steps) {
  const int row = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (row >= size.stride) return;
  const int seen = row < size.rows ? size.prompt + row % steps + 1 : 0;
  const std::size_t stride = static_cast<std::size_t>(size.stride);
  float most = -INFINITY;
#pragma unroll 8
  for (int t = 0; t < seen; ++t) most = fmaxf(most, weights[t * stride + row]);
  double sum = 0;
#pragma unroll 8
  for (int t = 0; t < seen; ++t) sum += static_cast<double>(expf(weights[t * stride + row] - most));
#pragma unroll 8
  for (int t = 0; t < size.tokens; ++t) {
    const float w = t < seen ? static_cast<float>(static_cast<double>(expf(weights[t * stride + row] - most)) / sum) : 0.0f;
    weights[t * stride + row] = w;
    if (t < size.prompt) {
      high[t * stride + row] = __float2bfloat16_rn(w);
      low[t * stride + row] = __float2bfloat16_rn(w - __bfloat162float(high[t * stride + row]));
    }
  }
}

/// One block per row, one thread per channel.
static __global__ void outputs_kernel(const float* weights, const float* values, cuda::Sizes size, float* exact, float* tail,
                                      float* tail_weight, double* norm) {
  const int row = static_cast<int>(blockIdx.x), c = static_cast<int>(threadIdx.x);
  __shared__ double squares[256];
  double sum = 0, last = 0, last_weight = 0;
  for (int t = 0; t < size.tokens; ++t) {
    const auto w = static_cast<double>(weights[static_cast<std::size_t>(t) * size.stride + row]);
    const double term = w * static_cast<double>(values[static_cast<std::size_t>(t) * size.value_dim + c]);
    sum += term;
    if (t >= size.prompt) {
      last += term;
      last_weight += w;
    }
  }
  exact[static_cast<std::size_t>(row) * size.value_dim + c] = static_cast<float>(sum);
  tail[static_cast<std::size_t>(row) * size.value_dim + c] = static_cast<float>(last);
  squares[c] = sum * sum;
  __syncthreads();
  if (c != 0) return;
  tail_weight[row] = static_cast<float>(last_weight);
  double total = 0;
  for (int i = 0; i < size.value_dim; ++i) total += squares[i];
  norm[row] = total;
}

struct CurveHead {
  CurveHead(const PeakyShape& shape, bool split_values, const cuda::Stream& stream)
      : host(shape),
        stride(cuda::row_stride(host.rows())),
        weights(host.tokens() * stride),
        values(host.values.data(), host.tokens() * shape.value_dim),
        exact(host.rows() * shape.value_dim),
        tail(host.rows() * shape.value_dim),
        tail_weight(stride),
        norm(stride),
        high(shape.prompt * stride),
        low(shape.prompt * stride) {
    size.prompt = static_cast<int>(shape.prompt);
    size.tokens = static_cast<int>(host.tokens());
    size.rows = static_cast<int>(host.rows());
    size.stride = static_cast<int>(stride);
    size.value_dim = static_cast<int>(shape.value_dim);
    result_stride = (size.rows + 31) / 32 * 32;
    multiply(OnGpu<float>(host.queries.data(), host.rows() * shape.head_dim),
             OnGpu<float>(host.keys.data(), host.tokens() * shape.head_dim), stream);
    softmax_kernel<<<(size.stride + 31) / 32, 32, 0, stream.get()>>>(weights.get(), high.get(), low.get(), size,
                                                                     static_cast<int>(shape.steps));
    outputs_kernel<<<size.rows, size.value_dim, 0, stream.get()>>>(weights.get(), values.get(), size, exact.get(), tail.get(),
                                                                   tail_weight.get(), norm.get());
    cuda::check(cudaGetLastError(), "outputs_kernel");
    stream.wait();
    split(split_values);
  }
  int rows() const { return size.rows; }

  PeakyHead host;
  cuda::Sizes size;
  std::size_t stride;
  int result_stride = 0;
  OnGpu<float> weights, values, exact, tail, tail_weight;
  OnGpu<double> norm;
  OnGpu<__nv_bfloat16> high, low, value_high, value_low;  // value_low: empty where values are bfloat16

 private:
  /// weights[token][row] = q . k / sqrt(d)
  void multiply(const OnGpu<float>& queries, const OnGpu<float>& keys, const cuda::Stream& stream) {
    cublasHandle_t handle = nullptr;
    const float scale = static_cast<float>(host.rule.scale), zero = 0.0f;
    const int d = static_cast<int>(host.shape.head_dim);
    bool good = cublasCreate(&handle) == CUBLAS_STATUS_SUCCESS && cublasSetStream(handle, stream.get()) == CUBLAS_STATUS_SUCCESS;
    good = good && cublasSgemm(handle, CUBLAS_OP_T, CUBLAS_OP_N, size.rows, size.tokens, d, &scale, queries.get(), d, keys.get(), d, &zero,
                               weights.get(), size.stride) == CUBLAS_STATUS_SUCCESS;
    stream.wait();
    cublasDestroy(handle);
    if (!good) throw std::runtime_error("cuBLAS: logits");
  }
  void split(bool low_too) {
    const auto padded = static_cast<std::size_t>(cuda::padded_value_dim(size.value_dim)), dv = host.shape.value_dim;
    std::vector<__nv_bfloat16> first(host.shape.prompt * padded, __float2bfloat16(0.0f)), second = first;
    for (std::size_t t = 0; t < host.shape.prompt; ++t)
      for (std::size_t c = 0; c < dv; ++c) {
        first[t * padded + c] = __float2bfloat16_rn(host.values(t, c));
        second[t * padded + c] = __float2bfloat16_rn(host.values(t, c) - __bfloat162float(first[t * padded + c]));
      }
    value_high = OnGpu<__nv_bfloat16>(first);
    if (low_too) value_low = OnGpu<__nv_bfloat16>(second);
  }
};

/// Rankings, on the host and as the kernels read them.
class RankingSet {
 public:
  void add(std::vector<TokenIndex> order, const std::vector<std::uint32_t>& counts, int row_begin, int row_end) {
    items.push_back({std::move(order), counts, row_begin, row_end});
  }
  /// On the device; nothing may be added afterwards.
  const cuda::RankingOnDevice* put() {
    if (rankings_.get() != nullptr) return rankings_.get();
    std::vector<std::uint32_t> orders;
    std::vector<cuda::CurveStep> steps;
    std::vector<std::size_t> order_at, step_at;
    for (const Item& item : items) {
      order_at.push_back(orders.size());
      step_at.push_back(steps.size());
      orders.insert(orders.end(), item.order.begin(), item.order.end());
      cuda::append_steps(item.counts, steps);
    }
    step_at.push_back(steps.size());
    orders_ = OnGpu<std::uint32_t>(orders);
    steps_ = OnGpu<cuda::CurveStep>(steps);
    std::vector<cuda::RankingOnDevice> on_device;
    for (std::size_t r = 0; r < items.size(); ++r)
      on_device.push_back({orders_.get() + order_at[r], steps_.get() + step_at[r], static_cast<std::uint32_t>(step_at[r + 1] - step_at[r]),
                           static_cast<std::uint32_t>(items[r].order.size()), static_cast<std::uint32_t>(items[r].row_begin),
                           static_cast<std::uint32_t>(items[r].row_end)});
    rankings_ = OnGpu<cuda::RankingOnDevice>(on_device);
    return rankings_.get();
  }
  int most_rows() const {
    int most = 0;
    for (const Item& item : items) most = std::max(most, item.row_end - item.row_begin);
    return most;
  }

  struct Item {
    std::vector<TokenIndex> order;
    std::vector<std::uint32_t> counts;
    int row_begin, row_end;
  };
  std::vector<Item> items;

 private:
  OnGpu<std::uint32_t> orders_;
  OnGpu<cuda::CurveStep> steps_;
  OnGpu<cuda::RankingOnDevice> rankings_;
};

/// A call of the curve kernels and where its results go: NaN before it.
struct CurveRun {
  CurveRun(const CurveHead& head, RankingSet& rankings, bool deltas)
      : counts(rankings.items[0].counts.size()),
        cells(rankings.items.size() * counts * static_cast<std::size_t>(head.result_stride)),
        error(cells),
        recall(cells) {
    if (deltas) delta = OnGpu<float>(cells * head.host.shape.value_dim);
    for (OnGpu<float>* of : {&error, &recall, &delta}) of->poison();
    call = {rankings.put(),       head.high.get(),    head.low.get(),      head.value_high.get(),
            head.value_low.get(), head.exact.get(),   head.tail.get(),     head.tail_weight.get(),
            head.norm.get(),      error.get(),        recall.get(),        delta.get(),
            head.size.stride,     head.result_stride, head.size.value_dim, static_cast<int>(counts)};
  }
  std::size_t counts, cells;
  OnGpu<float> error, recall, delta;
  cuda::CurveCall call{};
};

}  // namespace kvsim
