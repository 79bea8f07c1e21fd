// The indexer: how much each entry matters to a query, and the choice of those that matter most; twin of `indexer.rs`
// and of `topk` in `gate.rs`.

struct IndexArgs {
  const Row* rows;
  const u32* blocks;
  const Act* q;        // [num_rows, num_heads, dim]
  const Act* weights;  // [num_rows, num_heads]
  const u8* keys;      // [cells, row_bytes]
  const u8* scales;    // [cells, scale_bytes]
  float* scores;       // [num_rows of this call, max_visible]
  u32* chosen;         // [num_rows, topk]
  u32* counts;         // [num_rows]
  u32 first_row;       // of this call
  u32 num_heads;
  u32 dim;
  u32 ratio;
  u32 entries_per_block;
  u32 row_bytes;
  u32 scale_bytes;
  u32 max_visible;
  u32 topk;
  float scale;  // of the weights
};

__device__ __forceinline__ u64 index_cell(const IndexArgs& a, const Row& row, u32 entry) {
  u32 block = entry * a.ratio / 128, within = entry - (block * 128 + a.ratio - 1) / a.ratio;
  return u64(a.blocks[row.table + block]) * a.entries_per_block + within;
}

__device__ __forceinline__ float index_channel(const IndexArgs& a, u64 cell, u32 channel) {
#if OFFICIAL
  u32 pair = a.keys[cell * a.row_bytes + channel / 2];
  return e2m1_to_float(pair >> (channel % 2 * 4)) * ue8m0_to_float(a.scales[cell * a.scale_bytes + channel / 32]);
#else
  return reinterpret_cast<const float*>(a.keys + cell * a.row_bytes)[channel];
#endif
}

// === scores ===

// Entries of a block: one per thread.
constexpr u32 INDEX_TILE = 128;

// One block per row and INDEX_TILE entries. Any shape, no tensor cores.
KERNEL(index_scores, IndexArgs, 128) {
  DYNAMIC_SHARED(shared);
  float* keys = reinterpret_cast<float*>(shared);  // [INDEX_TILE, stride]
  u32 stride = a.dim | 1;
  u32 index = a.first_row + blockIdx.y;
  Row row = a.rows[index];
  u32 visible = (row.position + 1) / a.ratio, first = blockIdx.x * INDEX_TILE;
  // Whoever sees no more than the limit takes all.
  if (visible <= a.topk || first >= visible) return;
  u32 num = min(INDEX_TILE, visible - first);
  for (u32 j = threadIdx.x / WARP; j < num; j += blockDim.x / WARP) {
    u64 cell = index_cell(a, row, first + j);
    for (u32 i = threadIdx.x % WARP; i < a.dim; i += WARP) keys[j * stride + i] = index_channel(a, cell, i);
  }
  __syncthreads();
  if (threadIdx.x >= num) return;
  const float* key = keys + threadIdx.x * stride;
  float score = 0.0f;
  for (u32 head = 0; head < a.num_heads; head++) {
    const Act* q = a.q + (u64(index) * a.num_heads + head) * a.dim;
    float parts[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (u32 i = 0; i + 4 <= a.dim; i += 4)
      for (u32 k = 0; k < 4; k++) parts[k] = fmaf(widen(q[i + k]), key[i + k], parts[k]);
    for (u32 i = a.dim / 4 * 4; i < a.dim; i++) parts[0] = fmaf(widen(q[i]), key[i], parts[0]);
    float dot = (parts[0] + parts[1]) + (parts[2] + parts[3]);
    float weight = widen(a.weights[u64(index) * a.num_heads + head]) * a.scale;
    // Not fmaxf, through which NaN would not pass.
    score = fmaf(weight, dot < 0.0f ? 0.0f : dot, score);
  }
  a.scores[u64(blockIdx.y) * a.max_visible + first + threadIdx.x] = score;
}

// Entries of a block with tensor cores.
constexpr u32 INDEX_STRETCH = 1024;
// Their only shape of a query: four sixteens of heads, and a block of 32 channels for each of four lanes.
constexpr u32 INDEX_TILES = 4;
constexpr u32 INDEX_DIM = 128;

#ifdef EMULATED
#define INDEX_UNROLL
#else
#define INDEX_UNROLL _Pragma("unroll")
#endif

#if OFFICIAL

// A lane's block of channels of a key.
struct IndexPart {
  uint4 codes;
  u32 scale;
};

// The two factors of a block's codes, as pairs of bf16: their product is the scale times 2^126, by which the bits of an
// e2m1 number in a bf16's place are too small.
__device__ __forceinline__ uint2 index_factors(u32 scale_code) {
  u32 exponent = max(scale_code, 1u) - 1, half = exponent / 2;
  u32 first = (127 + half) << 7, second = scale_code == 255 ? 0x7fc0u : (127 + exponent - half) << 7;
  return make_uint2(first | (first << 16), second | (second << 16));
}

// The two e2m1 codes of a byte as a pair of bf16.
__device__ __forceinline__ u32 index_widen(u32 codes, uint2 factors) {
  u32 pair = ((codes & 0x07u) << 6) | ((codes & 0x08u) << 12) | ((codes & 0x70u) << 18) | ((codes & 0x80u) << 24);
  return mul_bf16x2(mul_bf16x2(pair, factors.x), factors.y);
}

#endif

// One block per row and INDEX_STRETCH entries; a warp takes eight entries at a time. Lane i holds channels 32 (i % 4) to
// 32 (i % 4) + 31 of entry i / 4: a product's channels may come in any order as long as query and key agree.
KERNEL(index_scores_tiles, IndexArgs, 256) {
#if OFFICIAL
  u32 index = a.first_row + blockIdx.y;
  Row row = a.rows[index];
  u32 visible = (row.position + 1) / a.ratio, begin = blockIdx.x * INDEX_STRETCH;
  if (visible <= a.topk || begin >= visible) return;
  u32 end = min(begin + INDEX_STRETCH, visible);
  u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, group = lane / 4, quarter = lane % 4;
  u32 q[INDEX_TILES][8][4];
  float weights[INDEX_TILES][2];
INDEX_UNROLL
  for (u32 m = 0; m < INDEX_TILES; m++)
INDEX_UNROLL
    for (u32 half = 0; half < 2; half++) {
      u32 head = m * 16 + half * 8 + group;
      bool is_head = head < a.num_heads;
      u64 at = u64(index) * a.num_heads + head;
      weights[m][half] = is_head ? widen(a.weights[at]) * a.scale : 0.0f;
      const uint2* from = reinterpret_cast<const uint2*>(a.q + at * INDEX_DIM + quarter * 32);
INDEX_UNROLL
      for (u32 s = 0; s < 8; s++) {
        uint2 four = is_head ? from[s] : make_uint2(0, 0);
        q[m][s][half] = four.x;
        q[m][s][2 + half] = four.y;
      }
    }
  auto fetch = [&](u32 first) {
    IndexPart part = {make_uint4(0, 0, 0, 0), 127};
    u32 entry = first + group;
    if (entry < end) {
      u64 cell = index_cell(a, row, entry);
      part.codes = reinterpret_cast<const uint4*>(a.keys + cell * a.row_bytes)[quarter];
      part.scale = a.scales[cell * a.scale_bytes + quarter];
    }
    return part;
  };
  u32 step = blockDim.x / WARP * 8, first = begin + warp * 8;
  IndexPart part = fetch(first);
  for (; first < end; first += step) {
    IndexPart next = fetch(first + step);
    uint2 factors = index_factors(part.scale);
    float dots[INDEX_TILES][4];
INDEX_UNROLL
    for (u32 i = 0; i < INDEX_TILES * 4; i++) dots[i / 4][i % 4] = 0.0f;
    u32 words[4] = {part.codes.x, part.codes.y, part.codes.z, part.codes.w};
INDEX_UNROLL
    for (u32 s = 0; s < 8; s++) {
      u32 codes = words[s / 2] >> (s % 2 * 16);
      u32 b0 = index_widen(codes & 0xffu, factors), b1 = index_widen((codes >> 8) & 0xffu, factors);
INDEX_UNROLL
      for (u32 m = 0; m < INDEX_TILES; m++) mma_bf16(dots[m], q[m][s], b0, b1);
    }
    float left = 0.0f, right = 0.0f;
INDEX_UNROLL
    for (u32 m = 0; m < INDEX_TILES; m++)
INDEX_UNROLL
      for (u32 half = 0; half < 2; half++) {
        float x = dots[m][half * 2], y = dots[m][half * 2 + 1];
        left = fmaf(weights[m][half], x < 0.0f ? 0.0f : x, left);
        right = fmaf(weights[m][half], y < 0.0f ? 0.0f : y, right);
      }
    for (u32 offset = 4; offset < WARP; offset *= 2) {
      left += __shfl_xor_sync(FULL_MASK, left, offset);
      right += __shfl_xor_sync(FULL_MASK, right, offset);
    }
    float* to = a.scores + u64(blockIdx.y) * a.max_visible;
    u32 entry = first + quarter * 2;
    if (group == 0 && entry < end) to[entry] = left;
    if (group == 0 && entry + 1 < end) to[entry + 1] = right;
    part = next;
  }
#endif
}

// === choice ===

// Bits of a key that are found at a time, from the highest on.
constexpr u32 SELECT_BITS = 11;
constexpr u32 SELECT_BINS = 1u << SELECT_BITS;

// Orders floats as integers: zeros of either sign alike, NaN lowest.
__device__ __forceinline__ u32 select_key(float x) {
  if (x != x) return 0;
  u32 bits = __float_as_uint(x + 0.0f);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// Counts in each lane's bin, if there is such a bin. Scores are alike, so lanes often have the same one: they add once.
__device__ __forceinline__ void select_count(u32* histogram, u32 bin) {
#ifndef EMULATED
  u32 same = __match_any_sync(FULL_MASK, bin), below = (1u << (threadIdx.x % WARP)) - 1;
  if (bin < SELECT_BINS && (same & below) == 0) atomicAdd(&histogram[bin], u32(__popc(same)));
#else
  if (bin < SELECT_BINS) atomicAdd(&histogram[bin], 1u);
#endif
}

// The highest bin at which the count from the top reaches `wanted`, and the count above it. For the whole block.
__device__ __forceinline__ uint2 select_bin(const u32* histogram, u32 wanted, u32* group_sums, uint2* found) {
  u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  // Threads next to each other read different banks.
  for (u32 group = threadIdx.x; group < SELECT_BINS / WARP; group += blockDim.x) {
    u32 sum = 0;
    for (u32 i = 0; i < WARP; i++) sum += histogram[group * WARP + (i + group) % WARP];
    group_sums[group] = sum;
  }
  __syncthreads();
  if (warp == 0) {
    u32 above = 0, group = SELECT_BINS / WARP;
    // At most 64 steps, in step for all lanes.
    do {
      group--;
      above += group_sums[group];
    } while (above < wanted && group > 0);
    above -= group_sums[group];
    u32 bin = group * WARP + (WARP - 1 - lane), count = histogram[bin], upto = count;
    for (u32 offset = 1; offset < WARP; offset *= 2) {
      u32 other = __shfl_up_sync(FULL_MASK, upto, offset);
      if (lane >= offset) upto += other;
    }
    if (above + upto >= wanted && above + upto - count < wanted) *found = make_uint2(bin, above + upto - count);
  }
  __syncthreads();
  return *found;
}

// One block per row.
KERNEL(select_entries, IndexArgs, 1024) {
  __shared__ u32 histogram[SELECT_BINS];
  __shared__ u32 group_sums[SELECT_BINS / WARP];
  __shared__ u32 greater[WARP], equal[WARP];
  __shared__ uint2 found;
  u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, num_warps = blockDim.x / WARP;
  u32 index = a.first_row + blockIdx.x;
  u32 visible = (a.rows[index].position + 1) / a.ratio;
  u32* chosen = a.chosen + u64(index) * a.topk;
  if (threadIdx.x == 0) a.counts[index] = min(visible, a.topk);
  if (visible <= a.topk) {
    for (u32 i = threadIdx.x; i < visible; i += blockDim.x) chosen[i] = i;
    return;
  }
  const float* scores = a.scores + u64(blockIdx.x) * a.max_visible;
  // The key of the last that is chosen, from its highest bits on; and how many with just that key are.
  u32 threshold = 0, known = 0, wanted = a.topk;
  for (int shift = 32 - int(SELECT_BITS); known != 0xffffffffu; shift -= int(SELECT_BITS)) {
    u32 low = shift > 0 ? u32(shift) : 0;
    u32 digits = shift > 0 ? SELECT_BINS - 1 : (SELECT_BINS - 1) >> -shift;
    for (u32 i = threadIdx.x; i < SELECT_BINS; i += blockDim.x) histogram[i] = 0;
    __syncthreads();
    for (u32 first = warp * WARP; first < visible; first += blockDim.x) {
      u32 key = first + lane < visible ? select_key(scores[first + lane]) : 0;
      bool counts = first + lane < visible && (key & known) == threshold;
      select_count(histogram, counts ? (key >> low) & digits : SELECT_BINS);
    }
    __syncthreads();
    uint2 bin = select_bin(histogram, wanted, group_sums, &found);
    threshold |= bin.x << low;
    known |= digits << low;
    wanted -= bin.y;
    __syncthreads();
  }
  // Every warp takes a stretch of its own, so that the choice comes out rising.
  u32 stretch = ((visible + num_warps - 1) / num_warps + WARP - 1) / WARP * WARP;
  u32 begin = min(warp * stretch, visible), end = min(begin + stretch, visible);
  u32 num_greater = 0, num_equal = 0;
  for (u32 first = begin; first < end; first += WARP) {
    u32 key = first + lane < end ? select_key(scores[first + lane]) : 0;
    bool is_there = first + lane < end;
    num_greater += __popc(__ballot_sync(FULL_MASK, is_there && key > threshold));
    num_equal += __popc(__ballot_sync(FULL_MASK, is_there && key == threshold));
  }
  if (lane == 0) {
    greater[warp] = num_greater;
    equal[warp] = num_equal;
  }
  __syncthreads();
  u32 greater_before = 0, equal_before = 0;
  for (u32 i = 0; i < warp; i++) {
    greater_before += greater[i];
    equal_before += equal[i];
  }
  u32 at = greater_before + min(equal_before, wanted), below = (1u << lane) - 1;
  for (u32 first = begin; first < end; first += WARP) {
    u32 key = first + lane < end ? select_key(scores[first + lane]) : 0;
    bool is_there = first + lane < end;
    u32 equals = __ballot_sync(FULL_MASK, is_there && key == threshold);
    bool is_early = equal_before + u32(__popc(equals & below)) < wanted;
    bool is_chosen = is_there && (key > threshold || (key == threshold && is_early));
    u32 taken = __ballot_sync(FULL_MASK, is_chosen);
    if (is_chosen) chosen[at + u32(__popc(taken & below))] = first + lane;
    at += u32(__popc(taken));
    equal_before += u32(__popc(equals));
  }
}
