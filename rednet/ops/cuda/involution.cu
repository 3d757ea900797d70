// Involution and its two gradients. One of the three is compiled at a time, for one type, layout, kernel width and
// stride; image sizes are arguments.
//
// A thread owns a patch of ROWS x COLUMNS destinations with up to CHANNELS channels of their group, so that it reads
// every weight of its pixels once and uses it for all channels, from registers. It walks down the rows of samples that
// its windows cover; a row is read from shared memory once for all the windows it crosses.

constexpr bool GENERIC = KERNEL_WIDTH == 0;  // any width, walked tap by tap
constexpr bool STRIDED_TAPS = OPERATION == GRAD_INPUT && !GENERIC;
// Taps of a phase: two phases of a strided grad_input can differ by one.
constexpr int WIDEST = GENERIC ? 1 : STRIDED_TAPS ? (KERNEL_WIDTH + STRIDE - 1) / STRIDE : KERNEL_WIDTH;
constexpr int NARROWEST = GENERIC ? 1 : STRIDED_TAPS ? KERNEL_WIDTH / STRIDE : KERNEL_WIDTH;
// Samples between the windows of neighbors, unless GENERIC: then that is known at run time only.
constexpr int ADVANCE = GENERIC || OPERATION == GRAD_INPUT ? 1 : STRIDE;

using PatchValues = Sum[CHANNELS][ROWS][COLUMNS];
template <int TAPS>
using KernelRows = Sum[ROWS][COLUMNS][TAPS];

// What a thread knows of itself.
struct Thread {
    const Problem& problem;
    const Block& block;
    const Patch& patch;
    const Shared& shared;

    // Columns of the patch that exist.
    DEVICE_MEMBER int columns() const { return min(COLUMNS, block.columns.count - patch.column); }

    // Those of the rows of samples that the patch sees.
    DEVICE_MEMBER Range seen(Range rows) const {
        if (!patch.exists) return {0, 0};
        const int start = block.rows.advance * patch.row;
        return {max(rows.first, start), min(rows.last, start + block.rows.advance * (ROWS - 1) + block.rows.taps)};
    }

    // The kernel row, counted within the phase, at which the windows in row r of the patch see a row of samples.
    DEVICE_MEMBER int tap_row(int row, int r) const { return row - block.rows.advance * (patch.row + r); }

    // Bit r: whether the windows in row r of the patch exist and see the row of samples.
    DEVICE_MEMBER unsigned seeing(int row) const {
        unsigned windows = 0;
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            const int tap = tap_row(row, r);
            if (tap >= 0 && tap < block.rows.taps && patch.row + r < block.rows.count) windows |= 1u << r;
        }
        return windows;
    }

    // The samples of channel 0 that the patch's windows see in a row, from tap `first` on.
    DEVICE_MEMBER const Sum* line(int row, Range band, int first) const {
        const int column = GENERIC ? block.columns.advance * patch.column + first : patch.column;
        return shared.samples + patch.slice * problem.slice_pitch + (row - band.first) * problem.line + column;
    }
};

// ---- images in registers

// A row of the patch in an image tensor: COLUMNS pixels, up to CHANNELS channels of each.
template <class T>
struct PatchRow {
    T* address;  // of the first pixel and channel
    long long pixel_stride, channel_stride;
    int pixels, channels;  // that exist

    DEVICE_MEMBER bool whole() const { return channels == CHANNELS && (CHANNELS_LAST || pixels == COLUMNS); }
};

template <class T>
DEVICE PatchRow<T> patch_row(const Thread& at, int chunk, int r, T* tensor) {
    const Image image = destination_image(at.problem);
    const Window &rows = at.block.rows, &columns = at.block.columns;
    const long long channel = channel_of(at.problem, at.block.group + at.patch.slice, chunk);
    const int y = rows.destination + rows.destination_step * (at.patch.row + r);
    const int x = columns.destination + columns.destination_step * at.patch.column;
    return {tensor + image.offset(at.block.batch, channel, y, x), columns.destination_step * image.pixel_stride(),
            image.channel_stride(), at.patch.row + r < rows.count ? at.columns() : 0, channels_of(at.problem, chunk)};
}

template <bool PACKED>
DEVICE void read_patch_row(const PatchRow<const Scalar>& row, int r, PatchValues& values) {
    if constexpr (CHANNELS_LAST) {
#pragma unroll
        for (int a = 0; a < COLUMNS; ++a) {
            Sum pixel[CHANNELS] = {};
            if (a < row.pixels) read_channels<PACKED>(row.address + a * row.pixel_stride, 1, row.channels, pixel);
#pragma unroll
            for (int c = 0; c < CHANNELS; ++c) values[c][r][a] = pixel[c];
        }
    } else {
#pragma unroll
        for (int c = 0; c < CHANNELS; ++c) {
            const int pixels = c < row.channels ? row.pixels : 0;
            read_columns<PACKED>(row.address + c * row.channel_stride, row.pixel_stride, pixels, values[c][r]);
        }
    }
}

template <bool PACKED>
DEVICE void write_patch_row(const PatchRow<Scalar>& row, int r, const PatchValues& values) {
    if constexpr (CHANNELS_LAST) {
#pragma unroll
        for (int a = 0; a < COLUMNS; ++a) {
            Sum pixel[CHANNELS];
#pragma unroll
            for (int c = 0; c < CHANNELS; ++c) pixel[c] = values[c][r][a];
            if (a < row.pixels) write_channels<PACKED>(row.address + a * row.pixel_stride, row.channels, pixel);
        }
    } else {
#pragma unroll
        for (int c = 0; c < CHANNELS; ++c) {
            const int pixels = c < row.channels ? row.pixels : 0;
            write_columns<PACKED>(row.address + c * row.channel_stride, row.pixel_stride, pixels, values[c][r]);
        }
    }
}

DEVICE void read_patch(const Thread& at, int chunk, const Scalar* tensor, PatchValues& values) {
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        const PatchRow<const Scalar> row = patch_row(at, chunk, r, tensor);
        if (at.problem.packed && row.whole())
            read_patch_row<true>(row, r, values);
        else
            read_patch_row<false>(row, r, values);
    }
}

DEVICE void write_patch(const Thread& at, int chunk, Scalar* tensor, const PatchValues& values) {
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        const PatchRow<Scalar> row = patch_row(at, chunk, r, tensor);
        if (at.problem.packed && row.whole())
            write_patch_row<true>(row, r, values);
        else
            write_patch_row<false>(row, r, values);
    }
}

// ---- weights in registers

// Tap j of the window in column a of a patch is at base[a * window + j * tap].
template <class T>
struct KernelRow {
    T* base;
    long long window, tap;
};

// The weights of forward and grad_weight lie at the destinations.
template <class T>
DEVICE KernelRow<T> kernel_row_of_destinations(const Thread& at, int row, int r, int first, T* tensor) {
    const Problem& problem = at.problem;
    const Window &rows = at.block.rows, &columns = at.block.columns;
    const Weights weights = weights_of(problem);
    const int tap = at.tap_row(row, r) * problem.columns.kernel + first;
    if (CHANNELS_LAST) {
        const int pitch = weights_pitch(problem);
        const int pixel = (at.patch.row + r) * problem.columns.tile + at.patch.column;
        return {at.shared.weights + pixel * pitch + at.patch.slice * weights.taps + tap, pitch, 1};
    }
    const int y = rows.destination + rows.destination_step * (at.patch.row + r);
    const int x = columns.destination + columns.destination_step * at.patch.column;
    return {tensor + weights.offset(at.block.batch, at.block.group + at.patch.slice, tap, y, x),
            columns.destination_step, weights.plane()};
}

// The weights of grad_input lie at the samples.
DEVICE KernelRow<const Scalar> kernel_row_of_samples(const Thread& at, int row, int r, int first, Range band,
                                                     const Scalar* tensor) {
    const Problem& problem = at.problem;
    const Window &rows = at.block.rows, &columns = at.block.columns;
    const Weights weights = weights_of(problem);
    const int tap = (rows.tap + rows.tap_step * at.tap_row(row, r)) * problem.columns.kernel + columns.tap +
                    columns.tap_step * first;
    const int column = at.patch.column + first;
    if (CHANNELS_LAST) {
        const int pitch = weights_pitch(problem);
        const int pixel = (row - band.first) * span(columns) + column;
        return {at.shared.weights + pixel * pitch + at.patch.slice * weights.taps + tap, pitch,
                pitch + columns.tap_step};
    }
    const int y = rows.sample + rows.sample_step * row, x = columns.sample + columns.sample_step * column;
    return {tensor + weights.offset(at.block.batch, at.block.group + at.patch.slice, tap, y, x), columns.sample_step,
            columns.sample_step + columns.tap_step * weights.plane()};
}

template <int TAPS, bool PACKED>
DEVICE void read_kernel_row(const KernelRow<const Scalar>& row, int columns, Sum (&kernel)[COLUMNS][TAPS]) {
#pragma unroll
    for (int j = 0; j < TAPS; ++j) {
        Sum values[COLUMNS];
        read_columns<PACKED>(row.base + j * row.tap, row.window, columns, values);
#pragma unroll
        for (int a = 0; a < COLUMNS; ++a) kernel[a][j] = values[a];
    }
}

template <int TAPS, bool PACKED>
DEVICE void write_kernel_row(const KernelRow<Scalar>& row, int columns, const Sum (&kernel)[COLUMNS][TAPS]) {
#pragma unroll
    for (int j = 0; j < TAPS; ++j) {
        Sum values[COLUMNS];
#pragma unroll
        for (int a = 0; a < COLUMNS; ++a) values[a] = kernel[a][j];
        write_columns<PACKED>(row.base + j * row.tap, row.window, columns, values);
    }
}

// The kernels of grad_input end where the output ends.
template <int TAPS>
DEVICE void read_kernel_row_inside(const KernelRow<const Scalar>& row, int x, int step, int width,
                                   Sum (&kernel)[COLUMNS][TAPS]) {
#pragma unroll
    for (int j = 0; j < TAPS; ++j) {
#pragma unroll
        for (int a = 0; a < COLUMNS; ++a) {
            const int column = x + step * (a + j);
            kernel[a][j] = column >= 0 && column < width ? widen(row.base[a * row.window + j * row.tap]) : Sum(0);
        }
    }
}

// Reads the kernel rows of those windows of the patch that see a row of samples, from tap `first` on.
template <int TAPS>
DEVICE void read_kernel_rows(const Thread& at, int row, int first, unsigned windows, Range band, const Scalar* tensor,
                             KernelRows<TAPS>& kernel) {
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        if (!(windows >> r & 1)) continue;
        if constexpr (OPERATION == GRAD_INPUT) {
            const Window& columns = at.block.columns;
            const int x = columns.sample + columns.sample_step * (at.patch.column + first);
            read_kernel_row_inside<TAPS>(kernel_row_of_samples(at, row, r, first, band, tensor), x, columns.sample_step,
                                         at.problem.columns.output, kernel[r]);
        } else {
            const KernelRow<const Scalar> source = kernel_row_of_destinations(at, row, r, first, tensor);
            if (!CHANNELS_LAST && at.problem.packed)
                read_kernel_row<TAPS, true>(source, COLUMNS, kernel[r]);
            else
                read_kernel_row<TAPS, false>(source, at.columns(), kernel[r]);
        }
    }
}

template <int TAPS>
DEVICE void write_kernel_rows(const Thread& at, int row, int first, unsigned windows, const KernelRows<TAPS>& kernel,
                              Scalar* tensor) {
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        if (!(windows >> r & 1)) continue;
        const KernelRow<Scalar> target = kernel_row_of_destinations(at, row, r, first, tensor);
        if (!CHANNELS_LAST && at.problem.packed)
            write_kernel_row<TAPS, true>(target, COLUMNS, kernel[r]);
        else
            write_kernel_row<TAPS, false>(target, at.columns(), kernel[r]);
    }
}

// ---- the sums

// What the COLUMNS windows of a patch see of one row of one channel, TAPS taps each.
template <int TAPS>
struct Samples {
    static constexpr int COUNT = GENERIC ? COLUMNS : ADVANCE * (COLUMNS - 1) + TAPS;
    Sum values[COUNT];

    DEVICE_MEMBER Sum at(int window, int tap) const { return values[GENERIC ? window : ADVANCE * window + tap]; }

    DEVICE_MEMBER void read(const Sum* line, int length, int advance) {
        if constexpr (GENERIC) {
#pragma unroll
            for (int a = 0; a < COLUMNS; ++a) values[a] = line[a * advance];
        } else {
#pragma unroll
            for (int part = 0; part < ADVANCE; ++part) {
#pragma unroll
                for (int i = 0; i * ADVANCE + part < COUNT; i += 2) {
                    const Pack<Sum, 2> pair = load_pack<2>(line + part * (length / ADVANCE) + i);
                    values[i * ADVANCE + part] = pair.values[0];
                    if ((i + 1) * ADVANCE + part < COUNT) values[(i + 1) * ADVANCE + part] = pair.values[1];
                }
            }
        }
    }
};

// Calls visit(c, r, a, j, sample) for every channel, window and tap of the patch and the sample there, for the rows of
// windows whose bits are set in WINDOWS. The indices are constants once this is unrolled, as registers must have it.
template <unsigned WINDOWS, int TAPS, class Visit>
DEVICE void visit_row(const Thread& at, const Sum* line, Visit visit) {
    const int pitch = at.problem.band * at.problem.line;
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) {
        Samples<TAPS> samples;
        samples.read(line + c * pitch, at.problem.line, at.block.columns.advance);
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            if (!(WINDOWS >> r & 1)) continue;
#pragma unroll
            for (int a = 0; a < COLUMNS; ++a) {
#pragma unroll
                for (int j = 0; j < TAPS; ++j) visit(c, r, a, j, samples.at(a, j));
            }
        }
    }
}

// The same for a set of windows known at run time only.
template <int TAPS, class Visit>
DEVICE void visit_row(const Thread& at, unsigned windows, const Sum* line, Visit visit) {
    static_assert(ROWS == 2, "one case for each set of rows");
    if (windows == 3)
        visit_row<3, TAPS>(at, line, visit);
    else if (windows == 1)
        visit_row<1, TAPS>(at, line, visit);
    else
        visit_row<2, TAPS>(at, line, visit);
}

// forward and grad_input: total += kernel * samples.
template <int TAPS>
DEVICE void add_products(const Thread& at, int row, Range band, const Scalar* weights, PatchValues& total) {
    const unsigned windows = at.seeing(row);
    if (windows == 0) return;
    for (int first = 0; first < at.block.columns.taps; first += TAPS) {
        KernelRows<TAPS> kernel;
        read_kernel_rows<TAPS>(at, row, first, windows, band, weights, kernel);
        visit_row<TAPS>(at, windows, at.line(row, band, first),
                        [&](int c, int r, int a, int j, Sum sample) { total[c][r][a] += kernel[r][a][j] * sample; });
    }
}

template <int TAPS>
DEVICE void gather(const Thread& at, const Scalar* samples, const Scalar* weights, Scalar* result) {
    const Problem& problem = at.problem;
    PatchValues total = {};
    const Range inside = rows_inside(problem, at.block);
    // Where padding is all there is, nothing would wait for the copies.
    if (CHANNELS_LAST && OPERATION == FORWARD && inside.first < inside.last) {
        with_copy_width(problem, LoadTileWeights{problem, at.block, weights, at.shared.weights});
    }
    for (int start = inside.first; start < inside.last; start += problem.band) {
        const Range band = {start, min(start + problem.band, inside.last)};
        stage_samples<ADVANCE>(problem, at.block, at.block.chunk, band, samples, at.shared.samples);
        if (CHANNELS_LAST && OPERATION == GRAD_INPUT) {
            with_copy_width(problem, LoadBandWeights{problem, at.block, band, weights, at.shared.weights});
        }
        wait_for_copies();
        barrier();
        const Range seen = at.seen(band);
#pragma unroll 1
        for (int row = seen.first; row < seen.last; ++row) add_products<TAPS>(at, row, band, weights, total);
        barrier();
    }
    if (at.patch.exists) write_patch(at, at.block.chunk, result, total);
}

// plan.py gives groups of several chunks the general kernel: the others keep the registers that reading again takes.
DEVICE int chunks_to_sum(const Problem& problem) { return GENERIC ? problem.chunks : 1; }

// grad_weight: kernel = sum of gradient * samples over the channels. `gradient` holds the patch of the last chunk.
template <int TAPS>
DEVICE void write_correlations(const Thread& at, int row, Range band, const Scalar* gradients, PatchValues& gradient,
                               Scalar* result) {
    const Problem& problem = at.problem;
    const int chunks = chunks_to_sum(problem);
    const unsigned windows = at.seeing(row);
    for (int first = 0; first < at.block.columns.taps; first += TAPS) {
        KernelRows<TAPS> kernel = {};
        for (int chunk = 0; chunk < chunks; ++chunk) {
            if (chunks > 1) read_patch(at, chunk, gradients, gradient);
            const Sum* const line = at.line(row, band, first) + chunk * CHANNELS * problem.band * problem.line;
            visit_row<TAPS>(at, windows, line, [&](int c, int r, int a, int j, Sum sample) {
                kernel[r][a][j] += gradient[c][r][a] * sample;
            });
        }
        write_kernel_rows<TAPS>(at, row, first, windows, kernel, result);
    }
}

// Where no pixel was read, the gradient is zero.
template <int TAPS>
DEVICE void write_zeros(const Thread& at, Range rows, Scalar* result) {
    const KernelRows<TAPS> zeros = {};
    const Range seen = at.seen(rows);
    for (int row = seen.first; row < seen.last; ++row) {
        for (int first = 0; first < at.block.columns.taps; first += TAPS) {
            write_kernel_rows<TAPS>(at, row, first, at.seeing(row), zeros, result);
        }
    }
}

template <int TAPS>
DEVICE void correlate(const Thread& at, const Scalar* gradients, const Scalar* samples, Scalar* result) {
    const Problem& problem = at.problem;
    const int chunks = chunks_to_sum(problem);
    PatchValues gradient;
    if (at.patch.exists && chunks == 1) read_patch(at, 0, gradients, gradient);
    const Range inside = rows_inside(problem, at.block);
    for (int start = inside.first; start < inside.last; start += problem.band) {
        const Range band = {start, min(start + problem.band, inside.last)};
        for (int chunk = 0; chunk < chunks; ++chunk) {
            stage_samples<ADVANCE>(problem, at.block, chunk, band, samples,
                                   at.shared.samples + chunk * CHANNELS * problem.band * problem.line);
        }
        barrier();
        const Range seen = at.seen(band);
#pragma unroll 1
        for (int row = seen.first; row < seen.last; ++row) {
            write_correlations<TAPS>(at, row, band, gradients, gradient, result);
        }
        barrier();
    }
    write_zeros<TAPS>(at, {0, inside.first}, result);
    write_zeros<TAPS>(at, {inside.last, span(at.block.rows)}, result);
    if (CHANNELS_LAST) {
        barrier();
        with_copy_width(problem, StoreTileWeights{problem, at.block, at.shared.weights, result});
    }
}

// Arguments as those of the backend's functions: (input, weight, output), (grad_output, weight, grad_input) or
// (grad_output, input, grad_weight).
KERNEL involution(const Scalar* __restrict__ first, const Scalar* __restrict__ second, Scalar* __restrict__ result,
                  const Problem problem) {
    const Shared shared = shared_arrays(problem);
    if (threadIdx.x == 0) *shared.block = locate_block(problem);
    barrier();
    const Block& block = *shared.block;
    if (block.rows.count <= 0 || block.columns.count <= 0) return;
    const Patch patch = locate_patch(problem, block);
    const Thread thread = {problem, block, patch, shared};
    if constexpr (OPERATION == GRAD_WEIGHT) {
        correlate<WIDEST>(thread, first, second, result);
    } else {
        if constexpr (NARROWEST != WIDEST) {
            if (block.columns.taps < WIDEST) return gather<NARROWEST>(thread, first, second, result);
        }
        gather<WIDEST>(thread, first, second, result);
    }
}
