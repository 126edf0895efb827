// Gradients of the records back to the raw splats. Lanes are splats.
#pragma once

#include "project.h"

namespace splat {

// Sums over a scene's views, [FIELDS][padded]: dL/dmean, dL/d(scaled axes) row-major, dL/dln(opacity).
struct SceneGradient {
  enum Field { MEAN = 0, AXES = 3, LN_OPACITY = 12, FIELDS = 13 };
  Buffer<float> fields;
  float* field(int f, int padded) const { return fields.data() + static_cast<size_t>(f) * padded; }
};

SPLAT_INLINE void add(float* p, F v) { store(p, load(p) + v); }

// Adds one view's gradient of 16 splats from its moments: row[slot] holds that slot of all 16.
static __attribute__((noinline)) void unproject_vector(const View& view, const SceneState& scene, const SceneGradient& out, int padded, int i,
                                   I visible, const F* row) {
  Projected o = project_vector(view, scene, padded, i);
  // X = inverse covariance; with d = (dx, dy), X d = (p dx - slope c t, c t).
  F p = 1.0f / o.xx, slope = o.xy * p, c = select(is_finite(o.det), o.xx / o.det, F{});
  F du = slope * c * row[MT] - p * row[MX], dv = -(c * row[MT]);
  // dL/dcov = sum of g (X d)(X d)' / 2, so dL/d(axes) = sum of g (X d) ((X d)' axes).
  F daxes[6], dmap[6];
  for (int j = 0; j < 3; ++j) {
    F along_x = p * o.axes[j], along_t = c * (o.axes[3 + j] - slope * o.axes[j]);
    F nx = along_x * row[MXX] + along_t * row[MXT], nt = along_x * row[MXT] + along_t * row[MTT];
    daxes[j] = p * nx - slope * c * nt;
    daxes[3 + j] = c * nt;
  }
  for (int k = 0; k < 3; ++k) {
    dmap[k] = dmap[3 + k] = F{};
    for (int j = 0; j < 3; ++j) {
      F l = load(scene.field(SceneState::AXES + k * 3 + j, padded) + i);
      dmap[k] += daxes[j] * l;
      dmap[3 + k] += daxes[3 + j] * l;
      F dl = o.map[k] * daxes[j] + o.map[3 + k] * daxes[3 + j];
      add(out.field(SceneGradient::AXES + k * 3 + j, padded) + i, select(visible, dl, F{}));
    }
  }
  // map row 0 = jx (R0 - tan_x R2) with jx = fx / z, row 1 alike.
  const float* r = view.r;
  F jx = view.fx * o.inverse_z, jy = view.fy * o.inverse_z;
  F djx = F{}, djy = F{}, dtan_x = F{}, dtan_y = F{};
  for (int k = 0; k < 3; ++k) {
    djx += dmap[k] * (r[k] - o.tan_x * r[6 + k]);
    djy += dmap[3 + k] * (r[3 + k] - o.tan_y * r[6 + k]);
    dtan_x -= dmap[k] * r[6 + k];
    dtan_y -= dmap[3 + k] * r[6 + k];
  }
  F dx_over_z = view.fx * du + select(o.tan_x == o.x_over_z, dtan_x * jx, F{});
  F dy_over_z = view.fy * dv + select(o.tan_y == o.y_over_z, dtan_y * jy, F{});
  F dz = row[DEPTH] - o.inverse_z * (djx * jx + djy * jy + dx_over_z * o.x_over_z + dy_over_z * o.y_over_z);
  F dx = dx_over_z * o.inverse_z, dy = dy_over_z * o.inverse_z;
  for (int k = 0; k < 3; ++k)
    add(out.field(SceneGradient::MEAN + k, padded) + i,
        select(visible, r[k] * dx + r[3 + k] * dy + r[6 + k] * dz, F{}));
  add(out.field(SceneGradient::LN_OPACITY, padded) + i, select(visible, row[M0], F{}));
}

// Gradient of the unit quaternion from that of the rotation matrix.
SPLAT_INLINE void quat_gradient(const Rotation& r, const F* d, F* dq) {
  dq[0] = 2.0f * (r.z * (d[3] - d[1]) + r.y * (d[2] - d[6]) + r.x * (d[7] - d[5]));
  dq[1] = 2.0f * (r.y * (d[1] + d[3]) + r.z * (d[2] + d[6]) + r.w * (d[7] - d[5]) - 2.0f * r.x * (d[4] + d[8]));
  dq[2] = 2.0f * (r.x * (d[1] + d[3]) + r.z * (d[5] + d[7]) + r.w * (d[2] - d[6]) - 2.0f * r.y * (d[0] + d[8]));
  dq[3] = 2.0f * (r.x * (d[2] + d[6]) + r.y * (d[5] + d[7]) + r.w * (d[3] - d[1]) - 2.0f * r.z * (d[0] + d[4]));
}

// Writes the raw fields' gradients of splats [first, end) from the sums over the views.
inline void activate_backward(const Problem& p, int scene, int first, int end, const SceneGradient& sums,
                              const Gradients& out) {
  const int n = p.splats, padded = padded_splats(p);
  const size_t base = static_cast<size_t>(scene) * n;
  for (int i = first; i < end; i += LANES) {
    F log_scale[3], quat[4], logit[1];
    load_rows(p, p.log_scales, scene, i, n, 3, log_scale);
    load_rows(p, p.quats, scene, i, n, 4, quat);
    load_rows(p, p.logits, scene, i, n, 1, logit);
    Rotation r = rotation_of(quat);
    F dmean[3], dlog_scale[3], dmatrix[9], dunit[4], dquat[4];
    for (int j = 0; j < 3; ++j) {
      dmean[j] = load(sums.field(SceneGradient::MEAN + j, padded) + i);
      F s = scale_of(log_scale[j], p.scale_modifier), total = F{};
      for (int k = 0; k < 3; ++k) {
        dmatrix[k * 3 + j] = load(sums.field(SceneGradient::AXES + k * 3 + j, padded) + i) * s;
        total += dmatrix[k * 3 + j] * r.m[k * 3 + j];
      }
      dlog_scale[j] = total;
    }
    quat_gradient(r, dmatrix, dunit);
    F along = dunit[0] * r.w + dunit[1] * r.x + dunit[2] * r.y + dunit[3] * r.z;
    along = select(r.norm > 1e-12f, along, F{});  // below, the divisor is a constant
    const F unit[4] = {r.w, r.x, r.y, r.z};
    for (int k = 0; k < 4; ++k) dquat[k] = (dunit[k] - unit[k] * along) / r.norm;
    F e = exp(-logit[0]);
    F dlogit[1] = {load(sums.field(SceneGradient::LN_OPACITY, padded) + i) * (e / (1.0f + e))};
    store_rows(out.means + base * 3, i, n, 3, dmean);
    store_rows(out.log_scales + base * 3, i, n, 3, dlog_scale);
    store_rows(out.quats + base * 4, i, n, 4, dquat);
    store_rows(out.logits + base, i, n, 1, dlogit);
  }
}

}  // namespace splat
