// Peaky heads of many shapes for the GPU tests, and what the CPU kernels say of them.
#pragma once

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/dtype.h"
#include "tests/kernels/peaky_head.h"

namespace kvsim {

struct Case {
  PeakyShape shape;
  std::uint32_t window = 0;
  double softcap = 0;
  DType stored = DType::float32;
  bool outlier = false;  // one channel of keys and queries far above the others, as real models have

  std::string text() const {
    return "prompt " + std::to_string(shape.prompt) + ", " + std::to_string(shape.group) + " x " +
           std::to_string(shape.steps) + " rows, d " + std::to_string(shape.head_dim) + ", dv " +
           std::to_string(shape.value_dim) + ", window " + std::to_string(window) + ", " +
           std::string(name_of(stored)) + (outlier ? ", an outlier channel" : "");
  }
};

inline std::vector<Case> cases() {
  return {{.shape = {.half = true}, .stored = DType::bfloat16},
          {.shape = {.prompt = 1000, .steps = 49, .group = 3, .head_dim = 64, .value_dim = 64, .half = true},
           .stored = DType::bfloat16},
          {.shape = {.prompt = 517, .steps = 33, .group = 7, .head_dim = 80, .value_dim = 80, .seed = 3}},
          {.shape = {.prompt = 2000,
                     .steps = 64,
                     .group = 4,
                     .head_dim = 128,
                     .value_dim = 128,
                     .reach = 60,
                     .seed = 4,
                     .half = true},
           .stored = DType::bfloat16},
          {.shape = {.prompt = 300, .steps = 20, .group = 2, .head_dim = 32, .value_dim = 256, .seed = 5},
           .stored = DType::float16},
          {.shape = {.prompt = 700, .steps = 40, .group = 2, .seed = 6, .half = true}, .window = 256},
          {.shape = {.prompt = 400, .steps = 16, .group = 1, .seed = 7, .half = true}, .softcap = 30},
          {.shape = {.prompt = 1500,
                     .steps = 30,
                     .group = 1,
                     .head_dim = 64,
                     .value_dim = 64,
                     .reach = 100,
                     .seed = 10}},
          {.shape = {.prompt = 900,
                     .steps = 24,
                     .group = 2,
                     .head_dim = 128,
                     .value_dim = 128,
                     .seed = 11,
                     .half = true},
           .stored = DType::bfloat16,
           .outlier = true},
          {.shape = {.prompt = 1, .steps = 1, .group = 1, .seed = 8, .half = true}}};
}

struct HeadCase : PeakyHead {
  explicit HeadCase(const Case& of) : PeakyHead(of.shape), stored(of.stored) {
    rule.window = of.window;
    rule.softcap = of.softcap;
    if (of.outlier) {
      for (std::size_t t = 0; t < keys.rows(); ++t) keys(t, 0) = rounded(60 + 4 * keys(t, 0));
      for (std::size_t r = 0; r < queries.rows(); ++r) queries(r, 0) = rounded(3 + queries(r, 0));
    }
    if (stored == DType::float16) round_to(stored);
  }
  void round_to(DType type) {
    for (Matrix<float>* matrix : {&keys, &values, &queries}) {
      const std::span<float> all(matrix->data(), matrix->rows() * matrix->stride());
      if (type == DType::float16) {
        std::vector<Fp16> bits(all.size());
        from_float(all, std::span(bits));
        to_float(std::span<const Fp16>(bits), all);
      } else if (type == DType::bfloat16) {
        std::vector<Bf16> bits(all.size());
        from_float(all, std::span(bits));
        to_float(std::span<const Bf16>(bits), all);
      }
    }
  }
  HeadInput input() const {
    HeadInput out;
    out.keys = keys.view();
    out.values = values.view();
    out.queries = queries.view();
    out.position = position;
    out.prompt = shape.prompt;
    out.rule = rule;
    out.stored = stored;
    return out;
  }
  bool sees(std::size_t row, TokenIndex token) const {
    return token <= position[row] && (rule.window == 0 || token + rule.window > position[row]);
  }
  DType stored;
};

/// What the CPU kernels say of a head.
struct OnCpu {
  explicit OnCpu(const HeadCase& head) : ready(head), ranks(head.shape.prompt, head.rows(), 2 * kRowPad) {
    RankOutput<std::uint32_t> out{ranks.view(), {}, {}};
    for (std::size_t c = 0; c < kMassFractions.size(); ++c) {
      total[c].assign(ready.weights.stride(), 0);
      prompt[c].assign(ready.weights.stride(), 0);
      out.needed_total[c] = total[c];
      out.needed_prompt[c] = prompt[c];
    }
    for (std::size_t row = 0; row < head.rows(); row += kRowPad)
      rank_rows(ready.weights.view(), head.shape.prompt, head.position, head.rule.window, row,
                std::min(head.rows(), row + kRowPad), out);
  }
  PreparedHead ready;
  Matrix<std::uint32_t> ranks;
  std::array<std::vector<std::uint32_t>, kMassFractions.size()> total, prompt;
};

}  // namespace kvsim
