// The gate: which experts see a token, and with what weight; twin of `gate.rs`.

constexpr u32 GATE_THREADS = 128;  // a warp per row

struct GateArgs {
  const float* logits;  // [num_rows, num_experts]
  const float* bias;    // [num_experts], or null: by token
  const u32* table;     // [vocab, num_topk], by token
  const u32* ids;       // [num_rows], by token
  u32* experts;         // [num_rows, num_topk]
  float* weights;       // [num_rows, num_topk]
  u32 num_rows;
  u32 num_experts;
  u32 num_topk;
  u32 vocab;
  float scaling;
};

__device__ __forceinline__ float gate_score(float logit) { return sqrtf(logit > 20.0f ? logit : log1pf(expf(logit))); }

// Rises with the value, zeros of either sign alike; NaN is below all numbers, and 0 below NaN.
__device__ __forceinline__ u32 gate_key(float value) {
  if (value != value) return 1;
  u32 bits = __float_as_uint(value + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// A warp's row in shared memory: scores, then keys, of which those taken become 0.
KERNEL(gate, GateArgs, GATE_THREADS) {
  DYNAMIC_SHARED(shared);
  u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  u32 row = blockIdx.x * (GATE_THREADS / WARP) + warp;
  float* scores = reinterpret_cast<float*>(shared) + u64(warp) * 2 * a.num_experts;
  u32* keys = reinterpret_cast<u32*>(scores + a.num_experts);
  // Rows beyond the last do the last one's work, and keep it to themselves.
  bool is_real = row < a.num_rows;
  row = min(row, a.num_rows - 1);
  for (u32 e = lane; e < a.num_experts; e += WARP) {
    float score = gate_score(a.logits[u64(row) * a.num_experts + e]);
    scores[e] = score;
    keys[e] = a.bias ? gate_key(score + a.bias[e]) : 0;
  }
  __syncwarp();
  float sum = 0.0f;
  u64 token = a.bias ? 0 : min(a.ids[row], a.vocab - 1);
  for (u32 k = 0; k < a.num_topk; k++) {
    u32 expert;
    if (a.bias) {
      u64 best = 0;
      for (u32 e = lane; e < a.num_experts; e += WARP) {
        u64 candidate = u64(keys[e]) << 32 | (0xffffffffu - e);
        best = candidate > best ? candidate : best;
      }
      for (u32 offset = WARP / 2; offset > 0; offset /= 2) {
        u64 other = __shfl_xor_sync(FULL_MASK, best, offset);
        best = other > best ? other : best;
      }
      expert = 0xffffffffu - u32(best);
      if (lane == expert % WARP) keys[expert] = 0;
    } else {
      expert = min(a.table[token * a.num_topk + k], a.num_experts - 1);
    }
    float score = scores[expert];
    sum += score;
    if (lane == 0 && is_real) {
      a.experts[u64(row) * a.num_topk + k] = expert;
      a.weights[u64(row) * a.num_topk + k] = score;
    }
  }
  __syncwarp();
  if (!is_real) return;
  for (u32 k = lane; k < a.num_topk; k += WARP) {
    float* weight = a.weights + u64(row) * a.num_topk + k;
    *weight = *weight / sum * a.scaling;
  }
}
