// How fast the curve kernels of the CUDA backend are on one KV head of peaky attention, against cuBLAS in the same run.
//
//     cuda_curve_bench [prompt] [decode] [group] [dim] [rankings] [budgets] [check: 1 or 0]
//
// First checks small odd shapes against plain double sums on the host (exit code 1 where they differ), then prints one table:
// medians by CUDA events; flops count both terms of a weight. The defaults are size L.
#include <cublas_v2.h>

#include <cstdio>
#include <cstdlib>

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
        check(cublasGemmStridedBatchedEx(handle_, op, CUBLAS_OP_T, rows_, dim_, prompt_, &one, a_.get(), CUDA_R_16BF, lead, stride(a_size()), b_.get(),
                                         CUDA_R_16BF, dim_, stride(b_size()), beta, c_.get(), CUDA_R_32F, rows_, stride(c_size()), rankings_,
                                         CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
        continue;
      }
      for (int r = 0; r < rankings_; ++r)
        check(cublasGemmEx(handle_, op, CUBLAS_OP_T, rows_, dim_, prompt_, &one, a_.get() + r * a_size(), CUDA_R_16BF, lead, b_.get() + r * b_size(),
                           CUDA_R_16BF, dim_, beta, c_.get() + r * c_size(), CUDA_R_32F, rows_, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
    }
  }
  /// One square product of 8192: what the chip gives at most.
  double square_flops() const { return 2.0 * 8192 * 8192 * 8192; }
  void run_square() {
    const float one = 1.0f, zero = 0.0f;
    check(cublasGemmEx(handle_, CUBLAS_OP_T, CUBLAS_OP_N, 8192, 8192, 8192, &one, a_.get(), CUDA_R_16BF, 8192, a_.get() + kSquare, CUDA_R_16BF, 8192,
                       &zero, square_.get(), CUDA_R_16BF, 8192, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
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
  const auto walk = [](auto& own, const cuda::Stream& stream) { cuda::launch_walk_order(own.arguments, own.most, own.scratch.get(), stream.get()); };
  const auto masked = [](auto& own, const cuda::Stream& stream) { cuda::launch_masked_order(own.arguments, own.scratch.get(), stream.get()); };
  bool good = check_curves([](auto&&... of) { cuda::launch_curves(of...); }, "curves");
  good = check_own_order<std::uint16_t>(walk, "walked") && good;
  good = check_own_order<std::uint32_t>(walk, "walked") && good;
  if (cuda::masked_order_pays(1)) {
    good = check_own_order<std::uint16_t>(masked, "masked") && good;
    good = check_own_order<std::uint32_t>(masked, "masked") && good;
  }
  return good;
}

int bench(int argc, char** argv) {
  const auto argument = [&](int i, int fallback) { return argc > i ? std::atoi(argv[i]) : fallback; };
  const int prompt = argument(1, 32768), decode = argument(2, 256), group = argument(3, 4), dim = argument(4, 128), count = argument(5, 30),
            budgets = argument(6, 16);
  cudaDeviceProp property{};
  int device = 0, clock = 0;
  cuda::check(cudaGetDevice(&device), "cudaGetDevice");
  cuda::check(cudaGetDeviceProperties(&property, device), "cudaGetDeviceProperties");
  cuda::check(cudaDeviceGetAttribute(&clock, cudaDevAttrClockRate, device), "cudaDeviceGetAttribute");
  std::printf("%s (sm_%d%d), %d multiprocessors, up to %d MHz\n", property.name, property.major, property.minor, property.multiProcessorCount, clock / 1000);
  const bool good = argument(7, 1) == 0 || check_all();

  const cuda::Stream stream;
  const CurveHead head({.prompt = static_cast<std::size_t>(prompt), .steps = static_cast<std::size_t>(decode), .group = static_cast<std::size_t>(group),
                        .head_dim = static_cast<std::size_t>(dim), .value_dim = static_cast<std::size_t>(dim), .half = true},
                       false, stream);
  std::vector<std::uint32_t> counts;
  for (int b = 1; b <= budgets; ++b) counts.push_back(static_cast<std::uint32_t>(static_cast<long long>(b) * prompt / budgets));
  RankingSet rankings;
  for (int r = 0; r < count; ++r) rankings.add(shuffled(static_cast<std::size_t>(prompt), static_cast<std::uint64_t>(r)), counts, 0, head.rows());
  const CurveRun run(head, rankings, false);
  const double flops = 4.0 * head.rows() * prompt * dim * count;
  const auto row = [&](const char* name, double ms, double of) { std::printf("%-58s %8.3f ms %7.0f TFLOP/s\n", name, ms, of / ms / 1e9); };

  std::printf("prompt %d, %d rows, dim %d, %d rankings x %d budgets\n", prompt, head.rows(), dim, count, budgets);
  double best = 1e30;
  {
    Products products(stream.get(), head.rows(), prompt, dim, count);
    for (const bool batched : {true, false})
      for (const bool contiguous : {true, false}) {
        const double ms = median_ms(stream, 20, [&] { products.run(contiguous, batched); });
        row((std::string("cuBLAS, ") + (batched ? "batched" : "one by one") + (contiguous ? ", rows contiguous" : ", tokens contiguous")).c_str(), ms, flops);
        best = std::min(best, ms);
      }
    if (products.has_square())
      row("cuBLAS, 8192 x 8192 x 8192", median_ms(stream, 20, [&] { products.run_square(); }), products.square_flops());
  }
  const double ms = median_ms(stream, 30, [&] { cuda::launch_curves(run.call, count, head.rows(), stream.get()); });
  row("curves", ms, flops);
  std::printf("curves / best of cuBLAS: %.0f %%\n", 100 * best / ms);
  const auto orders = own_orders(HostHead(head), false);
  OwnOrder<std::uint16_t> own(head, orders, counts, false);
  if (cuda::masked_order_pays(counts.size()))
    row("own order, masked products", median_ms(stream, 20, [&] { cuda::launch_masked_order(own.arguments, own.scratch.get(), stream.get()); }),
        4.0 * head.rows() * prompt * dim * budgets);
  row("own order, walked", median_ms(stream, 20, [&] { cuda::launch_walk_order(own.arguments, own.most, own.scratch.get(), stream.get()); }),
      2.0 * head.rows() * prompt * dim);
  if (!good) std::printf("results are WRONG, see above\n");
  return good ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return bench(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
}
