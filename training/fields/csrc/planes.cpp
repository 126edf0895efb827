// Reads features of points off three planes, and spreads gradients of such features over the planes.
//
// Texels are [scene, plane, row, column, feature]: what one point needs of a texel lies side by side. A result is made
// by one thread in one order, so the bits depend neither on the number of threads nor on a scene's place.
#include <cmath>
#include <cstdint>
#include <limits>

#include "threads.h"

namespace {

constexpr int POINTS_AT_ONCE = 2048;

struct Problem {
  std::int32_t scenes, points, size, features, align, threads;
  std::int32_t axes[6];  // of every plane: the coordinate along its columns, and along its rows
};

// The texel before a coordinate in -1..1, and how far it is past that one.
struct Place {
  int first;
  float rest;
};

inline bool locate(float x, const Problem& p, Place& place) {
  const float at = p.align ? (x + 1) * 0.5f * static_cast<float>(p.size - 1)
                           : ((x + 1) * static_cast<float>(p.size) - 1) * 0.5f;
  if (!(at > -1 && at < static_cast<float>(p.size))) return false;  // and NaN
  const float floor = std::floor(at);
  place.first = static_cast<int>(floor);
  place.rest = at - floor;
  return true;
}

// Calls visit(texel, weight) for the up to four texels of a plane around a point.
template <class Visit>
inline void around(const Problem& p, const float* point, int plane, const Visit& visit) {
  Place column, row;
  if (!locate(point[p.axes[2 * plane]], p, column) || !locate(point[p.axes[2 * plane + 1]], p, row)) return;
  for (int j = 0; j < 2; ++j) {
    const int y = row.first + j;
    if (y < 0 || y >= p.size) continue;
    const float down = (j ? row.rest : 1 - row.rest) * (1.0f / 3);
    for (int i = 0; i < 2; ++i) {
      const int x = column.first + i;
      const float across = i ? column.rest : 1 - column.rest;
      if (x >= 0 && x < p.size) visit(static_cast<std::int64_t>(y) * p.size + x, down * across);
    }
  }
}

// COUNT: features, known at compile time so that loops over them are whole vectors; 0: p.features.
template <int COUNT>
void read_points(const Problem& p, const float* texels, const float* points, int count,
                 float* __restrict out) {
  const int features = COUNT ? COUNT : p.features;
  const std::int64_t plane_size = static_cast<std::int64_t>(p.size) * p.size * features;
  for (int n = 0; n < count; ++n, points += 3, out += features) {
    const bool finite = std::isfinite(points[0]) && std::isfinite(points[1]) && std::isfinite(points[2]);
    const float start = finite ? 0.0f : std::numeric_limits<float>::quiet_NaN();
    for (int f = 0; f < features; ++f) out[f] = start;
    for (int plane = 0; plane < 3; ++plane) {
      const float* own = texels + plane * plane_size;
      around(p, points, plane, [&](std::int64_t texel, float weight) {
        const float* from = own + texel * features;
        for (int f = 0; f < features; ++f) out[f] += weight * from[f];
      });
    }
  }
}

template <int COUNT>
void spread_points(const Problem& p, int plane, const float* upstream, const float* points,
                   float* __restrict gradient) {
  const int features = COUNT ? COUNT : p.features;
  for (int n = 0; n < p.points; ++n, points += 3, upstream += features)
    around(p, points, plane, [&](std::int64_t texel, float weight) {
      float* to = gradient + texel * features;
      for (int f = 0; f < features; ++f) to[f] += weight * upstream[f];
    });
}

}  // namespace

extern "C" {

// texels [B, 3, R, R, F], points [B, P, 3], out [B, P, F]
void fields_read_planes(const Problem* problem, const float* texels, const float* points, float* out) {
  const Problem& p = *problem;
  auto* read = p.features == 12 ? read_points<12> : p.features == 32 ? read_points<32> : read_points<0>;
  const int parts = (p.points + POINTS_AT_ONCE - 1) / POINTS_AT_ONCE;
  const std::int64_t scene_size = 3 * static_cast<std::int64_t>(p.size) * p.size * p.features;
  fields::for_each(p.threads, p.scenes * parts, [&](int item) {
    const int scene = item / parts, first = item % parts * POINTS_AT_ONCE;
    const int count = p.points - first < POINTS_AT_ONCE ? p.points - first : POINTS_AT_ONCE;
    const std::int64_t row = static_cast<std::int64_t>(scene) * p.points + first;
    read(p, texels + scene * scene_size, points + 3 * row, count, out + row * p.features);
  });
}

// upstream [B, P, F], points [B, P, 3], gradient [B, 3, R, R, F], zero at the call
void fields_spread_planes(const Problem* problem, const float* upstream, const float* points, float* gradient) {
  const Problem& p = *problem;
  auto* spread = p.features == 12 ? spread_points<12> : p.features == 32 ? spread_points<32> : spread_points<0>;
  const std::int64_t plane_size = static_cast<std::int64_t>(p.size) * p.size * p.features;
  fields::for_each(p.threads, p.scenes * 3, [&](int item) {
    const std::int64_t row = static_cast<std::int64_t>(item / 3) * p.points;
    spread(p, item % 3, upstream + row * p.features, points + 3 * row, gradient + item * plane_size);
  });
}

}  // extern "C"
