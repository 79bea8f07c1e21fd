// Rows of the embedding, and of other tensors.

constexpr u32 EMBED_THREADS = 256;
constexpr u32 EMBED_VECTOR = 8;  // channels of a thread

struct EmbedArgs {
  const void* table;  // [vocab, hidden], f32 or bf16
  const u32* ids;     // [num_rows]
  Act* streams;       // [num_rows, num_streams, hidden]
  u32 vocab;
  u32 hidden;
  u32 num_streams;
  u32 is_f32;  // the table
};

template <typename T> __device__ __forceinline__ void embed_channels(const EmbedArgs& a, u32 at) {
  // An id beyond the table is the caller's mistake, but must not be a fault.
  const T* from = static_cast<const T*>(a.table) + u64(min(a.ids[blockIdx.x], a.vocab - 1)) * a.hidden;
  Act* to = a.streams + u64(blockIdx.x) * a.num_streams * a.hidden;
  if (a.hidden % EMBED_VECTOR == 0) {
    float v[EMBED_VECTOR];
    load8(from + at, v);
    for (u32 s = 0; s < a.num_streams; s++) store8(to + u64(s) * a.hidden + at, v);
    return;
  }
  for (u32 i = at; i < min(at + EMBED_VECTOR, a.hidden); i++)
    for (u32 s = 0; s < a.num_streams; s++) to[u64(s) * a.hidden + i] = narrow<Act>(widen(from[i]));
}

// Blocks of one row.
KERNEL(embed, EmbedArgs, EMBED_THREADS) {
  u32 at = (blockIdx.y * blockDim.x + threadIdx.x) * EMBED_VECTOR;
  if (at >= a.hidden) return;
  if (a.is_f32) {
    embed_channels<float>(a, at);
  } else {
    embed_channels<bf16>(a, at);
  }
}

struct TakeRowsArgs {
  const u8* x;      // [num_rows, row_bytes]
  const u32* rows;  // which
  u8* out;          // [as many, row_bytes]
  u32 num_rows;
  u32 row_bytes;  // an even number
};

// Blocks of one row of `out`; a thread copies 16 bytes.
KERNEL(take_rows, TakeRowsArgs, EMBED_THREADS) {
  u32 at = (blockIdx.y * blockDim.x + threadIdx.x) * 16;
  if (at >= a.row_bytes) return;
  const u8* from = a.x + u64(min(a.rows[blockIdx.x], a.num_rows - 1)) * a.row_bytes;
  u8* to = a.out + u64(blockIdx.x) * a.row_bytes;
  if (a.row_bytes % 16 == 0) {
    *reinterpret_cast<uint4*>(to + at) = *reinterpret_cast<const uint4*>(from + at);
  } else {
    for (u32 i = at; i < min(at + 16, a.row_bytes); i += 2)
      *reinterpret_cast<u16*>(to + i) = *reinterpret_cast<const u16*>(from + i);
  }
}
