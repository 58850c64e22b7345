// Numbers and extents that all kernels share.
#pragma once

namespace tersor {

__device__ __forceinline__ float load(const half* at) { return __half2float(*at); }
__device__ __forceinline__ float load(const float* at) { return *at; }
__device__ __forceinline__ void store(half* at, float value) { *at = __float2half_rn(value); }
__device__ __forceinline__ void store(float* at, float value) { *at = value; }

// Two neighbours at once; `at` is aligned to both.
__device__ __forceinline__ void store_pair(half* at, float first, float second) {
  alignas(4) const half pair[2] = {__float2half_rn(first), __float2half_rn(second)};
  *reinterpret_cast<unsigned*>(at) = *reinterpret_cast<const unsigned*>(pair);
}
__device__ __forceinline__ void store_pair(float* at, float first, float second) {
  alignas(8) const float pair[2] = {first, second};
  *reinterpret_cast<unsigned long long*>(at) = *reinterpret_cast<const unsigned long long*>(pair);
}

constexpr int CHUNK = 8;  // halves that one copy of 16 bytes moves

struct alignas(16) Chunk {
  half numbers[CHUNK];
};

// A convolution of a tensor [N, height, width, channels]: pixels outside of it count as zeros.
struct Window {
  int height, width, channels;
  int out_height, out_width;
  int kernel_height, kernel_width;
  int stride_height, stride_width;
  int pad_top, pad_left;
  int dilation_height, dilation_width;
};

}  // namespace tersor
