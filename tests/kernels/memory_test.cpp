// Memory of matrices: zeroed, and handed out again as it is.
#include "kernels/memory.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <utility>

#include "kernels/view.h"

namespace kvsim {
namespace {

constexpr std::size_t kRows = 1024, kColumns = 2048;  // 8 MiB of floats

TEST(Memory, AnUnsetMatrixMayLieWhereOneOfItsSizeLay) {
  Matrix<float> first(Unset(), kRows, kColumns);
  first(5, 7) = 1.0f;
  const float* const place = first.data();
  first = Matrix<float>();
  Matrix<float> second(Unset(), kRows, kColumns);
#if !defined(__SANITIZE_ADDRESS__)
  EXPECT_EQ(second.data(), place);
#endif
  second(kRows - 1, kColumns - 1) = 2.0f;
  EXPECT_EQ(second(kRows - 1, kColumns - 1), 2.0f);
  (void)place;
}

TEST(Memory, AZeroedMatrixIsZeroWhateverLayThereBefore) {
  Matrix<float> used(Unset(), kRows, kColumns);
  std::fill_n(used.data(), kRows * kColumns, 3.0f);
  used = Matrix<float>();
  const Matrix<float> zeroed(kRows, kColumns);
  EXPECT_EQ(std::count(zeroed.data(), zeroed.data() + kRows * kColumns, 0.0f),
            static_cast<std::ptrdiff_t>(kRows * kColumns));
}

TEST(Memory, SmallAndMovedMatricesAreReleasedAsTheyWereMade) {
  Matrix<float> small(Unset(), 3, 5);
  small(2, 4) = 1.0f;
  Matrix<float> zeroed(3, 5);
  zeroed = std::move(small);
  EXPECT_EQ(zeroed(2, 4), 1.0f);
  give_back_unset();
}

}  // namespace
}  // namespace kvsim
