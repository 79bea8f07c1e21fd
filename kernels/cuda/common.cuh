// What every kernel of this folder shares. It is put in front of each source, so nothing is included from a toolkit.
//
// A kernel takes one argument, a struct by value whose twin in Rust has the same fields in the same order; pointers are
// device addresses. `Act` is the type of activations: float in exact numerics, bf16 in official ones (OFFICIAL=1).
//
// Numbers follow three rules. A sum's order depends on the length summed over, never on the number of rows, blocks or
// threads that happen to run. Floats are never added atomically. Ties go to the lower index.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

// A bf16 number as its bits: the high half of a float.
struct bf16 {
  u16 bits;
};

#if OFFICIAL
typedef bf16 Act;
#else
typedef float Act;
#endif

// Before a loop whose counter must be known to the compiler: it indexes registers.
#ifdef EMULATED
#define UNROLL
#else
#define UNROLL _Pragma("unroll")
#endif

#ifndef EMULATED
#define KERNEL(name, Args, max_threads) extern "C" __global__ void __launch_bounds__(max_threads) name(const Args a)
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) u8 name[]
#endif

constexpr u32 WARP = 32;
constexpr u32 FULL_MASK = 0xffffffffu;

// === number formats ===

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(bf16 x) { return __uint_as_float(u32(x.bits) << 16); }

// Rounds to bf16, ties to even. NaN stays NaN: its quiet bit is in the half that is kept.
__device__ __forceinline__ bf16 to_bf16(float x) {
  u32 bits = __float_as_uint(x);
  return bf16{u16((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

__device__ __forceinline__ float round_bf16(float x) { return widen(to_bf16(x)); }

template <typename T> __device__ __forceinline__ T narrow(float x);
template <> __device__ __forceinline__ float narrow<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16 narrow<bf16>(float x) { return to_bf16(x); }

// Rounds to the activation type, staying a float.
__device__ __forceinline__ float cast_act(float x) { return widen(narrow<Act>(x)); }

// The power of two of a ue8m0 code; code 0 is 2^-127, 255 is NaN.
__device__ __forceinline__ float ue8m0_to_float(u32 code) {
  return code == 0 ? __uint_as_float(0x00400000u) : code == 255 ? __uint_as_float(0x7fc00000u) : __uint_as_float(code << 23);
}

// 2^ceil(log2 x) of a positive normal x.
__device__ __forceinline__ float pow2_ceil(float x) { return __uint_as_float((__float_as_uint(x) + 0x007fffffu) & 0x7f800000u); }

// e4m3: the exponent is moved to a float's place and rescaled, which also turns subnormals into normal numbers.
__device__ __forceinline__ float e4m3_to_float(u32 code) {
  if ((code & 0x7fu) == 0x7fu) return __uint_as_float(0x7fc00000u);
  u32 bits = ((code & 0x80u) << 24) | ((code & 0x7fu) << 20);
  return __uint_as_float(bits) * __uint_as_float((254u - 7u) << 23);
}

// Rounds |x| <= 448 to e4m3, ties to even.
__device__ __forceinline__ u32 float_to_e4m3(float x) {
  u32 sign = (__float_as_uint(x) >> 24) & 0x80u;
  float magnitude = fminf(fabsf(x), 448.0f);
  if (magnitude < 0.015625f) {
    // Below 2^-6 steps are 2^-9. Adding 2^14 leaves just the steps in the mantissa, rounded to even by the adder.
    float shifted = magnitude + 16384.0f;
    return sign | (__float_as_uint(shifted) & 0xffu);
  }
  u32 bits = __float_as_uint(magnitude);
  bits += 0x7ffffu + ((bits >> 20) & 1u);
  return sign | ((bits >> 20) - (120u << 3));
}

// e2m1: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives.
__device__ __forceinline__ float e2m1_to_float(u32 code) {
  u32 bits = ((code & 8u) << 28) | ((code & 7u) << 22);
  return __uint_as_float(bits) * __uint_as_float((254u - 1u) << 23);
}

// Rounds |x| <= 6 to e2m1, ties to the even code.
__device__ __forceinline__ u32 float_to_e2m1(float x) {
  u32 sign = (__float_as_uint(x) >> 28) & 8u;
  float m = fabsf(x);
  u32 code = m <= 0.25f ? 0 : m < 0.75f ? 1 : m <= 1.25f ? 2 : m < 1.75f ? 3 : m <= 2.5f ? 4 : m < 3.5f ? 5 : m <= 5.0f ? 6 : 7;
  return sign | code;
}

// === tensor cores and copies ===

// Two bf16 numbers in a word, the first in its low half, times two others. Subnormal numbers are kept.
__device__ __forceinline__ u32 mul_bf16x2(u32 a, u32 b) {
#ifdef EMULATED
  auto product = [](u32 x, u32 y) { return u32(to_bf16(__uint_as_float(x << 16) * __uint_as_float(y << 16)).bits); };
  return product(a & 0xffffu, b & 0xffffu) | product(a >> 16, b >> 16) << 16;
#else
  u32 d;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(0x80008000u));
  return d;
#endif
}

// d += A B with A [16, 16], B [16, 8] in bf16, spread over a warp as PTX says of mma.m16n8k16. With g = lane / 4 and i = lane % 4:
// a = A[g, 2i..], A[g + 8, 2i..], A[g, 2i + 8..], A[g + 8, 2i + 8..]; b = B[2i.., g], B[2i + 8.., g];
// d = [g, 2i], [g, 2i + 1], [g + 8, 2i], [g + 8, 2i + 1].
__device__ __forceinline__ void mma_bf16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
#ifdef EMULATED
  emulator::mma_bf16(d, a, b);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

__device__ __forceinline__ void mma_bf16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  const u32 b[2] = {b0, b1};
  mma_bf16(d, a, b);
}

// Sixteen bytes that are read once: they do not push others out of the first cache.
__device__ __forceinline__ uint4 load_once(const void* from) {
#ifdef EMULATED
  return *static_cast<const uint4*>(from);
#else
  uint4 v;
  asm("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from));
  return v;
#endif
}

// Begins to copy sixteen bytes to shared memory, or zeros where `is_there` is false. `from` is an address of the device either way.
// The emulator copies at once.
__device__ __forceinline__ void copy_async(void* to, const void* from, bool is_there) {
#ifdef EMULATED
  *static_cast<uint4*>(to) = is_there ? *static_cast<const uint4*>(from) : uint4{0, 0, 0, 0};
#else
  u32 address = u32(__cvta_generic_to_shared(to)), num_bytes = is_there ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(num_bytes) : "memory");
#endif
}

// Ends a group of copies of this thread.
__device__ __forceinline__ void copy_async_commit() {
#ifndef EMULATED
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most `NUM` of this thread's groups are under way.
template <u32 NUM> __device__ __forceinline__ void copy_async_wait() {
#ifndef EMULATED
  asm volatile("cp.async.wait_group %0;" ::"n"(NUM) : "memory");
#endif
}

// === eight numbers at an address that is a multiple of 16 ===

__device__ __forceinline__ void load8(const float* x, float* v) {
  float4 low = *reinterpret_cast<const float4*>(x), high = *reinterpret_cast<const float4*>(x + 4);
  v[0] = low.x, v[1] = low.y, v[2] = low.z, v[3] = low.w;
  v[4] = high.x, v[5] = high.y, v[6] = high.z, v[7] = high.w;
}
__device__ __forceinline__ void load8(const bf16* x, float* v) {
  uint4 raw = *reinterpret_cast<const uint4*>(x);
  u32 words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (u32 i = 0; i < 8; i++) v[i] = __uint_as_float(i % 2 ? words[i / 2] & 0xffff0000u : words[i / 2] << 16);
}
__device__ __forceinline__ void store8(float* x, const float* v) {
  *reinterpret_cast<float4*>(x) = float4{v[0], v[1], v[2], v[3]};
  *reinterpret_cast<float4*>(x + 4) = float4{v[4], v[5], v[6], v[7]};
}
__device__ __forceinline__ void store8(bf16* x, const float* v) {
  u32 words[4];
#pragma unroll
  for (u32 i = 0; i < 4; i++) words[i] = to_bf16(v[2 * i]).bits | u32(to_bf16(v[2 * i + 1]).bits) << 16;
  *reinterpret_cast<uint4*>(x) = make_uint4(words[0], words[1], words[2], words[3]);
}

// === reductions, in an order that depends on the number of threads only ===

__device__ __forceinline__ float warp_sum(float x) {
  for (u32 offset = WARP / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(FULL_MASK, x, offset);
  return x;
}

__device__ __forceinline__ float warp_max(float x) {
  for (u32 offset = WARP / 2; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(FULL_MASK, x, offset));
  return x;
}

// The sum over the block, in every thread. `scratch` holds a float per warp and may be used again at once.
__device__ __forceinline__ float block_sum(float x, float* scratch) {
  u32 warp = threadIdx.x / WARP, num_warps = blockDim.x / WARP;
  x = warp_sum(x);
  if (threadIdx.x % WARP == 0) scratch[warp] = x;
  __syncthreads();
  float total = 0.0f;
  for (u32 i = 0; i < num_warps; i++) total += scratch[i];
  __syncthreads();
  return total;
}

// The largest number of the block, in every thread.
__device__ __forceinline__ float block_max(float x, float* scratch) {
  u32 warp = threadIdx.x / WARP, num_warps = blockDim.x / WARP;
  x = warp_max(x);
  if (threadIdx.x % WARP == 0) scratch[warp] = x;
  __syncthreads();
  float largest = scratch[0];
  for (u32 i = 1; i < num_warps; i++) largest = fmaxf(largest, scratch[i]);
  __syncthreads();
  return largest;
}

// === the rows of a step ===

// One token of the step.
struct Row {
  u32 position;        // absolute
  u32 slot;            // of its sequence among the rings
  u32 first_row;       // of its span
  u32 first_position;  // of its span
  u32 table;           // where its sequence's blocks begin in `blocks`
};
