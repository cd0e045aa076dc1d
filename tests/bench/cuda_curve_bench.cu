// How fast the curve kernels of the CUDA backend are on one KV head of peaky attention, against cuBLAS in the same run.
//
//     cuda_curve_bench [prompt] [decode] [group] [dim] [rankings] [budgets] [check: 1 or 0] [--json FILE]
//
// First checks small odd shapes against plain double sums on the host (exit code 1 where they differ), then prints one table:
// medians by CUDA events; flops count both terms of a weight. The defaults are size L. FILE gets the rate of the curves over that of
// cuBLAS.
#include <cublas_v2.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>

#include "tests/bench/cuda_curve_check.cuh"
#include "tests/bench/cuda_curve_head.cuh"

namespace {

using namespace kvsim;

/// Numbers in [-1, 1) from their place: random enough for a matrix product.
__global__ void fill_kernel(__nv_bfloat16* to, std::size_t count, std::uint32_t seed) {
  for (std::size_t i = blockIdx.x * std::size_t{blockDim.x} + threadIdx.x; i < count; i += std::size_t{gridDim.x} * blockDim.x) {
    std::uint32_t x = static_cast<std::uint32_t>(i) * 2654435761u + seed;
    x = (x ^ x >> 15) * 2246822519u;
    x = (x ^ x >> 13) * 3266489917u;
    to[i] = __float2bfloat16(static_cast<float>(x >> 8) * (2.0f / 16777216.0f) - 1.0f);
  }
}

/// The flops of the curves as products of cuBLAS: `rankings` times [rows x prompt] x [prompt x dim], twice.
class Products {
 public:
  Products(cudaStream_t stream, int rows, int prompt, int dim, int rankings)
      : rows_(rows),
        prompt_(prompt),
        dim_(dim),
        rankings_(rankings),
        a_(a_size() * static_cast<std::size_t>(rankings)),
        b_(b_size() * static_cast<std::size_t>(rankings)),
        square_(has_square() ? kSquare : 0),
        c_(c_size() * static_cast<std::size_t>(rankings)) {
    check(cublasCreate(&handle_));
    check(cublasSetStream(handle_, stream));
    fill_kernel<<<2048, 256, 0, stream>>>(a_.get(), a_size() * static_cast<std::size_t>(rankings), 1);
    fill_kernel<<<2048, 256, 0, stream>>>(b_.get(), b_size() * static_cast<std::size_t>(rankings), 2);
  }
  ~Products() { cublasDestroy(handle_); }
  Products(const Products&) = delete;
  Products& operator=(const Products&) = delete;

  /// Rows or tokens of A contiguous; all rankings in one call, or one call each.
  void run(bool rows_contiguous, bool batched) {
    const float one = 1.0f, zero = 0.0f;
    const cublasOperation_t op = rows_contiguous ? CUBLAS_OP_N : CUBLAS_OP_T;
    const int lead = rows_contiguous ? rows_ : prompt_;
    for (int term = 0; term < 2; ++term) {
      const float* const beta = term == 0 ? &zero : &one;
      if (batched) {
        check(cublasGemmStridedBatchedEx(handle_, op, CUBLAS_OP_T, rows_, dim_, prompt_, &one, a_.get(), CUDA_R_16BF, lead,
                                         stride(a_size()), b_.get(), CUDA_R_16BF, dim_, stride(b_size()), beta, c_.get(), CUDA_R_32F, rows_,
                                         stride(c_size()), rankings_, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
        continue;
      }
      for (int r = 0; r < rankings_; ++r)
        check(cublasGemmEx(handle_, op, CUBLAS_OP_T, rows_, dim_, prompt_, &one, a_.get() + r * a_size(), CUDA_R_16BF, lead,
                           b_.get() + r * b_size(), CUDA_R_16BF, dim_, beta, c_.get() + r * c_size(), CUDA_R_32F, rows_, CUBLAS_COMPUTE_32F,
                           CUBLAS_GEMM_DEFAULT));
    }
  }
  /// One square product of 8192: what the chip gives at most.
  double square_flops() const { return 2.0 * 8192 * 8192 * 8192; }
  void run_square() {
    const float one = 1.0f, zero = 0.0f;
    check(cublasGemmEx(handle_, CUBLAS_OP_T, CUBLAS_OP_N, 8192, 8192, 8192, &one, a_.get(), CUDA_R_16BF, 8192, a_.get() + kSquare,
                       CUDA_R_16BF, 8192, &zero, square_.get(), CUDA_R_16BF, 8192, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
  }
  bool has_square() const { return a_size() * rankings_ >= 2 * kSquare; }

 private:
  static constexpr std::size_t kSquare = std::size_t{1} << 26;
  static void check(cublasStatus_t status) {
    if (status != CUBLAS_STATUS_SUCCESS) throw std::runtime_error("cuBLAS: status " + std::to_string(status));
  }
  static long long stride(std::size_t size) { return static_cast<long long>(size); }
  std::size_t a_size() const { return static_cast<std::size_t>(rows_) * prompt_; }
  std::size_t b_size() const { return static_cast<std::size_t>(dim_) * prompt_; }
  std::size_t c_size() const { return static_cast<std::size_t>(rows_) * dim_; }

  cublasHandle_t handle_ = nullptr;
  int rows_, prompt_, dim_, rankings_;
  OnGpu<__nv_bfloat16> a_, b_, square_;
  OnGpu<float> c_;
};

bool check_all() {
  const auto walk = [](auto& own, const cuda::Stream& stream) {
    cuda::launch_walk_order(own.arguments, own.most, own.scratch.get(), stream.get());
  };
  const auto masked = [](auto& own, const cuda::Stream& stream) {
    cuda::launch_masked_order(own.arguments, own.scratch.get(), stream.get());
  };
  bool good = check_curves([](auto&&... of) { cuda::launch_curves(of...); }, "curves");
  good = check_own_order<std::uint16_t>(walk, "walked") && good;
  good = check_own_order<std::uint32_t>(walk, "walked") && good;
  if (cuda::masked_order_pays(1)) {
    good = check_own_order<std::uint16_t>(masked, "masked") && good;
    good = check_own_order<std::uint32_t>(masked, "masked") && good;
  }
  return good;
}

/// What the command line asks for.
struct Options {
  explicit Options(int argc, char** argv) {
    int* const numbers[] = {&prompt, &decode, &group, &dim, &rankings, &budgets, &check};
    std::size_t next = 0;
    for (int i = 1; i < argc; ++i) {
      if (std::string_view(argv[i]) == "--json" && i + 1 < argc) {
        json = argv[++i];
      } else if (next < std::size(numbers)) {
        *numbers[next++] = std::atoi(argv[i]);
      }
    }
  }
  int prompt = 32768, decode = 256, group = 4, dim = 128, rankings = 30, budgets = 16, check = 1;
  std::string json;
};

void print_row(const char* name, double ms, double flops) { std::printf("%-58s %8.3f ms %7.0f TFLOP/s\n", name, ms, flops / ms / 1e9); }

/// Rate of the curves over that of cuBLAS, several times in turn: the clock wanders.
std::vector<double> compare_with_products(const CurveHead& head, const Options& of, const CurveRun& run, double flops,
                                          const cuda::Stream& stream) {
  Products products(stream.get(), head.rows(), of.prompt, of.dim, of.rankings);
  for (const bool contiguous : {true, false})
    print_row(contiguous ? "cuBLAS, one by one, rows contiguous" : "cuBLAS, one by one, tokens contiguous",
              median_ms(stream, 20, [&] { products.run(contiguous, false); }), flops);
  if (products.has_square())
    print_row("cuBLAS, 8192 x 8192 x 8192", median_ms(stream, 20, [&] { products.run_square(); }), products.square_flops());
  std::vector<double> ratios;
  for (int repeat = 0; repeat < 5; ++repeat) {
    const double rows = median_ms(stream, 20, [&] { products.run(true, true); }),
                 tokens = median_ms(stream, 20, [&] { products.run(false, true); });
    const double curves = median_ms(stream, 20, [&] { cuda::launch_curves(run.call, of.rankings, head.rows(), stream.get()); });
    print_row("cuBLAS, batched, rows contiguous", rows, flops);
    print_row("cuBLAS, batched, tokens contiguous", tokens, flops);
    print_row("curves", curves, flops);
    ratios.push_back(std::min(rows, tokens) / curves);
  }
  std::sort(ratios.begin(), ratios.end());
  return ratios;
}

int bench(const Options& of) {
  cudaDeviceProp property{};
  int device = 0, clock = 0;
  cuda::check(cudaGetDevice(&device), "cudaGetDevice");
  cuda::check(cudaGetDeviceProperties(&property, device), "cudaGetDeviceProperties");
  cuda::check(cudaDeviceGetAttribute(&clock, cudaDevAttrClockRate, device), "cudaDeviceGetAttribute");
  std::printf("%s (sm_%d%d), %d multiprocessors, up to %d MHz\n", property.name, property.major, property.minor,
              property.multiProcessorCount, clock / 1000);
  const bool good = of.check == 0 || check_all();

  const cuda::Stream stream;
  const auto size = [](int n) { return static_cast<std::size_t>(n); };
  const CurveHead head({.prompt = size(of.prompt),
                        .steps = size(of.decode),
                        .group = size(of.group),
                        .head_dim = size(of.dim),
                        .value_dim = size(of.dim),
                        .half = true},
                       false, stream);
  std::vector<std::uint32_t> counts;
  for (int b = 1; b <= of.budgets; ++b) counts.push_back(static_cast<std::uint32_t>(static_cast<long long>(b) * of.prompt / of.budgets));
  RankingSet rankings;
  for (int r = 0; r < of.rankings; ++r) rankings.add(shuffled(size(of.prompt), static_cast<std::uint64_t>(r)), counts, 0, head.rows());
  const CurveRun run(head, rankings, false);
  const double flops = 4.0 * head.rows() * of.prompt * of.dim * of.rankings;
  std::printf("prompt %d, %d rows, dim %d, %d rankings x %d budgets\n", of.prompt, head.rows(), of.dim, of.rankings, of.budgets);
  const auto ratios = compare_with_products(head, of, run, flops, stream);
  const double ratio = ratios[ratios.size() / 2];
  std::printf("curves / best of batched cuBLAS: %.0f %% (%.0f to %.0f)\n", 100 * ratio, 100 * ratios.front(), 100 * ratios.back());
  if (!of.json.empty()) {
    std::ofstream(of.json) << "[{\"line\": \"gpu curve\", \"value\": " << ratio << ", \"low\": " << ratios.front()
                           << ", \"high\": " << ratios.back() << ", \"repeats\": " << ratios.size() << ", \"note\": \"" << property.name
                           << ", " << of.rankings << " rankings x " << of.budgets << " budgets, " << head.rows() << " rows x " << of.prompt
                           << " tokens x " << of.dim
                           << " channels; rate over that of the best batched cuBLAS product of the same flops\"}]\n";
  }
  const auto orders = own_orders(HostHead(head), false);
  OwnOrder<std::uint16_t> own(head, orders, counts, false);
  if (cuda::masked_order_pays(counts.size()))
    print_row("own order, masked products",
              median_ms(stream, 20, [&] { cuda::launch_masked_order(own.arguments, own.scratch.get(), stream.get()); }),
              flops / of.rankings * of.budgets);
  print_row("own order, walked",
            median_ms(stream, 20, [&] { cuda::launch_walk_order(own.arguments, own.most, own.scratch.get(), stream.get()); }),
            flops / of.rankings / 2);
  if (!good) std::printf("results are WRONG, see above\n");
  return good ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return bench(Options(argc, argv));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
}
