// From raw splats to records on the image plane (EWA splatting, Zwicker et al. 2001), and back. Lanes are splats.
#pragma once

#include "types.h"

namespace splat {

// `width` floats of each of 16 consecutive splats of a scene, transposed; splats from `limit` on read as zeros.
SPLAT_INLINE void load_rows(const Problem& p, const float* field, int scene, int first, int limit, int width, F* out) {
  const float* data = field + static_cast<size_t>(scene) * p.rows * width;
  alignas(64) float t[4][LANES] = {};
  int n = limit - first < LANES ? limit - first : LANES;
  for (int lane = 0; lane < n; ++lane)
    for (int k = 0; k < width; ++k) t[k][lane] = data[row_of(p.index, first + lane) * width + k];
  for (int k = 0; k < width; ++k) out[k] = load(t[k]);
}

SPLAT_INLINE void store_rows(float* data, int first, int limit, int width, const F* in) {
  alignas(64) float t[4][LANES];
  int n = limit - first < LANES ? limit - first : LANES;
  for (int k = 0; k < width; ++k) store(t[k], in[k]);
  for (int lane = 0; lane < n; ++lane)
    for (int k = 0; k < width; ++k) data[static_cast<size_t>(first + lane) * width + k] = t[k][lane];
}

struct Rotation {
  F w, x, y, z;   // unit quaternion
  F norm;         // what the raw one was divided by
  F m[9];
};

SPLAT_INLINE Rotation rotation_of(const F q[4]) {
  Rotation r;
  // Divided by the largest component first: squares of very long or short quaternions leave float's range.
  F size = max(max(abs(q[0]), abs(q[1])), max(max(abs(q[2]), abs(q[3])), all(1e-12f)));
  F w = q[0] / size, x = q[1] / size, y = q[2] / size, z = q[3] / size;
  F norm = max(size * sqrt(w * w + x * x + y * y + z * z), all(1e-12f));
  F scale = size / norm;
  r.norm = norm;
  r.w = w * scale, r.x = x * scale, r.y = y * scale, r.z = z * scale;
  F two_x = r.x + r.x, two_y = r.y + r.y, two_z = r.z + r.z;
  F xx = r.x * two_x, yy = r.y * two_y, zz = r.z * two_z;
  F xy = r.x * two_y, xz = r.x * two_z, yz = r.y * two_z, wx = r.w * two_x, wy = r.w * two_y, wz = r.w * two_z;
  r.m[0] = 1.0f - (yy + zz), r.m[1] = xy - wz, r.m[2] = xz + wy;
  r.m[3] = xy + wz, r.m[4] = 1.0f - (xx + zz), r.m[5] = yz - wx;
  r.m[6] = xz - wy, r.m[7] = yz + wx, r.m[8] = 1.0f - (xx + yy);
  return r;
}

// Above 1e8 world units a splat is flat over every image; the bound keeps its squares finite.
SPLAT_INLINE F scale_of(F log_scale, float modifier) { return min(exp(log_scale) * modifier, all(1e8f)); }

// Fills the scene's fields for splats [first, end); returns whether all raw values are finite.
inline bool activate(const Problem& p, int scene, int first, int end, const SceneState& state) {
  const int n = p.splats, padded = padded_splats(p);
  I good = all(int32_t(-1));
  for (int i = first; i < end; i += LANES) {
    F mean[3], log_scale[3], quat[4], logit[1];
    load_rows(p, p.means, scene, i, n, 3, mean);
    load_rows(p, p.log_scales, scene, i, n, 3, log_scale);
    load_rows(p, p.quats, scene, i, n, 4, quat);
    load_rows(p, p.logits, scene, i, n, 1, logit);
    for (int k = 0; k < 3; ++k) good &= is_finite(mean[k]) & is_finite(log_scale[k]);
    for (int k = 0; k < 4; ++k) good &= is_finite(quat[k]);
    good &= is_finite(logit[0]);
    Rotation r = rotation_of(quat);
    for (int k = 0; k < 3; ++k) {
      store(state.field(SceneState::MEAN + k, padded) + i, mean[k]);
      F s = scale_of(log_scale[k], p.scale_modifier);
      for (int row = 0; row < 3; ++row)
        store(state.field(SceneState::AXES + row * 3 + k, padded) + i, r.m[row * 3 + k] * s);
    }
    F log2_opacity = -log2(1.0f + exp(-logit[0]));
    float* out = state.field(SceneState::LOG2_OPACITY, padded) + i;
    store(out, log2_opacity);
    for (int lane = n - i; lane < LANES; ++lane) out[lane] = -100.0f;  // padding is never visible
  }
  return bits(good) == 0xffff;
}

// One camera: world to camera, lens in pixels.
struct View {
  float r[9], t[3];
  float fx, fy, u0, v0;                // principal point from the image's centre
  float x_low, x_high, y_low, y_high;  // limits on x/z and y/z inside J
  float low_pass;                      // px^2

  View(const Problem& p, int index) : low_pass(p.low_pass) {
    const float* m = p.cam2world + static_cast<size_t>(index) * 16;
    const float* k = p.intrinsics + static_cast<size_t>(index) * 9;
    for (int i = 0; i < 3; ++i) {
      double moved = 0;  // in double: the terms of a far camera cancel
      for (int j = 0; j < 3; ++j) {
        r[i * 3 + j] = m[j * 4 + i];
        moved -= static_cast<double>(m[j * 4 + i]) * m[j * 4 + 3];
      }
      t[i] = static_cast<float>(moved);
    }
    const double width = p.width, height = p.height;
    fx = static_cast<float>(k[0] * width), fy = static_cast<float>(k[4] * height);
    u0 = static_cast<float>((k[2] - 0.5) * width), v0 = static_cast<float>((k[5] - 0.5) * height);
    const double half_x = 0.5 / k[0], half_y = 0.5 / k[4];  // tangents of the half image
    x_low = static_cast<float>(-k[2] / k[0] - LIMIT * half_x);
    x_high = static_cast<float>((1.0 - k[2]) / k[0] + LIMIT * half_x);
    y_low = static_cast<float>(-k[5] / k[4] - LIMIT * half_y);
    y_high = static_cast<float>((1.0 - k[5]) / k[4] + LIMIT * half_y);
  }
};

// One vector of splats seen by one camera.
struct Projected {
  F z, inverse_z, x_over_z, y_over_z, tan_x, tan_y;  // tan: clamped x/z, y/z
  F map[6];   // J R, 2x3: world to image plane at the splat
  F axes[6];  // b = J R L, 2x3
  F xx, xy, yy, det;  // covariance with the low pass, px^2
  F u, v;
};

static __attribute__((noinline)) Projected project_vector(const View& view, const SceneState& scene, int padded, int i) {
  Projected o;
  const float *r = view.r, *t = view.t;
  F x = load(scene.field(0, padded) + i), y = load(scene.field(1, padded) + i), z = load(scene.field(2, padded) + i);
  F cam_x = r[0] * x + r[1] * y + r[2] * z + t[0];
  F cam_y = r[3] * x + r[4] * y + r[5] * z + t[1];
  o.z = r[6] * x + r[7] * y + r[8] * z + t[2];
  o.inverse_z = 1.0f / o.z;
  o.x_over_z = cam_x * o.inverse_z, o.y_over_z = cam_y * o.inverse_z;
  o.tan_x = min(max(o.x_over_z, all(view.x_low)), all(view.x_high));
  o.tan_y = min(max(o.y_over_z, all(view.y_low)), all(view.y_high));
  F jx = view.fx * o.inverse_z, jy = view.fy * o.inverse_z;
  for (int k = 0; k < 3; ++k) {
    o.map[k] = jx * (r[k] - o.tan_x * r[6 + k]);
    o.map[3 + k] = jy * (r[3 + k] - o.tan_y * r[6 + k]);
  }
  for (int k = 0; k < 3; ++k) o.axes[k] = o.axes[3 + k] = F{};
  for (int k = 0; k < 3; ++k)
    for (int j = 0; j < 3; ++j) {
      F l = load(scene.field(SceneState::AXES + k * 3 + j, padded) + i);
      o.axes[j] += o.map[k] * l;
      o.axes[3 + j] += o.map[3 + k] * l;
    }
  const F* b = o.axes;
  F xx = b[0] * b[0] + b[1] * b[1] + b[2] * b[2], yy = b[3] * b[3] + b[4] * b[4] + b[5] * b[5];
  o.xx = xx + view.low_pass, o.yy = yy + view.low_pass;
  o.xy = b[0] * b[3] + b[1] * b[4] + b[2] * b[5];
  // xx yy - xy^2 as |b0 x b1|^2: the difference would lose the digits that a needle's determinant consists of.
  F c0 = b[1] * b[5] - b[2] * b[4], c1 = b[2] * b[3] - b[0] * b[5], c2 = b[0] * b[4] - b[1] * b[3];
  o.det = c0 * c0 + c1 * c1 + c2 * c2 + view.low_pass * (xx + yy) + view.low_pass * view.low_pass;
  o.u = view.fx * o.x_over_z + view.u0;
  o.v = view.fy * o.y_over_z + view.v0;
  return o;
}

// The colours of 16 splats from i on, as records hold them. Degree 0 of SH is view-independent: max(0, Y00 sh + 1/2).
SPLAT_INLINE void load_colors(const Problem& p, const float* colors, int i, F* out) {
  alignas(64) float t[3][LANES] = {};
  const int n = p.splats - i < LANES ? p.splats - i : LANES;
  for (int lane = 0; lane < n; ++lane)
    for (int k = 0; k < p.channels; ++k) t[k][lane] = colors[row_of(p.color_index, i + lane) * p.channels + k];
  for (int k = 0; k < 3; ++k) {
    out[k] = load(t[k]);
    if (p.color_mode == SH_SHARED) out[k] = max(SH_DC * out[k] + 0.5f, F{});
  }
}

// Fills what the image has of the splats [first, end), but for colours of more than three channels. Appends a key to
// `keys` for each that is visible, in order, and returns how many: depth above, number below.
inline int project(const Problem& p, const View& view, const SceneState& scene, const float* colors, int first, int end,
                   const ImageState& image, uint64_t* keys) {
  const int padded = padded_splats(p);
  const float half_log2e = 0.721347520f, slack = 0.01f;
  const bool with_color = color_stride(p) == 0;
  int count = 0;
  for (int i = first; i < end; i += LANES) {
    Projected o = project_vector(view, scene, padded, i);
    F log2_opacity = load(scene.field(SceneState::LOG2_OPACITY, padded) + i);
    F reach = max(log2_opacity - LOG2_MIN_ALPHA, F{}) * (2 * LN2);  // squared radius in standard deviations
    F rx = sqrt(reach * o.xx) + slack, ry = sqrt(reach * o.yy) + slack;
    F x0 = o.u - rx + (0.5f * p.width - 0.5f), x1 = o.u + rx + (0.5f * p.width - 0.5f);
    F y0 = o.v - ry + (0.5f * p.height - 0.5f), y1 = o.v + ry + (0.5f * p.height - 0.5f);
    float last_x = p.width - 1.0f, last_y = p.height - 1.0f;
    // NaN compares false: what overflowed is not visible.
    uint32_t seen = bits((o.z > NEAR_Z) & (log2_opacity >= LOG2_MIN_ALPHA) & (x1 >= 0.0f) & (x0 <= last_x) &
                         (y1 >= 0.0f) & (y0 <= last_y) & is_finite(o.xx) & is_finite(o.yy) & is_finite(o.xy));
    for (int lane = 0; lane < LANES; ++lane) image.seen[i + lane] = seen >> lane & 1;
    if (!seen) continue;
    F ex = half_log2e / o.xx, ey = select(o.det < 3.4028235e38f, half_log2e * o.xx / o.det, half_log2e / o.yy);
    F rows[LANES] = {o.u, o.v, ex, ey, o.xy / o.xx, o.xy / o.yy, log2_opacity, o.z};
    if (with_color) load_colors(p, colors, i, rows + 8);
    transpose(rows);
    std::memcpy(static_cast<void*>(image.records.data() + i), rows, sizeof rows);
    auto tile_of = [](F low_end, F high_end) {  // of lanes that are not seen: anything
      return (to_int(low_end) >> TILE_BITS) | (to_int(high_end) >> TILE_BITS << 16);
    };
    alignas(64) uint32_t x[LANES], y[LANES], z[LANES];  // positive floats order like their bits
    store(x, tile_of(max(x0, F{}), min(x1, all(last_x))));
    store(y, tile_of(max(y0, F{}), min(y1, all(last_y))));
    store(reinterpret_cast<float*>(z), o.z);
    for (; seen; seen &= seen - 1) {
      const uint32_t lane = static_cast<uint32_t>(__builtin_ctz(seen));
      image.ranges[i + lane] = TileRange(x[lane], y[lane]);
      keys[count++] = static_cast<uint64_t>(z[lane]) << 32 | (static_cast<uint32_t>(i) + lane);
    }
  }
  return count;
}

}  // namespace splat
