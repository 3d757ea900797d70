// Where pixels and weights lie in global memory. Offsets are of 64 bits, but they are computed once for a row or a
// pixel: the inner loops add strides.

// An image tensor (N, C, H, W).
struct Image {
    int height, width;
    long long channels;  // of one pixel; read where channels are last

    DEVICE_MEMBER long long offset(int batch, long long channel, int y, int x) const {
        if (CHANNELS_LAST) return ((static_cast<long long>(batch) * height + y) * width + x) * channels + channel;
        return (channel * height + y) * width + x;
    }
    DEVICE_MEMBER long long channel_stride() const {
        return CHANNELS_LAST ? 1 : static_cast<long long>(height) * width;
    }
    DEVICE_MEMBER long long pixel_stride() const { return CHANNELS_LAST ? channels : 1; }
};

// A weight tensor (N, G, Kh, Kw, Ho, Wo), its taps numbered row by row.
struct Weights {
    int height, width;
    int groups, taps;

    DEVICE_MEMBER long long offset(int batch, long long group, int tap, int y, int x) const {
        if (CHANNELS_LAST) {
            return (((static_cast<long long>(batch) * height + y) * width + x) * groups + group) * taps + tap;
        }
        return ((group * taps + tap) * height + y) * width + x;
    }
    DEVICE_MEMBER long long plane() const { return static_cast<long long>(height) * width; }
};

DEVICE Image input_image(const Problem& problem) {
    return {problem.rows.image, problem.columns.image, problem.groups * static_cast<long long>(problem.group_channels)};
}

DEVICE Image output_image(const Problem& problem) {
    return {problem.rows.output, problem.columns.output,
            problem.groups * static_cast<long long>(problem.group_channels)};
}

DEVICE Image sample_image(const Problem& problem) {
    return OPERATION == GRAD_INPUT ? output_image(problem) : input_image(problem);
}

DEVICE Image destination_image(const Problem& problem) {
    return OPERATION == GRAD_INPUT ? input_image(problem) : output_image(problem);
}

DEVICE Weights weights_of(const Problem& problem) {
    return {problem.rows.output, problem.columns.output, problem.groups, problem.rows.kernel * problem.columns.kernel};
}

// The first channel of a slice.
DEVICE long long channel_of(const Problem& problem, int group, int chunk) {
    return static_cast<long long>(group) * problem.group_channels + chunk * CHANNELS;
}

DEVICE int channels_of(const Problem& problem, int chunk) {
    return min(CHANNELS, problem.group_channels - chunk * CHANNELS);
}

// Channels of a pixel that one instruction loads or stores.
constexpr int CHANNEL_PACK = 16 / sizeof(Scalar);

// ---- neighbors in memory: COLUMNS destinations of a row, or CHANNELS channels of a pixel where channels are last.
// PACKED: all of them exist, and an instruction can take several. Otherwise `count` of them exist; the rest read as 0.

template <bool PACKED>
DEVICE void read_columns(const Scalar* address, long long stride, int count, Sum (&values)[COLUMNS]) {
    if constexpr (PACKED) {
        const Pack<Scalar, COLUMNS> pack = load_pack<COLUMNS>(address);
#pragma unroll
        for (int i = 0; i < COLUMNS; ++i) values[i] = widen(pack.values[i]);
    } else {
#pragma unroll
        for (int i = 0; i < COLUMNS; ++i) values[i] = i < count ? widen(address[i * stride]) : Sum(0);
    }
}

template <bool PACKED>
DEVICE void write_columns(Scalar* address, long long stride, int count, const Sum (&values)[COLUMNS]) {
    if constexpr (PACKED) {
        Pack<Scalar, COLUMNS> pack;
#pragma unroll
        for (int i = 0; i < COLUMNS; ++i) narrow(values[i], pack.values[i]);
        store_pack(address, pack);
    } else {
#pragma unroll
        for (int i = 0; i < COLUMNS; ++i) {
            if (i < count) narrow(values[i], address[i * stride]);
        }
    }
}

template <bool PACKED, int N>
DEVICE void read_channels(const Scalar* address, long long stride, int count, Sum (&values)[N]) {
    if constexpr (PACKED) {
#pragma unroll
        for (int c = 0; c < N; c += CHANNEL_PACK) {
            const Pack<Scalar, CHANNEL_PACK> pack = load_pack<CHANNEL_PACK>(address + c);
#pragma unroll
            for (int i = 0; i < CHANNEL_PACK; ++i) values[c + i] = widen(pack.values[i]);
        }
    } else {
#pragma unroll
        for (int c = 0; c < N; ++c) values[c] = c < count ? widen(address[c * stride]) : Sum(0);
    }
}

template <bool PACKED, int N>
DEVICE void write_channels(Scalar* address, int count, const Sum (&values)[N]) {
    if constexpr (PACKED) {
#pragma unroll
        for (int c = 0; c < N; c += CHANNEL_PACK) {
            Pack<Scalar, CHANNEL_PACK> pack;
#pragma unroll
            for (int i = 0; i < CHANNEL_PACK; ++i) narrow(values[c + i], pack.values[i]);
            store_pack(address + c, pack);
        }
    } else {
#pragma unroll
        for (int c = 0; c < N; ++c) {
            if (c < count) narrow(values[c], address[c]);
        }
    }
}
