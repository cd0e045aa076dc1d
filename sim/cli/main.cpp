// The program: finds the subcommand, turns errors into one line and an exit code.
#include <fmt/format.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <exception>
#include <new>

#include "kernels/backend.h"
#include "kernels/error.h"
#include "kernels/memory.h"
#include "sim/cli/dispatch.h"

int main(int argc, char** argv) {
  std::signal(SIGXFSZ, SIG_IGN);  // a file size limit shall be an error like a full disk
  kvsim::keep_freed_memory();
  try {
    return kvsim::dispatch(kvsim::Arguments(argv + std::min(argc, 1), argv + argc));
  } catch (const kvsim::UserError& error) {
    fmt::print(stderr, "kvsim: {}\n", error.what());
    return kvsim::kWrongUse;
  } catch (const kvsim::DeviceError& error) {
    fmt::print(stderr, "kvsim: the GPU failed, {}{}; --device cpu does without it\n", error.what(),
               error.out_of_memory() ? " (others may have taken its memory)" : "");
    return kvsim::kInternal;
  } catch (const std::bad_alloc&) {
    fmt::print(stderr, "kvsim: out of memory; --memory bounds what a run may use\n");
    return kvsim::kInternal;
  } catch (const std::exception& error) {
    fmt::print(stderr, "kvsim: internal error, please report it: {}\n", error.what());
    return kvsim::kInternal;
  }
}
