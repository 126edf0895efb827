// Draws triangle meshes by a z-buffer, one triangle after the other: what `rasterize.py` computes with tensors.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace {

struct Problem {
  std::int32_t meshes, vertices, triangles, height, width;
  float nearest, rounding;  // NEAREST and ROUNDING of rasterize.py
};

struct Corners {
  float x[3], y[3], z[3];
};

inline float cross(float ax, float ay, float bx, float by) { return ax * by - ay * bx; }

// Weights of the corners at a place, which sum to 1.
inline void barycentric(const Corners& c, float px, float py, float* weights) {
  float x[3], y[3];
  for (int i = 0; i < 3; ++i) x[i] = c.x[i] - px, y[i] = c.y[i] - py;
  float sum = 0;
  for (int i = 0; i < 3; ++i) {
    const int j = (i + 1) % 3, k = (i + 2) % 3;
    weights[i] = cross(x[j], y[j], x[k], y[k]);
    sum += weights[i];
  }
  for (int i = 0; i < 3; ++i) weights[i] /= sum;
}

// Whether a triangle is seen from outside and before the camera; y runs down, so it then turns clockwise.
inline bool is_drawn(const Corners& c, float nearest) {
  const float area = cross(c.x[1] - c.x[0], c.y[1] - c.y[0], c.x[2] - c.x[0], c.y[2] - c.y[0]);
  return c.z[0] > nearest && c.z[1] > nearest && c.z[2] > nearest && area < 0;
}

// First and last of `count` pixels whose centres are within the corners' extent.
inline void window(const float* at, int count, int& first, int& last) {
  const float low = std::ceil(std::min({at[0], at[1], at[2]})), high = std::floor(std::max({at[0], at[1], at[2]}));
  first = static_cast<int>(std::clamp(low, 0.0f, static_cast<float>(count)));
  last = static_cast<int>(std::clamp(high, -1.0f, static_cast<float>(count - 1)));
}

void draw(const Problem& p, const Corners& c, std::int64_t triangle, std::int64_t* owner, float* weights, float* depth) {
  int left, right, top, bottom;
  window(c.x, p.width, left, right);
  window(c.y, p.height, top, bottom);
  for (int row = top; row <= bottom; ++row)
    for (int column = left; column <= right; ++column) {
      float w[3], inverse[3];
      barycentric(c, static_cast<float>(column), static_cast<float>(row), w);
      if (!(w[0] >= -p.rounding && w[1] >= -p.rounding && w[2] >= -p.rounding)) continue;
      for (int i = 0; i < 3; ++i) inverse[i] = w[i] / c.z[i];  // 1 / z is linear in the image
      const float z = 1 / (inverse[0] + inverse[1] + inverse[2]);
      const std::int64_t pixel = static_cast<std::int64_t>(row) * p.width + column;
      if (!(z < depth[pixel])) continue;
      depth[pixel] = z;
      owner[pixel] = triangle;
      for (int i = 0; i < 3; ++i) weights[3 * pixel + i] = inverse[i] * z;
    }
}

}  // namespace

// xy [meshes, vertices, 2] in pixels, the centre of the first being 0; z [meshes, vertices]; triangles [F, 3]. Writes
// owner [meshes, height, width], -1 for none, weights [..., 3] and depth, 0 where there is none.
extern "C" void mesh_draw(const Problem* problem, const float* xy, const float* z, const std::int64_t* triangles,
                          std::int64_t* owner, float* weights, float* depth) {
  const Problem& p = *problem;
  const std::int64_t pixels = static_cast<std::int64_t>(p.height) * p.width;
  for (int mesh = 0; mesh < p.meshes; ++mesh) {
    std::fill_n(owner, pixels, -1);
    std::fill_n(weights, 3 * pixels, 0.0f);
    std::fill_n(depth, pixels, std::numeric_limits<float>::infinity());
    for (std::int64_t t = 0; t < p.triangles; ++t) {
      Corners c;
      for (int i = 0; i < 3; ++i) {
        const std::int64_t vertex = triangles[3 * t + i];
        c.x[i] = xy[2 * vertex], c.y[i] = xy[2 * vertex + 1], c.z[i] = z[vertex];
      }
      if (is_drawn(c, p.nearest)) draw(p, c, t, owner, weights, depth);
    }
    std::replace(depth, depth + pixels, std::numeric_limits<float>::infinity(), 0.0f);
    xy += 2 * static_cast<std::int64_t>(p.vertices);
    z += p.vertices;
    owner += pixels, weights += 3 * pixels, depth += pixels;
  }
}
