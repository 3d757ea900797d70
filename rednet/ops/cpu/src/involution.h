// Involution and its two gradients on the CPU. docs/cpu_kernel.md explains the design.
//
// Whatever the layout and number type, the rows of an image that a thread needs next are copied
// into a small scratch memory that stays in the cache, as float32 or float64 and with the channels
// of a group side by side; the kernels of kernels.h then run over them. Weights are read where they
// are. Every number is computed by one thread, in one order: results depend neither on the number
// of threads nor on chance.
//
// Compiled once for each instruction set, by baseline.cpp, avx2.cpp and avx512.cpp.
#pragma once

#include "kernels.h"
#include "operations.h"
#include "rows.h"

namespace rednet {

// ---- kernels over whole rows of pixels

template <typename Sum>
using SumPixels = void (*)(const Window<Sum>&, int64_t, Sum*);

// The fastest kernel for this window.
template <typename Sum, int Pixels>
SumPixels<Sum> choose_kernel(const Window<Sum>& window) {
  const KernelColumn* columns = window.columns;
  bool neighbors = window.column_count > 1;
  for (int64_t c = 1; c < window.column_count; ++c)
    neighbors = neighbors && columns[c].pixel - columns[c - 1].pixel == window.pixel_step;
  const bool dense = window.weight_step == 1;
  if (neighbors && window.column_count == 3)
    return dense ? sum_pixels_of_rows<Sum, Pixels, 3, true>
                 : sum_pixels_of_rows<Sum, Pixels, 3, false>;
  if (neighbors && window.column_count == 4)  // every other one of 7
    return dense ? sum_pixels_of_rows<Sum, Pixels, 4, true>
                 : sum_pixels_of_rows<Sum, Pixels, 4, false>;
  if (neighbors && window.column_count == 5)
    return dense ? sum_pixels_of_rows<Sum, Pixels, 5, true>
                 : sum_pixels_of_rows<Sum, Pixels, 5, false>;
  if (neighbors && window.column_count == 7)
    return dense ? sum_pixels_of_rows<Sum, Pixels, 7, true>
                 : sum_pixels_of_rows<Sum, Pixels, 7, false>;
  return sum_pixels<Sum, Pixels>;
}

// sum_row can call something before each block: from pixel number `first` on, `count` of them.
struct Nothing {
  void operator()(int64_t, int64_t) const {}
};

// The pixels from number `first` to before `end`, in blocks as large as fit.
template <typename Sum, int Pixels = kPixels, typename Before = Nothing>
void sum_row(const Window<Sum>& window, int64_t first, int64_t end, Sum* to,
             const Before& before = {}) {
  if constexpr (Pixels > 1) {
    if (end - first < Pixels) return sum_row<Sum, Pixels / 2>(window, first, end, to, before);
  }
  const SumPixels<Sum> sum = choose_kernel<Sum, Pixels>(window);
  for (int64_t i = 0; i < ceil_div(end - first, Pixels); ++i) {
    before(first + i * Pixels, Pixels);
    sum(window, first + block_start(i, Pixels, end - first), to);
  }
}

// Fetches the weights of pixels to come into the cache: by itself the processor follows fewer streams than a window has
// taps. (Always inlined: a function that only fetches has no effect, says GCC, and leaves calls of it out.)
template <typename Sum>
struct FetchWeights {
  const Window<Sum>& window;
  bool fetches;

  __attribute__((always_inline)) void operator()(int64_t first, int64_t count) const {
    constexpr int64_t kAhead = 64;
    if (!fetches) return;
    for (int64_t r = 0; r < window.row_count; ++r) {
      const Sum* from = window.rows[r].weight + (first + kAhead) * window.weight_step;
      if (window.weight_step != 1)
        for (int64_t i = 0; i < count; ++i)
          __builtin_prefetch(from + window.columns[0].weight + i * window.weight_step, 0, 2);
      else if (first % kLine<Sum> < count)  // once for each cache line
        for (int64_t c = 0; c < window.column_count; ++c)
          __builtin_prefetch(from + window.columns[c].weight, 0, 2);
    }
  }
};

// ---- the operations

// What forward and grad_weight share: the image, between rows and columns of zeros.
template <typename Stored>
class PaddedImage {
 protected:
  using Sum = typename Accumulator<Stored>::type;

  PaddedImage(const Problem& problem, int threads)
      : problem_(problem),
        image_(problem, problem.image, problem.horizontal.input),
        row_((problem.horizontal.input + 2 * problem.horizontal.padding) * image_.pixel()),
        tiling_(problem, problem.vertical.output,
                problem.vertical.reach() / problem.vertical.stride,
                row_ * problem.vertical.stride * sizeof(Sum), threads) {}

  int64_t rows(int64_t output_rows) const {
    return (output_rows - 1) * problem_.vertical.stride + problem_.vertical.reach() + 1;
  }

  int64_t image_size() const { return rows(tiling_.block()) * row_; }

  void read_image(const Task& task, Sum* to) const {
    const Side &v = problem_.vertical, &h = problem_.horizontal;
    const int64_t first = task.first * v.stride - v.padding;
    for (int64_t r = 0; r < rows(task.end - task.first); ++r, to += row_) {
      if (first + r < 0 || first + r >= v.input)
        std::memset(to, 0, row_ * sizeof(Sum));
      else
        image_.read_rows(task.n, task.g, first + r, 1, to + h.padding * image_.pixel());
    }
  }

  // Where kernel row kh finds its pixels for an output row of the task.
  ptrdiff_t row_offset(int64_t output_row, int64_t kh) const {
    return (output_row * problem_.vertical.stride + kh * problem_.vertical.dilation) * row_;
  }

  ptrdiff_t column_offset(int64_t kw) const {
    return kw * problem_.horizontal.dilation * image_.pixel();
  }

  ptrdiff_t pixel_step() const { return problem_.horizontal.stride * image_.pixel(); }

  const Problem& problem_;
  GroupRows<Stored> image_;
  ptrdiff_t row_;
  Tiling tiling_;
};

template <typename Sum>
int64_t tables_size(int64_t rows, int64_t columns) {
  return round_up(
      (rows * sizeof(KernelRow<Sum>) + columns * sizeof(KernelColumn)) / sizeof(Sum) + 1,
      kLine<Sum>);
}

template <typename Stored>
class Forward : PaddedImage<Stored> {
  using Base = PaddedImage<Stored>;
  using Base::image_, Base::problem_, Base::tiling_;

 public:
  using typename Base::Sum;

  Forward(const Problem& problem, int threads)
      : Base(problem, threads),
        strip_(strip_rows(tiling_.block(), problem.horizontal.output)),
        weight_(problem, strip_),
        pixels_(problem, problem.pixels, problem.horizontal.output) {}

  int64_t tasks() const { return tiling_.count(); }

  int64_t scratch() const {
    return this->image_size() + weight_.scratch() + strip_ * pixels_.row() +
           tables_size<Sum>(problem_.vertical.kernel, problem_.horizontal.kernel);
  }

  void run(int64_t index, Sum* scratch) const {
    const Task task = tiling_[index];
    const Side &v = problem_.vertical, &h = problem_.horizontal;
    Sum* image = scratch;
    Sum* sums = image + this->image_size();
    Sum* weight = sums + strip_ * pixels_.row();
    auto* rows = reinterpret_cast<KernelRow<Sum>*>(weight + weight_.scratch());
    auto* columns = reinterpret_cast<KernelColumn*>(rows + v.kernel);
    this->read_image(task, image);
    for (int64_t kw = 0; kw < h.kernel; ++kw)
      columns[kw] = {kw * weight_.tap_step(), this->column_offset(kw)};
    const Window<Sum> window = {rows,
                                columns,
                                v.kernel,
                                h.kernel,
                                weight_.pixel_step(),
                                this->pixel_step(),
                                pixels_.pixel(),
                                pixels_.lines()};
    for (int64_t first = task.first; first < task.end; first += strip_) {
      const int64_t count = smaller(strip_, task.end - first);
      for (int64_t kh = 0; kh < v.kernel; ++kh)
        rows[kh] = {weight_.read_rows(task.n, task.g, kh, first, count, weight),
                    image + this->row_offset(first - task.first, kh)};
      for (int64_t r = 0; r < count; ++r) {
        sum_row(window, 0, h.output, sums + r * pixels_.row(),
                FetchWeights<Sum>{window, weight_.fetches()});
        for (int64_t kh = 0; kh < v.kernel; ++kh) {
          rows[kh].weight += weight_.row_step();
          rows[kh].pixel += this->row_offset(1, 0);
        }
      }
      pixels_.write_rows(task.n, task.g, first, count, sums);
    }
  }

 private:
  int64_t strip_;
  WeightRows<Stored> weight_;
  GroupRows<Stored> pixels_;
};

// Gathers, for each pixel of the input, what it has contributed to. Input columns that are a stride apart have been read
// by the same kernel columns, a `phase`; neighbors among them, by neighboring output pixels.
template <typename Stored, typename Weights = WeightRows<Stored>>
class GradInput {
 public:
  using Sum = typename Accumulator<Stored>::type;

  GradInput(const Problem& problem, int threads) : GradInput(problem, Weights(problem), threads) {}

  GradInput(const Problem& problem, const Weights& weight, int threads)
      : problem_(problem),
        image_(problem, problem.image, problem.horizontal.input),
        pixels_(problem, problem.pixels, problem.horizontal.output),
        weight_(weight),
        tiling_(problem, problem.vertical.input, problem.vertical.reach() + problem.vertical.stride,
                ceil_div(pixels_.row() * sizeof(Sum), problem.vertical.stride), threads) {}

  int64_t tasks() const { return tiling_.count(); }

  int64_t scratch() const {
    return pixels_size() + strip() * image_.row() + weight_.scratch() +
           tables_size<Sum>(problem_.vertical.kernel, problem_.horizontal.kernel);
  }

  void run(int64_t index, Sum* scratch) const {
    const Task task = tiling_[index];
    Sum* pixels = scratch;
    Sum* sums = pixels + pixels_size();
    Sum* weight = sums + strip() * image_.row();
    auto* rows = reinterpret_cast<KernelRow<Sum>*>(weight + weight_.scratch());
    auto* columns = reinterpret_cast<KernelColumn*>(rows + problem_.vertical.kernel);
    const int64_t first_output = first_output_row(task.first);
    pixels_.read_rows(task.n, task.g, first_output, end_output_row(task.end) - first_output,
                      pixels);
    for (int64_t first = task.first; first < task.end; first += strip()) {
      const int64_t count = smaller(strip(), task.end - first);
      weight_.prepare(task.n, task.g, first, count, weight);
      for (int64_t row = first; row < first + count; ++row) {
        const int64_t row_count = find_rows(task, row, first_output, pixels, weight, rows);
        for (int64_t phase = 0; phase < problem_.horizontal.stride; ++phase)
          sum_phase(rows, row_count, phase, columns, sums + (row - first) * image_.row());
      }
      image_.write_rows(task.n, task.g, first, count, sums);
    }
  }

 private:
  int64_t strip() const {
    return smaller(strip_rows(tiling_.block(), problem_.horizontal.input), weight_.strip());
  }

  // The output rows that have read rows `first` ... of the input lie from here ...
  int64_t first_output_row(int64_t first) const {
    const Side& v = problem_.vertical;
    return ceil_div(larger(first + v.padding - v.reach(), 0), v.stride);
  }

  // ... to before there.
  int64_t end_output_row(int64_t end) const {
    const Side& v = problem_.vertical;
    return smaller((end - 1 + v.padding) / v.stride + 1, v.output);
  }

  int64_t pixels_size() const {
    return ((tiling_.block() - 1 + problem_.vertical.reach()) / problem_.vertical.stride + 1) *
           pixels_.row();
  }

  // The kernel rows that have read this row of the input.
  int64_t find_rows(const Task& task, int64_t row, int64_t first_output, const Sum* pixels,
                    Sum* weight, KernelRow<Sum>* rows) const {
    const Side& v = problem_.vertical;
    int64_t count = 0;
    for (int64_t kh = 0; kh < v.kernel; ++kh) {
      const int64_t y = row + v.padding - kh * v.dilation, output = y / v.stride;
      if (y >= 0 && y % v.stride == 0 && output < v.output)
        rows[count++] = {weight_.read_row(task.n, task.g, kh, output, weight),
                         pixels + (output - first_output) * pixels_.row()};
    }
    return count;
  }

  // The kernel columns of a phase, from the one that reads farthest to the right on.
  int64_t find_columns(int64_t phase, KernelColumn* columns) const {
    const Side& h = problem_.horizontal;
    int64_t count = 0;
    for (int64_t kw = h.kernel - 1; kw >= 0; --kw) {
      const int64_t x = kw * h.dilation, shift = x / h.stride;
      if (x % h.stride == phase)
        columns[count++] = {kw * weight_.tap_step() - shift * weight_.pixel_step(),
                            -shift * pixels_.pixel()};
    }
    return count;
  }

  // Pixel number i of a phase is column i * stride + phase of the padded input. The output pixel that kernel column c
  // has put its contribution to is number i - shift(c); near the borders some do not exist.
  void sum_phase(const KernelRow<Sum>* rows, int64_t row_count, int64_t phase,
                 KernelColumn* columns, Sum* sums) const {
    const Side& h = problem_.horizontal;
    const int64_t count = find_columns(phase, columns);
    const auto shift = [&](int64_t c) { return -columns[c].pixel / pixels_.pixel(); };
    Window<Sum> window = {rows,
                          columns,
                          row_count,
                          count,
                          weight_.pixel_step(),
                          pixels_.pixel(),
                          h.stride * image_.pixel(),
                          pixels_.lines()};
    Sum* to = sums + (phase - h.padding) * image_.pixel();
    const int64_t first = ceil_div(larger(h.padding - phase, 0), h.stride);
    const int64_t end = ceil_div(larger(h.padding + h.input - phase, 0), h.stride);
    const int64_t inner_first = smaller(larger(first, count ? shift(0) : 0), end);
    const int64_t inner_end =
        larger(inner_first, smaller(end, count ? h.output + shift(count - 1) : end));
    const auto sum_border = [&](int64_t i) {
      int64_t from = 0, before = count;
      while (from < count && shift(from) > i) ++from;
      while (before > from && shift(before - 1) <= i - h.output) --before;
      window.columns = columns + from;
      window.column_count = before - from;
      sum_pixel(window, i, to);
    };
    for (int64_t i = first; i < inner_first; ++i) sum_border(i);
    for (int64_t i = inner_end; i < end; ++i) sum_border(i);
    window.columns = columns;
    window.column_count = count;
    sum_row(window, inner_first, inner_end, to, FetchWeights<Sum>{window, weight_.fetches()});
  }

  const Problem& problem_;
  GroupRows<Stored> image_, pixels_;
  Weights weight_;
  Tiling tiling_;
};

// Every number is a sum over channels, which are the lanes of our vectors: `correlate` makes as many at once as there
// are lanes, those of neighboring pixels or, where taps are neighbors in memory, those of neighboring taps.
template <typename Stored>
class GradWeight : PaddedImage<Stored> {
  using Base = PaddedImage<Stored>;
  using Base::image_, Base::problem_, Base::tiling_;

 public:
  using typename Base::Sum;

  GradWeight(const Problem& problem, int threads)
      : Base(problem, threads), pixels_(problem, problem.pixels, problem.horizontal.output) {
    const int64_t* s = problem.weight.strides;
    const int64_t columns = problem.horizontal.output;
    const bool taps_are_neighbors = s[3] == 1 && s[2] == problem.horizontal.kernel && s[5] != 1;
    const bool rows_are_neighbors = s[4] == columns * s[5];
    tap_blocks_ = taps_are_neighbors ? problem.taps() / lanes : 0;
    strip_ = rows_are_neighbors ? smaller(tiling_.block(), ceil_div(4 * lanes, columns)) : 1;
  }

  int64_t tasks() const { return tiling_.count(); }

  int64_t scratch() const {
    return this->image_size() + strip_pixels() * pixels_.pixel() +
           round_up((problem_.taps() + strip_pixels()) * sizeof(ptrdiff_t) / sizeof(Sum),
                    kLine<Sum>);
  }

  void run(int64_t index, Sum* scratch) const {
    const Task task = tiling_[index];
    const int64_t columns = problem_.horizontal.output;
    Sum* image = scratch;
    Sum* pixels = image + this->image_size();
    auto* taps = reinterpret_cast<ptrdiff_t*>(pixels + strip_pixels() * pixels_.pixel());
    ptrdiff_t* windows = taps + problem_.taps();
    find_offsets(taps, windows);
    this->read_image(task, image);
    for (int64_t row = task.first; row < task.end; row += strip_) {
      const int64_t rows = smaller(strip_, task.end - row);
      pixels_.read_rows(task.n, task.g, row, rows, pixels);
      const Strip strip = {
          pixels,  image + this->row_offset(row - task.first, 0),        taps,
          windows, weight_row<Stored>(problem_, task.n, task.g, 0, row), rows * columns};
      correlate_blocks_of_taps(strip);
      correlate_blocks_of_pixels(strip);
    }
  }

 private:
  static constexpr int lanes = kLanes<Sum>;

  // Rows whose weights lie one after the other, treated as one long row.
  struct Strip {
    const Sum *pixels, *image;
    const ptrdiff_t *taps, *windows;
    Stored* weight;
    int64_t count;
  };

  int64_t strip_pixels() const { return strip_ * problem_.horizontal.output; }

  // Where a tap lies in a window, and where the window of each pixel of a strip begins.
  void find_offsets(ptrdiff_t* taps, ptrdiff_t* windows) const {
    const int64_t kernel = problem_.horizontal.kernel, columns = problem_.horizontal.output;
    for (int64_t t = 0; t < problem_.taps(); ++t)
      taps[t] = this->row_offset(0, t / kernel) + this->column_offset(t % kernel);
    for (int64_t i = 0; i < strip_pixels(); ++i)
      windows[i] = this->row_offset(i / columns, 0) + i % columns * this->pixel_step();
  }

  void correlate_blocks_of_taps(const Strip& strip) const {
    const ptrdiff_t same[lanes] = {}, step = problem_.weight.strides[5];
    for (int64_t i = 0; i < strip.count; ++i) {
      for (int64_t t = 0; t < tap_blocks_ * lanes; t += lanes)
        store_vector<Sum>(
            strip.weight + i * step + t,
            correlate(strip.pixels + i * pixels_.pixel(), same, strip.image + strip.windows[i],
                      strip.taps + t, pixels_.lines()),
            1, lanes);
    }
  }

  void correlate_blocks_of_pixels(const Strip& strip) const {
    const int64_t* s = problem_.weight.strides;
    const int64_t kernel = problem_.horizontal.kernel, count = smaller(strip.count, lanes);
    ptrdiff_t pixels[lanes], windows[lanes];
    for (int64_t i = 0; i < strip.count; i += lanes) {
      const int64_t first = block_start(i / lanes, lanes, strip.count);
      for (int64_t lane = 0; lane < lanes; ++lane) {  // lanes without a pixel repeat the last one
        pixels[lane] = (first + smaller(lane, count - 1)) * pixels_.pixel();
        windows[lane] = strip.windows[first + smaller(lane, count - 1)];
      }
      for (int64_t t = tap_blocks_ * lanes; t < problem_.taps(); ++t)
        store_vector<Sum>(
            strip.weight + t / kernel * s[2] + t % kernel * s[3] + first * s[5],
            correlate(strip.pixels, pixels, strip.image + strip.taps[t], windows, pixels_.lines()),
            s[5], count);
    }
  }

  GroupRows<Stored> pixels_;
  int64_t tap_blocks_, strip_;
};

}  // namespace rednet

#define REDNET_EXPORT_INVOLUTION(suffix, Stored)                                   \
  REDNET_EXPORT(rednet_forward_##suffix, rednet::Problem, rednet::Forward<Stored>) \
  REDNET_EXPORT(rednet_grad_input_##suffix, rednet::Problem, rednet::GradInput<Stored>)

REDNET_EXPORT_INVOLUTION(float64, double)
REDNET_EXPORT_INVOLUTION(float32, float)
REDNET_EXPORT_INVOLUTION(float16, rednet::Half)
REDNET_EXPORT_INVOLUTION(bfloat16, rednet::BFloat16)
