// Round trips through number formats; twin of `quant.rs` and `hadamard.rs`. Official numerics only.

struct Fp8Args {
  const Act* x;  // [num_rows, stride]
  Act* out;      // [num_rows, stride], may be x
  u32 stride;
  u32 num_channels;  // of every row, from its start
  u32 block;
  u32 vector;  // whether eight channels at a time are aligned, and a block is a power of two of them
};

constexpr u32 QUANT_THREADS = 256;

// 2^ceil(log2(amax / 448)), amax at least 1e-4.
__device__ __forceinline__ float quant_fp8_scale(float amax) { return pow2_ceil(fmaxf(amax, 1e-4f) * (1.0f / 448.0f)); }

// Rounds |x| <= largest to `mantissa` bits, steps never finer than at the format's smallest normal number, ties to even:
// adding and taking away a power of two far above leaves just those bits. NaN stays NaN.
__device__ __forceinline__ float quant_round(float x, float largest, u32 mantissa, u32 smallest) {
  x = x > largest ? largest : x < -largest ? -largest : x;
  u32 bits = __float_as_uint(x), magnitude = bits & 0x7fffffffu;
  float big = __uint_as_float(max(magnitude & 0x7f800000u, smallest) + ((23 - mantissa) << 23));
  float rounded = (__uint_as_float(magnitude) + big) - big;
  return __uint_as_float(__float_as_uint(rounded) | (bits & 0x80000000u));
}

__device__ __forceinline__ float quant_e4m3(float x) { return quant_round(x, 448.0f, 3, (127u - 6u) << 23); }
__device__ __forceinline__ float quant_e2m1(float x) { return quant_round(x, 6.0f, 1, 127u << 23); }

// The largest of `width` neighbouring lanes, a power of two.
__device__ __forceinline__ float quant_group_max(float x, u32 width) {
  for (u32 offset = width / 2; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(FULL_MASK, x, offset));
  return x;
}

// Blocks of one row. A block of channels is a group of lanes with eight each, or without alignment a warp.
KERNEL(fp8_round_trip, Fp8Args, QUANT_THREADS) {
  u32 thread = blockIdx.y * blockDim.x + threadIdx.x;
  u32 lanes = a.vector ? a.block / 8 : WARP, lane = thread % lanes;
  u32 start = min(thread / lanes * a.block, a.num_channels), end = min(start + a.block, a.num_channels);
  const Act* x = a.x + u64(blockIdx.x) * a.stride;
  Act* out = a.out + u64(blockIdx.x) * a.stride;
  if (a.vector) {
#if OFFICIAL
    u32 at = start + 8 * lane;
    uint4 raw = make_uint4(0, 0, 0, 0);
    if (at < end) raw = *reinterpret_cast<const uint4*>(x + at);
    u32 words[4] = {raw.x, raw.y, raw.z, raw.w};
    float v[8], amax = 0.0f;
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
      v[i] = __uint_as_float(i % 2 ? words[i / 2] & 0xffff0000u : words[i / 2] << 16);
      amax = fmaxf(amax, fabsf(v[i]));
    }
    float scale = quant_fp8_scale(quant_group_max(amax, lanes)), inverse = 1.0f / scale;
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
      u32 low = to_bf16(quant_e4m3(v[2 * i] * inverse) * scale).bits;
      u32 high = to_bf16(quant_e4m3(v[2 * i + 1] * inverse) * scale).bits;
      words[i] = low | high << 16;
    }
    if (at < end) *reinterpret_cast<uint4*>(out + at) = make_uint4(words[0], words[1], words[2], words[3]);
#endif
  } else {
    float amax = 0.0f;
    for (u32 i = start + lane; i < end; i += WARP) amax = fmaxf(amax, fabsf(widen(x[i])));
    float scale = quant_fp8_scale(warp_max(amax)), inverse = 1.0f / scale;
    for (u32 i = start + lane; i < end; i += WARP) out[i] = narrow<Act>(quant_e4m3(widen(x[i]) * inverse) * scale);
  }
}

struct QuantIndexArgs {
  Act* x;   // in place, heads one after the other
  u64 len;  // numbers
  u32 head_dim;
};

// A lane holds V neighbouring channels of a head; heads below a warp's width share it. The order of sums is the CPU's:
// neighbours first.
template <u32 V> __device__ void quant_index_rows(const QuantIndexArgs& a) {
  u64 first = (u64(blockIdx.x) * blockDim.x + threadIdx.x) * V;
  float v[V];
#pragma unroll
  for (u32 i = 0; i < V; i++) v[i] = first + i < a.len ? widen(a.x[first + i]) : 0.0f;
#pragma unroll
  for (u32 half = 1; half < V; half *= 2) {
#pragma unroll
    for (u32 i = 0; i < V; i++) {
      if (i & half) continue;
      float x = v[i], y = v[i + half];
      v[i] = x + y;
      v[i + half] = x - y;
    }
  }
  u32 lane = threadIdx.x % WARP;
  for (u32 half = 1; half < a.head_dim / V; half *= 2) {
#pragma unroll
    for (u32 i = 0; i < V; i++) {
      float other = __shfl_xor_sync(FULL_MASK, v[i], half);
      v[i] = lane & half ? other - v[i] : other + v[i];
    }
  }
  float norm = 1.0f / sqrtf(float(a.head_dim)), amax = 6.0f * __uint_as_float(0x00800000u);
#pragma unroll
  for (u32 i = 0; i < V; i++) {
    v[i] = cast_act(v[i] * norm);
    amax = fmaxf(amax, fabsf(v[i]));
  }
  float scale = pow2_ceil(quant_group_max(amax, min(WARP, a.head_dim) / V) * (1.0f / 6.0f)), inverse = 1.0f / scale;
#pragma unroll
  for (u32 i = 0; i < V; i++)
    if (first + i < a.len) a.x[first + i] = narrow<Act>(quant_e2m1(v[i] * inverse) * scale);
}

KERNEL(quantize_index, QuantIndexArgs, QUANT_THREADS) {
  switch (max(a.head_dim, WARP) / WARP) {
    case 1: quant_index_rows<1>(a); break;
    case 2: quant_index_rows<2>(a); break;
    case 4: quant_index_rows<4>(a); break;
    case 8: quant_index_rows<8>(a); break;
    case 16: quant_index_rows<16>(a); break;
    default: quant_index_rows<32>(a); break;
  }
}
