// The image operations of StyleGAN2's discriminator on CPU cores, for images in channels last: leaky ReLU with clamp,
// the 4x4 FIR filter with its strides and transpose, and what stands next to them in a network. Each reads and writes
// its images once. Sums are float32, rounded once at the end; bits depend neither on the threads nor on the batch.
#include <pthread.h>

#include <cstdint>
#include <cstring>

#include "numbers.h"
#include "pool.h"

namespace {

using splat::BFloat16;
using splat::narrow;
using splat::Team;
using splat::wide;

// Leaky ReLU without gain, clamped to +-bound.
struct Activation {
  float slope, bound;

  float operator()(float x) const {
    const float y = x > 0 ? x : slope * x;
    const float low = y < -bound ? -bound : y;
    return low > bound ? bound : low;
  }
  float derivative(float x) const {
    const float y = x > 0 ? x : slope * x;
    const float factor = x > 0 ? 1.0f : slope;
    return y < bound && y > -bound ? factor : 0.0f;
  }
};

enum Mode { PLAIN, ACTIVATE, MASK };  // what is done to a number before it is filtered

template <int MODE, class T>
inline float value_of(T x, T mask, Activation activation) {
  if (MODE == ACTIVATE) return activation(wide(x));
  if (MODE == MASK) return wide(x) * activation.derivative(wide(mask));
  return wide(x);
}

struct Shape {
  int64_t count, height, width, channels;
};

// A thread's own memory, which holds at least `size` floats.
inline float* scratch(int64_t size) {
  static thread_local std::vector<float> own;
  if (static_cast<int64_t>(own.size()) < size) own.resize(size);
  return own.data();
}

constexpr int64_t STRIPE = 32;  // rows of a result that a thread makes at once
constexpr int TAPS = 4;

// y = filter(value of x), then times the derivative at `out_mask` if there is one. A stripe of one image: every row of x
// is filtered along its width once, into the ring of the last four rows, which are then summed along the height.
template <class T, int MODE, int STRIDE>
void fir_stripe(const T* x, const T* mask, const T* out_mask, T* y, Shape in, Shape out, int64_t padding, int64_t item,
                Activation activation) {
  const int64_t stripes = (out.height + STRIPE - 1) / STRIPE, n = item / stripes, first = item % stripes * STRIPE;
  const int64_t end = std::min(first + STRIPE, out.height), channels = in.channels;
  const int64_t row = in.width * channels, out_row = out.width * channels, side = padding * channels;
  float* padded = scratch(row + 2 * side + TAPS * out_row);
  float* ring = padded + row + 2 * side;
  std::fill(padded, padded + side, 0.0f);
  std::fill(padded + side + row, padded + row + 2 * side, 0.0f);
  const auto along_width = [padded, channels](int64_t j) {
    return padded[j] + padded[j + 3 * channels] + 3.0f * (padded[j + channels] + padded[j + 2 * channels]);
  };
  const int64_t top = first * STRIDE - padding, bottom = (end - 1) * STRIDE - padding + TAPS;
  for (int64_t iy = top; iy < bottom; ++iy) {
    float* filtered = ring + (iy - top) % TAPS * out_row;
    if (iy < 0 || iy >= in.height) {
      std::fill(filtered, filtered + out_row, 0.0f);
    } else {
      const T* from = x + (n * in.height + iy) * row;
      const T* by = MODE == MASK ? mask + (n * in.height + iy) * row : from;
      float* values = padded + side;
#pragma GCC ivdep
      for (int64_t j = 0; j < row; ++j) values[j] = value_of<MODE>(from[j], by[j], activation);
      if (STRIDE == 1) {
#pragma GCC ivdep
        for (int64_t j = 0; j < out_row; ++j) filtered[j] = along_width(j);
      } else {
        for (int64_t ox = 0; ox < out.width; ++ox)
#pragma GCC ivdep
          for (int64_t k = 0; k < channels; ++k) filtered[ox * channels + k] = along_width(STRIDE * ox * channels + k);
      }
    }
    if (iy - top < TAPS - 1 || (iy - top - (TAPS - 1)) % STRIDE) continue;
    const int64_t oy = first + (iy - top - (TAPS - 1)) / STRIDE;
    const float *a = ring + (iy - top + 1) % TAPS * out_row, *b = ring + (iy - top + 2) % TAPS * out_row;
    const float *c = ring + (iy - top + 3) % TAPS * out_row, *d = filtered;
    const auto along_height = [a, b, c, d](int64_t j) { return (a[j] + d[j] + 3.0f * (b[j] + c[j])) * (1.0f / 64.0f); };
    T* to = y + (n * out.height + oy) * out_row;
    if (out_mask) {
      const T* by = out_mask + (n * out.height + oy) * out_row;
#pragma GCC ivdep
      for (int64_t j = 0; j < out_row; ++j) narrow(along_height(j) * activation.derivative(wide(by[j])), to[j]);
    } else {
#pragma GCC ivdep
      for (int64_t j = 0; j < out_row; ++j) narrow(along_height(j), to[j]);
    }
  }
}

// The transpose of the filter with stride 2 and padding 1, plus `added` if there is one: two rows of y for one of x.
template <class T>
void fir_transpose_rows(const T* x, const T* added, T* y, Shape in, int64_t item) {
  const int64_t channels = in.channels, row = in.width * channels, n = item / in.height, iy = item % in.height;
  float* sums = scratch(row + 2 * channels);
  std::fill(sums, sums + channels, 0.0f);
  std::fill(sums + channels + row, sums + 2 * channels + row, 0.0f);
  const T* here = x + item * row;
  for (int below = 0; below < 2; ++below) {
    const int64_t other = iy + (below ? 1 : -1);
    const bool inside = other >= 0 && other < in.height;
    const T* next = inside ? x + (n * in.height + other) * row : here;
    const float share = inside ? 1.0f / 64.0f : 0.0f;
    float* inner = sums + channels;
#pragma GCC ivdep
    for (int64_t j = 0; j < row; ++j) inner[j] = wide(here[j]) * (3.0f / 64.0f) + wide(next[j]) * share;
    const int64_t start = (2 * item + below) * 2 * row;  // of the row of y
    for (int64_t ix = 0; ix < in.width; ++ix) {
      const float* middle = sums + (ix + 1) * channels;
      const float *left = middle - channels, *right = middle + channels;
      T* to = y + start + 2 * ix * channels;
      if (added) {
        const T* more = added + start + 2 * ix * channels;
#pragma GCC ivdep
        for (int64_t k = 0; k < channels; ++k) narrow(3.0f * middle[k] + left[k] + wide(more[k]), to[k]);
#pragma GCC ivdep
        for (int64_t k = 0; k < channels; ++k)
          narrow(3.0f * middle[k] + right[k] + wide(more[channels + k]), to[channels + k]);
      } else {
#pragma GCC ivdep
        for (int64_t k = 0; k < channels; ++k) narrow(3.0f * middle[k] + left[k], to[k]);
#pragma GCC ivdep
        for (int64_t k = 0; k < channels; ++k) narrow(3.0f * middle[k] + right[k], to[channels + k]);
      }
    }
  }
}

constexpr int64_t CHUNK = 1 << 14;  // numbers of an element-wise loop that a thread takes at once

template <class T>
void activate(const T* x, const T* added, T* y, int64_t first, int64_t end, Activation activation) {
#pragma GCC ivdep
  for (int64_t i = first; i < end; ++i) narrow(activation(wide(x[i])) + wide(added[i]), y[i]);
}

template <class T>
void mask(const T* x, const T* by, T* y, int64_t first, int64_t end, Activation activation) {
#pragma GCC ivdep
  for (int64_t i = first; i < end; ++i) narrow(wide(x[i]) * activation.derivative(wide(by[i])), y[i]);
}

// (2 x - 1 + 1) 127.5 of three planes, rounded to the nearest (ties to even) and clamped to 0..255, side by side. The
// steps are those of the twin, which takes images in -1..1. NaN gives 0.
void pixels(const float* planes, int64_t plane, int64_t size, uint8_t* out) {
  constexpr int64_t PART = 256;
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  uint8_t rows[3][PART];
  for (int64_t first = 0; first < size; first += PART) {
    const int64_t n = std::min(PART, size - first);
    for (int c = 0; c < 3; ++c)
      for (int64_t i = 0; i < n; ++i) {
        const float image = 2.0f * planes[c * plane + first + i] - 1.0f, y = (image + 1.0f) * 127.5f;
        const float positive = y > 0.0f ? y : 0.0f, bounded = positive < 255.0f ? positive : 255.0f;
        rows[c][i] = static_cast<uint8_t>(static_cast<int32_t>((bounded + magic) - magic));
      }
    for (int64_t i = 0; i < n; ++i, out += 3) out[0] = rows[0][i], out[1] = rows[1][i], out[2] = rows[2][i];
  }
}

splat::Threads* threads = new splat::Threads;  // never freed: they sleep until the process ends
const int fork_handler = pthread_atfork(nullptr, nullptr, [] { threads = new splat::Threads; });

template <class T>
void fir(const void* x, const void* mask, const void* out_mask, void* y, Shape in, Shape out, int64_t padding,
         int stride, int mode, Activation activation, int count) {
  auto* work = stride == 2        ? fir_stripe<T, PLAIN, 2>
               : mode == ACTIVATE ? fir_stripe<T, ACTIVATE, 1>
               : mode == MASK     ? fir_stripe<T, MASK, 1>
                                  : fir_stripe<T, PLAIN, 1>;
  const int64_t stripes = (out.height + STRIPE - 1) / STRIPE;
  const splat::TeamLease lease(*threads, count);
  lease.team().loop(static_cast<int>(out.count * stripes), [&](int item) {
    work(static_cast<const T*>(x), static_cast<const T*>(mask), static_cast<const T*>(out_mask), static_cast<T*>(y), in,
        out, padding, item, activation);
  });
}

template <class T>
void fir_transpose(const void* x, const void* added, void* y, Shape in, int count) {
  const splat::TeamLease lease(*threads, count);
  lease.team().loop(static_cast<int>(in.count * in.height), [&](int item) {
    fir_transpose_rows(static_cast<const T*>(x), static_cast<const T*>(added), static_cast<T*>(y), in, item);
  });
}

template <class Function>
void in_chunks(int64_t size, int count, const Function& function) {
  const splat::TeamLease lease(*threads, count);
  lease.team().loop(static_cast<int>((size + CHUNK - 1) / CHUNK),
                    [&](int k) { function(k * CHUNK, std::min<int64_t>((k + 1) * CHUNK, size)); });
}

}  // namespace

// Images are bfloat16 where `low` is set, else float32: [count, height, width, channels].
extern "C" {

void image_ops_use_openmp(void* parallel) { threads->openmp = reinterpret_cast<splat::OpenMpParallel>(parallel); }

void image_ops_fir(const void* x, const void* mask, const void* out_mask, void* y, int low, const int64_t* sizes,
                   int64_t padding, int stride, int mode, float slope, float bound, int count) {
  const Shape in = {sizes[0], sizes[1], sizes[2], sizes[3]}, out = {sizes[0], sizes[4], sizes[5], sizes[3]};
  (low ? fir<BFloat16> : fir<float>)(x, mask, out_mask, y, in, out, padding, stride, mode, {slope, bound}, count);
}

void image_ops_fir_transpose(const void* x, const void* added, void* y, int low, const int64_t* sizes, int count) {
  const Shape in = {sizes[0], sizes[1], sizes[2], sizes[3]};
  (low ? fir_transpose<BFloat16> : fir_transpose<float>)(x, added, y, in, count);
}

void image_ops_activate(const void* x, const void* added, void* y, int low, int64_t size, float slope, float bound,
                        int count) {
  in_chunks(size, count, [=](int64_t first, int64_t end) {
    if (low)
      activate(static_cast<const BFloat16*>(x), static_cast<const BFloat16*>(added), static_cast<BFloat16*>(y), first,
               end, {slope, bound});
    else
      activate(static_cast<const float*>(x), static_cast<const float*>(added), static_cast<float*>(y), first, end,
               {slope, bound});
  });
}

// Float planes [count, 3, size] become bytes [count, size, 3].
void image_ops_pixels(const float* planes, uint8_t* out, int64_t images, int64_t size, int count) {
  const int64_t parts = (size + CHUNK - 1) / CHUNK;
  const splat::TeamLease lease(*threads, count);
  lease.team().loop(static_cast<int>(images * parts), [&](int k) {
    const int64_t image = k / parts * 3 * size, first = k % parts * CHUNK;
    pixels(planes + image + first, size, std::min<int64_t>(CHUNK, size - first), out + image + 3 * first);
  });
}

void image_ops_mask(const void* x, const void* by, void* y, int low, int64_t size, float slope, float bound,
                    int count) {
  in_chunks(size, count, [=](int64_t first, int64_t end) {
    if (low)
      mask(static_cast<const BFloat16*>(x), static_cast<const BFloat16*>(by), static_cast<BFloat16*>(y), first, end,
           {slope, bound});
    else
      mask(static_cast<const float*>(x), static_cast<const float*>(by), static_cast<float*>(y), first, end, {slope, bound});
  });
}

}  // extern "C"
