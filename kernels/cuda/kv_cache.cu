// What is written into a layer's cache: finished entries, window rows, and the rows of entries still to come; twin of
// `compressor.rs` and `quant.rs`. What a row's bytes are is told in `kv_cache.rs`.

// Channels of an e4m3 scale, and of an fp4 one.
constexpr u32 KV_BLOCK = 64;
constexpr u32 INDEX_KEY_BLOCK = 32;

struct CompressArgs {
  const Row* rows;
  const u32* blocks;
  const float* kv;        // [num_rows, width]
  const float* score;     // [num_rows, width], without ape
  const float* ape;       // [ratio, width]
  const float* norm;      // [dim]
  const float* inv_freq;  // [rotary_dim / 2]
  float* tail_kv;         // [slots, tail_rows, width]
  float* tail_score;      // with ape
  u8* data;               // [cells, row_bytes]
  u8* scales;             // [cells, scale_bytes]
  u32 num_rows;
  u32 width;
  u32 dim;
  u32 rotary_dim;
  u32 ratio;
  u32 overlaps;  // whether an entry also pools the rows of the one before
  u32 tail_rows;
  u32 entries_per_block;
  u32 row_bytes;
  u32 scale_bytes;
  u32 is_index_key;
  float eps;
};

struct KeepWindowArgs {
  const Row* rows;
  const Act* kv;  // [num_rows, dim]
  u8* data;       // [slots * window_rows, row_bytes]
  u8* scales;     // [slots * window_rows, scale_bytes]
  u32 num_rows;
  u32 dim;
  u32 rotary_dim;
  u32 window_rows;
  u32 row_bytes;
  u32 scale_bytes;
};

// === formats ===

__device__ __forceinline__ u32 cache_magnitude(float x) { return __float_as_uint(x) & 0x7fffffffu; }

// The largest magnitude of the warp, as bits: NaN is above all.
__device__ __forceinline__ u32 cache_warp_max(u32 x) {
  for (u32 offset = WARP / 2; offset > 0; offset /= 2) x = max(x, __shfl_xor_sync(FULL_MASK, x, offset));
  return x;
}

// The ue8m0 code of a block's scale. A block with a NaN or an infinity has NaN for a scale, so that neither gets lost.
__device__ __forceinline__ u32 cache_scale(u32 magnitude, float floor, float inverse_largest) {
  if (magnitude >= 0x7f800000u) return 255;
  return __float_as_uint(pow2_ceil(fmaxf(__uint_as_float(magnitude), floor) * inverse_largest)) >> 23;
}

// 1 / scale.
__device__ __forceinline__ float cache_inverse(u32 scale_code) { return __uint_as_float((254u - min(scale_code, 253u)) << 23); }

// A block of threads stores a window row or an entry.
__device__ __forceinline__ void cache_store_row(const float* x, u8* data, u8* scales, u32 dim, u32 rotary_dim) {
#if OFFICIAL
  u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, num_warps = blockDim.x / WARP;
  u32 num_plain = dim - rotary_dim;
  for (u32 block = warp; block * KV_BLOCK < num_plain; block += num_warps) {
    u32 channel = block * KV_BLOCK + 2 * lane;
    float first = channel < num_plain ? x[channel] : 0.0f;
    float second = channel + 1 < num_plain ? x[channel + 1] : 0.0f;
    u32 code = cache_scale(cache_warp_max(max(cache_magnitude(first), cache_magnitude(second))), 1e-4f, 1.0f / 448.0f);
    float inverse = cache_inverse(code);
    if (channel < num_plain) data[channel] = u8(float_to_e4m3(first * inverse));
    if (channel + 1 < num_plain) data[channel + 1] = u8(float_to_e4m3(second * inverse));
    if (lane == 0) scales[block] = u8(code);
  }
  bf16* rotated = reinterpret_cast<bf16*>(data + (num_plain + 15) / 16 * 16);
  for (u32 i = threadIdx.x; i < rotary_dim; i += blockDim.x) rotated[i] = to_bf16(x[num_plain + i]);
#else
  float* row = reinterpret_cast<float*>(data);
  for (u32 i = threadIdx.x; i < dim; i += blockDim.x) row[i] = x[i];
#endif
}

// A block of threads stores an indexer key, which official numerics transforms first.
__device__ __forceinline__ void cache_store_key(float* x, u8* data, u8* scales, u32 dim) {
#if OFFICIAL
  for (u32 half = 1; half < dim; half *= 2) {
    for (u32 i = threadIdx.x; i < dim / 2; i += blockDim.x) {
      u32 low = i / half * 2 * half + i % half;
      float p = x[low], q = x[low + half];
      x[low] = p + q;
      x[low + half] = p - q;
    }
    __syncthreads();
  }
  float norm = 1.0f / sqrtf(float(dim));
  u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, num_warps = blockDim.x / WARP;
  for (u32 block = warp; block * INDEX_KEY_BLOCK < dim; block += num_warps) {
    u32 channel = block * INDEX_KEY_BLOCK + lane;
    float y = channel < dim ? round_bf16(x[channel] * norm) : 0.0f;
    u32 code = cache_scale(cache_warp_max(cache_magnitude(y)), 6.0f * 1.17549435e-38f, 1.0f / 6.0f);
    u32 nibble = float_to_e2m1(fminf(fmaxf(y * cache_inverse(code), -6.0f), 6.0f));
    u32 next = __shfl_xor_sync(FULL_MASK, nibble, 1);
    if (channel < dim && lane % 2 == 0) data[channel / 2] = u8(nibble | (next << 4));
    if (lane == 0) scales[block] = u8(code);
  }
#else
  cache_store_row(x, data, scales, dim, 0);
#endif
}

// === the compressor ===

// Softmax over the pooled rows of each channel, into `entry`. The rows' order is that of their positions.
__device__ __forceinline__ void compress_pool(const CompressArgs& a, const Row& row, u32 first, float* entry) {
  u32 num_pooled = a.overlaps ? 2 * a.ratio : a.ratio;
  u32 before = a.overlaps ? a.ratio : 0;
  // The first entry has none before it.
  u32 begin = first < before ? before : 0;
  for (u32 channel = threadIdx.x; channel < a.dim; channel += blockDim.x) {
    auto place = [&](u32 i, u64& at) {
      u32 position = first + i - before;
      u32 column = channel + (i < before || !a.overlaps ? 0 : a.dim);
      bool is_new = position >= row.first_position;
      u64 index = is_new ? row.first_row + (position - row.first_position) : u64(row.slot) * a.tail_rows + position % a.tail_rows;
      at = index * a.width + column;
      return is_new;
    };
    // An entry's first token is at a multiple of the ratio, and so at the first row of ape.
    auto score_of = [&](u32 i) {
      u64 at;
      if (!place(i, at)) return a.tail_score[at];
      u32 column = channel + (i < before || !a.overlaps ? 0 : a.dim);
      return a.score[at] + a.ape[u64(i < a.ratio ? i : i - a.ratio) * a.width + column];
    };
    float largest = __uint_as_float(0xff800000u);
    for (u32 i = begin; i < num_pooled; i++) largest = fmaxf(largest, score_of(i));
    float total = 0.0f, pooled = 0.0f;
    for (u32 i = begin; i < num_pooled; i++) {
      u64 at;
      float value = place(i, at) ? a.kv[at] : a.tail_kv[at];
      float e = expf(score_of(i) - largest);
      total += e;
      pooled = fmaf(e, value, pooled);
    }
    entry[channel] = cast_act(pooled / total);
  }
}

// One block per row of the step; those that finish no entry have nothing to do.
KERNEL(compress, CompressArgs, 512) {
  DYNAMIC_SHARED(shared);
  __shared__ float scratch[WARP];
  float* entry = reinterpret_cast<float*>(shared);
  Row row = a.rows[blockIdx.x];
  if ((row.position + 1) % a.ratio != 0) return;
  u32 index = row.position / a.ratio, first = index * a.ratio;
  compress_pool(a, row, first, entry);
  float sum = 0.0f;
  for (u32 i = threadIdx.x; i < a.dim; i += blockDim.x) sum = fmaf(entry[i], entry[i], sum);
  float inverse = 1.0f / sqrtf(block_sum(sum, scratch) / float(a.dim) + a.eps);
  for (u32 i = threadIdx.x; i < a.dim; i += blockDim.x) entry[i] = cast_act(entry[i] * inverse * a.norm[i]);
  __syncthreads();
  float* rotated = entry + (a.dim - a.rotary_dim);
  for (u32 i = threadIdx.x; i < a.rotary_dim / 2; i += blockDim.x) {
    double angle = double(float(first) * a.inv_freq[i]);
    float cosine = float(cos(angle)), sine = float(sin(angle));
    float x = rotated[2 * i], y = rotated[2 * i + 1];
    rotated[2 * i] = cast_act(x * cosine - y * sine);
    rotated[2 * i + 1] = cast_act(x * sine + y * cosine);
  }
  __syncthreads();
  u32 block = first / 128, within = index - (block * 128 + a.ratio - 1) / a.ratio;
  u64 cell = u64(a.blocks[row.table + block]) * a.entries_per_block + within;
  u8 *data = a.data + cell * a.row_bytes, *scales = a.scales + cell * a.scale_bytes;
  if (a.is_index_key) {
    cache_store_key(entry, data, scales, a.dim);
  } else {
    cache_store_row(entry, data, scales, a.dim, a.rotary_dim);
  }
}

// Whether none of the span's later rows has the same place in a ring of `ring_rows`.
__device__ __forceinline__ bool cache_is_kept(const Row* rows, u32 num_rows, u32 ring_rows) {
  u32 later = blockIdx.x + ring_rows;
  return later >= num_rows || rows[later].first_row != rows[blockIdx.x].first_row;
}

// One block per row of the step. Comes after all pools that read what is overwritten.
KERNEL(keep_tail, CompressArgs, 256) {
  if (!cache_is_kept(a.rows, a.num_rows, a.tail_rows)) return;
  Row row = a.rows[blockIdx.x];
  u64 from = u64(blockIdx.x) * a.width;
  u64 to = (u64(row.slot) * a.tail_rows + row.position % a.tail_rows) * a.width;
  const float* ape = a.ape + u64(row.position % a.ratio) * a.width;
  for (u32 i = threadIdx.x; i < a.width; i += blockDim.x) {
    a.tail_kv[to + i] = a.kv[from + i];
    a.tail_score[to + i] = a.score[from + i] + ape[i];
  }
}

// === the window ===

// One block per row of the step. Comes after the attention that reads what is overwritten.
KERNEL(keep_window, KeepWindowArgs, 256) {
  DYNAMIC_SHARED(shared);
  if (!cache_is_kept(a.rows, a.num_rows, a.window_rows)) return;
  float* x = reinterpret_cast<float*>(shared);
  Row row = a.rows[blockIdx.x];
  const Act* from = a.kv + u64(blockIdx.x) * a.dim;
  for (u32 i = threadIdx.x; i < a.dim; i += blockDim.x) x[i] = widen(from[i]);
  __syncthreads();
  u64 cell = u64(row.slot) * a.window_rows + row.position % a.window_rows;
  cache_store_row(x, a.data + cell * a.row_bytes, a.scales + cell * a.scale_bytes, a.dim, a.rotary_dim);
}
