// Hyper-connections; twin of `hyper.rs`.
//
// The products with `function` are cut into chunks of the inner length: a sum within each, then over the chunks in order.
// So few rows occupy many blocks, and a row's bits depend on its length alone.

constexpr u32 HYPER_THREADS = 256;
constexpr u32 HYPER_WARPS = HYPER_THREADS / WARP;
constexpr u32 HYPER_CHUNK = 1024;      // numbers of a chunk
constexpr u32 HYPER_TILE = 8;          // rows of a block, one per warp for their squares
constexpr u32 HYPER_STREAMS_MAX = 8;
constexpr u32 HYPER_OUTPUTS_MAX = HYPER_STREAMS_MAX * (2 + HYPER_STREAMS_MAX);
constexpr u32 HYPER_VECTOR = 8;        // channels of a thread
constexpr u32 HYPER_SLICE = HYPER_THREADS * HYPER_VECTOR;
constexpr u32 HYPER_HEAD_THREADS = 512;

__device__ __forceinline__ float4 hyper_load4(const float* x) { return *reinterpret_cast<const float4*>(x); }
__device__ __forceinline__ float4 hyper_load4(const bf16* x) {
  uint2 raw = *reinterpret_cast<const uint2*>(x);
  return float4{__uint_as_float(raw.x << 16), __uint_as_float(raw.x & 0xffff0000u), __uint_as_float(raw.y << 16),
                __uint_as_float(raw.y & 0xffff0000u)};
}

// Four neighbouring numbers, zeros behind the end. Aligned rows are of whole fours, and loads without branches overlap.
template <bool ALIGNED, typename T> __device__ __forceinline__ float4 hyper_load4_below(const T* x, u32 at, u32 end) {
  float4 v = {0.0f, 0.0f, 0.0f, 0.0f};
  if (ALIGNED) {
    if (at < end) v = hyper_load4(x + at);
    return v;
  }
  if (at < end) v.x = widen(x[at]);
  if (at + 1 < end) v.y = widen(x[at + 1]);
  if (at + 2 < end) v.z = widen(x[at + 2]);
  if (at + 3 < end) v.w = widen(x[at + 3]);
  return v;
}

__device__ __forceinline__ float hyper_dot4(float4 x, float4 y, float sum) {
  return fmaf(x.w, y.w, fmaf(x.z, y.z, fmaf(x.y, y.y, fmaf(x.x, y.x, sum))));
}

__device__ __forceinline__ float hyper_sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

struct HyperDotsArgs {
  const Act* streams;     // [num_rows, len]
  const float* function;  // [num_outputs, len]
  float* partial;         // [num_rows, num_chunks, num_outputs + 1], the sum of squares last
  u32 num_rows;
  u32 len;
  u32 num_outputs;
  u32 outputs_per_warp;  // 1 for few rows, which the grid's z then spreads over more blocks, or 3
};

// A warp's outputs of a tile of rows; a lane's numbers and their order do not depend on either.
template <u32 PER_WARP, bool ALIGNED>
__device__ __forceinline__ void hyper_dots_of(const HyperDotsArgs& a, const float4 (*rows)[HYPER_CHUNK / 4], u32 start, u32 end) {
  constexpr u32 AT_ONCE = PER_WARP == 1 ? 4 : 2;  // loads of an output
  u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, num_chunks = gridDim.y;
  u32 first_row = blockIdx.x * HYPER_TILE;
  for (u32 base = blockIdx.z * HYPER_WARPS * PER_WARP; base < a.num_outputs; base += gridDim.z * HYPER_WARPS * PER_WARP) {
    u32 first = base + warp * PER_WARP;
    float sums[PER_WARP][HYPER_TILE] = {};
    for (u32 i = lane; i < HYPER_CHUNK / 4; i += AT_ONCE * WARP) {
      float4 w[AT_ONCE][PER_WARP];
#pragma unroll
      for (u32 t = 0; t < AT_ONCE; t++) {
#pragma unroll
        for (u32 o = 0; o < PER_WARP; o++) {
          // Outputs that are none read the last one, and drop the result.
          const float* function = a.function + u64(min(first + o, a.num_outputs - 1)) * a.len;
          w[t][o] = hyper_load4_below<ALIGNED>(function, start + 4 * (i + t * WARP), end);
        }
      }
#pragma unroll
      for (u32 t = 0; t < AT_ONCE; t++) {
#pragma unroll
        for (u32 r = 0; r < HYPER_TILE; r++) {
          float4 x = rows[r][i + t * WARP];
#pragma unroll
          for (u32 o = 0; o < PER_WARP; o++) sums[o][r] = hyper_dot4(w[t][o], x, sums[o][r]);
        }
      }
    }
#pragma unroll
    for (u32 o = 0; o < PER_WARP; o++) {
#pragma unroll
      for (u32 r = 0; r < HYPER_TILE; r++) {
        float sum = warp_sum(sums[o][r]);
        u64 at = (u64(first_row + r) * num_chunks + blockIdx.y) * (a.num_outputs + 1) + first + o;
        if (lane == 0 && first + o < a.num_outputs && first_row + r < a.num_rows) a.partial[at] = sum;
      }
    }
  }
}

// Widens a chunk of the tile's rows into shared memory, then multiplies.
template <bool ALIGNED>
__device__ __forceinline__ void hyper_dots_block(const HyperDotsArgs& a, float4 (*rows)[HYPER_CHUNK / 4]) {
  u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  u32 start = blockIdx.y * HYPER_CHUNK, end = min(start + HYPER_CHUNK, a.len);
  u32 row = blockIdx.x * HYPER_TILE + warp;
  const Act* x = a.streams + u64(row) * a.len;
  u32 row_end = row < a.num_rows ? end : 0;
  float squares = 0.0f;
#pragma unroll
  for (u32 t = 0; t < HYPER_CHUNK / 4 / WARP; t++) {
    u32 i = lane + t * WARP;
    float4 v = hyper_load4_below<ALIGNED>(x, start + 4 * i, row_end);
    rows[warp][i] = v;
    squares = hyper_dot4(v, v, squares);
  }
  squares = warp_sum(squares);
  if (lane == 0 && row < a.num_rows && blockIdx.z == 0) {
    a.partial[(u64(row) * gridDim.y + blockIdx.y) * (a.num_outputs + 1) + a.num_outputs] = squares;
  }
  __syncthreads();
  if (a.outputs_per_warp == 1) {
    hyper_dots_of<1, ALIGNED>(a, rows, start, end);
  } else {
    hyper_dots_of<3, ALIGNED>(a, rows, start, end);
  }
}

// One block per tile of rows, chunk, and group of outputs.
KERNEL(hyper_dots, HyperDotsArgs, HYPER_THREADS) {
  __shared__ float4 rows[HYPER_TILE][HYPER_CHUNK / 4];
  if (a.len % 4 == 0) {
    hyper_dots_block<true>(a, rows);
  } else {
    hyper_dots_block<false>(a, rows);
  }
}

// Softmax of the rows, then columns and rows in turn; all by one warp. Sums are in rising order.
__device__ void hyper_sinkhorn(float* comb, u32 n, u32 iterations, float eps) {
  u32 lane = threadIdx.x % WARP;
  if (lane < n) {
    float* row = comb + lane * n;
    float largest = row[0], sum = 0.0f;
    for (u32 k = 1; k < n; k++) largest = fmaxf(largest, row[k]);
    for (u32 k = 0; k < n; k++) sum += row[k] = expf(row[k] - largest);
    for (u32 k = 0; k < n; k++) row[k] = row[k] / sum + eps;
  }
  __syncwarp();
  for (u32 step = 1; step < 2 * iterations; step++) {
    // Columns in odd steps, rows in even ones.
    u32 stride = step % 2 ? n : 1;
    float next[(HYPER_STREAMS_MAX * HYPER_STREAMS_MAX + WARP - 1) / WARP];
#pragma unroll
    for (u32 i = 0; i < sizeof(next) / sizeof(float); i++) {
      u32 element = lane + i * WARP;
      if (element >= n * n) continue;
      const float* line = comb + (step % 2 ? element % n : element / n * n);
      float sum = 0.0f;
      for (u32 k = 0; k < n; k++) sum += line[k * stride];
      next[i] = comb[element] / (sum + eps);
    }
    __syncwarp();
#pragma unroll
    for (u32 i = 0; i < sizeof(next) / sizeof(float); i++)
      if (lane + i * WARP < n * n) comb[lane + i * WARP] = next[i];
    __syncwarp();
  }
}

struct HyperPreArgs {
  const Act* streams;    // [num_rows, n, hidden]
  const float* partial;  // as above
  const float* base;     // [num_outputs]
  const float* scale;    // [3]
  float* post;           // [num_rows, n]
  float* comb;           // [num_rows, n, n]
  Act* x;                // [num_rows, hidden]
  u32 n;
  u32 hidden;
  u32 num_chunks;
  u32 sinkhorn_iters;
  float hc_eps;
  float norm_eps;
};

// x = sum of pre[j] * stream j, for this thread's channels.
__device__ __forceinline__ void hyper_collapse(const Act* streams, const float* pre, Act* x, u32 n, u32 hidden, u32 at) {
  if (at >= hidden) return;
  if (hidden % HYPER_VECTOR != 0) {
    for (u32 i = at; i < min(at + HYPER_VECTOR, hidden); i++) {
      float sum = 0.0f;
      for (u32 j = 0; j < n; j++) sum = fmaf(pre[j], widen(streams[u64(j) * hidden + i]), sum);
      x[i] = narrow<Act>(sum);
    }
    return;
  }
  float sums[HYPER_VECTOR] = {};
#pragma unroll 4
  for (u32 j = 0; j < n; j++) {
    float h[HYPER_VECTOR];
    load8(streams + u64(j) * hidden + at, h);
#pragma unroll
    for (u32 i = 0; i < HYPER_VECTOR; i++) sums[i] = fmaf(pre[j], h[i], sums[i]);
  }
  store8(x + at, sums);
}

// Blocks of one row: all but the last collapse a slice of channels each, meanwhile the last finds post and comb.
KERNEL(hyper_pre, HyperPreArgs, HYPER_THREADS) {
  __shared__ float mixed[HYPER_OUTPUTS_MAX + 1];
  __shared__ float pre[HYPER_STREAMS_MAX];
  u32 n = a.n, num_outputs = n * (2 + n), row = blockIdx.x, thread = threadIdx.x;
  if (thread <= num_outputs) {
    const float* partial = a.partial + u64(row) * a.num_chunks * (num_outputs + 1) + thread;
    float sum = 0.0f;
#pragma unroll 8
    for (u32 c = 0; c < a.num_chunks; c++) sum += partial[c * (num_outputs + 1)];
    mixed[thread] = sum;
  }
  __syncthreads();
  float inverse = 1.0f / sqrtf(mixed[num_outputs] / float(n * a.hidden) + a.norm_eps);
  if (blockIdx.y + 1 < gridDim.y) {
    if (thread < n) pre[thread] = hyper_sigmoid(mixed[thread] * inverse * a.scale[0] + a.base[thread]) + a.hc_eps;
    __syncthreads();
    u32 at = blockIdx.y * HYPER_SLICE + thread * HYPER_VECTOR;
    hyper_collapse(a.streams + u64(row) * n * a.hidden, pre, a.x + u64(row) * a.hidden, n, a.hidden, at);
    return;
  }
  if (thread >= WARP) return;
  if (thread < n) a.post[row * n + thread] = 2.0f * hyper_sigmoid(mixed[n + thread] * inverse * a.scale[1] + a.base[n + thread]);
  float* comb = mixed + 2 * n;
  for (u32 i = thread; i < n * n; i += WARP) comb[i] = comb[i] * inverse * a.scale[2] + a.base[2 * n + i];
  __syncwarp();
  hyper_sinkhorn(comb, n, a.sinkhorn_iters, a.hc_eps);
  for (u32 i = thread; i < n * n; i += WARP) a.comb[row * n * n + i] = comb[i];
}

struct HyperPostArgs {
  const Act* y;       // [num_rows, hidden]
  const float* post;  // [num_rows, n]
  const float* comb;  // [num_rows, n, n]
  Act* streams;       // [num_rows, n, hidden], in place
  u32 n;
  u32 hidden;
};

// All streams of one channel are read before any is written. `N` is at least n.
template <u32 N> __device__ void hyper_post_channel(const HyperPostArgs& a, const float* post, const float* comb, u32 i) {
  u32 n = a.n;
  Act* streams = a.streams + u64(blockIdx.x) * n * a.hidden + i;
  float y = widen(a.y[u64(blockIdx.x) * a.hidden + i]), h[N];
#pragma unroll
  for (u32 j = 0; j < N; j++) h[j] = j < n ? widen(streams[u64(j) * a.hidden]) : 0.0f;
  for (u32 k = 0; k < n; k++) {
    float sum = post[k] * y;
#pragma unroll
    for (u32 j = 0; j < N; j++)
      if (j < n) sum = fmaf(comb[j * n + k], h[j], sum);
    streams[u64(k) * a.hidden] = narrow<Act>(sum);
  }
}

// The same for the vector of channels at `i` of four streams.
__device__ __forceinline__ void hyper_post_vector(const HyperPostArgs& a, const float* post, const float* comb, u32 i) {
  Act* streams = a.streams + u64(blockIdx.x) * 4 * a.hidden + i;
  float y[HYPER_VECTOR], h[4][HYPER_VECTOR];
  load8(a.y + u64(blockIdx.x) * a.hidden + i, y);
#pragma unroll
  for (u32 j = 0; j < 4; j++) load8(streams + u64(j) * a.hidden, h[j]);
#pragma unroll
  for (u32 k = 0; k < 4; k++) {
    float out[HYPER_VECTOR];
#pragma unroll
    for (u32 c = 0; c < HYPER_VECTOR; c++) {
      float sum = post[k] * y[c];
#pragma unroll
      for (u32 j = 0; j < 4; j++) sum = fmaf(comb[j * 4 + k], h[j][c], sum);
      out[c] = sum;
    }
    store8(streams + u64(k) * a.hidden, out);
  }
}

// One block per row and slice of channels.
KERNEL(hyper_post, HyperPostArgs, HYPER_THREADS) {
  __shared__ float post[HYPER_STREAMS_MAX];
  __shared__ float comb[HYPER_STREAMS_MAX * HYPER_STREAMS_MAX];
  u32 n = a.n, row = blockIdx.x;
  if (threadIdx.x < n) post[threadIdx.x] = a.post[row * n + threadIdx.x];
  if (threadIdx.x < n * n) comb[threadIdx.x] = a.comb[row * n * n + threadIdx.x];
  __syncthreads();
  u32 at = blockIdx.y * HYPER_SLICE + threadIdx.x * HYPER_VECTOR;
  if (n == 4 && a.hidden % HYPER_VECTOR == 0) {
    if (at < a.hidden) hyper_post_vector(a, post, comb, at);
  } else {
    for (u32 i = at; i < min(at + HYPER_VECTOR, a.hidden); i++) hyper_post_channel<HYPER_STREAMS_MAX>(a, post, comb, i);
  }
}

struct HyperHeadArgs {
  const Act* streams;     // [num_rows, n, hidden]
  const float* function;  // [n, n * hidden]
  const float* base;      // [n]
  const float* scale;     // [1]
  Act* x;                 // [num_rows, hidden]
  u32 n;
  u32 hidden;
  float hc_eps;
  float norm_eps;
};

// This thread's share of the products with the head's function, and of the squares.
template <bool ALIGNED>
__device__ __forceinline__ void hyper_head_sums(const HyperHeadArgs& a, const Act* streams, float* sums, float& squares) {
  u32 n = a.n, len = n * a.hidden;
  for (u32 i = 4 * threadIdx.x; i < len; i += 4 * blockDim.x) {
    float4 h = hyper_load4_below<ALIGNED>(streams, i, len);
    squares = hyper_dot4(h, h, squares);
#pragma unroll
    for (u32 o = 0; o < HYPER_STREAMS_MAX; o++)
      if (o < n) sums[o] = hyper_dot4(hyper_load4_below<ALIGNED>(a.function + u64(o) * len, i, len), h, sums[o]);
  }
}

// One block per row: the head sees few rows, once a step.
KERNEL(hyper_head, HyperHeadArgs, HYPER_HEAD_THREADS) {
  __shared__ float scratch[WARP];
  __shared__ float pre[HYPER_STREAMS_MAX];
  u32 n = a.n, len = n * a.hidden;
  const Act* streams = a.streams + u64(blockIdx.x) * len;
  float squares = 0.0f, sums[HYPER_STREAMS_MAX] = {};
  if (len % 4 == 0) {
    hyper_head_sums<true>(a, streams, sums, squares);
  } else {
    hyper_head_sums<false>(a, streams, sums, squares);
  }
  float inverse = 1.0f / sqrtf(block_sum(squares, scratch) / float(len) + a.norm_eps);
#pragma unroll
  for (u32 o = 0; o < HYPER_STREAMS_MAX; o++) {
    if (o >= n) continue;
    float sum = block_sum(sums[o], scratch);
    if (threadIdx.x == 0) pre[o] = hyper_sigmoid(sum * inverse * a.scale[0] + a.base[o]) + a.hc_eps;
  }
  __syncthreads();
  for (u32 at = HYPER_VECTOR * threadIdx.x; at < a.hidden; at += HYPER_VECTOR * blockDim.x)
    hyper_collapse(streams, pre, a.x + u64(blockIdx.x) * a.hidden, n, a.hidden, at);
}
