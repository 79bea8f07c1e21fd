// Dispatch and combine frames: the layout is that of `exchange.rs`.
//
// Nothing that arrives in a frame is trusted: numbers of rows, slots and assignments are held against what there is
// memory for, and what does not fit is taken as absent.

constexpr u32 EXCHANGE_THREADS = 256;
constexpr u32 EXCHANGE_SCAN_THREADS = 512;
constexpr u32 EXCHANGE_RANKS_MAX = 128;
constexpr u32 EXCHANGE_NONE = 0xffffffffu;
constexpr u32 EXCHANGE_HEADER = 16;   // bytes
constexpr u32 EXCHANGE_BLOCK = 128;   // channels of a scale
constexpr u32 EXCHANGE_VECTOR = 8;    // channels of a thread
constexpr u32 EXCHANGE_ENTRIES = 8;   // assignments of a thread

// One frame per rank.
struct ExchangeFrames {
  u8* at[EXCHANGE_RANKS_MAX];
  u32 rows[EXCHANGE_RANKS_MAX];         // room for rows
  u32 assignments[EXCHANGE_RANKS_MAX];  // room for assignments
  u32 first[EXCHANGE_RANKS_MAX];        // room for assignments of the ranks before
};

struct ExchangeLayout {
  u32 hidden;
  u32 num_topk;
  u32 row_bytes;    // of a dispatched row
  u32 scales_at;    // its scales, behind its codes
  u32 answer_bytes; // of a combined row
  u32 quantized;
};

// Where the rows of a dispatch frame begin.
__device__ __forceinline__ u64 exchange_rows_at(u32 rows, u32 num_topk) {
  return (EXCHANGE_HEADER + u64(rows) * num_topk * 8 + 15) / 16 * 16;
}

// The sum over the threads before this one; `total` is that of the block. `scratch` holds a number per warp.
__device__ __forceinline__ u32 exchange_scan(u32 x, u32* scratch, u32& total) {
  u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, sum = x;
  for (u32 offset = 1; offset < WARP; offset *= 2) {
    u32 other = __shfl_up_sync(FULL_MASK, sum, offset);
    if (lane >= offset) sum += other;
  }
  if (lane == WARP - 1) scratch[warp] = sum;
  __syncthreads();
  u32 before = 0;
  total = 0;
  for (u32 i = 0; i < blockDim.x / WARP; i++) {
    if (i == warp) before = total;
    total += scratch[i];
  }
  __syncthreads();
  return before + sum - x;
}

// The sum over the block, in every thread, once a kernel.
__device__ __forceinline__ u32 exchange_total(u32 x, u32* total) {
  if (threadIdx.x == 0) *total = 0;
  __syncthreads();
  if (x > 0) atomicAdd(total, x);
  __syncthreads();
  return *total;
}

// Copies a row by all threads of the block. Its length decides whether rows are aligned.
__device__ __forceinline__ void exchange_copy(Act* to, const Act* from, u32 hidden) {
  if (hidden * sizeof(Act) % 16 == 0) {
    u32 num_vectors = hidden * sizeof(Act) / 16;
    for (u32 i = threadIdx.x; i < num_vectors; i += blockDim.x)
      reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(from)[i];
  } else {
    for (u32 i = threadIdx.x; i < hidden; i += blockDim.x) to[i] = from[i];
  }
}

__device__ __forceinline__ u32 exchange_code(float x) { return x != x ? 0x7fu : float_to_e4m3(x); }

// e4m3 codes and ue8m0 scales of a row, by all threads of the block; 16 lanes have a block of channels.
__device__ __forceinline__ void exchange_quantize(u8* codes, u8* scales, const Act* row, u32 hidden) {
  bool aligned = hidden % EXCHANGE_VECTOR == 0;
  u32 padded = (hidden + EXCHANGE_BLOCK - 1) / EXCHANGE_BLOCK * EXCHANGE_BLOCK, step = blockDim.x * EXCHANGE_VECTOR;
  for (u32 base = 0; base < padded; base += step) {
    u32 at = base + threadIdx.x * EXCHANGE_VECTOR;
    float v[EXCHANGE_VECTOR] = {}, amax = 1e-4f;
    if (aligned && at < hidden) {
      uint4 raw = *reinterpret_cast<const uint4*>(row + at);
      u32 words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
      for (u32 i = 0; i < EXCHANGE_VECTOR; i++)
        v[i] = __uint_as_float(i % 2 ? words[i / 2] & 0xffff0000u : words[i / 2] << 16);
    } else if (at < hidden) {
#pragma unroll
      for (u32 i = 0; i < EXCHANGE_VECTOR; i++)
        if (at + i < hidden) v[i] = widen(row[at + i]);
    }
#pragma unroll
    for (u32 i = 0; i < EXCHANGE_VECTOR; i++) amax = fmaxf(amax, fabsf(v[i]));
    for (u32 offset = EXCHANGE_BLOCK / EXCHANGE_VECTOR / 2; offset > 0; offset /= 2)
      amax = fmaxf(amax, __shfl_xor_sync(FULL_MASK, amax, offset));
    float scale = pow2_ceil(amax * (1.0f / 448.0f)), inverse = 1.0f / scale;
    u32 packed[2] = {};
#pragma unroll
    for (u32 i = 0; i < EXCHANGE_VECTOR; i++) packed[i / 4] |= exchange_code(v[i] * inverse) << (i % 4 * 8);
    // Codes are padded to 16 bytes, so whole vectors fit even where a row ends within one.
    if (at < hidden) *reinterpret_cast<uint2*>(codes + at) = make_uint2(packed[0], packed[1]);
    if (at < hidden && at % EXCHANGE_BLOCK == 0) scales[at / EXCHANGE_BLOCK] = u8(__float_as_uint(scale) >> 23);
  }
}

// The numbers of a quantised row, by all threads of the block.
__device__ __forceinline__ void exchange_dequantize(Act* to, const u8* codes, const u8* scales, u32 hidden) {
  bool aligned = hidden % EXCHANGE_VECTOR == 0;
  for (u32 at = threadIdx.x * EXCHANGE_VECTOR; at < hidden; at += blockDim.x * EXCHANGE_VECTOR) {
    uint2 packed = *reinterpret_cast<const uint2*>(codes + at);
    float scale = ue8m0_to_float(scales[at / EXCHANGE_BLOCK]);
    u32 halves[EXCHANGE_VECTOR];
#pragma unroll
    for (u32 i = 0; i < EXCHANGE_VECTOR; i++) {
      u32 code = (i < 4 ? packed.x : packed.y) >> (i % 4 * 8) & 0xffu;
      halves[i] = to_bf16(e4m3_to_float(code) * scale).bits;
    }
    if (aligned) {
      *reinterpret_cast<uint4*>(to + at) = make_uint4(halves[0] | halves[1] << 16, halves[2] | halves[3] << 16,
                                                      halves[4] | halves[5] << 16, halves[6] | halves[7] << 16);
    } else {
#pragma unroll
      for (u32 i = 0; i < EXCHANGE_VECTOR; i++)
        if (at + i < hidden) to[at + i] = narrow<Act>(__uint_as_float(halves[i] << 16));
    }
  }
}

// === dispatch ===

struct ExchangePlanArgs {
  const u32* experts;   // [num_rows, num_topk]
  const uint2* places;  // [num_experts], rank and slot
  uint2* sent;          // [num_rows, num_topk], rank and index in the rank's frame
  u32* slots;           // [num_rows, num_topk]
  u32* sources;         // [num_ranks, num_rows], rows of the frame
  uint2* counts;        // [num_ranks], rows and assignments
  u32 num_rows;
  u32 num_topk;
  u32 num_experts;
};

// The place of entry `i`; the rank of an expert that is nowhere is none.
__device__ __forceinline__ uint2 exchange_place_of(const ExchangePlanArgs& a, u64 i) {
  u32 expert = a.experts[i];
  uint2 place = make_uint2(EXCHANGE_NONE, 0);
  if (expert < a.num_experts) place = a.places[expert];
  if (place.x >= gridDim.x) place.x = EXCHANGE_NONE;
  return place;
}

// One block per rank. Rows and assignments are counted in one number, rows in its upper bits.
KERNEL(exchange_plan, ExchangePlanArgs, EXCHANGE_SCAN_THREADS) {
  constexpr u32 ROW_SHIFT = 21;
  __shared__ u32 scratch[WARP];
  u32 rank = blockIdx.x, num_rows = 0, num_assignments = 0;
  for (u32 base = 0; base < a.num_rows; base += blockDim.x) {
    u32 row = base + threadIdx.x, used = 0;
    u64 first = u64(row) * a.num_topk;
    if (row < a.num_rows)
      for (u32 k = 0; k < a.num_topk; k++) used += exchange_place_of(a, first + k).x == rank;
    u32 total, before = exchange_scan(used | u32(used > 0) << ROW_SHIFT, scratch, total);
    u32 index = num_assignments + (before & ((1u << ROW_SHIFT) - 1));
    if (used > 0) a.sources[u64(rank) * a.num_rows + num_rows + (before >> ROW_SHIFT)] = row;
    if (row < a.num_rows) {
      for (u32 k = 0; k < a.num_topk; k++) {
        uint2 place = exchange_place_of(a, first + k);
        if (place.x == rank) {
          a.sent[first + k] = make_uint2(rank, index++);
          a.slots[first + k] = place.y;
        } else if (place.x == EXCHANGE_NONE && rank == 0) {
          a.sent[first + k] = make_uint2(EXCHANGE_NONE, 0);
        }
      }
    }
    num_rows += total >> ROW_SHIFT;
    num_assignments += total & ((1u << ROW_SHIFT) - 1);
  }
  if (threadIdx.x == 0) a.counts[rank] = make_uint2(num_rows, num_assignments);
}

struct ExchangePackArgs {
  ExchangeFrames frames;
  ExchangeLayout layout;
  const Act* x;           // [num_rows, hidden]
  const float* weights;   // [num_rows, num_topk]
  const uint2* sent;      // as planned
  const u32* slots;
  const u32* sources;
  const uint2* counts;
  u32 num_rows;
};

// One block per row of each rank's frame; the first also writes the header.
KERNEL(exchange_pack_dispatch, ExchangePackArgs, EXCHANGE_THREADS) {
  u32 rank = blockIdx.y, index = blockIdx.x, room = a.frames.rows[rank], num_topk = a.layout.num_topk;
  u8* frame = a.frames.at[rank];
  uint2 counts = a.counts[rank];
  u32 num_rows = min(counts.x, room);
  if (index == 0 && threadIdx.x == 0)
    *reinterpret_cast<uint4*>(frame) = make_uint4(num_rows, min(counts.y, a.frames.assignments[rank]), 0, 0);
  if (index >= num_rows) return;
  u32 row = a.sources[u64(rank) * a.num_rows + index];
  uint2* entries = reinterpret_cast<uint2*>(frame + EXCHANGE_HEADER) + u64(index) * num_topk;
  u64 first = u64(row) * num_topk;
  for (u32 k = threadIdx.x; k < num_topk; k += blockDim.x) {
    u32 used_before = 0, used = 0;
    for (u32 i = 0; i < num_topk; i++) {
      bool is_used = a.sent[first + i].x == rank;
      used += is_used;
      used_before += is_used && i < k;
    }
    bool is_used = a.sent[first + k].x == rank;
    uint2 entry = make_uint2(0, 0);
    if (is_used) entry = make_uint2(a.slots[first + k] + 1, __float_as_uint(a.weights[first + k]));
    entries[is_used ? used_before : used + k - used_before] = entry;
  }
  u8* to = frame + exchange_rows_at(room, num_topk) + u64(index) * a.layout.row_bytes;
  const Act* from = a.x + u64(row) * a.layout.hidden;
  if (OFFICIAL && a.layout.quantized) {
    exchange_quantize(to, to + a.layout.scales_at, from, a.layout.hidden);
  } else {
    exchange_copy(reinterpret_cast<Act*>(to), from, a.layout.hidden);
  }
}

struct ExchangeListArgs {
  ExchangeFrames frames;
  u32* slots;      // [room for assignments], of the ranks' frames one after the other
  uint2* origins;  // as many, rank and row of its frame
  float* weights;  // as many
  u32* counts;     // [num_ranks], assignments
  u32 num_topk;
  u32 num_slots;
};

// One block per rank: the assignments of its frame, then none up to its room.
KERNEL(exchange_list, ExchangeListArgs, EXCHANGE_SCAN_THREADS) {
  __shared__ u32 scratch[WARP];
  u32 rank = blockIdx.x, room = a.frames.assignments[rank], first = a.frames.first[rank];
  const u8* frame = a.frames.at[rank];
  const uint2* entries = reinterpret_cast<const uint2*>(frame + EXCHANGE_HEADER);
  u32 num_rows = min(*reinterpret_cast<const u32*>(frame), a.frames.rows[rank]), done = 0;
  for (u32 base = 0; base < num_rows; base += blockDim.x) {
    u32 row = base + threadIdx.x, used = 0;
    u64 at = u64(row) * a.num_topk;
    if (row < num_rows)
      for (u32 k = 0; k < a.num_topk; k++) used += entries[at + k].x - 1 < a.num_slots;
    u32 total, index = done + exchange_scan(used, scratch, total);
    for (u32 k = 0; k < a.num_topk && used > 0; k++) {
      uint2 entry = entries[at + k];
      if (entry.x - 1 >= a.num_slots) continue;
      if (index < room) {
        a.slots[first + index] = entry.x - 1;
        a.origins[first + index] = make_uint2(rank, row);
        a.weights[first + index] = __uint_as_float(entry.y);
      }
      index++;
    }
    done += total;
  }
  done = min(done, room);
  for (u32 i = done + threadIdx.x; i < room; i += blockDim.x) a.slots[first + i] = EXCHANGE_NONE;
  if (threadIdx.x == 0) a.counts[rank] = done;
}

struct ExchangeSortArgs {
  const u32* slots;           // [len], with room for whole vectors behind
  const uint2* origins;       // [len]
  const float* weights;       // [len]
  u32* slot_counts;           // [num_slots]
  u32* offsets;               // [num_slots + 1]
  u32* positions;             // [len], where each assignment's row is
  uint2* sorted_origins;      // [len]
  float* sorted_weights;      // [len]
  u32 len;
};

// Which of the assignments at `at` are of `slot`, a bit each.
__device__ __forceinline__ u32 exchange_matches(const ExchangeSortArgs& a, u32 at, u32 slot) {
  u32 matches = 0;
  for (u32 i = 0; i < EXCHANGE_ENTRIES && at + i < a.len; i += 4) {
    uint4 slots = *reinterpret_cast<const uint4*>(a.slots + at + i);
    matches |= (u32(slots.x == slot) | u32(slots.y == slot) << 1 | u32(slots.z == slot) << 2 | u32(slots.w == slot) << 3) << i;
  }
  u32 left = at < a.len ? a.len - at : 0;
  return left < EXCHANGE_ENTRIES ? matches & ((1u << left) - 1) : matches;
}

// One block per slot.
KERNEL(exchange_count, ExchangeSortArgs, EXCHANGE_SCAN_THREADS) {
  __shared__ u32 total;
  u32 count = 0;
  for (u32 at = threadIdx.x * EXCHANGE_ENTRIES; at < a.len; at += blockDim.x * EXCHANGE_ENTRIES)
    count += __popc(exchange_matches(a, at, blockIdx.x));
  count = exchange_total(count, &total);
  if (threadIdx.x == 0) a.slot_counts[blockIdx.x] = count;
}

// One block per slot: its assignments follow those of lower slots, in the order they have.
KERNEL(exchange_place, ExchangeSortArgs, EXCHANGE_SCAN_THREADS) {
  __shared__ u32 scratch[WARP], lower;
  u32 slot = blockIdx.x, count = a.slot_counts[slot], next = 0;
  for (u32 i = threadIdx.x; i < slot; i += blockDim.x) next += a.slot_counts[i];
  next = exchange_total(next, &lower);
  if (threadIdx.x == 0) a.offsets[slot] = next;
  if (threadIdx.x == 0 && slot + 1 == gridDim.x) a.offsets[slot + 1] = next + count;
  u32 end = next + count;
  for (u32 base = 0; base < a.len && next < end; base += blockDim.x * EXCHANGE_ENTRIES) {
    u32 at = base + threadIdx.x * EXCHANGE_ENTRIES;
    u32 matches = exchange_matches(a, at, slot), total;
    u32 position = next + exchange_scan(__popc(matches), scratch, total);
    for (u32 i = 0; i < EXCHANGE_ENTRIES; i++) {
      if (!(matches >> i & 1)) continue;
      a.positions[at + i] = position;
      a.sorted_origins[position] = a.origins[at + i];
      a.sorted_weights[position] = a.weights[at + i];
      position++;
    }
    next += total;
  }
}

struct ExchangeGatherArgs {
  ExchangeFrames frames;
  ExchangeLayout layout;
  const uint2* origins;  // sorted
  const u32* total;      // rows
  Act* x;                // [room, hidden]
};

// One block per sorted row.
KERNEL(exchange_gather, ExchangeGatherArgs, EXCHANGE_THREADS) {
  if (blockIdx.x >= *a.total) return;
  uint2 origin = a.origins[blockIdx.x];
  const u8* frame = a.frames.at[origin.x];
  const u8* from = frame + exchange_rows_at(a.frames.rows[origin.x], a.layout.num_topk) + u64(origin.y) * a.layout.row_bytes;
  Act* to = a.x + u64(blockIdx.x) * a.layout.hidden;
  if (OFFICIAL && a.layout.quantized) {
    exchange_dequantize(to, from, from + a.layout.scales_at, a.layout.hidden);
  } else {
    exchange_copy(to, reinterpret_cast<const Act*>(from), a.layout.hidden);
  }
}

// === combine ===

struct ExchangeAnswerArgs {
  ExchangeFrames frames;
  ExchangeLayout layout;
  const Act* y;          // [room, hidden], sorted
  const u32* positions;  // of every rank's assignments
  const u32* counts;     // [num_ranks], assignments
};

// One block per assignment of each rank.
KERNEL(exchange_pack_combine, ExchangeAnswerArgs, EXCHANGE_THREADS) {
  u32 rank = blockIdx.y, index = blockIdx.x;
  if (index >= min(a.counts[rank], a.frames.assignments[rank])) return;
  const Act* from = a.y + u64(a.positions[a.frames.first[rank] + index]) * a.layout.hidden;
  u8* to = a.frames.at[rank] + u64(index) * a.layout.answer_bytes;
  exchange_copy(reinterpret_cast<Act*>(to), from, a.layout.hidden);
}

struct ExchangeCombineArgs {
  ExchangeFrames frames;
  ExchangeLayout layout;
  const uint2* sent;  // [num_rows, num_topk]
  Act* y;             // [num_rows, hidden], the shared expert's, in place
};

// The answer to entry `i`, or null if there is none.
__device__ __forceinline__ const Act* exchange_answer(const ExchangeCombineArgs& a, u64 i) {
  uint2 sent = a.sent[i];
  u32 rank = min(sent.x, EXCHANGE_RANKS_MAX - 1);
  bool is_there = sent.x == rank && sent.y < a.frames.assignments[rank];
  return is_there ? reinterpret_cast<const Act*>(a.frames.at[rank] + u64(sent.y) * a.layout.answer_bytes) : nullptr;
}

// Blocks of one row: its experts in top-k order, then the shared one.
KERNEL(exchange_unpack_combine, ExchangeCombineArgs, EXCHANGE_THREADS) {
  constexpr u32 AT_ONCE = 4;
  u32 hidden = a.layout.hidden, at = (blockIdx.y * blockDim.x + threadIdx.x) * EXCHANGE_VECTOR;
  if (at >= hidden) return;
  Act* y = a.y + u64(blockIdx.x) * hidden;
  u32 num_topk = a.layout.num_topk;
  u64 first = u64(blockIdx.x) * num_topk;
  if (hidden % EXCHANGE_VECTOR == 0) {
    float sums[EXCHANGE_VECTOR] = {}, shared[EXCHANGE_VECTOR];
    for (u32 k = 0; k < num_topk; k += AT_ONCE) {
      // Without branches, so that the loads overlap: what is not there reads `y`, and adds zeros, which change no sum.
      float v[AT_ONCE][EXCHANGE_VECTOR];
      bool is_there[AT_ONCE];
#pragma unroll
      for (u32 j = 0; j < AT_ONCE; j++) {
        const Act* row = exchange_answer(a, first + min(k + j, num_topk - 1));
        is_there[j] = row && k + j < num_topk;
        load8((is_there[j] ? row : y) + at, v[j]);
      }
#pragma unroll
      for (u32 j = 0; j < AT_ONCE; j++) {
#pragma unroll
        for (u32 i = 0; i < EXCHANGE_VECTOR; i++) sums[i] += is_there[j] ? v[j][i] : 0.0f;
      }
    }
    load8(y + at, shared);
#pragma unroll
    for (u32 i = 0; i < EXCHANGE_VECTOR; i++) sums[i] += shared[i];
    store8(y + at, sums);
    return;
  }
  for (u32 i = at; i < min(at + EXCHANGE_VECTOR, hidden); i++) {
    float sum = 0.0f;
    for (u32 k = 0; k < num_topk; k++) {
      const Act* row = exchange_answer(a, first + k);
      if (row) sum += widen(row[i]);
    }
    y[i] = narrow<Act>(sum + widen(y[i]));
  }
}
