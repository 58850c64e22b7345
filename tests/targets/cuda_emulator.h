// Runs CUDA kernels on a processor, in place of kernels/device.cuh: every thread of a block is a fiber, and what the
// hardware does for a warp is written out from the PTX ISA's tables ("Matrix fragments for mma.m16n8k16", "ldmatrix").
// Fibers take turns at each collective operation, so a block's threads must all reach the same ones: a kernel in
// which they do not hangs on hardware too, or needs more than this.
#include <math.h>
#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <vector>

#define __device__
#define __forceinline__ inline
#define __shared__ static

typedef _Float16 half;
inline float __half2float(half x) { return static_cast<float>(x); }
inline half __float2half_rn(float x) { return static_cast<half>(x); }

inline int min(int x, int y) { return x < y ? x : y; }

struct Index {
  unsigned x, y, z;
};
static Index threadIdx, blockIdx, blockDim;

namespace emulator {

struct Copy {
  void* to;
  const void* from;  // null for zeros
};

struct Fiber {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(96 * 1024);
  bool done = false;
  const void* shown = nullptr;  // to the other lanes of the warp
  std::deque<std::vector<Copy>> copies;  // that were committed and not waited for; the last group is still open
};

static std::vector<Fiber> fibers;
static ucontext_t scheduler;
static const std::function<void()>* body;

inline Fiber& self() { return fibers[threadIdx.x]; }

inline void wait_for_others() {
  unsigned thread = threadIdx.x;
  swapcontext(&fibers[thread].context, &scheduler);
  threadIdx.x = thread;
}

// Shows `value` to the warp while it lives; `of(lane)` reads what another lane shows.
struct Exchange {
  explicit Exchange(const void* value) {
    self().shown = value;
    wait_for_others();
  }

  ~Exchange() { wait_for_others(); }

  template <class T>
  const T& of(int lane) const {
    return *static_cast<const T*>(fibers[threadIdx.x / 32 * 32 + lane].shown);
  }
};

inline void enter() {
  (*body)();
  self().done = true;
  for (;;) wait_for_others();
}

inline void run_block(unsigned threads, const std::function<void()>& kernel) {
  body = &kernel;
  if (fibers.size() < threads) fibers.resize(threads);
  for (unsigned thread = 0; thread < threads; ++thread) {
    Fiber& fiber = fibers[thread];
    fiber.done = false;
    fiber.copies.assign(1, {});
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
  }
  for (bool running = true; running;) {
    running = false;
    for (unsigned thread = 0; thread < threads; ++thread) {
      if (fibers[thread].done) continue;
      threadIdx.x = thread;
      swapcontext(&scheduler, &fibers[thread].context);
      running = running || !fibers[thread].done;
    }
  }
}

inline void launch(Index grid, unsigned threads, const std::function<void()>& kernel) {
  blockDim = {threads, 1, 1};
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = {x, y, z};
        run_block(threads, kernel);
      }
}

}  // namespace emulator

inline void __syncthreads() { emulator::wait_for_others(); }

namespace tersor {

inline void copy_async_16(void* shared, const void* global, bool valid) {
  if (reinterpret_cast<uintptr_t>(shared) % 16 || reinterpret_cast<uintptr_t>(global) % 16) {
    std::fprintf(stderr, "cp.async of an address that is no multiple of 16\n");
    std::abort();
  }
  emulator::self().copies.back().push_back({shared, valid ? global : nullptr});
}

inline void commit_copies() { emulator::self().copies.emplace_back(); }

// As late as the hardware may: only what is waited for is copied.
template <int Pending>
inline void wait_for_copies() {
  auto& groups = emulator::self().copies;
  for (; groups.size() > Pending + 1; groups.pop_front()) {
    for (const auto& copy : groups.front()) {
      if (copy.from) std::memcpy(copy.to, copy.from, 16);
      else std::memset(copy.to, 0, 16);
    }
  }
}

// Register i holds elements 2 (lane % 4) and the next of row lane / 4 of matrix i, whose rows lanes 8 i ... address.
inline void load_matrices(unsigned (&to)[4], const void* row) {
  emulator::Exchange rows(&row);
  const int lane = threadIdx.x % 32;
  for (int i = 0; i < 4; ++i)
    std::memcpy(&to[i], static_cast<const half*>(rows.of<const void*>(8 * i + lane / 4)) + lane % 4 * 2, 4);
}

// With .trans the registers hold elements (2 (lane % 4), lane / 4) and (2 (lane % 4) + 1, lane / 4).
inline void load_matrices_transposed(unsigned (&to)[4], const void* row) {
  emulator::Exchange rows(&row);
  const int lane = threadIdx.x % 32;
  for (int i = 0; i < 4; ++i) {
    half pair[2];
    for (int j = 0; j < 2; ++j)
      pair[j] = static_cast<const half*>(rows.of<const void*>(8 * i + lane % 4 * 2 + j))[lane / 4];
    std::memcpy(&to[i], pair, 4);
  }
}

struct Operands {
  half a[4][2], b[2][2];
};

// a: register r, half j of a lane is row lane / 4 + 8 (r % 2), column 2 (lane % 4) + j + 8 (r / 2);
// b: row 2 (lane % 4) + j + 8 r, column lane / 4; sum: row lane / 4 + 8 (i / 2), column 2 (lane % 4) + i % 2.
inline void multiply_accumulate(float (&sum)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  Operands mine;
  std::memcpy(mine.a, a, 16);
  std::memcpy(mine.b[0], &b0, 4);
  std::memcpy(mine.b[1], &b1, 4);
  emulator::Exchange operands(&mine);
  const int lane = threadIdx.x % 32;
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    for (int k = 0; k < 16; ++k) {
      const half left = operands.of<Operands>(row % 8 * 4 + k % 8 / 2).a[row / 8 + k / 8 * 2][k % 2];
      const half right = operands.of<Operands>(column * 4 + k % 8 / 2).b[k / 8][k % 2];
      sum[i] += __half2float(left) * __half2float(right);
    }
  }
}

inline float warp_sum(float value) {
  emulator::Exchange values(&value);
  float sum = 0.0f;
  for (int lane = 0; lane < 32; ++lane) sum += values.of<float>(lane);
  return sum;
}

}  // namespace tersor
