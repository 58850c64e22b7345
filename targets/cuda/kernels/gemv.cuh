// Few rows times a matrix: out[m, n] = epilogue(sum_k a[m, k] b[n, k]). A warp computes one number; what counts is to
// read b at the full speed of the memory, which tensor cores do not help with.
#pragma once

namespace tersor {

template <int WARPS, bool Vector, class Epilogue, class Out>
__device__ __forceinline__ void gemv(Out* out, const half* a, const half* b, const Epilogue& epilogue, int n, int k) {
  const int column = blockIdx.x * WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
  const half* row_a = a + static_cast<long>(blockIdx.y) * k;
  const half* row_b = b + static_cast<long>(column < n ? column : 0) * k;
  float sum = 0.0f;
  if constexpr (Vector) {
    for (int i = lane * CHUNK; i < k; i += 32 * CHUNK) {
      const Chunk left = *reinterpret_cast<const Chunk*>(row_a + i), right = *reinterpret_cast<const Chunk*>(row_b + i);
      for (int j = 0; j < CHUNK; ++j) sum += __half2float(left.numbers[j]) * __half2float(right.numbers[j]);
    }
  } else {
    for (int i = lane; i < k; i += 32) sum += __half2float(row_a[i]) * __half2float(row_b[i]);
  }
  sum = warp_sum(sum);
  if (lane == 0 && column < n) {
    const long index = static_cast<long>(blockIdx.y) * n + column;
    store(out + index, epilogue(sum, column, index));
  }
}

}  // namespace tersor
