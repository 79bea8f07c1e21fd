// From logits to tokens; twin of `sampling.rs`.
//
// Weights exp((logit - max) / temperature) are at most 1, and are added as integers in units of 2^-44: sums of integers
// are the same in any order.

struct SampleParams {
  u32 seed_lo;
  u32 seed_hi;
  u32 choice;
  u32 position;
  float temperature;
  float min_p;
  u32 top_k;
  float top_p;
  u32 num_top_logprobs;
  u32 wants_logprob;
  // Row of `adjusted` to draw from; that of `logits` if there is none.
  u32 adjusted_row;
};

constexpr u32 SAMPLE_NOT_ADJUSTED = 0xffffffffu;

// What is done to one row before it is drawn from.
struct Adjustment {
  u32 row;
  // Pairs `first_bias..end_bias` of token and number to add.
  u32 first_bias;
  u32 end_bias;
  // First word of the mask of tokens that may be drawn, if there is one.
  u32 first_word;
};

constexpr u32 SAMPLE_ALL_ALLOWED = 0xffffffffu;

struct AdjustArgs {
  const float* logits;  // [num_rows, vocab]
  float* adjusted;      // [num_adjustments, vocab]
  const Adjustment* adjustments;
  const u32* bias_tokens;
  const float* biases;
  const u32* allowed;
  u32 vocab;
};

struct SampleArgs {
  const float* logits;    // [num_rows, vocab]
  const float* adjusted;  // [num_adjustments, vocab]
  const SampleParams* params;
  u32* out;  // [num_rows, 2 + 2 * most alternatives]: token, its log probability, then pairs of the same
  u32 vocab;
  u32 row_words;
};

constexpr float SAMPLE_UNIT = 17592186044416.0f;  // 2^44
constexpr u32 SAMPLE_BITS = 11;
constexpr u32 SAMPLE_BINS = 1u << SAMPLE_BITS;
// A stretch this short is walked by one warp.
constexpr u32 SAMPLE_WALK = 128;

struct SampleShared {
  u64 histogram[SAMPLE_BINS];
  u64 sums[SAMPLE_BINS / WARP];
  u64 found[2];
};

// Row of logits, and what turns one into a weight.
struct SampleRow {
  const float* logits;
  u32 vocab;
  float largest;
  float inverse_temperature;
  // Weights with lower bits count as 0, and so do those with these bits and a higher id.
  u32 lowest;
  u32 last_lowest;
};

__device__ __forceinline__ float sample_weight(const SampleRow& row, u32 token) {
  float weight = expf((row.logits[token] - row.largest) * row.inverse_temperature);
  u32 bits = __float_as_uint(weight);
  return bits > row.lowest || (bits == row.lowest && token <= row.last_lowest) ? weight : 0.0f;
}

// NaN weighs nothing.
__device__ __forceinline__ u64 sample_mass(float weight) { return weight > 0.0f ? u64(weight * SAMPLE_UNIT) : 0; }

// Orders (logit, lower id first) as integers, NaN lowest.
__device__ __forceinline__ u64 sample_rank(float logit, u32 token) {
  u32 bits = __float_as_uint(logit + 0.0f);
  u32 key = logit != logit ? 0 : bits >> 31 ? ~bits : bits | 0x80000000u;
  return (u64(key) << 32) | u64(~token);
}

__device__ __forceinline__ u64 sample_block_sum(u64 x, u64* sums) {
  for (u32 offset = WARP / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(FULL_MASK, x, offset);
  if (threadIdx.x % WARP == 0) sums[threadIdx.x / WARP] = x;
  __syncthreads();
  u64 total = 0;
  for (u32 i = 0; i < blockDim.x / WARP; i++) total += sums[i];
  __syncthreads();
  return total;
}

// The highest rank below `limit`.
__device__ __forceinline__ u64 sample_best(const SampleRow& row, u64 limit, u64* sums) {
  u64 best = 0;
  for (u32 i = threadIdx.x; i < row.vocab; i += blockDim.x) {
    u64 rank = sample_rank(row.logits[i], i);
    if (rank < limit && rank > best) best = rank;
  }
  for (u32 offset = WARP / 2; offset > 0; offset /= 2) {
    u64 other = __shfl_xor_sync(FULL_MASK, best, offset);
    if (other > best) best = other;
  }
  if (threadIdx.x % WARP == 0) sums[threadIdx.x / WARP] = best;
  __syncthreads();
  for (u32 i = 0; i < blockDim.x / WARP; i++)
    if (sums[i] > best) best = sums[i];
  __syncthreads();
  return best;
}

template <typename Mass> __device__ __forceinline__ u64 sample_total(const SampleRow& row, u64* sums, Mass mass) {
  u64 sum = 0;
  for (u32 i = threadIdx.x; i < row.vocab; i += blockDim.x) sum += mass(i);
  return sample_block_sum(sum, sums);
}

// The first token at which the running sum of masses exceeds `target`, which is below their total.
template <typename Mass> __device__ __forceinline__ u32 sample_walk(const SampleRow& row, SampleShared& shared, u64 target, Mass mass) {
  u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, num_warps = blockDim.x / WARP;
  u32 begin = 0, end = row.vocab;
  while (end - begin > SAMPLE_WALK) {
    u32 stretch = ((end - begin + num_warps - 1) / num_warps + WARP - 1) / WARP * WARP;
    u32 from = min(begin + warp * stretch, end), to = min(from + stretch, end);
    u64 sum = 0;
    for (u32 i = from + lane; i < to; i += WARP) sum += mass(i);
    for (u32 offset = WARP / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(FULL_MASK, sum, offset);
    if (lane == 0) shared.sums[warp] = sum;
    __syncthreads();
    u32 chosen = 0;
    while (chosen + 1 < num_warps && target >= shared.sums[chosen]) target -= shared.sums[chosen++];
    begin = min(begin + chosen * stretch, end);
    end = min(begin + stretch, end);
    __syncthreads();
  }
  if (warp == 0) {
    if (lane == 0) shared.found[0] = end - 1;
    bool is_found = false;
    for (u32 first = begin; first < end && !is_found; first += WARP) {
      u64 upto = first + lane < end ? mass(first + lane) : 0;
      for (u32 offset = 1; offset < WARP; offset *= 2) {
        u64 other = __shfl_up_sync(FULL_MASK, upto, offset);
        if (lane >= offset) upto += other;
      }
      u32 beyond = __ballot_sync(FULL_MASK, upto > target);
      is_found = beyond != 0;
      u64 all = __shfl_sync(FULL_MASK, upto, WARP - 1);
      if (is_found && lane == 0) shared.found[0] = first + u32(__popc((beyond & (0u - beyond)) - 1));
      target -= is_found ? 0 : all;
    }
  }
  __syncthreads();
  u32 token = u32(shared.found[0]);
  __syncthreads();
  return token;
}

// Where the running sum of masses, from the heaviest token on, reaches `goal` (above 0, at most the total): the bits of
// that token's weight, and the sum of all that are heavier.
struct SampleLevel {
  u32 weight;
  u64 above;
};

// `mass_of` a weight tells its mass; that of 0 is 0.
template <typename Mass> __device__ __forceinline__ SampleLevel sample_descend(const SampleRow& row, SampleShared& shared, u64 goal, Mass mass_of) {
  u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  SampleLevel level = {0, 0};
  u32 known = 0;
  for (int shift = 32 - int(SAMPLE_BITS); known != 0xffffffffu; shift -= int(SAMPLE_BITS)) {
    u32 low = shift > 0 ? u32(shift) : 0;
    u32 digits = shift > 0 ? SAMPLE_BINS - 1 : (SAMPLE_BINS - 1) >> -shift;
    for (u32 i = threadIdx.x; i < SAMPLE_BINS; i += blockDim.x) shared.histogram[i] = 0;
    __syncthreads();
    for (u32 i = threadIdx.x; i < row.vocab; i += blockDim.x) {
      float weight = sample_weight(row, i);
      u32 bits = __float_as_uint(weight);
      u64 mass = mass_of(weight);
      if (mass > 0 && (bits & known) == level.weight) atomicAdd(&shared.histogram[(bits >> low) & digits], mass);
    }
    __syncthreads();
    // Threads next to each other read different banks.
    for (u32 group = threadIdx.x; group < SAMPLE_BINS / WARP; group += blockDim.x) {
      u64 sum = 0;
      for (u32 i = 0; i < WARP; i++) sum += shared.histogram[group * WARP + (i + group) % WARP];
      shared.sums[group] = sum;
    }
    __syncthreads();
    if (warp == 0) {
      u64 above = level.above;
      u32 group = SAMPLE_BINS / WARP - 1;
      while (group > 0 && above + shared.sums[group] < goal) above += shared.sums[group--];
      u32 bin = group * WARP + (WARP - 1 - lane);
      u64 sum = shared.histogram[bin], upto = sum;
      for (u32 offset = 1; offset < WARP; offset *= 2) {
        u64 other = __shfl_up_sync(FULL_MASK, upto, offset);
        if (lane >= offset) upto += other;
      }
      if (above + upto >= goal && above + upto - sum < goal) {
        shared.found[0] = bin;
        shared.found[1] = above + upto - sum;
      }
    }
    __syncthreads();
    level.weight |= u32(shared.found[0]) << low;
    level.above = shared.found[1];
    known |= digits << low;
    __syncthreads();
  }
  return level;
}

// How many tokens of the level's weight are needed to reach `goal`.
__device__ __forceinline__ u64 sample_num_equal(const SampleLevel& level, u64 goal) {
  u64 each = sample_mass(__uint_as_float(level.weight));
  return (goal - level.above + each - 1) / each;
}

// 53 random bits as a number in [0, 1).
__device__ __forceinline__ double sample_uniform(const SampleParams& params) {
  u32 c0 = params.position, c1 = params.choice, c2 = 0, c3 = 0, k0 = params.seed_lo, k1 = params.seed_hi;
  for (u32 round = 0; round < 10; round++) {
    u64 x = u64(0xd2511f53u) * c0, y = u64(0xcd9e8d57u) * c2;
    c0 = u32(y >> 32) ^ c1 ^ k0;
    c1 = u32(y);
    c2 = u32(x >> 32) ^ c3 ^ k1;
    c3 = u32(x);
    k0 += 0x9e3779b9u;
    k1 += 0xbb67ae85u;
  }
  u64 bits = (u64(c0) << 32) | c1;
  return double(bits >> 11) * (1.0 / 9007199254740992.0);
}

// The part of `total` that a random number points at.
__device__ __forceinline__ u64 sample_target(u64 total, double uniform) {
  u64 target = u64(double(total) * uniform);
  return target < total ? target : total - 1;
}

// Draws among the most likely tokens whose masses reach `top_p` of the total.
__device__ __forceinline__ u32 sample_nucleus(const SampleRow& row, SampleShared& shared, const SampleParams& params, u64 total) {
  u64 goal = u64(double(total) * double(params.top_p));
  SampleLevel last = sample_descend(row, shared, goal > 0 ? goal : 1, sample_mass);
  u64 each = sample_mass(__uint_as_float(last.weight));
  u64 nucleus = last.above + sample_num_equal(last, goal > 0 ? goal : 1) * each;
  u64 target = sample_target(nucleus, sample_uniform(params)) + 1;
  SampleLevel drawn = sample_descend(row, shared, target, sample_mass);
  u64 nth = sample_num_equal(drawn, target) - 1;
  return sample_walk(row, shared, nth, [&](u32 i) { return u64(__float_as_uint(sample_weight(row, i)) == drawn.weight); });
}

// Rules out what `min_p` and `top_k` rule out.
__device__ __forceinline__ void sample_keep(SampleRow& row, SampleShared& shared, const SampleParams& params) {
  if (params.min_p > 0.0f) row.lowest = __float_as_uint(params.min_p);
  if (params.top_k == 0 || params.top_k >= row.vocab) return;
  auto is_kept = [](float weight) { return u64(weight > 0.0f); };
  u64 kept = sample_total(row, shared.sums, [&](u32 i) { return is_kept(sample_weight(row, i)); });
  if (kept <= params.top_k) return;
  SampleLevel level = sample_descend(row, shared, params.top_k, is_kept);
  u64 nth = params.top_k - level.above - 1;
  row.last_lowest = sample_walk(row, shared, nth, [&](u32 i) { return u64(__float_as_uint(sample_weight(row, i)) == level.weight); });
  row.lowest = level.weight;
}

// One block per adjustment.
KERNEL(adjust_logits, AdjustArgs, 1024) {
  Adjustment adjustment = a.adjustments[blockIdx.x];
  const float* logits = a.logits + u64(adjustment.row) * a.vocab;
  float* out = a.adjusted + u64(blockIdx.x) * a.vocab;
  bool masks = adjustment.first_word != SAMPLE_ALL_ALLOWED;
  const u32* allowed = a.allowed + (masks ? adjustment.first_word : 0);
  for (u32 i = threadIdx.x; i < a.vocab; i += blockDim.x)
    out[i] = !masks || (allowed[i / 32] >> (i % 32) & 1) ? logits[i] : __uint_as_float(0xff800000u);
  __syncthreads();
  // No token twice.
  for (u32 i = adjustment.first_bias + threadIdx.x; i < adjustment.end_bias; i += blockDim.x) out[a.bias_tokens[i]] += a.biases[i];
}

// One block per row.
KERNEL(sample_rows, SampleArgs, 1024) {
  __shared__ SampleShared shared;
  SampleParams params = a.params[blockIdx.x];
  u32* out = a.out + u64(blockIdx.x) * a.row_words;
  const float* logits = a.logits + u64(blockIdx.x) * a.vocab;
  bool is_adjusted = params.adjusted_row != SAMPLE_NOT_ADJUSTED;
  SampleRow row = {is_adjusted ? a.adjusted + u64(params.adjusted_row) * a.vocab : logits, a.vocab, 0.0f, 1.0f, 0, ~0u};
  u64 best = sample_best(row, ~u64(0), shared.sums);
  u32 likeliest = ~u32(best), token = likeliest;
  row.largest = row.logits[likeliest];
  if (params.temperature > 0.0f) {
    row.inverse_temperature = 1.0f / params.temperature;
    sample_keep(row, shared, params);
    auto mass = [&](u32 i) { return sample_mass(sample_weight(row, i)); };
    u64 total = sample_total(row, shared.sums, mass);
    // Without a single number there is no mass.
    if (total > 0) {
      token = params.top_p < 1.0f ? sample_nucleus(row, shared, params, total)
                                  : sample_walk(row, shared, sample_target(total, sample_uniform(params)), mass);
    }
  }
  if (threadIdx.x == 0) {
    out[0] = token;
    out[1] = 0;
  }
  if (!params.wants_logprob && params.num_top_logprobs == 0) return;
  row = {logits, a.vocab, row.largest, 1.0f, 0, ~0u};
  if (is_adjusted) {
    best = sample_best(row, ~u64(0), shared.sums);
    row.largest = row.logits[~u32(best)];
  }
  u64 total = sample_total(row, shared.sums, [&](u32 i) { return sample_mass(sample_weight(row, i)); });
  float ln_sum = logf(float(double(total) * (1.0 / double(SAMPLE_UNIT))));
  if (threadIdx.x == 0 && params.wants_logprob) out[1] = __float_as_uint((row.logits[token] - row.largest) - ln_sum);
  for (u32 i = 0; i < params.num_top_logprobs && i < a.vocab; i++) {
    if (i > 0) best = sample_best(row, best, shared.sums);
    u32 next = ~u32(best);
    if (threadIdx.x == 0) {
      out[2 + 2 * i] = next;
      out[3 + 2 * i] = __float_as_uint((row.logits[next] - row.largest) - ln_sum);
    }
  }
}
