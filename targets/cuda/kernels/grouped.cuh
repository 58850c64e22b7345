// Convolutions in groups of an NHWC tensor, one thread for each run of outputs; too few products for tensor cores.
#pragma once

namespace tersor {

// Depthwise: weight [kernel height, kernel width, channels]. A thread computes Width neighbouring channels of a pixel.
template <int Width, class Epilogue, class Out>
__device__ __forceinline__ void depthwise(Out* out, const half* x, const half* weight, const Epilogue& epilogue,
                                          long total, Window window) {
  struct alignas(Width * 2) Vector {
    half numbers[Width];
  };
  const long index = (static_cast<long>(blockIdx.x) * blockDim.x + threadIdx.x) * Width;
  if (index >= total) return;
  const int channel = index % window.channels;
  const long pixel = index / window.channels;
  const int left = pixel % window.out_width * window.stride_width - window.pad_left;
  const int top = pixel / window.out_width % window.out_height * window.stride_height - window.pad_top;
  const long image = pixel / (static_cast<long>(window.out_width) * window.out_height);
  const half* start = x + image * window.height * window.width * window.channels + channel;
  float sums[Width] = {};
  for (int i = 0; i < window.kernel_height; ++i) {
    const int y = top + i * window.dilation_height;
    if (y < 0 || y >= window.height) continue;
    for (int j = 0; j < window.kernel_width; ++j) {
      const int column = left + j * window.dilation_width;
      if (column < 0 || column >= window.width) continue;
      const Vector values = *reinterpret_cast<const Vector*>(
          start + (static_cast<long>(y) * window.width + column) * window.channels);
      const Vector weights =
          *reinterpret_cast<const Vector*>(weight + (i * window.kernel_width + j) * window.channels + channel);
      for (int c = 0; c < Width; ++c) sums[c] += __half2float(values.numbers[c]) * __half2float(weights.numbers[c]);
    }
  }
  for (int c = 0; c < Width; ++c) store(out + index + c, epilogue(sums[c], channel + c, index + c));
}

// Any groups: weight [n, kernel height, kernel width, channels / groups]. A thread computes one number.
template <class Epilogue, class Out>
__device__ __forceinline__ void grouped_conv2d(Out* out, const half* x, const half* weight, const Epilogue& epilogue,
                                               long total, int n, int groups, Window window) {
  const long index = static_cast<long>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= total) return;
  const int column = index % n, depth = window.channels / groups;
  const long pixel = index / n;
  const int left = pixel % window.out_width * window.stride_width - window.pad_left;
  const int top = pixel / window.out_width % window.out_height * window.stride_height - window.pad_top;
  const long image = pixel / (static_cast<long>(window.out_width) * window.out_height);
  const half* start = x + image * window.height * window.width * window.channels + column / (n / groups) * depth;
  const half* taps = weight + static_cast<long>(column) * window.kernel_height * window.kernel_width * depth;
  float sum = 0.0f;
  for (int i = 0; i < window.kernel_height; ++i) {
    const int y = top + i * window.dilation_height;
    if (y < 0 || y >= window.height) continue;
    for (int j = 0; j < window.kernel_width; ++j) {
      const int at = left + j * window.dilation_width;
      if (at < 0 || at >= window.width) continue;
      const half* pixel_start = start + (static_cast<long>(y) * window.width + at) * window.channels;
      const half* tap = taps + (i * window.kernel_width + j) * depth;
      for (int c = 0; c < depth; ++c) sum += __half2float(pixel_start[c]) * __half2float(tap[c]);
    }
  }
  store(out + index, epilogue(sum, column, index));
}

}  // namespace tersor
