// Loading of a KV head, and everything but its curves.
#include "kernels/cuda/head.h"

#include <algorithm>

#include "kernels/error.h"

namespace kvsim::cuda {
namespace {

Sizes sizes_of(std::size_t prompt, std::size_t tokens, std::size_t rows, std::size_t key_dim,
               std::size_t value_dim) {
  Sizes size;
  size.prompt = static_cast<int>(prompt);
  size.tokens = static_cast<int>(tokens);
  size.rows = static_cast<int>(rows);
  size.stride = static_cast<int>(row_stride(rows));
  size.key_dim = static_cast<int>(padded(key_dim, kKeyPad));
  size.value_dim = static_cast<int>(value_dim);
  size.value_pad = padded_value_dim(size.value_dim);
  size.token_stride = static_cast<int>(padded(tokens, kTokenPad));
  size.rank_stride = static_cast<int>(padded(prompt, kTokenPad));
  return size;
}

std::size_t in_elements(int a, int b) { return static_cast<std::size_t>(a) * static_cast<std::size_t>(b); }

}  // namespace

Softmax SoftmaxSpace::fit(const Sizes& size) {
  const std::size_t slices = in_elements(size.rows, size.token_stride / kSoftmaxSlice);
  const auto rows = static_cast<std::size_t>(size.rows);
  return {part.fit(in_elements(size.rows, size.token_stride)), exponent.fit(slices), slice_sum.fit(slices),
          most.fit(rows), inverse.fit(rows)};
}

CudaHead::CudaHead(Context& context, const HeadInput& head)
    : context_(context),
      size_(sizes_of(head.prompt, head.keys.rows, head.queries.rows, head.keys.cols, head.values.cols)),
      rule_{head.rule.scale, head.rule.softcap, head.rule.window},
      stored_(head.stored),
      ranked_(head.ranks),
      keys_(context.pool, in_elements(size_.tokens, size_.key_dim)),
      values_(context.pool, in_elements(size_.tokens, size_.value_pad)),
      weights_(context.pool, in_elements(size_.tokens, size_.stride)),
      exact_(context.pool, in_elements(size_.rows, size_.value_dim)),
      tail_(context.pool, in_elements(size_.rows, size_.value_dim)),
      tail_weight_(context.pool, static_cast<std::size_t>(size_.stride)),
      norm_(context.pool, static_cast<std::size_t>(size_.stride)),
      high_(context.pool),
      low_(context.pool),
      value_high_(context.pool),
      value_low_(context.pool),
      ranks_(context.pool),
      needed_total_(context.pool),
      needed_prompt_(context.pool) {
  if (ranked_) {
    high_.fit(in_elements(size_.prompt, size_.stride));
    low_.fit(in_elements(size_.prompt, size_.stride));
    value_high_.fit(in_elements(size_.prompt, size_.value_pad));
    ranks_.fit(in_elements(size_.rows, size_.rank_stride) * (wide() ? 4 : 2));
    needed_total_.fit(in_elements(kFractions, size_.stride));
    needed_prompt_.fit(in_elements(kFractions, size_.stride));
  }
  try {
    context_.load_start.record(context_.stream);
    unpack(head);
    context_.unpacked.record(context_.stream);
    compute_exact();
    if (ranked_) compute_ranks();
    context_.ranked.record(context_.stream);
  } catch (const DeviceError&) {  // what is on its way must not meet the next load
    cudaStreamSynchronize(context_.uploads.get());
    cudaStreamSynchronize(context_.stream.get());
    throw;
  }
}

CudaHead::~CudaHead() { cudaSetDevice(context_.index); }

void CudaHead::unpack(const HeadInput& head) {
  Context& c = context_;
  Shipment& shipment = c.shipments[c.loads++ % c.shipments.size()];
  shipment.unpacked.wait();  // what it carried before
  const auto send = [&](Parcel& parcel, MatrixView<const float> from) {
    parcel.type = pack(from, stored_, parcel.packed);
    const std::size_t bytes = from.rows * from.cols * size_of(parcel.type);
    const bool grows = bytes > parcel.raw.size();
    parcel.raw.fit(bytes);
    if (grows) c.stream.wait();  // memory is handed out in the order of that stream
    upload(parcel.raw.get(), parcel.packed.get(), bytes, c.uploads);
  };
  send(shipment.keys, head.keys);
  send(shipment.queries, head.queries);
  send(shipment.values, head.values);
  std::copy(head.position.begin(), head.position.end(), shipment.position.fit(head.position.size()));
  shipment.copied.record(c.uploads);
  shipment.copied.hold(c.stream);
  const auto widen = [&](const Parcel& parcel, MatrixView<const float> of, int padded_cols, float* to) {
    launch_widen(parcel.raw.get(), parcel.type, of.rows, static_cast<int>(of.cols), padded_cols, to,
                 c.stream.get());
  };
  widen(shipment.keys, head.keys, size_.key_dim, keys_.get());
  widen(shipment.queries, head.queries, size_.key_dim, c.queries.fit(in_elements(size_.rows, size_.key_dim)));
  widen(shipment.values, head.values, size_.value_pad, values_.get());
  upload(c.position.fit(head.position.size()), shipment.position.get(), head.position.size(), c.stream);
  shipment.unpacked.record(c.stream);
  split_values_ = shipment.values.type != DType::bfloat16;
  if (!ranked_) return;
  const std::size_t count = in_elements(size_.prompt, size_.value_pad);
  launch_split(values_.get(), count, value_high_.get(), split_values_ ? value_low_.fit(count) : nullptr,
               c.stream.get());
}

void CudaHead::compute_exact() {
  Context& c = context_;
  const Softmax softmax = c.softmax.fit(size_);
  launch_softmax(keys_.get(), c.queries.get(), c.position.get(), size_, rule_, softmax, c.stream.get());
  launch_weights(softmax, size_, weights_.get(), high_.get(), low_.get(), c.stream.get());
  c.attended_keys.record(c.stream);
  const std::size_t chunks =
      output_chunks(static_cast<std::size_t>(size_.prompt), static_cast<std::size_t>(size_.tokens));
  const Outputs outputs{c.output_partial.fit(chunks * in_elements(size_.rows, size_.value_pad)), exact_.get(),
                        tail_.get(), tail_weight_.get(), norm_.get()};
  launch_outputs(weights_.get(), values_.get(), size_, outputs, c.stream.get());
  c.summed.record(c.stream);
}

void CudaHead::compute_ranks() {
  Context& c = context_;
  const Softmax softmax = c.softmax.fit(size_);
  const auto rows = static_cast<std::size_t>(size_.rows), tokens = static_cast<std::size_t>(size_.tokens);
  const std::size_t together = long_rank_rows(rows, tokens);
  if (together == 0) {
    launch_short_ranks(softmax, c.position.get(), size_, rule_,
                       Ranks<std::uint16_t>{reinterpret_cast<std::uint16_t*>(ranks_.get()),
                                            needed_total_.get(), needed_prompt_.get()},
                       c.stream.get());
    return;
  }
  void* const scratch = c.long_ranks.fit(long_rank_bytes(together, tokens));
  const auto sort = [&]<typename Rank>(Rank* ranks) {
    const Ranks<Rank> out{ranks, needed_total_.get(), needed_prompt_.get()};
    for (std::size_t first = 0; first < rows; first += together)
      launch_long_ranks(softmax, c.position.get(), size_, rule_, static_cast<int>(first),
                        static_cast<int>(std::min(rows, first + together)), scratch, out, c.stream.get());
  };
  if (wide()) {
    sort(reinterpret_cast<std::uint32_t*>(ranks_.get()));
  } else {
    sort(reinterpret_cast<std::uint16_t*>(ranks_.get()));
  }
}

const HeadExact& CudaHead::exact() const {
  if (host_) return *host_;
  const OnDevice on(context_.index);
  HeadExact out;
  const auto rows = static_cast<std::size_t>(size_.rows);
  out.output = Matrix<float>(rows, static_cast<std::size_t>(size_.value_dim));
  download(out.output.data(), exact_.get(), in_elements(size_.rows, size_.value_dim), context_.stream);
  for (std::size_t f = 0; ranked_ && f < static_cast<std::size_t>(kFractions); ++f) {
    out.needed_total[f].resize(rows);
    out.needed_prompt[f].resize(rows);
    download(out.needed_total[f].data(), needed_total_.get() + f * static_cast<std::size_t>(size_.stride),
             rows, context_.stream);
    download(out.needed_prompt[f].data(), needed_prompt_.get() + f * static_cast<std::size_t>(size_.stride),
             rows, context_.stream);
  }
  context_.stream.wait();
  host_ = std::move(out);
  return *host_;
}

void CudaHead::check_rows(std::size_t begin, std::size_t end, std::size_t rows, std::size_t tokens) const {
  KVSIM_CHECK(begin <= end && end <= rows, "rows {} to {} of {}", begin, end, rows);
  KVSIM_CHECK(tokens == static_cast<std::size_t>(size_.prompt), "sums of {} tokens of a prompt of {}", tokens,
              size_.prompt);
}

/// Sums go to the device, so that a kernel adds to them in order, and come back.
template <typename Launch>
void CudaHead::through_sums(std::span<double> sum, const Launch& launch) {
  Context& c = context_;
  const OnDevice on(c.index);
  double* const host = c.host_sums.fit(sum.size());
  double* const device = c.sums.fit(sum.size());
  std::copy(sum.begin(), sum.end(), host);
  upload(device, host, sum.size(), c.stream);
  launch(device);
  download(host, device, sum.size(), c.stream);
  c.stream.wait();
  std::copy_n(host, sum.size(), sum.begin());
}

void CudaHead::add_prompt_sums(std::size_t begin, std::size_t end, std::span<double> sum) {
  check_rows(begin, end, static_cast<std::size_t>(size_.rows), sum.size());
  through_sums(sum, [&](double* sums) {
    launch_prompt_sums(weights_.get(), size_.prompt, size_.stride, static_cast<int>(begin),
                       static_cast<int>(end), sums, context_.stream.get());
  });
}

void CudaHead::add_removal_squares(std::size_t begin, std::size_t end, std::span<double> squares) {
  check_rows(begin, end, static_cast<std::size_t>(size_.rows), squares.size());
  through_sums(squares, [&](double* sums) {
    launch_removal_squares(weights_.get(), values_.get(), exact_.get(), size_, static_cast<int>(begin),
                           static_cast<int>(end), sums, context_.stream.get());
  });
}

Sizes CudaHead::attend(MatrixView<const float> queries, std::span<const TokenIndex> position) {
  Context& c = context_;
  const OnDevice on(c.index);
  KVSIM_CHECK(queries.rows == position.size() && queries.rows > 0 &&
                  padded(queries.cols, kKeyPad) == static_cast<std::size_t>(size_.key_dim),
              "{} queries of size {}, {} positions", queries.rows, queries.cols, position.size());
  const Sizes size = sizes_of(static_cast<std::size_t>(size_.prompt), static_cast<std::size_t>(size_.prompt),
                              queries.rows, queries.cols, static_cast<std::size_t>(size_.value_dim));
  Shipment& shipment = c.shipments[c.loads++ % c.shipments.size()];
  shipment.unpacked.wait();
  const DType type = pack(queries, stored_, shipment.queries.packed);
  const std::size_t bytes = queries.rows * queries.cols * size_of(type);
  upload(shipment.queries.raw.fit(bytes), shipment.queries.packed.get(), bytes, c.stream);
  launch_widen(shipment.queries.raw.get(), type, queries.rows, static_cast<int>(queries.cols), size.key_dim,
               c.queries.fit(in_elements(size.rows, size.key_dim)), c.stream.get());
  std::copy(position.begin(), position.end(), shipment.position.fit(position.size()));
  upload(c.position.fit(position.size()), shipment.position.get(), position.size(), c.stream);
  shipment.unpacked.record(c.stream);
  const Softmax softmax = c.softmax.fit(size);
  launch_softmax(keys_.get(), c.queries.get(), c.position.get(), size, rule_, softmax, c.stream.get());
  launch_weights(softmax, size, c.attended.fit(in_elements(size.tokens, size.stride)), nullptr, nullptr,
                 c.stream.get());
  return size;
}

void CudaHead::attention_sums(MatrixView<const float> queries, std::span<const TokenIndex> position,
                              std::span<const RowRange> ranges, MatrixView<double> sums) {
  Context& c = context_;
  const OnDevice on(c.index);
  KVSIM_CHECK(sums.rows == ranges.size() && !ranges.empty(), "{} rows for {} sums", sums.rows, ranges.size());
  for (const RowRange& range : ranges) check_rows(range.begin, range.end, queries.rows, sums.cols);
  const Sizes size = attend(queries, position);
  const std::size_t count = sums.rows * sums.cols;
  double* const device = c.sums.fit(count);
  double* const host = c.host_sums.fit(count);
  check(cudaMemsetAsync(device, 0, count * sizeof(double), c.stream.get()), "cudaMemsetAsync");
  for (std::size_t i = 0; i < ranges.size(); ++i)
    launch_prompt_sums(c.attended.get(), size_.prompt, size.stride, static_cast<int>(ranges[i].begin),
                       static_cast<int>(ranges[i].end), device + i * sums.cols, c.stream.get());
  download(host, device, count, c.stream);
  c.stream.wait();
  for (std::size_t i = 0; i < sums.rows; ++i) std::copy_n(host + i * sums.cols, sums.cols, sums.row(i));
}

namespace {

/// The first `rows` columns of a token-major matrix on the device, with their padding.
Matrix<float> fetched(const Context& context, const float* from, const Sizes& size) {
  const OnDevice on(context.index);
  Matrix<float> out(static_cast<std::size_t>(size.tokens), static_cast<std::size_t>(size.rows), kRowPad);
  check(cudaMemcpy2DAsync(out.data(), out.stride() * sizeof(float), from,
                          static_cast<std::size_t>(size.stride) * sizeof(float), out.stride() * sizeof(float),
                          out.rows(), cudaMemcpyDeviceToHost, context.stream.get()),
        "cudaMemcpy2DAsync");
  context.stream.wait();
  return out;
}

template <typename Rank>
Matrix<std::uint32_t> fetched_ranks(const Context& context, const unsigned char* from, const Sizes& size) {
  const OnDevice on(context.index);
  const auto rows = static_cast<std::size_t>(size.rows), prompt = static_cast<std::size_t>(size.prompt);
  Matrix<Rank> by_row(rows, static_cast<std::size_t>(size.rank_stride));
  download(by_row.data(), reinterpret_cast<const Rank*>(from), rows * by_row.stride(), context.stream);
  context.stream.wait();
  Matrix<std::uint32_t> out(prompt, rows, kRowPad);
#pragma omp parallel for schedule(static)
  for (std::size_t t = 0; t < prompt; ++t) {
    std::fill_n(out.row(t), out.stride(), 0xFFFFFFFFu);
    for (std::size_t r = 0; r < rows; ++r)
      if (by_row(r, t) != static_cast<Rank>(~Rank{0})) out(t, r) = by_row(r, t);
  }
  return out;
}

}  // namespace

Matrix<float> CudaHead::weights() { return fetched(context_, weights_.get(), size_); }

Matrix<float> CudaHead::attention(MatrixView<const float> queries, std::span<const TokenIndex> position) {
  const Sizes size = attend(queries, position);
  return fetched(context_, context_.attended.get(), size);
}

Matrix<std::uint32_t> CudaHead::ranks() {
  KVSIM_CHECK(ranked_, "ranks of a head that was loaded without");
  return wide() ? fetched_ranks<std::uint32_t>(context_, ranks_.get(), size_)
                : fetched_ranks<std::uint16_t>(context_, ranks_.get(), size_);
}

}  // namespace kvsim::cuda
