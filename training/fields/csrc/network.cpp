// Runs points of fields through a network of small layers, and goes back, a tile of points at a time, so that what is
// between the layers stays in a core's caches: y_l = activation(y_{l-1} W_l + b_l), out = sum_l y_l H_l + b.
//
// Layers are the same for all points, and for all scenes or for each its own. Going back starts with the way forward
// again: nothing is kept in between. Gradients of layers are summed over parts of a scene that do not depend on the
// threads, then over the parts in order, so the bits depend neither on the threads nor on a scene's place.
#include <pthread.h>

#include <algorithm>
#include <new>
#include <utility>
#include <vector>

#include "kernels.h"
#include "threads.h"

namespace fields {

splat::Threads* own_threads = new splat::Threads;  // never freed: they sleep until the process ends
const int fork_handler = pthread_atfork(nullptr, nullptr, [] { own_threads = new splat::Threads; });

splat::Threads& threads() { return *own_threads; }

}  // namespace fields

namespace {

using namespace fields;

constexpr int TILE = 64;          // points
constexpr int LEAST = 16 * TILE;  // points of a part of a scene,
constexpr int PARTS = 16;         // of which there are so many at most
enum Activation { SINE, LEAKY };

struct Problem {
  std::int32_t scenes, points, inputs, outputs, layers;
  std::int32_t extras;      // numbers of a point that the last layer reads beside the others
  std::int32_t activation;  // of every layer
  std::int32_t shared;      // all scenes have the layers of one
  std::int32_t threads;
  float slope;                // of a leaky ReLU
  const std::int32_t* width;  // of every layer
  const std::int32_t* shown;  // of every layer: whether it has an H
  std::int64_t size;          // numbers of a scene's layers: W, b and H of each in turn, the b of the results last
  const float *x, *extra, *layers_of;
};

// A layer of one scene with padded rows; the same forms hold its gradient.
struct Layer {
  int inner, depth, width, row;  // numbers it reads of the layer before, and in all; outputs, and padded ones
  float *weights, *bias, *head;  // [depth, row], [row], [width, out row]
  float *back, *head_back;       // weights [width, row of inner] and head [outputs, row] the other way round
};

struct Network {
  std::vector<Layer> layers;
  std::vector<float> memory;
  float* bias = nullptr;  // of the results
  int out_row;
  std::int64_t size = 0;  // of what a gradient has, at the start of memory
};

// Lays out a network's matrices.
Network lay_out(const Problem& p, bool backward) {
  Network net;
  net.out_row = padded(p.outputs);
  std::vector<std::int64_t> places;
  std::int64_t at = 0;
  const auto take = [&](std::int64_t count) {
    places.push_back(at);
    at += count;
  };
  for (int l = 0; l < p.layers; ++l) {
    Layer layer{};
    layer.inner = l ? p.width[l - 1] : p.inputs;
    layer.depth = layer.inner + (l + 1 == p.layers ? p.extras : 0);
    layer.width = p.width[l];
    layer.row = padded(layer.width);
    net.layers.push_back(layer);
    take(static_cast<std::int64_t>(layer.depth) * layer.row);
    take(layer.row);
    take(p.shown[l] ? static_cast<std::int64_t>(layer.width) * net.out_row : 0);
  }
  take(net.out_row);
  net.size = at;
  for (const Layer& layer : net.layers) {
    take(backward ? static_cast<std::int64_t>(layer.width) * padded(layer.inner) : 0);
    take(backward ? static_cast<std::int64_t>(p.outputs) * layer.row : 0);
  }
  net.memory.assign(at, 0.0f);
  auto place = places.begin();
  for (int l = 0; l < p.layers; ++l) {
    Layer& layer = net.layers[l];
    layer.weights = net.memory.data() + *place++;
    layer.bias = net.memory.data() + *place++;
    layer.head = net.memory.data() + *place++;
    if (!p.shown[l]) layer.head = nullptr;
  }
  net.bias = net.memory.data() + *place++;
  for (Layer& layer : net.layers) {
    layer.back = net.memory.data() + *place++;
    layer.head_back = net.memory.data() + *place++;
  }
  return net;
}

// Calls visit(number in a network, number among a scene's layers) for all of them.
template <class Visit>
void for_numbers(const Problem& p, Network& net, const Visit& visit) {
  std::int64_t from = 0;
  const auto matrix = [&](float* to, int rows, int columns, int row) {
    for (int i = 0; i < rows; ++i)
      for (int j = 0; j < columns; ++j) visit(to[static_cast<std::int64_t>(i) * row + j], from++);
  };
  for (Layer& layer : net.layers) {
    matrix(layer.weights, layer.depth, layer.width, layer.row);
    matrix(layer.bias, 1, layer.width, layer.row);
    if (layer.head) matrix(layer.head, layer.width, p.outputs, net.out_row);
  }
  matrix(net.bias, 1, p.outputs, net.out_row);
}

Network network_of(const Problem& p, int scene, bool backward) {
  Network net = lay_out(p, backward);
  const float* from = p.layers_of + (p.shared ? 0 : scene * p.size);
  for_numbers(p, net, [&](float& number, std::int64_t i) { number = from[i]; });
  if (!backward) return net;
  for (Layer& layer : net.layers) {
    const int inner_row = padded(layer.inner);
    for (int k = 0; k < layer.inner; ++k)
      for (int j = 0; j < layer.width; ++j) layer.back[j * inner_row + k] = layer.weights[k * layer.row + j];
    for (int j = 0; layer.head && j < layer.width; ++j)
      for (int c = 0; c < p.outputs; ++c) layer.head_back[c * layer.row + j] = layer.head[j * net.out_row + c];
  }
  return net;
}

// What a tile of points is on its way: [TILE, row] each.
struct Tile {
  int row;
  std::vector<float> memory;
  std::vector<float*> values;  // read by every layer, and what the last one makes
  std::vector<float*> slopes;  // of the activations
  float *out, *gradient, *below;

  Tile(const Problem& p, const Network& net, bool backward) {
    row = padded(p.inputs);
    for (const Layer& layer : net.layers) row = std::max({row, layer.row, padded(layer.depth), net.out_row});
    const int many = backward ? p.layers : 0;  // without a way back two take turns
    memory.assign(static_cast<std::size_t>(TILE) * row * (backward ? 2 * many + 4 : 3), 0.0f);
    float* next = memory.data();
    const auto take = [&] { return std::exchange(next, next + TILE * row); };
    for (int l = 0; l <= p.layers; ++l) values.push_back(backward || l < 2 ? take() : values[l - 2]);
    for (int l = 0; l < many; ++l) slopes.push_back(take());
    out = take();
    gradient = backward ? take() : nullptr;
    below = backward ? take() : nullptr;
  }
};

void activate(const Problem& p, float* values, float* slopes, int row, int width) {
  for (int t = 0; t < TILE; ++t)
    for (int j = 0; j < width; j += LANES) {
      const Vec z = load(values + t * row + j);
      if (p.activation == SINE) {
        store(values + t * row + j, sine(z));
        if (slopes) store(slopes + t * row + j, cosine(z));
      } else {
        const Vec one = z - z + 1.0f;
        store(values + t * row + j, z > 0.0f ? z : z * p.slope);
        if (slopes) store(slopes + t * row + j, z > 0.0f ? one : one * p.slope);
      }
    }
}

// Runs `count` points from number `first` of all scenes on.
void forward(const Problem& p, const Network& net, Tile& tile, std::int64_t first, int count) {
  const auto copy = [&](const float* from, int numbers, float* to) {
    for (int t = 0; t < TILE; ++t)
      for (int i = 0; i < numbers; ++i) to[t * tile.row + i] = t < count ? from[(first + t) * numbers + i] : 0.0f;
  };
  const auto fill = [&](float* to, const float* row, int numbers) {
    for (int t = 0; t < TILE; ++t) std::copy(row, row + numbers, to + t * tile.row);
  };
  copy(p.x, p.inputs, tile.values[0]);
  fill(tile.out, net.bias, net.out_row);
  for (int l = 0; l < p.layers; ++l) {
    const Layer& layer = net.layers[l];
    float *from = tile.values[l], *to = tile.values[l + 1];
    if (layer.depth > layer.inner) copy(p.extra, layer.depth - layer.inner, from + layer.inner);
    fill(to, layer.bias, layer.row);
    multiply_add({from, tile.row, 1}, TILE, layer.depth, layer.weights, layer.row, to, tile.row, layer.row);
    activate(p, to, tile.slopes.empty() ? nullptr : tile.slopes[l], tile.row, layer.row);
    if (layer.head)
      multiply_add({to, tile.row, 1}, TILE, layer.width, layer.head, net.out_row, tile.out, tile.row, net.out_row);
  }
}

void add_rows(const float* from, int row, float* sums, int width) {
  for (int t = 0; t < TILE; ++t)
    for (int j = 0; j < width; j += LANES) store(sums + j, load(sums + j) + load(from + t * row + j));
}

// Goes back from the gradient of a tile's results, in tile.out: adds to the gradients of the layers, and leaves that of
// what the first layer reads in tile.gradient if `inputs`.
void backward(const Problem& p, const Network& net, Tile& tile, Network& sums, bool inputs) {
  const int row = tile.row;
  add_rows(tile.out, row, sums.bias, net.out_row);
  for (int l = p.layers - 1; l >= 0; --l) {
    const Layer &layer = net.layers[l], &sum = sums.layers[l];
    if (l == p.layers - 1) std::fill(tile.gradient, tile.gradient + TILE * row, 0.0f);
    if (layer.head) {
      multiply_add({tile.out, row, 1}, TILE, p.outputs, layer.head_back, layer.row, tile.gradient, row, layer.row);
      multiply_add({tile.values[l + 1], 1, row}, layer.width, TILE, tile.out, row, sum.head, net.out_row, net.out_row);
    }
    for (int t = 0; t < TILE; ++t)
      for (int j = t * row; j < t * row + layer.row; j += LANES)
        store(tile.gradient + j, load(tile.gradient + j) * load(tile.slopes[l] + j));
    add_rows(tile.gradient, row, sum.bias, layer.row);
    multiply_add({tile.values[l], 1, row}, layer.depth, TILE, tile.gradient, row, sum.weights, layer.row, layer.row);
    if (l == 0 && !inputs) break;
    std::fill(tile.below, tile.below + TILE * row, 0.0f);
    const int inner_row = padded(layer.inner);
    multiply_add({tile.gradient, row, 1}, TILE, layer.width, layer.back, inner_row, tile.below, row, inner_row);
    std::swap(tile.gradient, tile.below);
  }
}

// Calls work(first, count) for every tile of a part of a scene; first counts the points of all scenes.
template <class Work>
void for_tiles(const Problem& p, int scene, int part, int length, const Work& work) {
  const int end = std::min((part + 1) * length, p.points);
  for (int i = part * length; i < end; i += TILE)
    work(static_cast<std::int64_t>(scene) * p.points + i, std::min(TILE, end - i));
}

int part_length(const Problem& p) {
  const int length = std::max((p.points + PARTS - 1) / PARTS, LEAST);
  return (length + TILE - 1) / TILE * TILE;
}

void run(const Problem& p, float* out) {
  const int length = part_length(p), parts = (p.points + length - 1) / length;
  for_each(p.threads, p.scenes * parts, [&](int item) {
    const Network net = network_of(p, item / parts, false);
    Tile tile(p, net, false);
    for_tiles(p, item / parts, item % parts, length, [&](std::int64_t first, int count) {
      forward(p, net, tile, first, count);
      for (int t = 0; t < count; ++t)
        std::copy(tile.out + t * tile.row, tile.out + t * tile.row + p.outputs, out + (first + t) * p.outputs);
    });
  });
}

void go_back(const Problem& p, const float* upstream, float* to_layers, float* to_x) {
  const int length = part_length(p), parts = (p.points + length - 1) / length;
  std::vector<Network> sums(parts);
  for (int scene = 0; scene < p.scenes; ++scene) {
    for_each(p.threads, parts, [&](int part) {
      const Network net = network_of(p, scene, true);
      sums[part] = lay_out(p, false);
      Tile tile(p, net, true);
      for_tiles(p, scene, part, length, [&](std::int64_t first, int count) {
        forward(p, net, tile, first, count);
        for (int t = 0; t < TILE; ++t)
          for (int c = 0; c < net.out_row; ++c)
            tile.out[t * tile.row + c] =
                t < count && c < p.outputs ? upstream[(first + t) * p.outputs + c] : 0.0f;
        backward(p, net, tile, sums[part], to_x != nullptr);
        for (int t = 0; to_x && t < count; ++t)
          std::copy(tile.gradient + t * tile.row, tile.gradient + t * tile.row + p.inputs, to_x + (first + t) * p.inputs);
      });
    });
    float* own = to_layers + (p.shared ? 0 : scene * p.size);
    for (Network& part : sums) for_numbers(p, part, [&](float& number, std::int64_t i) { own[i] += number; });
  }
}

template <class Function>
int guarded(const Function& function) {  // 1 if memory does not suffice
  try {
    function();
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

}  // namespace

extern "C" {

void fields_use_openmp(void* parallel) {
  fields::own_threads->openmp = reinterpret_cast<splat::OpenMpParallel>(parallel);
}

// x [B, P, inputs], extra [B, P, extras], out [B, P, outputs]
int fields_run(const Problem* problem, float* out) {
  return guarded([&] { run(*problem, out); });
}

// upstream [B, P, outputs], to_layers [B or 1, size], zero at the call, to_x [B, P, inputs] or null
int fields_go_back(const Problem* problem, const float* upstream, float* to_layers, float* to_x) {
  return guarded([&] { go_back(*problem, upstream, to_layers, to_x); });
}

}  // extern "C"
