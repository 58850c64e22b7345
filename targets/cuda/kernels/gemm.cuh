// Matrix products on tensor cores: out[m, n] = epilogue(sum_k a[m, k] b[n, k]), half in, sums in float.
//
// A block computes a tile of BM x BN. Its threads copy slices of BK along k into shared memory, STAGES - 1 slices ahead
// of the computation; each warp multiplies WM x WN of the tile with ldmatrix and mma.sync. Chunks of 8 halves are
// permuted within the rows of shared memory, so that the 8 rows that ldmatrix reads at once lie in different banks.
#pragma once

namespace tersor {

constexpr int BK = 32, STAGES = 3;

// Rows of a row-major matrix [rows, depth]: a linear layer's input or weight, say.
struct Rows {
  const half* data;
  int rows, depth;

  struct Row {
    const half* start;
  };

  __device__ Row row(int m) const { return {m < rows ? data + static_cast<long>(m) * depth : nullptr}; }
  __device__ const half* at(Row row, int k) const { return row.start && k < depth ? row.start + k : nullptr; }
};

// The windows of a convolution, one a row: row m is output pixel m, and k runs over (kernel row, kernel column, channel).
struct Windows {
  const half* data;
  int rows;
  Window window;

  struct Row {
    const half* image;
    int top, left;
  };

  __device__ Row row(int m) const {
    int column = m % window.out_width, line = m / window.out_width % window.out_height;
    long image = m / (window.out_width * window.out_height);
    return {m < rows ? data + image * window.height * window.width * window.channels : nullptr,
            line * window.stride_height - window.pad_top, column * window.stride_width - window.pad_left};
  }

  __device__ const half* at(Row row, int k) const {
    int channel = k % window.channels, tap = k / window.channels;
    int y = row.top + tap / window.kernel_width * window.dilation_height;
    int x = row.left + tap % window.kernel_width * window.dilation_width;
    bool inside = row.image && tap < window.kernel_height * window.kernel_width && y >= 0 && y < window.height &&
                  x >= 0 && x < window.width;
    return inside ? row.image + (static_cast<long>(y) * window.width + x) * window.channels + channel : nullptr;
  }
};

// Place of chunk `chunk` of row `row` in a tile whose rows hold BK halves along k.
__device__ __forceinline__ int k_major(int row, int chunk) { return row * BK + (chunk ^ (row >> 1 & 3)) * CHUNK; }

// Place of chunk `chunk` of row `k` in a tile whose rows hold N halves along n.
template <int N>
__device__ __forceinline__ int n_major(int k, int chunk) {
  return k * N + (chunk ^ (k & 7)) * CHUNK;
}

// Copy 8 halves, of which those that `at(i)` has no address for are zeros. With Vector all or none have one.
template <bool Vector, class At>
__device__ __forceinline__ void copy_chunk(half* to, const half* anywhere, const At& at) {
  if constexpr (Vector) {
    const half* from = at(0);
    copy_async_16(to, from ? from : anywhere, from != nullptr);
  } else {
    Chunk chunk;
    for (int i = 0; i < CHUNK; ++i) {
      const half* from = at(i);
      chunk.numbers[i] = from ? *from : __float2half_rn(0.0f);
    }
    *reinterpret_cast<Chunk*>(to) = chunk;
  }
}

// An operand read along k: TILE rows of a source, stored k-major.
template <class Source, int TILE, int THREADS, bool Vector>
struct AlongK {
  static constexpr int COUNT = TILE * (BK / CHUNK) / THREADS;
  static constexpr int SIZE = TILE * BK;
  static_assert(COUNT * THREADS * CHUNK == SIZE && THREADS % (BK / CHUNK) == 0, "threads must divide the tile");

  const Source& source;
  typename Source::Row rows[COUNT];

  __device__ AlongK(const Source& source, int first) : source(source) {
    for (int i = 0; i < COUNT; ++i) rows[i] = source.row(first + local_row(i));
  }

  __device__ void copy(half* tile, int k) const {
    int chunk = threadIdx.x % (BK / CHUNK);
    for (int i = 0; i < COUNT; ++i) {
      copy_chunk<Vector>(tile + k_major(local_row(i), chunk), source.data,
                         [&](int j) { return source.at(rows[i], k + chunk * CHUNK + j); });
    }
  }

  // Two 16x8 operands of mma: n from `first`, k from `k`.
  static __device__ void fragment(unsigned (&to)[4], const half* tile, int first, int k, int lane) {
    int row = first + (lane & 7) + (lane >> 4) * 8;
    load_matrices(to, tile + k_major(row, k / CHUNK + (lane >> 3 & 1)));
  }

  static __device__ int local_row(int i) { return (threadIdx.x + i * THREADS) / (BK / CHUNK); }
};

// An operand b[k, n] that is stored row by row, so that n is contiguous: the values of attention, say.
template <int TILE, int THREADS, bool Vector>
struct AlongN {
  static constexpr int PER_ROW = TILE / CHUNK;
  static constexpr int COUNT = BK * PER_ROW / THREADS;
  static constexpr int SIZE = TILE * BK;
  static_assert(COUNT * THREADS * CHUNK == SIZE, "threads must divide the tile");

  const half* data;
  int depth, columns, first;

  __device__ void copy(half* tile, int k) const {
    for (int i = 0; i < COUNT; ++i) {
      int index = threadIdx.x + i * THREADS;
      int row = index / PER_ROW, chunk = index % PER_ROW, n = first + chunk * CHUNK;
      const half* start = k + row < depth ? data + static_cast<long>(k + row) * columns : nullptr;
      copy_chunk<Vector>(tile + n_major<TILE>(row, chunk), data,
                         [&](int j) { return start && n + j < columns ? start + n + j : nullptr; });
    }
  }

  static __device__ void fragment(unsigned (&to)[4], const half* tile, int first, int k, int lane) {
    int row = k + (lane & 7) + (lane >> 3 & 1) * 8;
    load_matrices_transposed(to, tile + n_major<TILE>(row, first / CHUNK + (lane >> 4)));
  }
};

// The sums along k from slice `first` on, at most `most` slices of BK.
struct Slices {
  int first, most;
};

template <int BM, int BN, int WM, int WN, class A, class B, class Epilogue, class Out>
__device__ __forceinline__ void gemm(Out* out, const A& a, const B& b, const Epilogue& epilogue, int m, int n, int k,
                                     Slices along) {
  constexpr int THREADS = BM / WM * (BN / WN) * 32;
  constexpr int TILES_M = WM / 16, TILES_N = WN / 8;
  static_assert(BM % WM == 0 && BN % WN == 0 && WM % 16 == 0 && WN % 16 == 0 && THREADS >= 32, "tiles do not fit");
  alignas(128) __shared__ half shared[STAGES * (A::SIZE + B::SIZE)];
  half* const shared_b = shared + STAGES * A::SIZE;

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int warp_m = warp / (BN / WN) * WM, warp_n = warp % (BN / WN) * WN;
  const int slices = min((k + BK - 1) / BK - along.first, along.most);

  float sums[TILES_M][TILES_N][4] = {};
  for (int stage = 0; stage < STAGES - 1; ++stage) {
    if (stage < slices) {
      a.copy(shared + stage * A::SIZE, (along.first + stage) * BK);
      b.copy(shared_b + stage * B::SIZE, (along.first + stage) * BK);
    }
    commit_copies();
  }
  for (int slice = 0; slice < slices; ++slice) {
    wait_for_copies<STAGES - 2>();
    __syncthreads();  // the slice has come, and all threads are done with the stage that is filled next
    const int ahead = slice + STAGES - 1;
    if (ahead < slices) {
      a.copy(shared + ahead % STAGES * A::SIZE, (along.first + ahead) * BK);
      b.copy(shared_b + ahead % STAGES * B::SIZE, (along.first + ahead) * BK);
    }
    commit_copies();

    const half* tile_a = shared + slice % STAGES * A::SIZE;
    const half* tile_b = shared_b + slice % STAGES * B::SIZE;
#pragma unroll
    for (int step = 0; step < BK; step += 16) {
      unsigned fragments_a[TILES_M][4];
#pragma unroll
      for (int i = 0; i < TILES_M; ++i) {
        int row = warp_m + i * 16 + (lane & 15);
        load_matrices(fragments_a[i], tile_a + k_major(row, step / CHUNK + (lane >> 4)));
      }
#pragma unroll
      for (int j = 0; j < TILES_N; j += 2) {
        unsigned fragment_b[4];
        B::fragment(fragment_b, tile_b, warp_n + j * 8, step, lane);
#pragma unroll
        for (int i = 0; i < TILES_M; ++i) {
          multiply_accumulate(sums[i][j], fragments_a[i], fragment_b[0], fragment_b[1]);
          multiply_accumulate(sums[i][j + 1], fragments_a[i], fragment_b[2], fragment_b[3]);
        }
      }
    }
  }

  const int tile_m = blockIdx.x * BM + warp_m, tile_n = blockIdx.y * BN + warp_n;
#pragma unroll
  for (int i = 0; i < TILES_M; ++i) {
#pragma unroll
    for (int j = 0; j < TILES_N; ++j) {
#pragma unroll
      for (int part = 0; part < 2; ++part) {  // how mma lays out a tile of 16x8: two rows, two neighbours in each
        const int row = tile_m + i * 16 + lane / 4 + part * 8, column = tile_n + j * 8 + lane % 4 * 2;
        const float first = sums[i][j][part * 2], second = sums[i][j][part * 2 + 1];
        const long index = (static_cast<long>(blockIdx.z) * m + row) * n + column;
        if (row >= m || column >= n) continue;
        if (n % 2 == 0) {
          store_pair(out + index, epilogue(first, column, index), epilogue(second, column + 1, index + 1));
        } else {
          store(out + index, epilogue(first, column, index));
          if (column + 1 < n) store(out + index + 1, epilogue(second, column + 1, index + 1));
        }
      }
    }
  }
}

constexpr int ALL = 1 << 30;

// out [batch, m, n] = a [m, k] b [n, k] of each batch; a step of 0 reads the same matrix for all.
template <int BM, int BN, int WM, int WN, bool VectorA, bool VectorB, class Epilogue, class Out>
__device__ __forceinline__ void matmul_rows(Out* out, const half* a, const half* b, const Epilogue& epilogue, int m,
                                            int n, int k, long step_a, long step_b) {
  constexpr int THREADS = BM / WM * (BN / WN) * 32;
  const Rows rows_a{a + blockIdx.z * step_a, m, k}, rows_b{b + blockIdx.z * step_b, n, k};
  const AlongK<Rows, BM, THREADS, VectorA> load_a(rows_a, blockIdx.x * BM);
  const AlongK<Rows, BN, THREADS, VectorB> load_b(rows_b, blockIdx.y * BN);
  gemm<BM, BN, WM, WN>(out, load_a, load_b, epilogue, m, n, k, {0, ALL});
}

// out [batch, m, n] = a [m, k] b [k, n] of each batch.
template <int BM, int BN, int WM, int WN, bool VectorA, bool VectorB, class Epilogue, class Out>
__device__ __forceinline__ void matmul_columns(Out* out, const half* a, const half* b, const Epilogue& epilogue, int m,
                                               int n, int k, long step_a, long step_b) {
  constexpr int THREADS = BM / WM * (BN / WN) * 32;
  const Rows rows_a{a + blockIdx.z * step_a, m, k};
  const AlongK<Rows, BM, THREADS, VectorA> load_a(rows_a, blockIdx.x * BM);
  const AlongN<BN, THREADS, VectorB> load_b{b + blockIdx.z * step_b, k, n, static_cast<int>(blockIdx.y) * BN};
  gemm<BM, BN, WM, WN>(out, load_a, load_b, epilogue, m, n, k, {0, ALL});
}

// out [splits, m, n] = a [m, k] b [n, k], each split over `slices` slices of k.
template <int BM, int BN, int WM, int WN, bool VectorA, bool VectorB, class Epilogue>
__device__ __forceinline__ void matmul_split(float* out, const half* a, const half* b, const Epilogue& epilogue, int m,
                                             int n, int k, int slices) {
  constexpr int THREADS = BM / WM * (BN / WN) * 32;
  const Rows rows_a{a, m, k}, rows_b{b, n, k};
  const AlongK<Rows, BM, THREADS, VectorA> load_a(rows_a, blockIdx.x * BM);
  const AlongK<Rows, BN, THREADS, VectorB> load_b(rows_b, blockIdx.y * BN);
  gemm<BM, BN, WM, WN>(out, load_a, load_b, epilogue, m, n, k, {static_cast<int>(blockIdx.z) * slices, slices});
}

// out [splits, pixels, n] = convolution of an NHWC tensor with weight [n, kernel height, kernel width, channels], each
// split over `slices` slices of k; channels are a multiple of 8.
template <int BM, int BN, int WM, int WN, class Epilogue, class Out>
__device__ __forceinline__ void conv2d_gemm(Out* out, const half* x, const half* weight, const Epilogue& epilogue,
                                            int pixels, int n, Window window, int slices) {
  constexpr int THREADS = BM / WM * (BN / WN) * 32;
  const int k = window.kernel_height * window.kernel_width * window.channels;
  const Windows windows{x, pixels, window};
  const Rows rows{weight, n, k};
  const AlongK<Windows, BM, THREADS, true> load_a(windows, blockIdx.x * BM);
  const AlongK<Rows, BN, THREADS, true> load_b(rows, blockIdx.y * BN);
  gemm<BM, BN, WM, WN>(out, load_a, load_b, epilogue, pixels, n, k, {static_cast<int>(blockIdx.z) * slices, slices});
}

// out [total / n, n] = epilogue(sum of the splits).
template <class Epilogue, class Out>
__device__ __forceinline__ void sum_splits(Out* out, const float* parts, const Epilogue& epilogue, long total, int n,
                                           int splits) {
  const long index = static_cast<long>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= total) return;
  float sum = 0.0f;
  for (int split = 0; split < splits; ++split) sum += parts[split * total + index];
  store(out + index, epilogue(sum, static_cast<int>(index % n), index));
}

}  // namespace tersor
