// What stands between the matrix products of attention over edges, on CPU cores: among the children of one parent, and
// from points to neighbours; see point_ops.cpp.
#include "points.h"

namespace {

using splat::BFloat16;
using splat::CHILDREN;
using splat::exp_negative;
using splat::for_rows;
using splat::lrelu;
using splat::narrow;
using splat::wide;

// Where the edge from child i to child j lies among those of a family: those to others first, then those to themselves.
constexpr int PAIRS = CHILDREN * (CHILDREN - 1), EDGES = CHILDREN * CHILDREN;
constexpr int edge(int i, int j) { return i == j ? PAIRS + i : (CHILDREN - 1) * i + (j < i ? j : j - 1); }

// The first layers' sums over the edges of a family: for weights lrelu(seen[j] - seen[i] + bias), where i is not j, for
// values lrelu(other[j] + own[i]). A child holds seen, other and own after one another; children lie `in_step` apart.
template <class T>
void edge_sums_row(const T* child, int64_t in_step, const float* __restrict bias, T* weights, int64_t w_step, T* values,
                   int64_t v_step, int64_t narrower, int64_t wider, float slope) {
  for (int i = 0; i < CHILDREN; ++i)
    for (int j = 0; j < CHILDREN; ++j) {
      const T* __restrict a = child + j * in_step;
      const T* __restrict b = child + i * in_step;
      T* __restrict w = weights + edge(i, j) * w_step;
      if (i != j)
#pragma GCC ivdep
        for (int64_t c = 0; c < narrower; ++c) narrow(lrelu(wide(a[c]) + (bias[c] - wide(b[c])), slope), w[c]);
      const T* __restrict other = a + narrower;
      const T* __restrict own = b + narrower + wider;
      T* __restrict v = values + edge(i, j) * v_step;
#pragma GCC ivdep
      for (int64_t c = 0; c < wider; ++c) narrow(lrelu(wide(other[c]) + wide(own[c]), slope), v[c]);
    }
}

// Its transpose, where the results were `weights` and `values`; and the sum of what reaches the bias.
template <class T>
void edge_sums_grad_row(const T* weights, const T* g_weights, int64_t w_step, const T* values, const T* g_values,
                        int64_t v_step, T* __restrict g_child, int64_t in_step, T* __restrict g_bias, int64_t narrower,
                        int64_t wider, float slope) {
#pragma GCC ivdep
  for (int64_t c = 0; c < narrower; ++c) {
    float seen[CHILDREN] = {}, bias = 0.0f;
#pragma GCC unroll 4
    for (int i = 0; i < CHILDREN; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < CHILDREN; ++j) {
        if (i == j) continue;
        const int64_t k = edge(i, j) * w_step + c;
        const float g = wide(g_weights[k]) * (wide(weights[k]) > 0 ? 1.0f : slope);
        seen[j] += g;
        seen[i] -= g;
        bias += g;
      }
#pragma GCC unroll 4
    for (int k = 0; k < CHILDREN; ++k) narrow(seen[k], g_child[k * in_step + c]);
    narrow(bias, g_bias[c]);
  }
#pragma GCC ivdep
  for (int64_t c = 0; c < wider; ++c) {
    float other[CHILDREN] = {}, own[CHILDREN] = {};
#pragma GCC unroll 4
    for (int i = 0; i < CHILDREN; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < CHILDREN; ++j) {
        const int64_t k = edge(i, j) * v_step + c;
        const float g = wide(g_values[k]) * (wide(values[k]) > 0 ? 1.0f : slope);
        other[j] += g;
        own[i] += g;
      }
#pragma GCC unroll 4
    for (int k = 0; k < CHILDREN; ++k) {
      narrow(other[k], g_child[k * in_step + narrower + c]);
      narrow(own[k], g_child[k * in_step + narrower + wider + c]);
    }
  }
}

// y = x + bias + sum_j softmax_j(scores[j]) values[j] per channel for child I, whose score to itself is `alone`; the
// shares overwrite the scores.
template <int I, class T>
void attend_row(const T* __restrict x, const float* __restrict bias, const float* __restrict alone,
                T* __restrict scores, const T* __restrict values, int64_t step, T* __restrict y, int64_t width) {
#pragma GCC ivdep
  for (int64_t c = 0; c < width; ++c) {
    float s[CHILDREN], sum = 0.0f, found = 0.0f;
#pragma GCC unroll 4
    for (int j = 0; j < CHILDREN; ++j) s[j] = I == j ? alone[c] : wide(scores[edge(I, j) * step + c]);
    const float a = s[0] > s[1] ? s[0] : s[1], b = s[2] > s[3] ? s[2] : s[3], most = a > b ? a : b;
#pragma GCC unroll 4
    for (int j = 0; j < CHILDREN; ++j) {
      s[j] = exp_negative(s[j] - most);
      sum += s[j];
    }
    const float factor = 1.0f / sum;
#pragma GCC unroll 4
    for (int j = 0; j < CHILDREN; ++j) {
      narrow(s[j] * factor, scores[edge(I, j) * step + c]);
      found += s[j] * wide(values[edge(I, j) * step + c]);
    }
    narrow(wide(x[c]) + bias[c] + found * factor, y[c]);
  }
}

template <int I, class T>
void attend_grad_row(const T* __restrict grad, const T* __restrict shares, const T* __restrict values, int64_t step,
                     T* __restrict g_scores, T* __restrict g_values, int64_t width) {
#pragma GCC ivdep
  for (int64_t c = 0; c < width; ++c) {
    const float g = wide(grad[c]);
    float p[CHILDREN], v[CHILDREN], mean = 0.0f;
#pragma GCC unroll 4
    for (int j = 0; j < CHILDREN; ++j) {
      p[j] = wide(shares[edge(I, j) * step + c]);
      v[j] = wide(values[edge(I, j) * step + c]);
      mean += p[j] * v[j];
    }
#pragma GCC unroll 4
    for (int j = 0; j < CHILDREN; ++j) {
      narrow(g * p[j], g_values[edge(I, j) * step + c]);
      if (I != j) narrow(g * p[j] * (v[j] - mean), g_scores[edge(I, j) * step + c]);
    }
  }
}

// The first layers' sums over the edges of a point to its neighbours, as edge_sums_row; `index` has their rows.
template <class T>
void neighbour_sums_row(const T* first, const T* __restrict me, const int64_t* index, int64_t neighbours,
                        const float* __restrict bias, T* weights, T* values, int64_t narrower, int64_t wider,
                        float slope) {
  const T* __restrict own = me + narrower + wider;
  for (int64_t k = 0; k < neighbours; ++k) {
    const T* __restrict seen = first + index[k] * (narrower + 2 * wider);
    const T* __restrict other = seen + narrower;
    T* __restrict w = weights + k * narrower;
    T* __restrict v = values + k * wider;
#pragma GCC ivdep
    for (int64_t c = 0; c < narrower; ++c) narrow(lrelu(wide(seen[c]) + (bias[c] - wide(me[c])), slope), w[c]);
#pragma GCC ivdep
    for (int64_t c = 0; c < wider; ++c) narrow(lrelu(wide(other[c]) + wide(own[c]), slope), v[c]);
  }
}

constexpr int64_t LANES = 64;  // channels that are worked on together
constexpr int64_t MOST_NEIGHBOURS = 32;

// Adds what reaches some of the numbers that neighbours show, `count` from `shown` on, and sums by point it in `sum`.
template <class T>
void neighbour_grad_row(const T* out, const T* grad, int64_t width, const int64_t* index, int64_t neighbours,
                        float* shown, int64_t step, float* __restrict sum, int64_t count, float slope) {
  for (int64_t c = 0; c < count; ++c) sum[c] = 0.0f;
  for (int64_t k = 0; k < neighbours; ++k) {
    const T* __restrict y = out + k * width;
    const T* __restrict g_y = grad + k * width;
    float* __restrict to = shown + index[k] * step;
#pragma GCC ivdep
    for (int64_t c = 0; c < count; ++c) {
      const float g = wide(g_y[c]) * (wide(y[c]) > 0 ? 1.0f : slope);
      to[c] += g;
      sum[c] += g;
    }
  }
}

// y = bias + sum_k softmax_k(scores) values per channel; the shares overwrite the scores.
template <class T>
void attend_all_row(const float* bias, T* scores, const T* values, int64_t neighbours, T* y, int64_t width) {
  for (int64_t from = 0; from < width; from += LANES) {
    const int64_t lanes = std::min(LANES, width - from);
    float most[LANES], sum[LANES], found[LANES], e[MOST_NEIGHBOURS][LANES];
    for (int64_t c = 0; c < lanes; ++c) most[c] = wide(scores[from + c]), sum[c] = found[c] = 0.0f;
    for (int64_t k = 1; k < neighbours; ++k)
      for (int64_t c = 0; c < lanes; ++c) {
        const float s = wide(scores[k * width + from + c]);
        most[c] = s > most[c] ? s : most[c];
      }
    for (int64_t k = 0; k < neighbours; ++k) {
      const T* __restrict s = scores + k * width + from;
      const T* __restrict v = values + k * width + from;
      for (int64_t c = 0; c < lanes; ++c) {
        e[k][c] = exp_negative(wide(s[c]) - most[c]);
        sum[c] += e[k][c];
        found[c] += e[k][c] * wide(v[c]);
      }
    }
    for (int64_t c = 0; c < lanes; ++c) {
      sum[c] = 1.0f / sum[c];
      narrow(bias[from + c] + found[c] * sum[c], y[from + c]);
    }
    for (int64_t k = 0; k < neighbours; ++k) {
      T* __restrict s = scores + k * width + from;
      for (int64_t c = 0; c < lanes; ++c) narrow(e[k][c] * sum[c], s[c]);
    }
  }
}

template <class T>
void attend_all_grad_row(const T* grad, const T* shares, const T* values, int64_t neighbours, T* g_scores, T* g_values,
                         int64_t width) {
  for (int64_t from = 0; from < width; from += LANES) {
    const int64_t lanes = std::min(LANES, width - from);
    float mean[LANES] = {};
    for (int64_t k = 0; k < neighbours; ++k)
      for (int64_t c = 0; c < lanes; ++c)
        mean[c] += wide(shares[k * width + from + c]) * wide(values[k * width + from + c]);
    for (int64_t k = 0; k < neighbours; ++k) {
      const int64_t at = k * width + from;
#pragma GCC ivdep
      for (int64_t c = 0; c < lanes; ++c) {
        const float g = wide(grad[from + c]) * wide(shares[at + c]);
        narrow(g, g_values[at + c]);
        narrow(g * (wide(values[at + c]) - mean[c]), g_scores[at + c]);
      }
    }
  }
}

template <class T>
void edge_sums(const T* first, const float* bias, T* weights, T* values, const int64_t* sizes, float slope, int count) {
  const int64_t rows = sizes[0], narrower = sizes[1], wider = sizes[2], width = narrower + 2 * wider;
  for_rows(rows, count, [=](int64_t m) {
    edge_sums_row(first + m * width, rows * width, bias, weights + m * narrower, rows * narrower, values + m * wider,
                  rows * wider, narrower, wider, slope);
  });
}

template <class T>
void edge_sums_grad(const T* weights, const T* g_weights, const T* values, const T* g_values, T* g_first, T* g_bias,
                    const int64_t* sizes, float slope, int count) {
  const int64_t rows = sizes[0], narrower = sizes[1], wider = sizes[2], width = narrower + 2 * wider;
  for_rows(rows, count, [=](int64_t m) {
    edge_sums_grad_row(weights + m * narrower, g_weights + m * narrower, rows * narrower, values + m * wider,
                       g_values + m * wider, rows * wider, g_first + m * width, rows * width, g_bias + m * narrower,
                       narrower, wider, slope);
  });
}

template <class T>
void attend(const T* x, const float* bias, const float* alone, T* scores, const T* values, T* y, const int64_t* sizes,
            int count) {
  const int64_t rows = sizes[0], width = sizes[1];
  for_rows(rows, count, [=](int64_t m) {
    const int64_t at = m * width, step = rows * width;
    attend_row<0>(x + at, bias, alone, scores + at, values + at, step, y + at, width);
    attend_row<1>(x + at + step, bias, alone, scores + at, values + at, step, y + at + step, width);
    attend_row<2>(x + at + 2 * step, bias, alone, scores + at, values + at, step, y + at + 2 * step, width);
    attend_row<3>(x + at + 3 * step, bias, alone, scores + at, values + at, step, y + at + 3 * step, width);
  });
}

template <class T>
void attend_grad(const T* grad, const T* shares, const T* values, T* g_scores, T* g_values, const int64_t* sizes,
                 int count) {
  const int64_t rows = sizes[0], width = sizes[1];
  for_rows(rows, count, [=](int64_t m) {
    const int64_t at = m * width, step = rows * width;
    attend_grad_row<0>(grad + at, shares + at, values + at, step, g_scores + at, g_values + at, width);
    attend_grad_row<1>(grad + at + step, shares + at, values + at, step, g_scores + at, g_values + at, width);
    attend_grad_row<2>(grad + at + 2 * step, shares + at, values + at, step, g_scores + at, g_values + at, width);
    attend_grad_row<3>(grad + at + 3 * step, shares + at, values + at, step, g_scores + at, g_values + at, width);
  });
}

template <class T>
void neighbour_sums(const T* first, const int64_t* index, const float* bias, T* weights, T* values,
                    const int64_t* sizes, float slope, int count) {
  const int64_t start = sizes[0], rows = sizes[1], neighbours = sizes[2], narrower = sizes[3], wider = sizes[4];
  for_rows(rows, count, [=](int64_t m) {
    neighbour_sums_row(first, first + (start + m) * (narrower + 2 * wider), index + m * neighbours, neighbours, bias,
                       weights + m * neighbours * narrower, values + m * neighbours * wider, narrower, wider, slope);
  });
}

// Rows may share a neighbour: threads share the channels.
template <class T>
void neighbour_sums_grad(const T* weights, const T* g_weights, const T* values, const T* g_values,
                         const int64_t* index, float* g_first, T* g_bias, const int64_t* sizes, float slope,
                         int count) {
  const int64_t start = sizes[0], rows = sizes[1], neighbours = sizes[2], narrower = sizes[3], wider = sizes[4];
  const int64_t step = narrower + 2 * wider, of_weights = (narrower + LANES - 1) / LANES;
  const splat::TeamLease lease(*splat::threads, count);
  lease.team().loop(static_cast<int>(of_weights + (wider + LANES - 1) / LANES), [&](int item) {
    const bool weigh = item < of_weights;
    const int64_t width = weigh ? narrower : wider, from = LANES * (weigh ? item : item - of_weights);
    const int64_t lanes = std::min(LANES, width - from);
    float sum[LANES];
    for (int64_t m = 0; m < rows; ++m) {
      const int64_t at = m * neighbours * width + from;
      float* shown = g_first + from + (weigh ? 0 : narrower);
      neighbour_grad_row((weigh ? weights : values) + at, (weigh ? g_weights : g_values) + at, width,
                         index + m * neighbours, neighbours, shown, step, sum, lanes, slope);
      float* me = g_first + (start + m) * step + from + (weigh ? 0 : narrower + wider);
      for (int64_t c = 0; c < lanes; ++c) {
        me[c] += weigh ? -sum[c] : sum[c];
        if (weigh) narrow(sum[c], g_bias[m * narrower + from + c]);
      }
    }
  });
}

template <class T>
void attend_all(const float* bias, T* scores, const T* values, T* y, const int64_t* sizes, int count) {
  const int64_t rows = sizes[0], neighbours = sizes[1], width = sizes[2];
  for_rows(rows, count, [=](int64_t m) {
    const int64_t at = m * neighbours * width;
    attend_all_row(bias, scores + at, values + at, neighbours, y + m * width, width);
  });
}

template <class T>
void attend_all_grad(const T* grad, const T* shares, const T* values, T* g_scores, T* g_values, const int64_t* sizes,
                     int count) {
  const int64_t rows = sizes[0], neighbours = sizes[1], width = sizes[2];
  for_rows(rows, count, [=](int64_t m) {
    const int64_t at = m * neighbours * width;
    attend_all_grad_row(grad + m * width, shares + at, values + at, neighbours, g_scores + at, g_values + at, width);
  });
}

}  // namespace

// An entry point for each type, with R rows in all scenes and C features:
// edge_sums: first [4, R, C1 + 2 C2]; bias [C1]; weights [12, R, C1]; values [16, R, C2].
// attend: x, y [4, R, C]; bias, alone [C]; scores, values [16, R, C], of the gradient's scores but 12.
// neighbour_sums: first [M, C1 + 2 C2]; index [R, K], of the R rows from the one that sizes begin with; bias [C1];
// weights [R, K, C1]; values [R, K, C2]; of the gradient, which is added, first float32.
// attend_all: bias [C]; scores, values [R, K, C]; y [R, C].
#define ENTRY_POINTS(T, NAME)                                                                                         \
  void point_ops_edge_sums_##NAME(const T* first, const float* bias, T* weights, T* values, const int64_t* sizes,     \
                                  float slope, int count) {                                                           \
    edge_sums(first, bias, weights, values, sizes, slope, count);                                                     \
  }                                                                                                                   \
  void point_ops_edge_sums_grad_##NAME(const T* weights, const T* g_weights, const T* values, const T* g_values,      \
                                       T* g_first, T* g_bias, const int64_t* sizes, float slope, int count) {         \
    edge_sums_grad(weights, g_weights, values, g_values, g_first, g_bias, sizes, slope, count);                       \
  }                                                                                                                   \
  void point_ops_attend_##NAME(const T* x, const float* bias, const float* alone, T* scores, const T* values, T* y,   \
                               const int64_t* sizes, int count) {                                                     \
    attend(x, bias, alone, scores, values, y, sizes, count);                                                          \
  }                                                                                                                   \
  void point_ops_attend_grad_##NAME(const T* grad, const T* shares, const T* values, T* g_scores, T* g_values,        \
                                    const int64_t* sizes, int count) {                                                \
    attend_grad(grad, shares, values, g_scores, g_values, sizes, count);                                              \
  }                                                                                                                   \
  void point_ops_neighbour_sums_##NAME(const T* first, const int64_t* index, const float* bias, T* weights, T* values,\
                                       const int64_t* sizes, float slope, int count) {                                \
    neighbour_sums(first, index, bias, weights, values, sizes, slope, count);                                         \
  }                                                                                                                   \
  void point_ops_neighbour_sums_grad_##NAME(const T* weights, const T* g_weights, const T* values,                    \
                                            const T* g_values, const int64_t* index, float* g_first, T* g_bias,       \
                                            const int64_t* sizes, float slope, int count) {                           \
    neighbour_sums_grad(weights, g_weights, values, g_values, index, g_first, g_bias, sizes, slope, count);           \
  }                                                                                                                   \
  void point_ops_attend_all_##NAME(T* scores, const float* bias, const T* values, T* y, const int64_t* sizes,         \
                                   int count) {                                                                       \
    attend_all(bias, scores, values, y, sizes, count);                                                                \
  }                                                                                                                   \
  void point_ops_attend_all_grad_##NAME(const T* grad, const T* shares, const T* values, T* g_scores, T* g_values,    \
                                        const int64_t* sizes, int count) {                                            \
    attend_all_grad(grad, shares, values, g_scores, g_values, sizes, count);                                          \
  }

extern "C" {

ENTRY_POINTS(float, float32)
ENTRY_POINTS(BFloat16, bfloat16)

}  // extern "C"
