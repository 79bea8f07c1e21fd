// Runs the kernels of this folder on a CPU, to test what they compute where there is no GPU. It is no model of a GPU's
// timing or memory order: the threads of a block are fibers of one system thread that change at barriers only.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#include <vector>

#define EMULATED 1
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __align__(n) alignas(n)
// One block runs at a time on a system thread, so its shared memory can be that thread's.
#define __shared__ static thread_local

struct Dim3 {
  uint32_t x, y, z;
};

namespace emulator {

constexpr uint32_t WARP_SIZE = 32;
constexpr size_t STACK_BYTES = 128 << 10;

// Where a stack was left.
struct Context {
#if defined(__x86_64__)
  void* stack_pointer = nullptr;
#else
  ucontext_t context;
#endif
};

// A barrier among some fibers.
struct Barrier {
  uint32_t arrived = 0, generation = 0;
};

struct Fiber {
  Context context;
  std::unique_ptr<char[]> stack;
  Dim3 thread;
  uint32_t index = 0;
  // Which of the warp's slots its next exchange uses.
  uint32_t parity = 0;
  // It waits until this barrier has left that generation.
  const Barrier* barrier = nullptr;
  uint32_t generation = 0;
  bool done = true;

  bool is_ready() const { return !done && (barrier == nullptr || barrier->generation != generation); }
};

struct Warp {
  Barrier barrier;
  // What its lanes exchange. Two sets, so that a lane may write for the next exchange while others still read for this one.
  alignas(16) unsigned char slots[2][WARP_SIZE][64];
};

struct Machine {
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Warp> warps;
  std::vector<unsigned char> shared;
  Barrier block_barrier;
  Fiber* current = nullptr;
  Context caller;
  Dim3 grid, block, block_index;
  uint32_t num_threads = 0, num_done = 0;
  void (*entry)(const void*) = nullptr;
  const void* args = nullptr;
};

inline thread_local Machine* active = nullptr;

inline Machine& machine() { return *active; }

#if defined(__x86_64__)
// Keeps what a function must keep on the stack that is left, and takes it from the one that is gone on with.
__attribute__((naked, noinline)) static void switch_stack(void** from, void* to) {
  asm("pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
      "movq %rsp, (%rdi)\n movq %rsi, %rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret\n");
}

inline void go_on(Context& from, const Context& to) { switch_stack(&from.stack_pointer, to.stack_pointer); }

inline void begin(Fiber& fiber, void (*entry)()) {
  uintptr_t top = (reinterpret_cast<uintptr_t>(fiber.stack.get()) + STACK_BYTES) & ~uintptr_t(15);
  uint64_t* words = reinterpret_cast<uint64_t*>(top);
  words[-1] = 0;  // where a caller's address would be
  words[-2] = reinterpret_cast<uint64_t>(entry);
  for (int i = 3; i <= 8; i++) words[-i] = 0;
  fiber.context.stack_pointer = words - 8;
}
#else
inline void go_on(Context& from, const Context& to) { swapcontext(&from.context, &to.context); }

inline void begin(Fiber& fiber, void (*entry)()) {
  getcontext(&fiber.context.context);
  fiber.context.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.context.uc_stack.ss_size = STACK_BYTES;
  fiber.context.context.uc_link = nullptr;
  makecontext(&fiber.context.context, entry, 0);
}
#endif

[[noreturn]] inline void stuck(const Machine& m) {
  std::fprintf(stderr, "emulated block (%u, %u, %u): %u of %u threads ended, the rest wait at a barrier for ever\n", m.block_index.x,
               m.block_index.y, m.block_index.z, m.num_done, m.num_threads);
  std::abort();
}

// Goes on with the next fiber that need not wait, or with the caller when all have ended.
inline void yield() {
  Machine& m = machine();
  Fiber* from = m.current;
  if (m.num_done == m.num_threads) return go_on(from->context, m.caller);
  for (uint32_t i = 1; i <= m.num_threads; i++) {
    uint32_t next = from->index + i;
    Fiber& fiber = *m.fibers[next < m.num_threads ? next : next - m.num_threads];
    if (!fiber.is_ready()) continue;
    m.current = &fiber;
    if (&fiber != from) go_on(from->context, fiber.context);
    return;
  }
  stuck(m);
}

inline void fiber_main() {
  for (;;) {
    Machine& m = machine();
    m.entry(m.args);
    m.current->done = true;
    m.num_done++;
    yield();
  }
}

inline void wait(Barrier& barrier, uint32_t members) {
  if (++barrier.arrived == members) {
    barrier.arrived = 0;
    barrier.generation++;
    return;
  }
  Fiber& fiber = *machine().current;
  fiber.barrier = &barrier;
  fiber.generation = barrier.generation;
  yield();
  fiber.barrier = nullptr;
}

inline void prepare(Machine& m) {
  while (m.fibers.size() < m.num_threads) {
    auto fiber = std::make_unique<Fiber>();
    fiber->index = uint32_t(m.fibers.size());
    fiber->stack = std::make_unique<char[]>(STACK_BYTES);
    begin(*fiber, fiber_main);
    m.fibers.push_back(std::move(fiber));
  }
  for (uint32_t i = 0; i < m.num_threads; i++)
    m.fibers[i]->thread = Dim3{i % m.block.x, i / m.block.x % m.block.y, i / (m.block.x * m.block.y)};
  m.warps.resize((m.num_threads + WARP_SIZE - 1) / WARP_SIZE);
}

inline void run_block(Machine& m) {
  m.num_done = 0;
  for (uint32_t i = 0; i < m.num_threads; i++) {
    m.fibers[i]->done = false;
    m.fibers[i]->parity = 0;
  }
  m.current = m.fibers[0].get();
  go_on(m.caller, m.current->context);
}

inline void run(void (*entry)(const void*), const void* args, Dim3 grid, Dim3 block, uint32_t shared_bytes) {
  static thread_local Machine instance;
  active = &instance;
  Machine& m = instance;
  m.entry = entry;
  m.args = args;
  m.grid = grid;
  m.block = block;
  m.num_threads = block.x * block.y * block.z;
  // Unlike a GPU's, filled with a pattern, so that reading what was never written shows.
  m.shared.assign(shared_bytes + 16, 0xff);
  prepare(m);
  for (uint32_t z = 0; z < grid.z; z++)
    for (uint32_t y = 0; y < grid.y; y++)
      for (uint32_t x = 0; x < grid.x; x++) {
        m.block_index = Dim3{x, y, z};
        run_block(m);
      }
}

inline Warp& warp() {
  Machine& m = machine();
  return m.warps[m.current->index / WARP_SIZE];
}

inline uint32_t lane() { return machine().current->index % WARP_SIZE; }

inline void sync_warp() { wait(warp().barrier, WARP_SIZE); }

// Shows `value` to the warp, and returns what `read` makes of all lanes' values.
template <typename T, typename R> auto exchange(const T& value, R read) {
  static_assert(sizeof(T) <= sizeof(Warp::slots[0][0]), "a lane's slot is too small");
  auto& slots = warp().slots[machine().current->parity ^= 1];
  std::memcpy(slots[lane()], &value, sizeof(T));
  sync_warp();
  return read([&](uint32_t from) {
    T other;
    std::memcpy(&other, slots[from % WARP_SIZE], sizeof(T));
    return other;
  });
}

// The tensor cores' product; see `mma_bf16` in common.cuh. Sums in order of k.
inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  struct Fragments {
    uint32_t a[4], b[2];
  };
  auto number = [](uint32_t pair, uint32_t half) {
    uint32_t bits = half ? pair & 0xffff0000u : pair << 16;
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
  };
  uint32_t group = lane() / 4, within = lane() % 4;
  float left[2][16], right[2][16];
  exchange(Fragments{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}}, [&](auto of) {
    for (uint32_t i = 0; i < 4; i++) {
      Fragments row = of(4 * group + i);
      for (uint32_t j = 0; j < 8; j++) left[j / 2 % 2][8 * (j / 4) + 2 * i + j % 2] = number(row.a[j / 2], j % 2);
      for (uint32_t column = 0; column < 2; column++) {
        Fragments from = of(4 * (2 * within + column) + i);
        for (uint32_t j = 0; j < 4; j++) right[column][8 * (j / 2) + 2 * i + j % 2] = number(from.b[j / 2], j % 2);
      }
    }
    return 0;
  });
  for (uint32_t i = 0; i < 4; i++)
    for (uint32_t k = 0; k < 16; k++) d[i] += left[i / 2][k] * right[i % 2][k];  // the product is exact
}

struct Kernel {
  const char* name;
  void (*entry)(const void*);
  size_t args_bytes;
};

}  // namespace emulator

#define threadIdx (emulator::machine().current->thread)
#define blockIdx (emulator::machine().block_index)
#define blockDim (emulator::machine().block)
#define gridDim (emulator::machine().grid)

inline void __syncthreads() { emulator::wait(emulator::machine().block_barrier, emulator::machine().num_threads); }
inline void __syncwarp(uint32_t = ~0u) { emulator::sync_warp(); }

template <typename T> T __shfl_xor_sync(uint32_t, T value, uint32_t mask) {
  return emulator::exchange(value, [&](auto of) { return of(emulator::lane() ^ mask); });
}
template <typename T> T __shfl_sync(uint32_t, T value, uint32_t from) {
  return emulator::exchange(value, [&](auto of) { return of(from); });
}
template <typename T> T __shfl_up_sync(uint32_t, T value, uint32_t delta) {
  uint32_t lane = emulator::lane();
  return emulator::exchange(value, [&](auto of) { return of(lane < delta ? lane : lane - delta); });
}
inline uint32_t __ballot_sync(uint32_t, bool vote) {
  return emulator::exchange(vote, [](auto of) {
    uint32_t votes = 0;
    for (uint32_t i = 0; i < emulator::WARP_SIZE; i++) votes |= uint32_t(of(i)) << i;
    return votes;
  });
}

inline float __uint_as_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
inline uint32_t __float_as_uint(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
// Four of the eight bytes of `low` and `high`, by number.
inline uint32_t __byte_perm(uint32_t low, uint32_t high, uint32_t selector) {
  uint64_t bytes = uint64_t(high) << 32 | low;
  uint32_t result = 0;
  for (uint32_t i = 0; i < 4; i++) result |= uint32_t(bytes >> (8 * (selector >> (4 * i) & 7)) & 0xff) << (8 * i);
  return result;
}
inline int __popc(uint32_t x) { return __builtin_popcount(x); }
inline int __clz(uint32_t x) { return x == 0 ? 32 : __builtin_clz(x); }
inline uint32_t __umulhi(uint32_t a, uint32_t b) { return uint32_t((uint64_t(a) * b) >> 32); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline uint32_t min(uint32_t a, uint32_t b) { return a < b ? a : b; }
inline uint32_t max(uint32_t a, uint32_t b) { return a > b ? a : b; }

// Fibers change at barriers only, so a plain sum is atomic.
template <typename T> T atomicAdd(T* at, T value) {
  static_assert(std::is_integral_v<T>, "floats are never added atomically");
  T old = *at;
  *at = old + value;
  return old;
}

struct uint2 {
  uint32_t x, y;
};
struct uint4 {
  uint32_t x, y, z, w;
};
struct float4 {
  float x, y, z, w;
};
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }

#define KERNEL(name, Args, max_threads)                                      \
  static void name(const Args a);                                            \
  static Registration register_##name(                                       \
      #name, [](const void* args) { name(*static_cast<const Args*>(args)); }, sizeof(Args)); \
  static void name(const Args a)
#define DYNAMIC_SHARED(name) \
  u8* name = reinterpret_cast<u8*>((reinterpret_cast<uintptr_t>(emulator::machine().shared.data()) + 15) & ~uintptr_t(15))
