// Products with the weights, `out[t, n] = sum_k x[t, k] * w[n, k]`; twin of `matmul.rs` and `experts.rs`.
//
// The columns are cut into MATMUL_SEGMENTS runs of whole steps. Every kernel adds the products of a run in one order, and then the
// runs in theirs. So kernels for few tokens, whose warps take a run each, and kernels for many, whose warps go through all runs,
// agree to the bit, and a row's result does not depend on what it is computed with.

struct MatmulArgs {
  const Act* x;          // [num_tokens, num_groups * cols]
  void* out;             // [num_tokens, num_groups * rows]
  const u8* codes;       // [num_groups * rows, cols], unless there is a table
  const u8* scales;
  const u64* table;      // [num_slots, 2]: addresses of a slot's codes and scales, 0 for an empty slot; null for one matrix
  const u32* offsets;    // [num_slots + 1]: the first token of each slot, if there is a table
  u32 num_tokens;
  u32 num_slots;
  u32 rows;              // of a group
  u32 cols;              // of a group
  u32 num_groups;
  u32 format;            // MatmulFormat
  u32 out_is_f32;        // else bf16
};

enum MatmulFormat { MATMUL_F32, MATMUL_BF16, MATMUL_FP8, MATMUL_FP4 };

constexpr u32 MATMUL_SEGMENTS = 8;
// Columns of a step.
constexpr u32 MATMUL_STEP = 128;

// What a block works on: some tokens and the weights of their slot.
struct MatmulWork {
  const u8* codes;   // null for an empty slot
  const u8* scales;
  u32 first_token;
  u32 num_tokens;    // 0: nothing
};

// The block's share: `blockIdx.x` counts the tiles of `tile` tokens, slot by slot. All threads of the block call it.
__device__ __forceinline__ MatmulWork matmul_work(const MatmulArgs& a, u32 tile) {
  if (!a.table) {
    u32 first = blockIdx.x * tile;
    return MatmulWork{a.codes, a.scales, first, first < a.num_tokens ? min(tile, a.num_tokens - first) : 0};
  }
  __shared__ u32 totals[WARP], found[2];
  u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, num_before = 0;
  for (u32 base = 0; base < a.num_slots && num_before <= blockIdx.x; base += blockDim.x) {
    u32 slot = base + threadIdx.x;
    u32 num_tiles = slot < a.num_slots ? (a.offsets[slot + 1] - a.offsets[slot] + tile - 1) / tile : 0;
    u32 end = num_tiles;
    for (u32 delta = 1; delta < WARP; delta *= 2) {
      u32 other = __shfl_up_sync(FULL_MASK, end, delta);
      if (lane >= delta) end += other;
    }
    if (lane == WARP - 1) totals[warp] = end;
    __syncthreads();
    end += num_before;
    for (u32 i = 0; i < blockDim.x / WARP; i++) {
      if (i < warp) end += totals[i];
      num_before += totals[i];
    }
    if (blockIdx.x < end && blockIdx.x + num_tiles >= end) {
      found[0] = slot;
      found[1] = blockIdx.x + num_tiles - end;
    }
    __syncthreads();
  }
  if (num_before <= blockIdx.x) return MatmulWork{nullptr, nullptr, 0, 0};
  u32 slot = found[0], first = a.offsets[slot] + found[1] * tile;
  const u8* codes = reinterpret_cast<const u8*>(a.table[2 * slot]);
  const u8* scales = reinterpret_cast<const u8*>(a.table[2 * slot + 1]);
  return MatmulWork{codes, scales, first, min(tile, a.offsets[slot + 1] - first)};
}

__device__ __forceinline__ void matmul_store(const MatmulArgs& a, u32 token, u32 row, float value) {
  u64 at = u64(token) * a.num_groups * a.rows + blockIdx.z * a.rows + row;
  if (a.out_is_f32) static_cast<float*>(a.out)[at] = value;
  else static_cast<bf16*>(a.out)[at] = to_bf16(value);
}

// Rows of the block for tokens of an empty slot.
__device__ __forceinline__ void matmul_store_zeros(const MatmulArgs& a, const MatmulWork& work, u32 first_row, u32 num_rows) {
  num_rows = min(num_rows, a.rows - first_row);
  for (u32 i = threadIdx.x; i < work.num_tokens * num_rows; i += blockDim.x)
    matmul_store(a, work.first_token + i / num_rows, first_row + i % num_rows, 0.0f);
}

// Steps of a segment.
__device__ __forceinline__ u32 matmul_segment_steps(u32 cols) {
  u32 num_steps = (cols + MATMUL_STEP - 1) / MATMUL_STEP;
  return (num_steps + MATMUL_SEGMENTS - 1) / MATMUL_SEGMENTS;
}

// === any format and shape, with plain multiplications ===

constexpr u32 MATMUL_SIMT_TOKENS = 8;

__device__ __forceinline__ float matmul_weight(const MatmulArgs& a, const MatmulWork& work, u64 row, u32 col) {
  u64 at = row * a.cols + col;
  switch (a.format) {
    case MATMUL_F32: return reinterpret_cast<const float*>(work.codes)[at];
    case MATMUL_BF16: return widen(reinterpret_cast<const bf16*>(work.codes)[at]);
    case MATMUL_FP8: {
      u64 scale = row / 128 * ((a.cols + 127) / 128) + col / 128;
      return e4m3_to_float(work.codes[at]) * ue8m0_to_float(work.scales[scale]);
    }
    default: {
      u64 scale = row * (a.cols / 32) + col / 32;
      return e2m1_to_float(work.codes[at / 2] >> (4 * (col % 2)) & 0xfu) * ue8m0_to_float(work.scales[scale]);
    }
  }
}

// Four weights from column `col` on, a multiple of four, as is the number of columns.
__device__ __forceinline__ float4 matmul_weights(const MatmulArgs& a, const MatmulWork& work, u64 row, u32 col) {
  u64 at = row * a.cols + col;
  switch (a.format) {
    case MATMUL_F32: return *reinterpret_cast<const float4*>(work.codes + 4 * at);
    case MATMUL_BF16: {
      uint2 c = *reinterpret_cast<const uint2*>(work.codes + 2 * at);
      return float4{__uint_as_float(c.x << 16), __uint_as_float(c.x & 0xffff0000u), __uint_as_float(c.y << 16),
                    __uint_as_float(c.y & 0xffff0000u)};
    }
    case MATMUL_FP8: {
      u32 c = *reinterpret_cast<const u32*>(work.codes + at);
      float scale = ue8m0_to_float(work.scales[row / 128 * ((a.cols + 127) / 128) + col / 128]);
      return float4{e4m3_to_float(c & 0xffu) * scale, e4m3_to_float(c >> 8 & 0xffu) * scale, e4m3_to_float(c >> 16 & 0xffu) * scale,
                    e4m3_to_float(c >> 24) * scale};
    }
    default: {
      u32 c = *reinterpret_cast<const u16*>(work.codes + at / 2);
      float scale = ue8m0_to_float(work.scales[row * (a.cols / 32) + col / 32]);
      return float4{e2m1_to_float(c & 0xfu) * scale, e2m1_to_float(c >> 4 & 0xfu) * scale, e2m1_to_float(c >> 8 & 0xfu) * scale,
                    e2m1_to_float(c >> 12) * scale};
    }
  }
}

__device__ __forceinline__ float4 matmul_inputs(const float* x) { return *reinterpret_cast<const float4*>(x); }
__device__ __forceinline__ float4 matmul_inputs(const bf16* x) {
  uint2 c = *reinterpret_cast<const uint2*>(x);
  return float4{__uint_as_float(c.x << 16), __uint_as_float(c.x & 0xffff0000u), __uint_as_float(c.y << 16),
                __uint_as_float(c.y & 0xffff0000u)};
}

// The sums over the warp of each of N <= 32 numbers; the one of number i ends in `sums[i]`. A lane gives half of its numbers away
// while it has several, so that there are few exchanges. The tree is the same for every number and every N.
template <u32 N> __device__ __forceinline__ void matmul_warp_sums(float (&v)[N], float* sums) {
  u32 lane = threadIdx.x % WARP;
  UNROLL for (u32 step = 0; step < 5; step++) {
    u32 offset = (WARP / 2) >> step, half = (N / 2) >> step;
    bool upper = lane & offset;
    UNROLL for (u32 i = 0; i < half; i++) {
      float keep = upper ? v[i + half] : v[i], give = upper ? v[i] : v[i + half];
      v[i] = keep + __shfl_xor_sync(FULL_MASK, give, offset);
    }
    if (half == 0) v[0] += __shfl_xor_sync(FULL_MASK, v[0], offset);
  }
  if (lane % (WARP / N) == 0) sums[lane / (WARP / N)] = v[0];
}

// A block makes R rows for up to eight tokens; each of its eight warps takes a segment.
template <u32 R> __device__ __forceinline__ void matmul_simt(const MatmulArgs& a) {
  constexpr u32 T = MATMUL_SIMT_TOKENS;
  __shared__ float sums[MATMUL_SEGMENTS][R * T];
  MatmulWork work = matmul_work(a, T);
  u32 first_row = blockIdx.y * R;
  if (work.num_tokens == 0) return;
  if (!work.codes) return matmul_store_zeros(a, work, first_row, R);

  u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  u64 x_stride = u64(a.num_groups) * a.cols;
  const Act* x = a.x + work.first_token * x_stride + blockIdx.z * a.cols;
  u64 rows[R];
  UNROLL for (u32 r = 0; r < R; r++) rows[r] = u64(blockIdx.z) * a.rows + min(first_row + r, a.rows - 1);

  float acc[R * T] = {};
  u32 segment = matmul_segment_steps(a.cols) * MATMUL_STEP;
  u32 end = min((warp + 1) * segment, a.cols);
  bool whole = a.cols % 4 == 0;
  for (u32 col = warp * segment + 4 * lane; col < end; col += MATMUL_STEP) {
    float w[R][4];
    UNROLL for (u32 r = 0; r < R; r++) {
      if (whole) {
        float4 four = matmul_weights(a, work, rows[r], col);
        w[r][0] = four.x, w[r][1] = four.y, w[r][2] = four.z, w[r][3] = four.w;
      } else {
        UNROLL for (u32 i = 0; i < 4; i++) w[r][i] = col + i < a.cols ? matmul_weight(a, work, rows[r], col + i) : 0.0f;
      }
    }
    UNROLL for (u32 t = 0; t < T; t++) {
      if (t >= work.num_tokens) continue;
      const Act* from = x + t * x_stride + col;
      float in[4];
      if (whole) {
        float4 four = matmul_inputs(from);
        in[0] = four.x, in[1] = four.y, in[2] = four.z, in[3] = four.w;
      } else {
        UNROLL for (u32 i = 0; i < 4; i++) in[i] = col + i < a.cols ? widen(from[i]) : 0.0f;
      }
      UNROLL for (u32 r = 0; r < R; r++)
        UNROLL for (u32 i = 0; i < 4; i++) acc[r * T + t] = fmaf(in[i], w[r][i], acc[r * T + t]);
    }
  }

  matmul_warp_sums(acc, sums[warp]);
  __syncthreads();
  u32 r = threadIdx.x % R, t = threadIdx.x / R;
  if (t >= work.num_tokens || first_row + r >= a.rows) return;
  float total = 0.0f;
  for (u32 s = 0; s < MATMUL_SEGMENTS; s++) total += sums[s][r * T + t];
  matmul_store(a, work.first_token + t, first_row + r, total);
}

KERNEL(matmul_simt, MatmulArgs, 256) { matmul_simt<4>(a); }

// For matrices of few rows, which would else keep few multiprocessors busy.
KERNEL(matmul_simt_short, MatmulArgs, 256) { matmul_simt<1>(a); }

// === on tensor cores ===
//
// Weights are the left operand: sixteen rows to an instruction, but only eight tokens, so that decoding wastes little. The order of the
// columns within a sum is free as long as both operands agree on it. So lane i of the four that share a row takes sixteen bytes in
// a row of codes, its `run`, and the inputs at the same columns; four lanes make a chunk of 64 bytes of each row, and an instruction takes
// four columns of each lane's run.
//
// e4m3 and e2m1 are widened to bf16, scale included. That is exact: bf16 has the exponents of float and more mantissa than either, so
// that the only products it cannot hold are those below 2^-133, of scales 2^-127 to 2^-125 (codes 0 to 2) under e4m3.

#if OFFICIAL

struct MatmulBf16 {
  static constexpr u32 CHUNKS = 4;        // of a step
  static constexpr u32 FACTOR_SHIFT = 0;  // no scales
};
struct MatmulFp8 {
  static constexpr u32 CHUNKS = 2;
  static constexpr u32 FACTOR_SHIFT = 120;  // codes are read as bf16 numbers 2^120 times too small
};
struct MatmulFp4 {
  static constexpr u32 CHUNKS = 1;
  static constexpr u32 FACTOR_SHIFT = 126;
};

// Eights of columns of a lane's run.
template <typename F> constexpr u32 MATMUL_EIGHTS = 4 / F::CHUNKS;

// A lane's part of a chunk of one row.
struct MatmulRun {
  uint4 codes;
  u32 scale;
};

template <typename F> __device__ __forceinline__ u32 matmul_row_bytes(u32 cols) { return cols * F::CHUNKS / 2; }

// Where a lane reads: of each sixteen rows from the warp's first one on, row g and row g + 8. Offsets are from the lane's first row, so
// that they need one register each.
template <u32 M> struct MatmulRows {
  const u8* codes;
  const u8* scales;
  u32 code_at[M][2];
  u32 scale_at[M][2];
};

// Rows past the last one repeat it; their results are dropped.
template <typename F, u32 M>
__device__ __forceinline__ MatmulRows<M> matmul_rows(const MatmulArgs& a, const MatmulWork& work, u32 first_row) {
  u32 row_bytes = matmul_row_bytes<F>(a.cols), g = threadIdx.x % WARP / 4, own = min(first_row + g, a.rows - 1);
  u64 first = u64(blockIdx.z) * a.rows + own;
  MatmulRows<M> rows;
  rows.codes = work.codes + first * row_bytes;
  // An e2m1 scale stands for sixteen bytes of codes.
  rows.scales = work.scales + (F::CHUNKS == 1 ? first * (row_bytes / 16) : 0);
  UNROLL for (u32 m = 0; m < M; m++)
    UNROLL for (u32 h = 0; h < 2; h++) {
      u32 row = min(first_row + 16 * m + 8 * h + g, a.rows - 1);
      rows.code_at[m][h] = (row - own) * row_bytes;
      rows.scale_at[m][h] = F::CHUNKS == 2 ? u32((u64(blockIdx.z) * a.rows + row) / 128) * ((a.cols + 127) / 128) : 0;
    }
  return rows;
}

// The lane's part of a chunk of each of its rows. Past the last column codes are zeros. Weights that no other warp of the block reads
// are to pass by the first cache.
template <typename F, bool SHARED, u32 M>
__device__ __forceinline__ void matmul_load(const MatmulRows<M>& rows, u32 chunk, u32 row_bytes, MatmulRun (&runs)[M][2]) {
  u32 at = chunk * 64 + threadIdx.x % 4 * 16;
  UNROLL for (u32 m = 0; m < M; m++)
    UNROLL for (u32 h = 0; h < 2; h++) {
      MatmulRun& run = runs[m][h];
      run = MatmulRun{uint4{0, 0, 0, 0}, 0};
      if (at >= row_bytes) continue;
      u32 code_at = rows.code_at[m][h] + at;
      run.codes = SHARED ? *reinterpret_cast<const uint4*>(rows.codes + code_at) : load_once(rows.codes + code_at);
      if (F::CHUNKS == 1) run.scale = rows.scales[code_at / 16];
      if (F::CHUNKS == 2) run.scale = rows.scales[rows.scale_at[m][h] + chunk / 2];
    }
}

__device__ __forceinline__ u32 matmul_word(const uint4& v, u32 i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

// Eight e2m1 codes as bf16 numbers 2^126 times too small. A byte's two codes go to the top of two halves.
__device__ __forceinline__ void matmul_place(MatmulFp4, const uint4& codes, u32 eight, u32 (&w)[4]) {
  u32 odd = matmul_word(codes, eight), even = odd << 4;
  UNROLL for (u32 i = 0; i < 4; i++) {
    u32 t = __byte_perm(even, odd, (4 + i) << 12 | (4 + i) << 8 | i << 4 | i);
    w[i] = (t & 0x80008000u) | (t >> 6 & 0x01c001c0u);
  }
}

// Eight e4m3 codes as bf16 numbers 2^120 times too small.
__device__ __forceinline__ void matmul_place(MatmulFp8, const uint4& codes, u32 eight, u32 (&w)[4]) {
  UNROLL for (u32 i = 0; i < 4; i++) {
    u32 t = __byte_perm(matmul_word(codes, 2 * eight + i / 2), 0, i % 2 ? 0x3322 : 0x1100);
    w[i] = (t & 0x80008000u) | (t >> 4 & 0x07f007f0u);
  }
}

__device__ __forceinline__ void matmul_place(MatmulBf16, const uint4& codes, u32, u32 (&w)[4]) {
  w[0] = codes.x, w[1] = codes.y, w[2] = codes.z, w[3] = codes.w;
}

// Columns `8 eight..` of a run in bf16.
template <typename F> __device__ __forceinline__ void matmul_widen(const MatmulRun& run, u32 eight, u32 (&w)[4]) {
  matmul_place(F{}, run.codes, eight, w);
  if (F::FACTOR_SHIFT == 0) return;
  u32 exponent = run.scale + F::FACTOR_SHIFT;
  u32 factor = min(exponent, 254u) * 0x00800080u;
  UNROLL for (u32 i = 0; i < 4; i++) w[i] = mul_bf16x2(w[i], factor);
  // Scales above 2^7 (e4m3) or 2 (e2m1) do not fit into one factor. Real ones are far below.
  if (exponent > 254) {
    factor = (exponent - 254 + 127) * 0x00800080u;
    UNROLL for (u32 i = 0; i < 4; i++) w[i] = mul_bf16x2(w[i], factor);
  }
}

// Adds the products of eight columns of each lane: two instructions.
__device__ __forceinline__ void matmul_multiply(float (&acc)[4], const u32 (&upper)[4], const u32 (&lower)[4], const uint4& x) {
  mma_bf16(acc, {upper[0], lower[0], upper[1], lower[1]}, {x.x, x.y});
  mma_bf16(acc, {upper[2], lower[2], upper[3], lower[3]}, {x.z, x.w});
}

// For few tokens: the block makes 16 M rows for up to 8 NT tokens, each of its eight warps over a segment. Weights are on their way
// some chunks ahead; inputs come through the first cache.
template <typename F, u32 M, u32 NT> __device__ __forceinline__ void matmul_few(const MatmulArgs& a) {
  constexpr u32 AHEAD = 4, E = MATMUL_EIGHTS<F>;
  __shared__ float sums[MATMUL_SEGMENTS][M * NT * 4][WARP];
  MatmulWork work = matmul_work(a, 8 * NT);
  u32 first_row = blockIdx.y * 16 * M;
  if (work.num_tokens == 0) return;
  if (!work.codes) return matmul_store_zeros(a, work, first_row, 16 * M);

  u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, i = lane % 4;
  MatmulRows<M> rows = matmul_rows<F, M>(a, work, first_row);
  u64 x_stride = u64(a.num_groups) * a.cols;
  const Act* x = a.x + (work.first_token + g) * x_stride + u64(blockIdx.z) * a.cols;

  u32 row_bytes = matmul_row_bytes<F>(a.cols);
  u32 segment = matmul_segment_steps(a.cols) * F::CHUNKS;
  u32 begin = warp * segment, end = min(begin + segment, (row_bytes + 63) / 64);
  float acc[M][NT][4] = {};
  MatmulRun runs[AHEAD][M][2];
  auto load = [&](u32 slot, u32 chunk) { matmul_load<F, false>(rows, chunk, row_bytes, runs[slot]); };
  UNROLL for (u32 slot = 0; slot < AHEAD; slot++)
    if (begin + slot < end) load(slot, begin + slot);
  for (u32 base = begin; base < end; base += AHEAD) {
    UNROLL for (u32 slot = 0; slot < AHEAD; slot++) {
      u32 chunk = base + slot;
      if (chunk >= end) break;
      UNROLL for (u32 e = 0; e < E; e++) {
        u32 col = (chunk * 4 + i) * 8 * E + 8 * e;
        uint4 in[NT];
        UNROLL for (u32 n = 0; n < NT; n++) {
          bool is_there = 8 * n + g < work.num_tokens && col < a.cols;
          in[n] = is_there ? *reinterpret_cast<const uint4*>(x + 8 * n * x_stride + col) : uint4{0, 0, 0, 0};
        }
        u32 w[M][2][4];
        UNROLL for (u32 m = 0; m < M; m++)
          UNROLL for (u32 h = 0; h < 2; h++) matmul_widen<F>(runs[slot][m][h], e, w[m][h]);
        UNROLL for (u32 n = 0; n < NT; n++) {
          if (8 * n >= work.num_tokens) continue;
          UNROLL for (u32 m = 0; m < M; m++) matmul_multiply(acc[m][n], w[m][0], w[m][1], in[n]);
        }
      }
      if (chunk + AHEAD < end) load(slot, chunk + AHEAD);
    }
  }

  UNROLL for (u32 m = 0; m < M; m++)
    UNROLL for (u32 n = 0; n < NT; n++)
      UNROLL for (u32 j = 0; j < 4; j++) sums[warp][(m * NT + n) * 4 + j][lane] = acc[m][n][j];
  __syncthreads();
  for (u32 o = threadIdx.x; o < 16 * M * work.num_tokens; o += blockDim.x) {
    u32 r = o % (16 * M), t = o / (16 * M);
    if (first_row + r >= a.rows) continue;
    u32 number = (r / 16 * NT + t / 8) * 4 + r % 16 / 8 * 2 + t % 2, from = r % 8 * 4 + t % 8 / 2;
    float total = 0.0f;
    for (u32 s = 0; s < MATMUL_SEGMENTS; s++) total += sums[s][number][from];
    matmul_store(a, work.first_token + t, first_row + r, total);
  }
}

// Where column eight `unit` of a token is in the stage of a step. Lanes that read at once (two tokens, four runs) meet sixteen bytes
// in eight different places of the banks.
template <typename F> __device__ __forceinline__ u32 matmul_staged(u32 token, u32 unit) {
  return token * 16 + (unit ^ (F::CHUNKS == 1 ? unit >> 3 : 0) ^ (token & 1) * (MATMUL_EIGHTS<F> == 1 ? 4 : MATMUL_EIGHTS<F> / 2));
}

// For many tokens: the block makes 128 rows for up to 64 WT tokens; a warp makes 32 rows for 64 tokens, segment by segment. Inputs are
// staged in shared memory, two steps ahead.
template <typename F, u32 WT> __device__ __forceinline__ void matmul_many(const MatmulArgs& a) {
  constexpr u32 M = 2, NT = 8, E = MATMUL_EIGHTS<F>, TOKENS = 64 * WT, STAGES = 3;
  // Steps whose weights are on their way in registers.
  constexpr u32 AHEAD = F::CHUNKS == 1 ? 2 : 1;
  DYNAMIC_SHARED(buffer);
  uint4* stages = reinterpret_cast<uint4*>(buffer);
  MatmulWork work = matmul_work(a, TOKENS);
  u32 first_row = blockIdx.y * 128;
  if (work.num_tokens == 0) return;
  if (!work.codes) return matmul_store_zeros(a, work, first_row, 128);

  u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, i = lane % 4;
  u32 warp_row = first_row + warp % 4 * 32, warp_token = warp / 4 * 64;
  u32 warp_tokens = work.num_tokens > warp_token ? work.num_tokens - warp_token : 0;
  MatmulRows<M> rows = matmul_rows<F, M>(a, work, warp_row);
  u64 x_stride = u64(a.num_groups) * a.cols;
  const Act* x = a.x + work.first_token * x_stride + u64(blockIdx.z) * a.cols;

  u32 row_bytes = matmul_row_bytes<F>(a.cols);
  u32 num_steps = (a.cols + MATMUL_STEP - 1) / MATMUL_STEP, segment = matmul_segment_steps(a.cols);
  u32 staged_tokens = min(TOKENS, (work.num_tokens + 7) / 8 * 8);
  auto stage = [&](u32 step) {
    if (step < num_steps) {
      uint4* to = stages + step % STAGES * (TOKENS * 16);
      for (u32 o = threadIdx.x; o < staged_tokens * 16; o += blockDim.x) {
        u32 token = o / 16, unit = o % 16, col = step * MATMUL_STEP + unit * 8;
        bool is_there = token < work.num_tokens && col < a.cols;
        copy_async(to + matmul_staged<F>(token, unit), is_there ? x + token * x_stride + col : x, is_there);
      }
    }
    copy_async_commit();
  };
  MatmulRun runs[AHEAD][F::CHUNKS][M][2];
  auto load = [&](u32 slot, u32 c, u32 step) { matmul_load<F, (WT > 1)>(rows, step * F::CHUNKS + c, row_bytes, runs[slot][c]); };

  stage(0);
  stage(1);
  UNROLL for (u32 slot = 0; slot < AHEAD; slot++)
    UNROLL for (u32 c = 0; c < F::CHUNKS; c++) load(slot, c, slot);
  float acc[M][NT][4] = {}, total[M][NT][4] = {};
  for (u32 base = 0; base < num_steps; base += AHEAD) {
    UNROLL for (u32 slot = 0; slot < AHEAD; slot++) {
      u32 step = base + slot;
      if (step >= num_steps) break;
      copy_async_wait<1>();
      // Behind this barrier the step's stage is whole, and nobody reads the one before it, which is filled next.
      __syncthreads();
      stage(step + 2);
      const uint4* staged = stages + step % STAGES * (TOKENS * 16);
      UNROLL for (u32 c = 0; c < F::CHUNKS; c++) {
        UNROLL for (u32 e = 0; e < E; e++) {
          u32 w[M][2][4];
          UNROLL for (u32 m = 0; m < M; m++)
            UNROLL for (u32 h = 0; h < 2; h++) matmul_widen<F>(runs[slot][c][m][h], e, w[m][h]);
          auto read = [&](u32 n) { return staged[matmul_staged<F>(warp_token + 8 * n + g, (c * 4 + i) * E + e)]; };
          uint4 next = read(0);
          UNROLL for (u32 n = 0; n < NT; n++) {
            uint4 in = next;
            if (n + 1 < NT) next = read(n + 1);
            if (8 * n >= warp_tokens) continue;
            UNROLL for (u32 m = 0; m < M; m++) matmul_multiply(acc[m][n], w[m][0], w[m][1], in);
          }
        }
        load(slot, c, step + AHEAD);
      }
      if ((step + 1) % segment == 0 || step + 1 == num_steps) {
        UNROLL for (u32 o = 0; o < M * NT * 4; o++) {
          float& sum = acc[o / 4 / NT][o / 4 % NT][o % 4];
          total[o / 4 / NT][o / 4 % NT][o % 4] += sum;
          sum = 0.0f;
        }
      }
    }
  }

  UNROLL for (u32 m = 0; m < M; m++)
    UNROLL for (u32 n = 0; n < NT; n++)
      UNROLL for (u32 j = 0; j < 4; j++) {
        u32 row = warp_row + 16 * m + j / 2 * 8 + g, token = warp_token + 8 * n + 2 * i + j % 2;
        if (row < a.rows && token < work.num_tokens) matmul_store(a, work.first_token + token, row, total[m][n][j]);
      }
}

#define MATMUL_TENSOR(call) call
#else
// Exact numerics have no use for tensor cores.
#define MATMUL_TENSOR(call)
#endif

// Up to 8 tokens: 16 rows to a block.
KERNEL(matmul_8_bf16, MatmulArgs, 256) { MATMUL_TENSOR((matmul_few<MatmulBf16, 1, 1>(a));) }
KERNEL(matmul_8_fp8, MatmulArgs, 256) { MATMUL_TENSOR((matmul_few<MatmulFp8, 1, 1>(a));) }
KERNEL(matmul_8_fp4, MatmulArgs, 256) { MATMUL_TENSOR((matmul_few<MatmulFp4, 1, 1>(a));) }
// Up to 32 tokens: 32 rows to a block.
KERNEL(matmul_32_bf16, MatmulArgs, 256) { MATMUL_TENSOR((matmul_few<MatmulBf16, 2, 4>(a));) }
KERNEL(matmul_32_fp8, MatmulArgs, 256) { MATMUL_TENSOR((matmul_few<MatmulFp8, 2, 4>(a));) }
KERNEL(matmul_32_fp4, MatmulArgs, 256) { MATMUL_TENSOR((matmul_few<MatmulFp4, 2, 4>(a));) }
// Tiles of 64 tokens, for experts.
KERNEL(matmul_64_bf16, MatmulArgs, 128) { MATMUL_TENSOR((matmul_many<MatmulBf16, 1>(a));) }
KERNEL(matmul_64_fp8, MatmulArgs, 128) { MATMUL_TENSOR((matmul_many<MatmulFp8, 1>(a));) }
KERNEL(matmul_64_fp4, MatmulArgs, 128) { MATMUL_TENSOR((matmul_many<MatmulFp4, 1>(a));) }
// Tiles of 128 tokens.
KERNEL(matmul_128_bf16, MatmulArgs, 256) { MATMUL_TENSOR((matmul_many<MatmulBf16, 2>(a));) }
KERNEL(matmul_128_fp8, MatmulArgs, 256) { MATMUL_TENSOR((matmul_many<MatmulFp8, 2>(a));) }
KERNEL(matmul_128_fp4, MatmulArgs, 256) { MATMUL_TENSOR((matmul_many<MatmulFp4, 2>(a));) }
