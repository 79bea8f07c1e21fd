// Rotary position embedding; twin of `rope.rs` and `math/trig.rs`.

constexpr u32 ROPE_THREADS = 256;
constexpr u32 ROPE_VECTOR = 4;  // pairs of a thread, if they are aligned

// Sine and cosine of |x| < 2^20 to the last bit or so, by the CPU's polynomials: a library's may differ by version.
__device__ __forceinline__ void rope_sin_cos(double x, double& sine, double& cosine) {
  const double round = 6755399441055744.0;
  double n = fma(x, 0.636619772367581343076, round) - round;
  // pi / 2 in three parts, so that a multiple of each of the first two is exact.
  double r = fma(n, -0x1.921fb544p+0, x);
  r = fma(n, -0x1.0b4611a6p-34, r);
  r = fma(n, -0x1.3198a2e037073p-69, r);
  double z = r * r;
  double s = 1.58969099521155e-10;
  s = fma(s, z, -2.5050760253406863e-8);
  s = fma(s, z, 2.7557313707070068e-6);
  s = fma(s, z, -1.984126982985795e-4);
  s = fma(s, z, 8.33333333332249e-3);
  s = fma(s, z, -1.6666666666666632e-1);
  s = fma(r * z, s, r);
  double c = -1.1359647557788195e-11;
  c = fma(c, z, 2.087572321298175e-9);
  c = fma(c, z, -2.7557314351390663e-7);
  c = fma(c, z, 2.480158728947673e-5);
  c = fma(c, z, -1.388888888887411e-3);
  c = fma(c, z, 4.16666666666666e-2);
  c = fma(z * z, c, fma(z, -0.5, 1.0));
  u32 quadrant = u32(i64(n)) & 3u;
  sine = quadrant % 2 ? c : s;
  cosine = quadrant % 2 ? s : c;
  if (quadrant >= 2) sine = -sine;
  if (quadrant == 1 || quadrant == 2) cosine = -cosine;
}

struct RopeAnglesArgs {
  const Row* rows;
  const float* inv_freq;  // [num_pairs]
  float* out;             // [num_rows, num_pairs, 2], cosine and sine
  u32 num_rows;
  u32 num_pairs;
};

KERNEL(rope_angles, RopeAnglesArgs, ROPE_THREADS) {
  u64 i = u64(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= u64(a.num_rows) * a.num_pairs) return;
  // The rounded product is the angle that the model was trained with.
  float angle = float(a.rows[i / a.num_pairs].position) * a.inv_freq[i % a.num_pairs];
  double sine, cosine;
  rope_sin_cos(double(angle), sine, cosine);
  a.out[2 * i] = float(cosine);
  a.out[2 * i + 1] = float(sine);
}

struct RopeArgs {
  Act* x;               // [num_rows, num_heads, head_dim], in place
  const float* angles;  // [num_rows, num_pairs, 2]
  u32 num_heads;
  u32 head_dim;
  u32 num_pairs;
  u32 inverse;
  u32 vector;  // whether four pairs at a time are aligned
};

__device__ __forceinline__ void rope_pair(float& x, float& y, float cosine, float sine) {
  float turned = x * cosine - y * sine;
  y = x * sine + y * cosine;
  x = turned;
}

// Four pairs at `x`, by the cosines and sines `angles`.
__device__ __forceinline__ void rope_vector(bf16* x, const float* angles) {
  uint4 raw = *reinterpret_cast<uint4*>(x);
  u32 words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (u32 i = 0; i < 4; i++) {
    float low = __uint_as_float(words[i] << 16), high = __uint_as_float(words[i] & 0xffff0000u);
    rope_pair(low, high, angles[2 * i], angles[2 * i + 1]);
    words[i] = to_bf16(low).bits | u32(to_bf16(high).bits) << 16;
  }
  *reinterpret_cast<uint4*>(x) = make_uint4(words[0], words[1], words[2], words[3]);
}
__device__ __forceinline__ void rope_vector(float* x, const float* angles) {
#pragma unroll
  for (u32 i = 0; i < 2; i++) {
    float4 v = *reinterpret_cast<float4*>(x + 4 * i);
    rope_pair(v.x, v.y, angles[4 * i], angles[4 * i + 1]);
    rope_pair(v.z, v.w, angles[4 * i + 2], angles[4 * i + 3]);
    *reinterpret_cast<float4*>(x + 4 * i) = v;
  }
}

// Blocks of one row; a thread turns one pair or four.
KERNEL(rope, RopeArgs, ROPE_THREADS) {
  u32 width = a.vector ? ROPE_VECTOR : 1, per_head = a.num_pairs / width;
  u32 index = blockIdx.y * blockDim.x + threadIdx.x;
  if (index >= a.num_heads * per_head) return;
  u32 head = index / per_head, pair = index % per_head * width;
  Act* x = a.x + (u64(blockIdx.x) * a.num_heads + head + 1) * a.head_dim - 2 * a.num_pairs + 2 * pair;
  const float* from = a.angles + 2 * (u64(blockIdx.x) * a.num_pairs + pair);
  float sign = a.inverse ? -1.0f : 1.0f;
  if (a.vector) {
    float4 low = *reinterpret_cast<const float4*>(from), high = *reinterpret_cast<const float4*>(from + 4);
    float angles[8] = {low.x, sign * low.y, low.z, sign * low.w, high.x, sign * high.y, high.z, sign * high.w};
    rope_vector(x, angles);
  } else {
    float first = widen(x[0]), second = widen(x[1]);
    rope_pair(first, second, from[0], sign * from[1]);
    x[0] = narrow<Act>(first);
    x[1] = narrow<Act>(second);
  }
}
