// Gaussian splatting on CPU cores (Kerbl et al. 2023) for a batch of scenes, each seen by several cameras: the C
// interface that backend_cpu.py binds. Results do not depend on the number of threads, nor a scene's on its batch.
#include <pthread.h>

#include <limits>
#include <memory>

#include "blend_backward.h"
#include "project_backward.h"

namespace splat {
namespace {

// What a forward keeps for its backward. Finished states are reused: fresh memory costs a page fault per 4 KiB.
struct State {
  std::vector<std::unique_ptr<SceneState>> scenes;
  std::vector<std::unique_ptr<ImageState>> images;
  size_t bytes() const {
    size_t total = 0;
    for (const auto& scene : scenes) total += scene->fields.bytes();
    for (const auto& image : images) total += image->bytes();
    return total;
  }
};

struct Globals {
  Threads threads;
  std::mutex states_mutex;
  std::vector<std::unique_ptr<State>> free_states;
};

constexpr size_t MAX_FREE_STATES = 4, MAX_FREE_BYTES = size_t(256) << 20;  // the latter of each

Globals* globals = new Globals;  // never freed: its threads sleep until the process ends

const int fork_handler = pthread_atfork(nullptr, nullptr, [] { globals = new Globals; });

const Team ALONE;

std::unique_ptr<State> take_state() {
  std::lock_guard<std::mutex> guard(globals->states_mutex);
  if (globals->free_states.empty()) return std::unique_ptr<State>(new State);
  std::unique_ptr<State> state = std::move(globals->free_states.back());
  globals->free_states.pop_back();
  return state;
}

void give_state(std::unique_ptr<State> state) {
  if (state->bytes() > MAX_FREE_BYTES) return;
  std::lock_guard<std::mutex> guard(globals->states_mutex);
  if (globals->free_states.size() < MAX_FREE_STATES) globals->free_states.push_back(std::move(state));
}

Scratch& image_scratch() {
  static thread_local Scratch scratch;
  return scratch;
}
// A second one: the thread that leads an image's loop also takes items of it.
Scratch& tile_scratch() {
  static thread_local Scratch scratch;
  return scratch;
}

// The colours that an image shows: which of the blocks [N, C].
size_t color_block(const Problem& p, int image) { return p.color_mode == COLORS_PER_VIEW ? image : image / p.views; }
const float* colors_of(const Problem& p, int image) {
  return p.colors + color_block(p, image) * p.color_rows * p.channels;
}
size_t color_offset(const Problem& p, int image) {  // of the gradients
  return color_block(p, image) * p.splats * p.channels;
}

bool all_finite(const float* data, size_t n) {
  bool good = true;
  for (size_t i = 0; i < n; ++i) good &= __builtin_fabsf(data[i]) < std::numeric_limits<float>::infinity();
  return good;
}

bool finite_colors(const Problem& p, const float* colors, int first, int end) {
  if (!p.color_index)
    return all_finite(colors + static_cast<size_t>(first) * p.channels, static_cast<size_t>(end - first) * p.channels);
  bool good = true;
  for (int i = first; i < end; ++i) good &= all_finite(colors + row_of(p.color_index, i) * p.channels, p.channels);
  return good;
}

// Whether the scene's cameras and backgrounds are finite.
bool finite_views(const Problem& p, int scene) {
  const size_t first = static_cast<size_t>(scene) * p.views, n = p.views;
  return all_finite(p.cam2world + first * 16, n * 16) && all_finite(p.intrinsics + first * 9, n * 9) &&
         all_finite(p.background + first * p.channels, n * p.channels);
}

void activate_scenes(const Problem& p, const Team& team, State& state) {
  const int chunks = div_up(p.splats, CHUNK), padded = padded_splats(p);
  std::vector<char> good(static_cast<size_t>(p.scenes) * chunks);
  for (int b = 0; b < p.scenes; ++b) state.scenes[b]->fields.ensure(static_cast<size_t>(padded) * SceneState::FIELDS);
  team.loop(p.scenes * chunks, [&](int k) {
    int scene = k / chunks, first = k % chunks * CHUNK, end = std::min(first + CHUNK, p.splats);
    good[k] = activate(p, scene, first, end, *state.scenes[scene]);
    int images = p.color_mode == COLORS_PER_VIEW ? p.views : 1;
    for (int v = 0; v < images; ++v)
      good[k] &= finite_colors(p, colors_of(p, scene * p.views + v), first, end);
  });
  for (int b = 0; b < p.scenes; ++b) {
    bool finite = finite_views(p, b);
    for (int k = 0; k < chunks; ++k) finite &= good[static_cast<size_t>(b) * chunks + k] != 0;
    state.scenes[b]->finite = finite;
  }
}

template <int CHANNELS>
void render_image(const Problem& p, int index, const SceneState& scene, ImageState& image, const Team& team,
                  const Planes& all_planes) {
  const size_t plane = static_cast<size_t>(p.height) * p.width;
  const Planes out = {all_planes.rgb + index * plane * p.channels, all_planes.alpha + index * plane,
                      all_planes.depth + index * plane};
  if (!scene.finite) {
    // NaN or infinity in what a scene is rendered from shows in all its images; it is not dropped silently.
    const float nan = std::numeric_limits<float>::quiet_NaN();
    std::fill(out.rgb, out.rgb + plane * p.channels, nan);
    std::fill(out.alpha, out.alpha + plane, nan);
    std::fill(out.depth, out.depth + plane, nan);
    return;
  }
  Scratch& scratch = image_scratch();
  if (p.keep && image.hits_size < tiles(p)) {
    delete[] image.hits;
    image.hits = nullptr, image.hits_size = 0;
    image.hits = new TileHits[tiles(p)], image.hits_size = tiles(p);
  }
  project_and_sort(p, View(p, index), scene, colors_of(p, index), team, scratch, image);
  bin(p, scratch, image);
  const float* background = p.background + static_cast<size_t>(index) * p.channels;
  team.loop(tiles(p), [&](int tile) {
    (p.keep ? blend_tile<CHANNELS, true> : blend_tile<CHANNELS, false>)(p, background, tile, image, tile_scratch(), out);
  });
}

// Lends image states. With a backward every image keeps its own; without one, images are drawn one over the other, in
// memory that is still near the core. A thread whose use fails stops, so that nobody waits for what it did not return.
class ImageLender {
 public:
  ImageLender(const Problem& p, State& state, int threads) : keep_(p.keep), state_(state) {
    const size_t images = static_cast<size_t>(p.scenes) * p.views;
    const size_t needed = keep_ ? images : std::min<size_t>(images, threads);
    while (state.images.size() < needed) state.images.emplace_back(new ImageState);
    for (size_t i = 0; !keep_ && i < needed; ++i) free_.push_back(state.images[i].get());
  }
  template <class Use>
  void lend(int index, const Use& use) {
    if (keep_) return use(*state_.images[index]);
    ImageState* image = take();
    use(*image);
    std::lock_guard<std::mutex> guard(mutex_);
    free_.push_back(image);
  }

 private:
  ImageState* take() {
    std::lock_guard<std::mutex> guard(mutex_);
    ImageState* image = free_.back();
    free_.pop_back();
    return image;
  }

  const bool keep_;
  State& state_;
  std::mutex mutex_;
  std::vector<ImageState*> free_;
};

template <int CHANNELS>
void forward(const Problem& p, State& state, const Team& team, const Planes& out) {
  const int images = p.scenes * p.views;
  activate_scenes(p, team, state);
  const bool by_image = images >= team.threads;
  ImageLender lender(p, state, team.threads);
  auto render = [&](int i) {
    lender.lend(i, [&](ImageState& image) {
      render_image<CHANNELS>(p, i, *state.scenes[i / p.views], image, by_image ? ALONE : team, out);
    });
  };
  if (by_image) {
    team.loop(images, render);
  } else {
    for (int i = 0; i < images; ++i) render(i);
  }
}

// Sums the rows of splats over their tiles, in the tiles' order, for the ranks [first, end). Walking them front to back
// keeps every tile's rows a sequential stream.
template <int CHANNELS>
void sum_rows(const Problem& p, const ImageState& image, int first, int end, const Scratch& scratch) {
  constexpr int VECTORS = row_vectors(CHANNELS);
  alignas(64) static const float none[VECTORS * LANES] = {};
  const int across = tiles_x(p);
  for (int rank = first; rank < end; ++rank) {
    const uint32_t splat = image.order[rank];
    const TileRange range = image.ranges[splat];
    const uint32_t* position = image.position_of.data() + image.first_pair[rank];
    F total[VECTORS] = {};
    for (int y = range.y0; y <= range.y1; ++y)
      for (int x = range.x0; x <= range.x1; ++x, ++position) {
        const int tile = y * across + x;
        const size_t index = static_cast<size_t>(scratch.row_begin[tile]) + *position;
        const float* row = *position < image.hits[tile].reached ? scratch.rows.data() + index * (VECTORS * LANES) : none;
        for (int k = 0; k < VECTORS; ++k) total[k] += load(row + k * LANES);
      }
    float* out = scratch.splat_rows.data() + static_cast<size_t>(splat) * (VECTORS * LANES);
    for (int k = 0; k < VECTORS; ++k) store(out + k * LANES, total[k]);
  }
}

// Adds one view's gradients of the splats [first, end), whose rows are summed, to the scene's.
template <int CHANNELS>
void unproject(const Problem& p, const View& view, const SceneState& scene, const ImageState& image,
               const Scratch& scratch, int first, int end, const SceneGradient& sums, float* dcolors) {
  constexpr int VECTORS = row_vectors(CHANNELS);
  for (int i = first; i < end; i += LANES) {
    F row[LANES];
    uint32_t seen = 0;
    for (int lane = 0; lane < LANES; ++lane) {
      row[lane] = F{};
      if (i + lane >= end || !image.seen[i + lane]) continue;
      seen |= 1u << lane;
      const float* in = scratch.splat_rows.data() + static_cast<size_t>(i + lane) * (VECTORS * LANES);
      row[lane] = load(in);
      for (int c = 0; c < p.channels; ++c) dcolors[static_cast<size_t>(i + lane) * p.channels + c] += in[COLOR + c];
    }
    if (!seen) continue;
    transpose(row);
    unproject_vector(view, scene, sums, padded_splats(p), i, lanes_of(seen), row);
  }
}

void fill_nan(const Problem& p, int scene, const Gradients& out) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const size_t n = p.splats, color = n * p.channels * (p.color_mode == COLORS_PER_VIEW ? p.views : 1);
  const size_t background = static_cast<size_t>(p.views) * p.channels;
  std::fill_n(out.means + scene * n * 3, n * 3, nan);
  std::fill_n(out.log_scales + scene * n * 3, n * 3, nan);
  std::fill_n(out.quats + scene * n * 4, n * 4, nan);
  std::fill_n(out.logits + scene * n, n, nan);
  std::fill_n(out.colors + scene * color, color, nan);
  std::fill_n(out.background + scene * background, background, nan);
}

template <int CHANNELS>
void scene_backward(const Problem& p, int scene, const State& state, const Team& team, const Gradients& g) {
  const SceneState& fields = *state.scenes[scene];
  if (!fields.finite) return fill_nan(p, scene, g);
  static thread_local SceneGradient scene_gradient;
  SceneGradient& sums = scene_gradient;
  const int chunks = div_up(p.splats, CHUNK);
  const size_t size = static_cast<size_t>(padded_splats(p)) * SceneGradient::FIELDS;
  std::memset(sums.fields.ensure(size), 0, size * sizeof(float));
  const size_t color_size = static_cast<size_t>(p.splats) * p.channels, plane = static_cast<size_t>(p.height) * p.width;
  Scratch& scratch = image_scratch();
  for (int v = 0; v < p.views; ++v) {
    const int index = scene * p.views + v;
    const ImageState& image = *state.images[index];
    float* dcolors = g.colors + color_offset(p, index);
    if (v == 0 || p.color_mode == COLORS_PER_VIEW) std::fill_n(dcolors, color_size, 0.0f);
    const int vectors = row_vectors(CHANNELS);
    uint32_t* row_begin = scratch.row_begin.ensure(tiles(p));
    uint32_t rows = 0;
    for (int tile = 0; tile < tiles(p); ++tile) row_begin[tile] = rows, rows += image.hits[tile].reached;
    scratch.rows.ensure(static_cast<size_t>(rows) * vectors * LANES);
    float* dbackground = scratch.background.ensure(static_cast<size_t>(tiles(p)) * p.channels);
    const UpstreamPlanes in = {g.rgb + index * plane * p.channels, g.alpha + index * plane, g.depth + index * plane};
    team.loop(tiles(p), [&](int tile) {
      tile_backward<CHANNELS>(p, p.background + static_cast<size_t>(index) * p.channels, tile, image, tile_scratch(),
                              scratch.rows.data() + static_cast<size_t>(row_begin[tile]) * vectors * LANES, dbackground + tile * p.channels, in);
    });
    for (int c = 0; c < p.channels; ++c) {
      float total = 0;
      for (int tile = 0; tile < tiles(p); ++tile) total += dbackground[tile * p.channels + c];
      g.background[static_cast<size_t>(index) * p.channels + c] = total;
    }
    scratch.splat_rows.ensure(static_cast<size_t>(p.splats) * vectors * LANES);
    team.loop(div_up(image.visible, CHUNK), [&](int k) {
      sum_rows<CHANNELS>(p, image, k * CHUNK, std::min((k + 1) * CHUNK, image.visible), scratch);
    });
    const View view(p, index);
    team.loop(chunks, [&](int k) {
      unproject<CHANNELS>(p, view, fields, image, scratch, k * CHUNK, std::min((k + 1) * CHUNK, p.splats), sums, dcolors);
    });
  }
  team.loop(chunks, [&](int k) {
    activate_backward(p, scene, k * CHUNK, std::min((k + 1) * CHUNK, p.splats), sums, g);
  });
  if (p.color_mode != SH_SHARED) return;
  const float* colors = colors_of(p, scene * p.views);
  float* dcolors = g.colors + color_offset(p, scene * p.views);
  for (int i = 0; i < p.splats; ++i)
    for (int c = 0; c < p.channels; ++c)
      *dcolors++ *= SH_DC * colors[row_of(p.color_index, i) * p.channels + c] + 0.5f > 0.0f ? SH_DC : 0.0f;
}

template <int CHANNELS>
void backward(const Problem& p, const State& state, const Team& team, const Gradients& g) {
  if (p.scenes >= team.threads) {
    team.loop(p.scenes, [&](int b) { scene_backward<CHANNELS>(p, b, state, ALONE, g); });
  } else {
    for (int b = 0; b < p.scenes; ++b) scene_backward<CHANNELS>(p, b, state, team, g);
  }
}

}  // namespace
}  // namespace splat

extern "C" {

// Takes the address of GOMP_parallel, or null for threads of our own. Not while another thread renders.
void splat_use_openmp(splat::OpenMpParallel parallel) { splat::globals->threads.openmp = parallel; }

// Renders all images into rgb [B, V, C, H, W], alpha and depth [B, V, 1, H, W]. Returns the state for splat_backward
// if problem->keep is set (give it back with splat_release), else null. Sets *failed if memory ran out.
void* splat_forward(const splat::Problem* problem, float* rgb, float* alpha, float* depth, int* failed) {
  using namespace splat;
  *failed = 0;
  try {
    const Problem& p = *problem;
    std::unique_ptr<State> state = take_state();
    while (state->scenes.size() < static_cast<size_t>(p.scenes)) state->scenes.emplace_back(new SceneState);
    TeamLease lease(globals->threads, p.threads);
    const Planes out = {rgb, alpha, depth};
    (p.channels <= 3 ? forward<3> : p.channels <= 9 ? forward<9> : forward<16>)(p, *state, lease.team(), out);
    if (p.keep) return state.release();
    give_state(std::move(state));
  } catch (const std::bad_alloc&) {
    *failed = 1;
  }
  return nullptr;
}

int splat_backward(const void* state, const splat::Problem* problem, const splat::Gradients* gradients) {
  using namespace splat;
  try {
    const Problem& p = *problem;
    TeamLease lease(globals->threads, p.threads);
    (p.channels <= 3 ? backward<3> : p.channels <= 9 ? backward<9> : backward<16>)(
        p, *static_cast<const State*>(state), lease.team(), *gradients);
  } catch (const std::bad_alloc&) {
    return 1;
  }
  return 0;
}

// What a state holds, in bytes, room left over from earlier uses included.
int64_t splat_state_bytes(const void* state) {
  return static_cast<int64_t>(static_cast<const splat::State*>(state)->bytes());
}

void splat_release(void* state) {
  splat::give_state(std::unique_ptr<splat::State>(static_cast<splat::State*>(state)));
}
}
