// The experts' activation; twin of `swiglu.rs`.

constexpr u32 SWIGLU_THREADS = 256;
constexpr u32 SWIGLU_VECTOR = 8;  // channels of a thread

struct SwigluArgs {
  Act* gate;             // [num_rows, width], in place
  const Act* up;         // [num_rows, width]
  const float* weights;  // [num_rows], or null for ones
  u32 width;
  float limit;  // infinite for none
};

__device__ __forceinline__ float swiglu_of(float gate, float up, float limit, float weight) {
  // Comparisons that let NaN pass.
  gate = gate > limit ? limit : gate;
  up = up > limit ? limit : up < -limit ? -limit : up;
  float silu = gate * (1.0f / (1.0f + expf(-gate)));
  return silu * up * weight;
}

__device__ __forceinline__ void swiglu_vector(bf16* gate, const bf16* up, float limit, float weight) {
  uint4 g = *reinterpret_cast<uint4*>(gate), u = *reinterpret_cast<const uint4*>(up);
  u32 gates[4] = {g.x, g.y, g.z, g.w}, ups[4] = {u.x, u.y, u.z, u.w};
#pragma unroll
  for (u32 i = 0; i < 4; i++) {
    float low = swiglu_of(__uint_as_float(gates[i] << 16), __uint_as_float(ups[i] << 16), limit, weight);
    float high = swiglu_of(__uint_as_float(gates[i] & 0xffff0000u), __uint_as_float(ups[i] & 0xffff0000u), limit, weight);
    gates[i] = to_bf16(low).bits | u32(to_bf16(high).bits) << 16;
  }
  *reinterpret_cast<uint4*>(gate) = make_uint4(gates[0], gates[1], gates[2], gates[3]);
}
__device__ __forceinline__ void swiglu_vector(float* gate, const float* up, float limit, float weight) {
#pragma unroll
  for (u32 i = 0; i < SWIGLU_VECTOR; i += 4) {
    float4 g = *reinterpret_cast<float4*>(gate + i), u = *reinterpret_cast<const float4*>(up + i);
    *reinterpret_cast<float4*>(gate + i) = float4{swiglu_of(g.x, u.x, limit, weight), swiglu_of(g.y, u.y, limit, weight),
                                                  swiglu_of(g.z, u.z, limit, weight), swiglu_of(g.w, u.w, limit, weight)};
  }
}

// Blocks of one row.
KERNEL(swiglu, SwigluArgs, SWIGLU_THREADS) {
  u32 at = (blockIdx.y * blockDim.x + threadIdx.x) * SWIGLU_VECTOR;
  if (at >= a.width) return;
  float weight = a.weights ? a.weights[blockIdx.x] : 1.0f;
  Act* gate = a.gate + u64(blockIdx.x) * a.width;
  const Act* up = a.up + u64(blockIdx.x) * a.width;
  if (a.width % SWIGLU_VECTOR == 0) {
    swiglu_vector(gate + at, up + at, a.limit, weight);
  } else {
    for (u32 i = at; i < min(at + SWIGLU_VECTOR, a.width); i++)
      gate[i] = narrow<Act>(swiglu_of(widen(gate[i]), widen(up[i]), a.limit, weight));
  }
}
