// Attention of each row over its window and its entries, which are keys and values at once, with a sink; twin of
// `attention.rs`.
//
// A row's keys are a list: the window in rising position, then entries, rising. The list is worked through in pieces of
// fixed length with a running maximum, so a row's bits depend on its list only.

#ifdef EMULATED
#define ATTEND_UNROLL
#define ATTEND_UNROLL_4
#else
#define ATTEND_UNROLL _Pragma("unroll")
#define ATTEND_UNROLL_4 _Pragma("unroll 4")
#endif

// Maximum and denominator of a part of a row's keys.
struct AttendStats {
  float largest, denominator;
};

struct AttendArgs {
  const Row* rows;
  const u32* blocks;
  const Act* q;        // [num_rows, num_heads, head_dim]
  const Act* kv;       // [num_rows, head_dim]
  const float* sinks;  // [num_heads]
  const u32* chosen;   // [num_rows, topk], or null to attend every visible entry
  const u32* counts;   // [num_rows]
  const u8* window;
  const u8* window_scales;
  const u8* entries;
  const u8* entry_scales;
  Act* out;        // [num_rows, num_heads, head_dim]
  float* partial;  // [num_rows of this call, num_segments, num_heads, head_dim]: sums that are not divided yet
  AttendStats* stats;   // [num_rows of this call, num_segments, num_heads]: maximum and denominator
  u32 first_row;   // of this call
  u32 num_heads;
  u32 head_dim;
  u32 rotary_dim;
  u32 sliding_window;
  u32 window_rows;
  u32 ratio;
  u32 entries_per_block;
  u32 topk;
  u32 row_bytes;
  u32 scale_bytes;
  u32 num_segments;
  float softmax_scale;
};

// Logit of what is not there.
__device__ __forceinline__ float attend_never() { return __uint_as_float(0xff800000u); }

// What a row sees.
struct AttendList {
  Row row;
  u32 index;       // of the row
  u32 oldest;      // position of the first key
  u32 num_window;  // keys of the window
  u32 num_keys;
};

// Where a key is. Rows of the step itself are activations and have no scales.
struct AttendKey {
  const u8* data;
  const u8* scales;
};

__device__ __forceinline__ AttendList attend_list(const AttendArgs& a, u32 index) {
  AttendList list;
  list.row = a.rows[index];
  list.index = index;
  u32 end = list.row.position + 1;
  list.num_window = min(end, a.sliding_window);
  list.oldest = end - list.num_window;
  list.num_keys = list.num_window + (a.chosen ? a.counts[index] : end / a.ratio);
  return list;
}

// Where key `j` is: a row of the step, a cell of the window, or one of the entries, by the highest bits.
constexpr u32 ATTEND_WINDOW = 1u << 30;
constexpr u32 ATTEND_ENTRY = 1u << 31;

__device__ __forceinline__ u32 attend_place(const AttendArgs& a, const AttendList& list, u32 j) {
  const Row& row = list.row;
  if (j < list.num_window) {
    u32 position = list.oldest + j;
    if (position >= row.first_position) return row.first_row + (position - row.first_position);
    return ATTEND_WINDOW | (row.slot * a.window_rows + position % a.window_rows);
  }
  u32 entry = j - list.num_window;
  if (a.chosen) entry = a.chosen[u64(list.index) * a.topk + entry];
  u32 block = entry * a.ratio / 128, within = entry - (block * 128 + a.ratio - 1) / a.ratio;
  return ATTEND_ENTRY | (a.blocks[row.table + block] * a.entries_per_block + within);
}

__device__ __forceinline__ AttendKey attend_key(const AttendArgs& a, u32 place) {
  u64 cell = place & (ATTEND_WINDOW - 1);
  if (place & ATTEND_ENTRY) return {a.entries + cell * a.row_bytes, a.entry_scales + cell * a.scale_bytes};
  if (place & ATTEND_WINDOW) return {a.window + cell * a.row_bytes, a.window_scales + cell * a.scale_bytes};
  return {reinterpret_cast<const u8*>(a.kv + cell * a.head_dim), nullptr};
}

// One channel of a key.
__device__ __forceinline__ float attend_channel(const AttendArgs& a, const AttendKey& key, u32 channel) {
#if OFFICIAL
  if (!key.scales) return widen(reinterpret_cast<const Act*>(key.data)[channel]);
  u32 num_plain = a.head_dim - a.rotary_dim;
  if (channel < num_plain) return e4m3_to_float(key.data[channel]) * ue8m0_to_float(key.scales[channel / 64]);
  return widen(reinterpret_cast<const bf16*>(key.data + (num_plain + 15) / 16 * 16)[channel - num_plain]);
#else
  return reinterpret_cast<const float*>(key.data)[channel];
#endif
}

// === without tensor cores ===

constexpr u32 ATTEND_WARPS = 8;
// Keys of a piece: one per lane.
constexpr u32 ATTEND_PIECE = WARP;
// Channels that a lane sums.
constexpr u32 ATTEND_CHANNELS = 16;

// One block per row and eight heads, a warp for each head.
KERNEL(attend_simple, AttendArgs, 256) {
  DYNAMIC_SHARED(shared);
  u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  u32 dim = a.head_dim, stride = dim | 1;
  float* keys = reinterpret_cast<float*>(shared);                   // [ATTEND_PIECE, stride]
  float* query = keys + ATTEND_PIECE * stride + warp * dim;         // [ATTEND_WARPS, dim]
  AttendList list = attend_list(a, a.first_row + blockIdx.x);
  u32 head = blockIdx.y * ATTEND_WARPS + warp;
  bool is_head = head < a.num_heads;
  u64 base = (u64(list.index) * a.num_heads + head) * dim;
  for (u32 i = lane; i < dim; i += WARP) query[i] = is_head ? widen(a.q[base + i]) : 0.0f;
  float largest = attend_never(), denominator = 0.0f;
  float sums[ATTEND_CHANNELS];
ATTEND_UNROLL
  for (u32 i = 0; i < ATTEND_CHANNELS; i++) sums[i] = 0.0f;
  for (u32 first = 0; first < list.num_keys; first += ATTEND_PIECE) {
    u32 num = min(ATTEND_PIECE, list.num_keys - first);
    __syncthreads();
    for (u32 j = warp; j < num; j += ATTEND_WARPS) {
      AttendKey key = attend_key(a, attend_place(a, list, first + j));
      for (u32 i = lane; i < dim; i += WARP) keys[j * stride + i] = attend_channel(a, key, i);
    }
    __syncthreads();
    float parts[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    const float* key = keys + min(lane, num - 1) * stride;
    for (u32 i = 0; i + 4 <= dim; i += 4)
      for (u32 k = 0; k < 4; k++) parts[k] = fmaf(query[i + k], key[i + k], parts[k]);
    for (u32 i = dim / 4 * 4; i < dim; i++) parts[0] = fmaf(query[i], key[i], parts[0]);
    float logit = ((parts[0] + parts[1]) + (parts[2] + parts[3])) * a.softmax_scale;
    logit = lane < num ? logit : attend_never();
    float grown = fmaxf(largest, warp_max(logit));
    float shrink = expf(largest - grown), numerator = expf(logit - grown);
    denominator = fmaf(denominator, shrink, warp_sum(numerator));
    largest = grown;
    numerator = cast_act(numerator);
ATTEND_UNROLL
  for (u32 i = 0; i < ATTEND_CHANNELS; i++) sums[i] *= shrink;
    for (u32 j = 0; j < num; j++) {
      float p = __shfl_sync(FULL_MASK, numerator, j);
ATTEND_UNROLL
  for (u32 i = 0; i < ATTEND_CHANNELS; i++) {
        u32 channel = i * WARP + lane;
        if (channel < dim) sums[i] = fmaf(p, keys[j * stride + channel], sums[i]);
      }
    }
  }
  if (!is_head) return;
  float inverse = 1.0f / (denominator + expf(a.sinks[head] - largest));
ATTEND_UNROLL
  for (u32 i = 0; i < ATTEND_CHANNELS; i++) {
    u32 channel = i * WARP + lane;
    if (channel < dim) a.out[base + channel] = narrow<Act>(sums[i] * inverse);
  }
}

// === with tensor cores ===

// Keys of a piece: those that are in shared memory at a time.
constexpr u32 ATTEND_KEYS = 64;
// Keys of a segment: what one block works through. A window of 128 and 1024 chosen entries make one.
constexpr u32 ATTEND_SEGMENT = 18 * ATTEND_KEYS;
// Bytes of a head's logits, and later probabilities, of a piece. Rows are apart by a multiple of 16 bytes that is odd, so
// that eight of them lie in different banks.
constexpr u32 ATTEND_LOGIT_BYTES = ATTEND_KEYS * 4 + 16;
// Sixteens of channels that a warp sums, of 32 shared by four warps.
constexpr u32 ATTEND_PAIRS = 8;

#if OFFICIAL

struct AttendHead {
  float largest, denominator, shrink, unused;
};

// Four 8 x 8 matrices of bf16 in shared memory; lane i names row i % 8 of matrix i / 8. TRANSPOSED: each comes out with
// rows and columns exchanged.
template <bool TRANSPOSED> __device__ __forceinline__ void attend_load_matrices(u32 (&to)[4], const void* row) {
#ifndef EMULATED
  u32 address;
  asm("{ .reg .u64 t; cvta.to.shared.u64 t, %1; cvt.u32.u64 %0, t; }" : "=r"(address) : "l"(row));
  if (TRANSPOSED) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
  }
#else
  struct Loaded {
    u32 of[4];
  };
  u32 lane = threadIdx.x % WARP;
  Loaded loaded = emulator::exchange(reinterpret_cast<const u16*>(row), [&](auto of) {
    Loaded l;
    for (u32 j = 0; j < 4; j++) {
      u32 at = 8 * j + (TRANSPOSED ? lane % 4 * 2 : lane / 4);
      u32 column = TRANSPOSED ? lane / 4 : lane % 4 * 2;
      l.of[j] = of(at)[column] | u32(TRANSPOSED ? of(at + 1)[column] : of(at)[column + 1]) << 16;
    }
    return l;
  });
  for (u32 j = 0; j < 4; j++) to[j] = loaded.of[j];
#endif
}

// Asks for memory that is read soon.
__device__ __forceinline__ void attend_prefetch(const void* at) {
#ifndef EMULATED
  asm volatile("prefetch.global.L2 [%0];" ::"l"(at));
#endif
}

// The two factors of a block's codes, as pairs of bf16: their product is the scale times 2^120, by which the bits of an
// e4m3 number in a bf16's place are too small. Neither factor nor product leaves the range of normal numbers.
__device__ __forceinline__ uint2 attend_factors(u32 scale_code) {
  int exponent = int(scale_code) - 7, half = exponent >> 1;
  u32 first = u32(127 + half) << 7, second = scale_code == 255 ? 0x7fc0u : u32(127 + exponent - half) << 7;
  return make_uint2(first | (first << 16), second | (second << 16));
}

// Four e4m3 codes as two pairs of bf16.
__device__ __forceinline__ uint2 attend_widen(u32 codes, uint2 factors) {
  u32 low = (codes & 0xffu) | ((codes & 0xff00u) << 8), high = ((codes >> 16) & 0xffu) | ((codes >> 8) & 0xff0000u);
  low = ((low & 0x007f007fu) << 4) | ((low & 0x00800080u) << 8);
  high = ((high & 0x007f007fu) << 4) | ((high & 0x00800080u) << 8);
  return make_uint2(mul_bf16x2(mul_bf16x2(low, factors.x), factors.y),
                    mul_bf16x2(mul_bf16x2(high, factors.x), factors.y));
}

// 16 bytes that nothing writes while the kernel runs.
__device__ __forceinline__ uint4 attend_load(const uint4* from) {
#ifndef EMULATED
  uint4 x;
  asm("ld.global.nc.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "l"(from));
  return x;
#else
  return *from;
#endif
}

__device__ __forceinline__ u32 attend_load(const u8* from) {
#ifndef EMULATED
  u32 x;
  asm("ld.global.nc.u8 %0, [%1];" : "=r"(x) : "l"(from));
  return x;
#else
  return *from;
#endif
}

// What a lane holds of a key on its way: 16 codes and 8 rotated channels, or twice 8 channels of a row of the step.
struct AttendParcel {
  uint4 first, second;
  u32 scale;
};

// Whether rows come 16 bytes at a time.
__device__ __forceinline__ bool attend_is_aligned(const AttendArgs& a) {
  return (a.head_dim - a.rotary_dim) % 16 == 0 && a.rotary_dim % 8 == 0 && a.rotary_dim <= 8 * WARP;
}

__device__ __forceinline__ AttendParcel attend_take(const AttendArgs& a, u32 place) {
  u32 lane = threadIdx.x % WARP, num_codes = (a.head_dim - a.rotary_dim) / 16;
  AttendKey key = attend_key(a, place);
  const uint4* from = reinterpret_cast<const uint4*>(key.data);
  AttendParcel parcel = {make_uint4(0, 0, 0, 0), make_uint4(0, 0, 0, 0), 0};
  if (!key.scales) {
    if (lane < a.head_dim / 8) parcel.first = attend_load(from + lane);
    if (lane + WARP < a.head_dim / 8) parcel.second = attend_load(from + lane + WARP);
  } else {
    if (lane < num_codes) {
      parcel.first = attend_load(from + lane);
      parcel.scale = attend_load(key.scales + lane / 4);
    }
    if (lane < a.rotary_dim / 8) parcel.second = attend_load(from + num_codes + lane);
  }
  return parcel;
}

__device__ __forceinline__ void attend_put(const AttendArgs& a, u32 place, const AttendParcel& parcel, bf16* key) {
  u32 lane = threadIdx.x % WARP, num_codes = (a.head_dim - a.rotary_dim) / 16;
  uint4* to = reinterpret_cast<uint4*>(key);
  if (!(place & (ATTEND_WINDOW | ATTEND_ENTRY))) {
    if (lane < a.head_dim / 8) to[lane] = parcel.first;
    if (lane + WARP < a.head_dim / 8) to[lane + WARP] = parcel.second;
    return;
  }
  if (lane < num_codes) {
    uint2 factors = attend_factors(parcel.scale);
    uint2 x = attend_widen(parcel.first.x, factors), y = attend_widen(parcel.first.y, factors);
    uint2 z = attend_widen(parcel.first.z, factors), w = attend_widen(parcel.first.w, factors);
    to[2 * lane] = make_uint4(x.x, x.y, y.x, y.y);
    to[2 * lane + 1] = make_uint4(z.x, z.y, w.x, w.y);
  }
  if (lane < a.rotary_dim / 8) to[2 * num_codes + lane] = parcel.second;
}

// Keys that a warp has on their way at a time.
constexpr u32 ATTEND_PARCELS = 4;

// The block brings `num` keys to shared memory, as bf16.
template <u32 NUM_WARPS>
__device__ __forceinline__ void attend_fetch(const AttendArgs& a, const u32* places, u32 num, bf16* keys, u32 stride) {
  u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  if (!attend_is_aligned(a)) {
    for (u32 j = warp; j < num; j += NUM_WARPS) {
      AttendKey key = attend_key(a, places[j]);
      for (u32 i = lane; i < a.head_dim; i += WARP) keys[j * stride + i] = to_bf16(attend_channel(a, key, i));
    }
    return;
  }
  for (u32 first = warp; first < num; first += NUM_WARPS * ATTEND_PARCELS) {
    AttendParcel parcels[ATTEND_PARCELS];
ATTEND_UNROLL
    for (u32 i = 0; i < ATTEND_PARCELS; i++) parcels[i] = attend_take(a, places[min(first + i * NUM_WARPS, num - 1)]);
ATTEND_UNROLL
    for (u32 i = 0; i < ATTEND_PARCELS; i++) {
      u32 j = first + i * NUM_WARPS;
      if (j < num) attend_put(a, places[j], parcels[i], keys + j * stride);
    }
  }
}

// The softmax of a piece: a warp turns the logits of ROWS heads, NUM_WARPS apart, into probabilities. All heads take each
// step together, so that none waits for its own last one.
template <u32 ROWS, u32 NUM_WARPS> __device__ __forceinline__ void attend_softmax(u8* logits, AttendHead* heads) {
  u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  float x[ROWS], y[ROWS], grown[ROWS], sum[ROWS];
ATTEND_UNROLL
  for (u32 i = 0; i < ROWS; i++) {
    const float* row = reinterpret_cast<const float*>(logits + (warp + i * NUM_WARPS) * ATTEND_LOGIT_BYTES);
    x[i] = row[lane];
    y[i] = row[lane + WARP];
    grown[i] = fmaxf(x[i], y[i]);
  }
ATTEND_UNROLL
  for (u32 offset = WARP / 2; offset > 0; offset /= 2)
ATTEND_UNROLL
    for (u32 i = 0; i < ROWS; i++) grown[i] = fmaxf(grown[i], __shfl_xor_sync(FULL_MASK, grown[i], offset));
ATTEND_UNROLL
  for (u32 i = 0; i < ROWS; i++) {
    grown[i] = fmaxf(heads[warp + i * NUM_WARPS].largest, grown[i]);
    x[i] = expf(x[i] - grown[i]);
    y[i] = expf(y[i] - grown[i]);
    sum[i] = x[i] + y[i];
  }
ATTEND_UNROLL
  for (u32 offset = WARP / 2; offset > 0; offset /= 2)
ATTEND_UNROLL
    for (u32 i = 0; i < ROWS; i++) sum[i] += __shfl_xor_sync(FULL_MASK, sum[i], offset);
ATTEND_UNROLL
  for (u32 i = 0; i < ROWS; i++) {
    u32 head = warp + i * NUM_WARPS;
    bf16* row = reinterpret_cast<bf16*>(logits + head * ATTEND_LOGIT_BYTES);
    row[lane] = to_bf16(x[i]);
    row[lane + WARP] = to_bf16(y[i]);
    if (lane == 0) {
      float shrink = expf(heads[head].largest - grown[i]);
      heads[head] = {grown[i], fmaf(heads[head].denominator, shrink, sum[i]), shrink, 0.0f};
    }
  }
}

// One block of GROUPS * 4 warps per row, GROUPS * TILES * 16 heads, and segment of the row's keys. Of a piece, a warp computes
// the logits of TILES * 16 heads and a quarter of the keys, then adds to the sums of the same heads a quarter of the channels.
template <u32 TILES, u32 GROUPS> __device__ __forceinline__ void attend_tiles(const AttendArgs& a) {
  DYNAMIC_SHARED(attend_shared);
  constexpr u32 HEADS = GROUPS * TILES * 16, NUM_WARPS = GROUPS * 4, NUM_THREADS = NUM_WARPS * WARP;
  __shared__ u32 places[ATTEND_SEGMENT];
  __shared__ AttendHead heads[HEADS];
  AttendList list = attend_list(a, a.first_row + blockIdx.y);
  u32 begin = blockIdx.z * ATTEND_SEGMENT, end = min(begin + ATTEND_SEGMENT, list.num_keys);
  if (begin >= end) return;
  u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, quarter = warp % 4;
  u32 dim = a.head_dim, num_sixteens = (dim + 15) / 16, stride = num_sixteens * 16 + 8;
  bf16* queries = reinterpret_cast<bf16*>(attend_shared);  // [HEADS, stride]
  bf16* keys = queries + HEADS * stride;            // [ATTEND_KEYS, stride]
  u8* logits = reinterpret_cast<u8*>(keys + ATTEND_KEYS * stride);  // [HEADS, ATTEND_LOGIT_BYTES]

  // What lies beyond the last channel, head and key stays zero.
  for (u32 i = threadIdx.x; i < (HEADS + ATTEND_KEYS) * stride / 8; i += NUM_THREADS)
    reinterpret_cast<uint4*>(attend_shared)[i] = make_uint4(0, 0, 0, 0);
  for (u32 i = threadIdx.x; i < HEADS; i += NUM_THREADS) heads[i] = {attend_never(), 0.0f, 0.0f, 0.0f};
  for (u32 j = begin + threadIdx.x; j < end; j += NUM_THREADS) places[j - begin] = attend_place(a, list, j);
  __syncthreads();
  u32 first_head = blockIdx.x * HEADS, num_heads = min(HEADS, a.num_heads - first_head);
  u64 base = (u64(list.index) * a.num_heads + first_head) * dim;
  for (u32 head = warp; head < num_heads; head += NUM_WARPS) {
    const bf16* from = a.q + base + u64(head) * dim;
    bf16* to = queries + head * stride;
    if (dim % 8 == 0) {
      for (u32 i = lane; i < dim / 8; i += WARP) reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(from)[i];
    } else {
      for (u32 i = lane; i < dim; i += WARP) to[i] = from[i];
    }
  }

  float sums[TILES][ATTEND_PAIRS][2][4];
ATTEND_UNROLL
  for (u32 m = 0; m < TILES; m++)
ATTEND_UNROLL
    for (u32 p = 0; p < ATTEND_PAIRS; p++)
ATTEND_UNROLL
      for (u32 i = 0; i < 8; i++) sums[m][p][i / 4][i % 4] = 0.0f;
  u32 warp_head = warp / 4 * TILES * 16;
  for (u32 first = begin; first < end; first += ATTEND_KEYS) {
    u32 num = min(ATTEND_KEYS, end - first);
    attend_fetch<NUM_WARPS>(a, places + (first - begin), num, keys, stride);
    __syncthreads();
    for (u32 i = threadIdx.x; i < ATTEND_KEYS * 5; i += NUM_THREADS) {
      u32 next = first + ATTEND_KEYS + i % ATTEND_KEYS;
      if (next < end) attend_prefetch(attend_key(a, places[next - begin]).data + i / ATTEND_KEYS * 128);
    }

    float dots[TILES][2][4];
ATTEND_UNROLL
    for (u32 i = 0; i < TILES * 8; i++) dots[i / 8][i / 4 % 2][i % 4] = 0.0f;
    // The last piece may be short.
    u32 num_steps = quarter * 16 < num ? num_sixteens : 0;
ATTEND_UNROLL_4
    for (u32 c = 0; c < num_steps; c++) {
      u32 b[4];
      u32 key = quarter * 16 + lane / 16 * 8 + lane % 8;
      attend_load_matrices<false>(b, keys + key * stride + c * 16 + lane / 8 % 2 * 8);
ATTEND_UNROLL
      for (u32 m = 0; m < TILES; m++) {
        u32 q[4];
        attend_load_matrices<false>(q, queries + (warp_head + m * 16 + lane % 16) * stride + c * 16 + lane / 16 * 8);
        mma_bf16(dots[m][0], q, b[0], b[1]);
        mma_bf16(dots[m][1], q, b[2], b[3]);
      }
    }
ATTEND_UNROLL
    for (u32 m = 0; m < TILES; m++)
ATTEND_UNROLL
      for (u32 i = 0; i < 8; i++) {
        u32 head = warp_head + m * 16 + lane / 4 + i % 4 / 2 * 8, key = quarter * 16 + i / 4 * 8 + lane % 4 * 2 + i % 2;
        float logit = key < num ? dots[m][i / 4][i % 4] * a.softmax_scale : attend_never();
        reinterpret_cast<float*>(logits + head * ATTEND_LOGIT_BYTES)[key] = logit;
      }
    __syncthreads();

    attend_softmax<HEADS / NUM_WARPS, NUM_WARPS>(logits, heads);
    __syncthreads();

ATTEND_UNROLL
    for (u32 m = 0; m < TILES; m++) {
      float upper = heads[warp_head + m * 16 + lane / 4].shrink, lower = heads[warp_head + m * 16 + lane / 4 + 8].shrink;
ATTEND_UNROLL
      for (u32 p = 0; p < ATTEND_PAIRS; p++)
ATTEND_UNROLL
        for (u32 i = 0; i < 8; i++) sums[m][p][i / 4][i % 4] *= i % 4 < 2 ? upper : lower;
    }
    for (u32 k = 0; k * 16 < num; k++) {
      u32 weights[TILES][4];
ATTEND_UNROLL
      for (u32 m = 0; m < TILES; m++) {
        const u8* row = logits + (warp_head + m * 16 + lane % 16) * ATTEND_LOGIT_BYTES;
        attend_load_matrices<false>(weights[m], row + (k * 16 + lane / 16 * 8) * sizeof(bf16));
      }
ATTEND_UNROLL
      for (u32 p = 0; p < ATTEND_PAIRS; p++) {
        u32 sixteen = p * 4 + quarter;
        if (sixteen >= num_sixteens) continue;
        u32 b[4];
        attend_load_matrices<true>(b, keys + (k * 16 + lane % 16) * stride + sixteen * 16 + lane / 16 * 8);
ATTEND_UNROLL
        for (u32 m = 0; m < TILES; m++) {
          mma_bf16(sums[m][p][0], weights[m], b[0], b[1]);
          mma_bf16(sums[m][p][1], weights[m], b[2], b[3]);
        }
      }
    }
    __syncthreads();
  }

  bool is_whole = list.num_keys <= ATTEND_SEGMENT;
  u64 part = (u64(blockIdx.y) * a.num_segments + blockIdx.z) * a.num_heads + first_head;
  if (!is_whole)
    for (u32 i = threadIdx.x; i < num_heads; i += NUM_THREADS) a.stats[part + i] = {heads[i].largest, heads[i].denominator};
ATTEND_UNROLL
  for (u32 m = 0; m < TILES; m++)
ATTEND_UNROLL
    for (u32 half = 0; half < 2; half++) {
      u32 head = warp_head + m * 16 + half * 8 + lane / 4;
      if (head >= num_heads) continue;
      AttendHead h = heads[head];
      float inverse = 1.0f / (h.denominator + expf(a.sinks[first_head + head] - h.largest));
ATTEND_UNROLL
      for (u32 i = 0; i < ATTEND_PAIRS * 2; i++) {
        u32 channel = (i / 2 * 4 + quarter) * 16 + i % 2 * 8 + lane % 4 * 2;
        float x = sums[m][i / 2][i % 2][half * 2], y = sums[m][i / 2][i % 2][half * 2 + 1];
        if (channel >= dim) continue;
        if (!is_whole) {
          float* to = a.partial + (part + head) * dim + channel;
          to[0] = x;
          if (channel + 1 < dim) to[1] = y;
        } else if (dim % 2 == 0) {
          u32 pair = to_bf16(x * inverse).bits | u32(to_bf16(y * inverse).bits) << 16;
          *reinterpret_cast<u32*>(a.out + base + u64(head) * dim + channel) = pair;
        } else {
          bf16* to = a.out + base + u64(head) * dim + channel;
          to[0] = to_bf16(x * inverse);
          if (channel + 1 < dim) to[1] = to_bf16(y * inverse);
        }
      }
    }
}

#else

template <u32 TILES, u32 GROUPS> __device__ __forceinline__ void attend_tiles(const AttendArgs&) {}

#endif

// 64 heads of a row.
KERNEL(attend_wide, AttendArgs, 256) { attend_tiles<2, 2>(a); }

// 16 heads of a row: for steps of few rows.
KERNEL(attend_narrow, AttendArgs, 128) { attend_tiles<1, 1>(a); }

// Puts the segments of a row together, in order. One block per row and head.
KERNEL(attend_merge, AttendArgs, 128) {
  AttendList list = attend_list(a, a.first_row + blockIdx.y);
  u32 num_segments = (list.num_keys + ATTEND_SEGMENT - 1) / ATTEND_SEGMENT, head = blockIdx.x;
  if (num_segments <= 1) return;
  u64 first = u64(blockIdx.y) * a.num_segments * a.num_heads + head;
  float largest = attend_never(), denominator = 0.0f;
  for (u32 s = 0; s < num_segments; s++) largest = fmaxf(largest, a.stats[first + u64(s) * a.num_heads].largest);
  for (u32 s = 0; s < num_segments; s++) {
    AttendStats stats = a.stats[first + u64(s) * a.num_heads];
    denominator = fmaf(stats.denominator, expf(stats.largest - largest), denominator);
  }
  float inverse = 1.0f / (denominator + expf(a.sinks[head] - largest));
  for (u32 channel = threadIdx.x; channel < a.head_dim; channel += blockDim.x) {
    float sum = 0.0f;
    for (u32 s = 0; s < num_segments; s++) {
      u64 part = first + u64(s) * a.num_heads;
      sum = fmaf(a.partial[part * a.head_dim + channel], expf(a.stats[part].largest - largest), sum);
    }
    a.out[(u64(list.index) * a.num_heads + head) * a.head_dim + channel] = narrow<Act>(sum * inverse);
  }
}
