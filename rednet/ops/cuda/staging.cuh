// Shared memory: a band of sample rows as sums-to-be (so that 16-bit pixels are converted once, not once a tap) and,
// where channels are last, the weights (which lie tap by tap there: only a copy of whole pixels reads them in order).
//
//     block                                             Block, the same for all threads, so not in their registers
//     samples[slice][channel][row of the band][line]        Sum
//     weights[pixel][slice][tap]                            Scalar, channels-last only

struct Shared {
    Block* block;
    Sum* samples;
    Scalar* weights;
};

DEVICE Shared shared_arrays(const Problem& problem) {
    unsigned char* const memory = shared_memory();
    static_assert(sizeof(Block) <= BLOCK_BYTES, "plan.py leaves less room for it");
    return {reinterpret_cast<Block*>(memory), reinterpret_cast<Sum*>(memory + BLOCK_BYTES),
            reinterpret_cast<Scalar*>(memory + BLOCK_BYTES + problem.samples_bytes)};
}

// Division of small non-negative numbers by one number, many times over: exact while number * divisor < 2^32.
struct Divisor {
    unsigned divisor, magic;

    DEVICE_MEMBER explicit Divisor(int value) : divisor(value), magic(value > 1 ? 0xFFFFFFFFu / value + 1 : 0) {}
    // Splits the last digit off, as take() does.
    DEVICE_MEMBER int take(int& number) const {
        const int quotient = magic ? multiply_high(number, magic) : number;
        const int digit = number - quotient * divisor;
        number = quotient;
        return digit;
    }
};

// [first, last); rows of samples are counted from the tile's first.
struct Range {
    int first, last;
};

DEVICE int span(const Window& window) {
    return window.taps > 0 && window.count > 0 ? window.advance * (window.count - 1) + window.taps : 0;
}

// The rows that lie inside the image; the others are zero and are skipped.
DEVICE Range rows_inside(const Problem& problem, const Block& block) {
    const Window& rows = block.rows;
    const int height = sample_image(problem).height, step = rows.sample_step;
    const int total = span(block.columns) > 0 ? span(rows) : 0;
    const int first = rows.sample < 0 ? (step - 1 - rows.sample) / step : 0;
    const int last = rows.sample < height ? (height - rows.sample + step - 1) / step : 0;
    return {min(first, total), min(last, total)};
}

// Where a line keeps column v: columns are dealt into PARTS, so that windows PARTS apart start at neighbors.
template <int PARTS>
DEVICE int place(int v, int line) {
    return v % PARTS * (line / PARTS) + v / PARTS;
}

// Not all channels at once: the sums of the thread's patch need the registers.
constexpr int STAGED = 8;

DEVICE void stage_pixel(const Scalar* source, long long stride, int count, bool packed, Sum* target, int pitch) {
#pragma unroll 1
    for (int c = 0; c < CHANNELS; c += STAGED, source += STAGED * stride, target += STAGED * pitch) {
        if (c + STAGED <= count) {
            Sum values[STAGED];
            if (CHANNELS_LAST && packed)
                read_channels<true>(source, 1, STAGED, values);
            else
                read_channels<false>(source, stride, STAGED, values);
#pragma unroll
            for (int i = 0; i < STAGED; ++i) target[i * pitch] = values[i];
        } else {
#pragma unroll 1
            for (int i = 0; i < STAGED; ++i) target[i * pitch] = c + i < count ? widen(source[i * stride]) : Sum(0);
        }
    }
}

// Threads that copy one line together: few, because lines are short.
constexpr int LANES = 8;

// Copies a band of rows; a thread moves the channels of one pixel of one slice at a time. Columns outside the image
// become zero.
template <int PARTS>
DEVICE void stage_samples(const Problem& problem, const Block& block, int chunk, Range band, const Scalar* tensor,
                          Sum* samples) {
    const Image image = sample_image(problem);
    const int height = band.last - band.first, columns = span(block.columns);
    const int channel_pitch = problem.band * problem.line;
    const Divisor lines(CHANNELS_LAST ? block.groups : height);
    for (int line = threadIdx.x / LANES; line < block.groups * height; line += blockDim.x / LANES) {
        // Neighboring lines are neighbors in memory.
        int rest = line;
        const int digit = lines.take(rest);
        const int slice = CHANNELS_LAST ? digit : rest, row = CHANNELS_LAST ? rest : digit;
        const int y = block.rows.sample + block.rows.sample_step * (band.first + row);
        const long long channel = channel_of(problem, block.group + slice, chunk);
        const Scalar* const source = tensor + image.offset(block.batch, channel, y, 0);
        Sum* const target = samples + slice * problem.slice_pitch + row * problem.line;
        for (int column = threadIdx.x % LANES; column < columns; column += LANES) {
            const int x = block.columns.sample + block.columns.sample_step * column;
            const int count = x >= 0 && x < image.width ? channels_of(problem, chunk) : 0;
            stage_pixel(source + x * image.pixel_stride(), image.channel_stride(), count, problem.packed,
                        target + place<PARTS>(column, problem.line), channel_pitch);
        }
    }
}

// ---- weights, channels-last only: the block's slices lie side by side, so a pixel is one run of memory

DEVICE int weights_pitch(const Problem& problem) { return problem.slices * weights_of(problem).taps; }

// Calls move.run<BYTES>() with the width of the problem's copies, which must be known when it is compiled.
template <class Move>
DEVICE void with_copy_width(const Problem& problem, const Move& move) {
    if (problem.copy_bytes == 16) return move.template run<16>();
    if (problem.copy_bytes == 8) return move.template run<8>();
    if constexpr (sizeof(Scalar) <= 4) {
        if (problem.copy_bytes == 4) return move.template run<4>();
    }
    if constexpr (sizeof(Scalar) == 2) move.template run<2>();
}

// Calls move(offset in the tensor, offset in shared memory) for every ELEMENTS weights of the tile's destinations.
template <int ELEMENTS, class Move>
DEVICE void visit_tile_weights(const Problem& problem, const Block& block, Move move) {
    const Weights weights = weights_of(problem);
    const int pitch = weights_pitch(problem), units = pitch / ELEMENTS;
    const Divisor by_units(units), by_columns(block.columns.count);
    for (int i = threadIdx.x; i < block.rows.count * block.columns.count * units; i += blockDim.x) {
        int row = i;
        const int offset = by_units.take(row) * ELEMENTS;
        const int column = by_columns.take(row);
        const int y = block.rows.destination + block.rows.destination_step * row;
        const int x = block.columns.destination + block.columns.destination_step * column;
        move(weights.offset(block.batch, block.group, 0, y, x) + offset,
             (row * problem.columns.tile + column) * pitch + offset);
    }
}

struct LoadTileWeights {
    const Problem& problem;
    const Block& block;
    const Scalar* tensor;
    Scalar* shared;

    template <int BYTES>
    DEVICE_MEMBER void run() const {
        visit_tile_weights<BYTES / sizeof(Scalar)>(
            problem, block, [&](long long global, int local) { copy_async<BYTES>(shared + local, tensor + global); });
    }
};

struct StoreTileWeights {
    const Problem& problem;
    const Block& block;
    const Scalar* shared;
    Scalar* tensor;

    template <int BYTES>
    DEVICE_MEMBER void run() const {
        using Unit = typename UnitOf<BYTES>::type;
        visit_tile_weights<BYTES / sizeof(Scalar)>(problem, block, [&](long long global, int local) {
            *reinterpret_cast<Unit*>(tensor + global) = *reinterpret_cast<const Unit*>(shared + local);
        });
    }
};

// The taps, row by row, of the kernel rows at which the tile's destinations see a row of samples.
DEVICE Range needed_taps(const Problem& problem, const Block& block, int row) {
    const int first = max(0, row - block.rows.count + 1), last = min(block.rows.taps - 1, row);
    return {(block.rows.tap + block.rows.tap_step * last) * problem.columns.kernel,
            (block.rows.tap + block.rows.tap_step * first + 1) * problem.columns.kernel};
}

// Copies what the tile needs of the weights at a band of samples.
struct LoadBandWeights {
    const Problem& problem;
    const Block& block;
    Range band;
    const Scalar* tensor;
    Scalar* shared;

    template <int BYTES>
    DEVICE_MEMBER void run() const {
        constexpr int ELEMENTS = BYTES / sizeof(Scalar);
        const Weights weights = weights_of(problem);
        const int pitch = weights_pitch(problem), units = pitch / ELEMENTS, columns = span(block.columns);
        const Divisor by_units(units), by_columns(columns), by_taps(weights.taps);
        for (int i = threadIdx.x; i < (band.last - band.first) * columns * units; i += blockDim.x) {
            int row = i;
            const int offset = by_units.take(row) * ELEMENTS;
            const int column = by_columns.take(row);
            const int x = block.columns.sample + block.columns.sample_step * column;
            const int y = block.rows.sample + block.rows.sample_step * (band.first + row);
            int slice = offset;
            const int tap = by_taps.take(slice);
            if (x < 0 || x >= weights.width || !needed(tap, ELEMENTS, weights.taps, band.first + row)) continue;
            copy_async<BYTES>(shared + (row * columns + column) * pitch + offset,
                              tensor + weights.offset(block.batch, block.group, 0, y, x) + offset);
        }
    }

    // Whether any of some taps is needed; those that run on into the next slice are taken to be.
    DEVICE_MEMBER bool needed(int tap, int count, int taps, int row) const {
        const Range range = needed_taps(problem, block, row);
        return tap + count > taps || (tap < range.last && tap + count > range.first);
    }
};
