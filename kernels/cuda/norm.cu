// Root-mean-square normalisation; twin of `norm.rs`.

struct NormArgs {
  Act* x;               // [num_rows, row_len], in place
  const float* weight;  // [row_len], or null for none
  u32 row_len;
  float eps;
};

// One block per row.
KERNEL(rms_norm, NormArgs, 256) {
  __shared__ float scratch[WARP];
  Act* row = a.x + u64(blockIdx.x) * a.row_len;
  float sum = 0.0f;
  for (u32 i = threadIdx.x; i < a.row_len; i += blockDim.x) {
    float x = widen(row[i]);
    sum = fmaf(x, x, sum);
  }
  float inverse = 1.0f / sqrtf(block_sum(sum, scratch) / float(a.row_len) + a.eps);
  for (u32 i = threadIdx.x; i < a.row_len; i += blockDim.x) {
    float y = widen(row[i]) * inverse;
    row[i] = narrow<Act>(a.weight ? y * a.weight[i] : y);
  }
}
