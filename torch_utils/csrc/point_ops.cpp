// What stands between the matrix products of layers over very many points, on CPU cores: GELU with its slope, and the
// division of points; edge_ops.cpp has attention. Each reads and writes its numbers once. Numbers are float32 or
// bfloat16; sums are float32, rounded once at the end; bits depend neither on the threads nor on the batch.
#include "points.h"

namespace {

using splat::BFloat16;
using splat::CHILDREN;
using splat::exp_negative;
using splat::for_rows;
using splat::lrelu;
using splat::narrow;
using splat::wide;

// hidden = GELU(z + bias) and, over z, its slope there. The normal distribution function is formula 7.1.26 of
// Abramowitz and Stegun, to 1e-7; it shares its exponential with the density.
template <class T>
void gelu_row(T* __restrict z, const float* __restrict bias, T* __restrict hidden, int64_t width) {
#pragma GCC ivdep
  for (int64_t c = 0; c < width; ++c) {
    const float x = wide(z[c]) + bias[c], size = x < 0 ? -x : x;
    const float e = exp_negative(-0.5f * x * x);
    const float t = 1.0f / (1.0f + 0.231641888f * size);
    const float tail = e * t * (0.127414796f + t * (-0.142248368f + t * (0.7107068705f + t * (-0.7265760135f +
                       t * 0.5307027145f))));
    const float below = x < 0 ? tail : 1.0f - tail;
    narrow(x * below, hidden[c]);
    narrow(below + x * e * 0.398942280f, z[c]);
  }
}

// Child k of a point: lrelu(z[k] + bias[k]) + shared. Children lie `step` apart.
template <class T>
void divide_row(const T* z, const float* bias, const T* __restrict shared, T* y, int64_t step, int64_t width,
                float slope) {
  for (int k = 0; k < CHILDREN; ++k) {
    const T* __restrict own = z + k * width;
    const float* __restrict b = bias + k * width;
    T* __restrict child = y + k * step;
#pragma GCC ivdep
    for (int64_t c = 0; c < width; ++c) narrow(lrelu(wide(own[c]) + b[c], slope) + wide(shared[c]), child[c]);
  }
}

template <class T>
void divide_grad_row(const T* __restrict grad, int64_t step, const T* __restrict z, const float* __restrict bias,
                     T* __restrict g_z, T* __restrict g_shared, int64_t width, float slope) {
#pragma GCC ivdep
  for (int64_t c = 0; c < width; ++c) {
    float sum = 0.0f;
#pragma GCC unroll 4
    for (int k = 0; k < CHILDREN; ++k) {
      const float g = wide(grad[k * step + c]);
      sum += g;
      narrow(g * (wide(z[k * width + c]) + bias[k * width + c] > 0 ? 1.0f : slope), g_z[k * width + c]);
    }
    narrow(sum, g_shared[c]);
  }
}

// Where the first child of the row-th of `rows` points per family lies: families hold their children one after another.
inline int64_t first_child(int64_t row, int64_t rows) { return row / rows * CHILDREN * rows + row % rows; }

template <class T>
void gelu(T* z, const float* bias, T* hidden, int64_t rows, int64_t width, int count) {
  for_rows(rows, count, [=](int64_t m) { gelu_row(z + m * width, bias, hidden + m * width, width); });
}

template <class T>
void divide(const T* z, const float* bias, const T* shared, T* y, const int64_t* sizes, float slope, int count) {
  const int64_t families = sizes[0], rows = sizes[1], width = sizes[2];
  for_rows(families * rows, count, [=](int64_t m) {
    divide_row(z + m * CHILDREN * width, bias, shared + m * width, y + first_child(m, rows) * width, rows * width,
               width, slope);
  });
}

template <class T>
void divide_grad(const T* grad, const T* z, const float* bias, T* g_z, T* g_shared, const int64_t* sizes, float slope,
                 int count) {
  const int64_t families = sizes[0], rows = sizes[1], width = sizes[2];
  for_rows(families * rows, count, [=](int64_t m) {
    divide_grad_row(grad + first_child(m, rows) * width, rows * width, z + m * CHILDREN * width, bias,
                    g_z + m * CHILDREN * width, g_shared + m * width, width, slope);
  });
}

}  // namespace

// An entry point for each type. Shapes, with R rows of points in all scenes, 4 children and C features:
// gelu: z, hidden [rows, width]; bias [width].
// divide: z [families, R, 4 C]; bias [4 C]; shared [families, R, C]; y [families, 4, R, C].
#define ENTRY_POINTS(T, NAME)                                                                                         \
  void point_ops_gelu_##NAME(T* z, const float* bias, T* hidden, int64_t rows, int64_t width, int count) {            \
    gelu(z, bias, hidden, rows, width, count);                                                                        \
  }                                                                                                                   \
  void point_ops_divide_##NAME(const T* z, const float* bias, const T* shared, T* y, const int64_t* sizes,            \
                               float slope, int count) {                                                              \
    divide(z, bias, shared, y, sizes, slope, count);                                                                  \
  }                                                                                                                   \
  void point_ops_divide_grad_##NAME(const T* grad, const T* z, const float* bias, T* g_z, T* g_shared,                \
                                    const int64_t* sizes, float slope, int count) {                                   \
    divide_grad(grad, z, bias, g_z, g_shared, sizes, slope, count);                                                   \
  }

extern "C" {

void point_ops_use_openmp(void* parallel) {
  splat::threads->openmp = reinterpret_cast<splat::OpenMpParallel>(parallel);
}

ENTRY_POINTS(float, float32)
ENTRY_POINTS(BFloat16, bfloat16)

}  // extern "C"
