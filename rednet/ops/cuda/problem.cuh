// Which part of the problem a block and a thread compute.
//
// Words used here: the *samples* are the pixels that windows slide over, the *destinations* are the pixels that own a
// sum. Forward and grad_weight: samples of the input, destinations in the output. grad_input: samples of the output's
// gradient, destinations in the input.
//
// Stride and dilation are taken apart first. Along each axis the destinations are dealt into *phases*, and within a
// phase the problem is one of dilation 1: destination k sees the samples advance * k + t, t = 0 ... taps - 1. So a
// dilated window slides over registers as a dense one does, and grad_input of a strided involution needs no test of
// divisibility in its loops: each phase knows its taps.

constexpr int FORWARD = 0, GRAD_INPUT = 1, GRAD_WEIGHT = 2;

// Filled by plan.py; PROBLEM there lists the same fields in the same order.
struct Axis {
    int image;   // pixels of the input
    int output;  // pixels of the output
    int kernel;  // taps of the whole kernel
    int stride;
    int padding;
    int dilation;
    int reduced_stride;    // stride / gcd(stride, dilation)
    int reduced_dilation;  // dilation / gcd(stride, dilation)
    int phases;
    int tile;   // destinations of a block, a multiple of a thread's
    int tiles;  // blocks of a phase
};

struct Problem {
    Axis rows;
    Axis columns;
    int groups;  // of an image; where images follow each other group by group, of all images
    int group_channels;
    int chunks;         // parts of at most CHANNELS channels that a group is cut into
    int slices;         // groups of a block
    int slice_blocks;   // blocks that share the groups
    int band;           // rows of samples in shared memory at a time
    int line;           // elements of shared memory for a row of samples
    int slice_pitch;    // elements of shared memory for the samples of a slice
    int samples_bytes;  // bytes of shared memory before the weights
    int copy_bytes;     // bytes that copies of channels-last weights move at once
    int packed;         // whether packs of destinations (of channels, if these are last) are aligned
};

// One axis of a block: destination k of the tile is the pixel destination + destination_step * k, sample v of the tile
// is the pixel sample + sample_step * v, and tap t of the phase is the kernel's tap + tap_step * t.
struct Window {
    int destination, destination_step;
    int count;  // destinations of the tile that exist; none if not positive
    int sample, sample_step;
    int advance;  // samples between neighboring destinations
    int taps, tap, tap_step;
};

// stride * x - padding + dilation * j for x = phase + reduced_dilation * k is
// (stride * phase - padding) + dilation * (reduced_stride * k + j).
DEVICE Window gathering_window(const Axis& axis, int phase, int tile) {
    const int start = tile * axis.tile;
    Window window;
    window.destination = phase + axis.phases * start;
    window.destination_step = axis.phases;
    window.count = min(axis.tile, (axis.output - window.destination + axis.phases - 1) / axis.phases);
    window.advance = axis.reduced_stride;
    window.sample = axis.stride * phase - axis.padding + axis.dilation * window.advance * start;
    window.sample_step = axis.dilation;
    window.taps = axis.kernel;
    window.tap = 0;
    window.tap_step = 1;
    return window;
}

// Pixel u of the input was read by tap j of output x where stride * x = u + padding - dilation * j. The first such j is
// found by trying, every reduced_stride-th after it fits too, and each moves x by -reduced_dilation. The taps are
// walked backwards, so that x grows.
DEVICE Window transposed_window(const Axis& axis, int phase, int tile) {
    const int start = tile * axis.tile;
    int first = 0;
    while (first < axis.reduced_stride && (phase + axis.padding - axis.dilation * first) % axis.stride != 0) ++first;
    const bool none = first == axis.reduced_stride || first >= axis.kernel;
    const int last = none ? -1 : (axis.kernel - 1 - first) / axis.reduced_stride;
    Window window;
    window.destination = phase + axis.phases * start;
    window.destination_step = axis.phases;
    window.count = min(axis.tile, (axis.image - window.destination + axis.phases - 1) / axis.phases);
    window.advance = 1;
    window.sample =
        (phase + axis.padding - axis.dilation * first) / axis.stride + axis.reduced_dilation * (start - last);
    window.sample_step = axis.reduced_dilation;
    window.taps = last + 1;
    window.tap = first + axis.reduced_stride * last;
    window.tap_step = -axis.reduced_stride;
    return window;
}

DEVICE Window make_window(const Axis& axis, int phase, int tile) {
    return OPERATION == GRAD_INPUT ? transposed_window(axis, phase, tile) : gathering_window(axis, phase, tile);
}

struct Block {
    Window rows, columns;
    int group, groups;  // the first group and how many: one slice for each
    int chunk;          // of the channels; grad_weight sums over all of them
    int batch;          // image; 0 where images follow each other group by group
};

// Splits the last digit off a number written in mixed radices.
DEVICE int take(int& number, int radix) {
    const int digit = number % radix;
    number /= radix;
    return digit;
}

// Phases are neighbors in the grid, because they share sectors of memory, then tiles, because they share samples.
DEVICE Block locate_block(const Problem& problem) {
    int index = blockIdx.x;
    const int column_phase = take(index, problem.columns.phases);
    const int row_phase = take(index, problem.rows.phases);
    const int column_tile = take(index, problem.columns.tiles);
    const int row_tile = take(index, problem.rows.tiles);
    Block block;
    block.rows = make_window(problem.rows, row_phase, row_tile);
    block.columns = make_window(problem.columns, column_phase, column_tile);
    block.group = problem.slices * take(index, problem.slice_blocks);
    block.groups = min(problem.slices, problem.groups - block.group);
    block.chunk = OPERATION == GRAD_WEIGHT ? 0 : take(index, problem.chunks);
    block.batch = index;
    return block;
}

// ROWS x COLUMNS destinations of one slice, with all channels of a chunk, belong to one thread.
struct Patch {
    int slice;
    int row, column;  // first destination in the tile
    bool exists;
};

// Neighboring threads own neighbors in memory: pixels, or groups where channels are last.
DEVICE Patch locate_patch(const Problem& problem, const Block& block) {
    int index = threadIdx.x;
    Patch patch;
    if (CHANNELS_LAST) patch.slice = take(index, problem.slices);
    patch.column = COLUMNS * take(index, problem.columns.tile / COLUMNS);
    patch.row = ROWS * take(index, problem.rows.tile / ROWS);
    if (!CHANNELS_LAST) patch.slice = index;
    patch.exists = patch.slice < block.groups && patch.row < block.rows.count && patch.column < block.columns.count &&
                   (!CHANNELS_LAST || index == 0);
    return patch;
}
