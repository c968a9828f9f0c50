/* @title@

   Written by `binep export --format c`. To be included once; C99, without allocation:

       static binep_memory memory;
       float scores[BINEP_CLASSES];
       int label = binep_classify(image, &memory, scores);

   where image is BINEP_INPUTS bytes, grey levels from 0 to 255. The free phase takes at most
   BINEP_STEPS steps; afterwards memory.states holds the states of all layers, one after the other.
   Bits and signs are multiplied 64 at a time and added up in integers, so that binary neurons in
   dense layers go through the same states as in binep, to the bit, of grey levels that are neither
   normalised nor raised to a power, if the compiler does not fuse products with sums
   (gcc and clang: -ffp-contract=off, which -std=c99 implies for gcc). */
#ifndef BINEP_NETWORK_H
#define BINEP_NETWORK_H

#include <stddef.h>
#include <stdint.h>

enum {
    BINEP_INPUTS = @inputs@,
    BINEP_CHANNELS = @channels@, /* of the input */
    BINEP_CLASSES = @classes@,
    BINEP_COPIES = @copies@, /* output neurons of a class */
    BINEP_LAYERS = @layers@,
    BINEP_NEURONS = @neurons@, /* of all layers together */
    BINEP_WORDS = @words@,     /* that hold a bit of each, layer by layer */
    BINEP_WIDEST = @widest@,   /* neurons of the largest layer */
    BINEP_PATCH = @patch@,     /* what a place of a convolution sees at most */
    BINEP_LANES = 32, /* places of a convolution that are multiplied at a time */
    BINEP_INPUT_WORDS = @input_words@,
    BINEP_STEPS = @steps@,
    BINEP_STOPS = @stops@, /* whether the phase ends once all has settled */
    BINEP_WHOLE = @whole@, /* whether inputs are grey levels / 255 */
    BINEP_NORMALISED = @normalised@, /* whether inputs are, by the mean and std below */
    BINEP_READOUT = @readout@        /* whether a softmax layer reads the last layer */
};

/* Weights of which outputs are computed: up a layer, or by the transpose down from it. */
typedef struct {
    int outputs, inputs, words;
    const uint64_t *signs; /* 1 is +1; `words` words for each output. NULL with real weights */
    const float *weights;  /* W of output i and input j at i * row + j * column */
    int row, column;
} binep_matrix;

/* A convolution over maps below, then pooling; kernel is 0 for dense synapses. */
typedef struct {
    int kernel, padding, pool, takes_max;
    int channels, rows, columns; /* below */
    int map_columns, places_down, places_across; /* before pooling; after it */
} binep_conv;

/* Synapses, and the neurons that they lead to. Of a convolution `up` has a row for each channel,
   and `down` is empty. */
typedef struct {
    int size; /* neurons */
    binep_matrix up, down;
    binep_conv conv;
    const float *scale; /* alpha, one or one for each channel; 1 with real weights */
    int scales;
    const float *bias;
    int binary; /* neurons that fire bits */
    float initial, threshold, filter, kept; /* kept: 1 - filter */
    float settled;                          /* a change up to this has settled */
} binep_layer;

/* What a classification works in. */
typedef struct {
    float states[BINEP_NEURONS], next[BINEP_NEURONS], clamped[BINEP_WIDEST];
    float input[BINEP_INPUTS], feedback[BINEP_WIDEST];
    float patch[BINEP_PATCH][BINEP_LANES], kernel[BINEP_PATCH]; /* of a convolution */
    int route[BINEP_NEURONS]; /* of max-pooling, where in its map each maximum is */
    uint64_t patch_bits[(BINEP_PATCH + 63) / 64];
    uint64_t bits[BINEP_WORDS], planes[8][BINEP_INPUT_WORDS];
} binep_memory;

@data@
static inline int binep_ones(uint64_t word)
{
#ifdef __GNUC__
    return __builtin_popcountll(word);
#else
    word -= (word >> 1) & 0x5555555555555555;
    word = (word & 0x3333333333333333) + ((word >> 2) & 0x3333333333333333);
    word = (word + (word >> 4)) & 0x0f0f0f0f0f0f0f0f;
    return (int)((word * 0x0101010101010101) >> 56);
#endif
}

/* Sum of signs times bits: those that are +1 less those that are -1. */
static inline int32_t binep_bit_sum(const uint64_t *signs, const uint64_t *bits, int words)
{
    int32_t sum = 0;
    for (int w = 0; w < words; w++)
        sum += 2 * binep_ones(signs[w] & bits[w]) - binep_ones(bits[w]);
    return sum;
}

/* Sum of signs times values, in eight parts that need not wait for each other. */
static inline float binep_signed_sum(const uint64_t *signs, const float *values, int n)
{
    float parts[8] = {0}, sum = 0;
    for (int j = 0; j < n; j += 8) {
        const int byte = (int)((signs[j / 64] >> (j % 64)) & 255);
        if (j + 8 <= n)
            for (int l = 0; l < 8; l++)
                parts[l] += (float)(((byte >> l) & 1) * 2 - 1) * values[j + l];
        else
            for (int l = 0; j + l < n; l++)
                parts[l] += (float)(((byte >> l) & 1) * 2 - 1) * values[j + l];
    }
    for (int l = 0; l < 8; l++)
        sum += parts[l];
    return sum;
}

/* Sum over j of W_ij * sent_j without alpha; of bits, if they are not NULL. */
static inline float binep_sum(const binep_matrix *m, int i, const float *sent, const uint64_t *bits)
{
    const uint64_t *signs = m->signs ? m->signs + (size_t)i * m->words : NULL;
    float sum = 0;
    if (signs)
        return bits ? (float)binep_bit_sum(signs, bits, m->words)
                    : binep_signed_sum(signs, sent, m->inputs);
    for (int j = 0; j < m->inputs; j++)
        sum += m->weights[(size_t)i * m->row + (size_t)j * m->column] *
               (bits ? (float)((bits[j / 64] >> (j % 64)) & 1) : sent[j]);
    return sum;
}

static inline int binep_bit(const uint64_t *bits, int i)
{
    return (int)((bits[i / 64] >> (i % 64)) & 1);
}

/* Alpha of a channel, or of a dense layer. */
static inline float binep_alpha(const binep_layer *layer, int channel)
{
    return layer->scale[layer->scales > 1 ? channel : 0];
}

/* Where the map of a convolution is looked at for the w-th time of a window of its pooling. */
static inline int binep_at(const binep_conv *conv, int place, int w)
{
    const int y = place / conv->places_across * conv->pool + w / conv->pool;
    const int x = place % conv->places_across * conv->pool + w % conv->pool;
    return y * conv->map_columns + x;
}

/* What a place of the maps sees, 0 beyond the edges: memory->patch_bits, or one lane of the patch. */
static inline void binep_see(const binep_conv *conv, int at, const float *sent, const uint64_t *bits,
                             int lane, binep_memory *memory)
{
    const int size = conv->channels * conv->kernel * conv->kernel;
    const int top = at / conv->map_columns - conv->padding;
    const int left = at % conv->map_columns - conv->padding;
    int n = 0;
    for (int w = 0; bits && w < (size + 63) / 64; w++)
        memory->patch_bits[w] = 0;
    for (int k = 0; k < conv->channels; k++)
        for (int row = top; row < top + conv->kernel; row++)
            for (int column = left; column < left + conv->kernel; column++, n++) {
                const int inside = row >= 0 && row < conv->rows && column >= 0 && column < conv->columns;
                const int i = (k * conv->rows + row) * conv->columns + column;
                if (bits)
                    memory->patch_bits[n / 64] |= (uint64_t)(inside && binep_bit(bits, i)) << (n % 64);
                else
                    memory->patch[n][lane] = inside ? sent[i] : 0;
            }
}

/* Weight j of a channel, as a float. */
static inline float binep_weight(const binep_matrix *m, int channel, int j)
{
    if (m->signs)
        return binep_bit(m->signs + (size_t)channel * m->words, j) ? 1.0f : -1.0f;
    return m->weights[(size_t)channel * m->row + j];
}

/* Pools what a channel's map holds at the w-th look at a window. */
static inline void binep_pool(const binep_conv *conv, int place, int w, float sum, float *drive, int *route)
{
    if (!conv->takes_max) {
        drive[place] = (w ? drive[place] : 0) + sum;
    } else if (!w || sum > drive[place]) {
        drive[place] = sum;
        route[place] = binep_at(conv, place, w);
    }
}

/* drive: a convolution, pooled, before alpha and bias; and its route. Floats are multiplied for
   several places at a time. */
static inline void binep_convolve(const binep_layer *layer, const float *sent, const uint64_t *bits,
                                  float *drive, int *route, binep_memory *memory)
{
    const binep_conv *conv = &layer->conv;
    const int places = conv->places_down * conv->places_across, window = conv->pool * conv->pool;
    const int lanes = bits ? 1 : BINEP_LANES;
    for (int first = 0; first < places * window; first += lanes) {
        const int seen = places * window - first < lanes ? places * window - first : lanes;
        for (int l = 0; l < seen; l++)
            binep_see(conv, binep_at(conv, (first + l) / window, (first + l) % window), sent, bits, l, memory);
        for (int c = 0; c < layer->up.outputs; c++) {
            float sums[BINEP_LANES] = {0};
            if (bits)
                sums[0] = binep_sum(&layer->up, c, NULL, memory->patch_bits);
            for (int j = 0; !bits && j < layer->up.inputs; j++) {
                const float weight = binep_weight(&layer->up, c, j);
                for (int l = 0; l < BINEP_LANES; l++)
                    sums[l] += weight * memory->patch[j][l];
            }
            for (int l = 0; l < seen; l++)
                binep_pool(conv, (first + l) / window, (first + l) % window, sums[l], drive + c * places,
                           route + c * places);
        }
    }
    for (int i = 0; i < layer->size && !conv->takes_max; i++)
        drive[i] /= (float)window;
}

/* drive: W * what is sent + b, of all neurons of a layer. */
static inline void binep_up(const binep_layer *layer, const float *sent, const uint64_t *bits,
                            float *drive, int *route, binep_memory *memory)
{
    const int places = layer->size / layer->up.outputs;
    if (layer->conv.kernel)
        binep_convolve(layer, sent, bits, drive, route, memory);
    else
        for (int i = 0; i < layer->size; i++)
            drive[i] = binep_sum(&layer->up, i, sent, bits);
    for (int i = 0; i < layer->size; i++)
        drive[i] = drive[i] * binep_alpha(layer, i / places) + layer->bias[i / places];
}

/* memory->kernel: the weights of a channel, place by place, at each those of all channels below. */
static inline void binep_spread(const binep_layer *layer, int channel, binep_memory *memory)
{
    const int area = layer->conv.kernel * layer->conv.kernel, below = layer->conv.channels;
    for (int k = 0; k < below; k++)
        for (int place = 0; place < area; place++)
            memory->kernel[place * below + k] = binep_weight(&layer->up, channel, k * area + place);
}

/* Adds memory->kernel * value to memory->feedback, ordered alike, where a place of the map looks. */
static inline void binep_send(const binep_conv *conv, int at, float value, binep_memory *memory)
{
    const int top = at / conv->map_columns - conv->padding;
    const int left = at % conv->map_columns - conv->padding;
    for (int place = 0; place < conv->kernel * conv->kernel; place++) {
        const int row = top + place / conv->kernel, column = left + place % conv->kernel;
        if (row < 0 || row >= conv->rows || column < 0 || column >= conv->columns)
            continue;
        for (int k = 0; k < conv->channels; k++)
            memory->feedback[(row * conv->columns + column) * conv->channels + k] +=
                memory->kernel[place * conv->channels + k] * value;
    }
}

/* Adds to the drive of the layer below what a convolution sends down: to the places of its maxima,
   or to all places that it averaged. */
static inline void binep_send_maps(const binep_layer *layer, const float *sent, const uint64_t *bits,
                                   const int *route, float *drive, binep_memory *memory)
{
    const binep_conv *conv = &layer->conv;
    const int below = conv->rows * conv->columns;
    const int places = conv->places_down * conv->places_across, window = conv->pool * conv->pool;
    for (int j = 0; j < below * conv->channels; j++)
        memory->feedback[j] = 0;
    for (int i = 0; i < layer->size; i++) {
        const int c = i / places, place = i % places;
        const float value = (bits ? (float)binep_bit(bits, i) : sent[i]) * binep_alpha(layer, c);
        if (!place)
            binep_spread(layer, c, memory);
        if (value == 0)
            continue;
        if (conv->takes_max)
            binep_send(conv, route[i], value, memory);
        for (int w = 0; w < window && !conv->takes_max; w++)
            binep_send(conv, binep_at(conv, place, w), value / (float)window, memory);
    }
    for (int j = 0; j < below; j++)
        for (int k = 0; k < conv->channels; k++)
            drive[k * below + j] += memory->feedback[j * conv->channels + k];
}

/* Adds to the drive of the layer below what a layer sends down: W^T * what it sends. */
static inline void binep_down(const binep_layer *layer, const float *sent, const uint64_t *bits,
                              const int *route, float *drive, binep_memory *memory)
{
    if (layer->conv.kernel)
        binep_send_maps(layer, sent, bits, route, drive, memory);
    else
        for (int j = 0; j < layer->down.outputs; j++)
            drive[j] += binep_sum(&layer->down, j, sent, bits) * layer->scale[0];
}

/* memory->clamped: W_1 * x + b_1. Grey levels times signs are added up plane by plane of bits. */
static inline void binep_clamp(const uint8_t *image, binep_memory *memory)
{
    const binep_layer *first = &binep_layers[0];
    for (int b = 0; b < 8; b++)
        for (int w = 0; w < BINEP_INPUT_WORDS; w++)
            memory->planes[b][w] = 0;
    for (int j = 0; j < BINEP_INPUTS; j++) {
        const int channel = j / (BINEP_INPUTS / BINEP_CHANNELS);
        memory->input[j] = binep_levels[image[j]];
        if (BINEP_NORMALISED)
            memory->input[j] = (memory->input[j] - binep_mean[channel]) / binep_std[channel];
        for (int b = 0; b < 8; b++)
            memory->planes[b][j / 64] |= (uint64_t)((image[j] >> b) & 1) << (j % 64);
    }
    if (first->conv.kernel || !first->up.signs || !BINEP_WHOLE) {
        binep_up(first, memory->input, NULL, memory->clamped, memory->route, memory);
        return;
    }
    for (int i = 0; i < first->size; i++) {
        const uint64_t *signs = first->up.signs + (size_t)i * first->up.words;
        int32_t levels = 0;
        for (int b = 0; b < 8; b++)
            levels += binep_bit_sum(signs, memory->planes[b], first->up.words) * (1 << b);
        memory->clamped[i] = (float)levels * (1.0f / 255.0f) * first->scale[0] + first->bias[i];
    }
}

/* What neurons send: memory->bits, from the threshold on; real neurons send their states. */
static inline void binep_fire(binep_memory *memory)
{
    const float *s = memory->states;
    uint64_t *bits = memory->bits;
    for (int k = 0; k < BINEP_LAYERS; k++) {
        const int size = binep_layers[k].size;
        for (int w = 0; w < (size + 63) / 64; w++)
            bits[w] = 0;
        for (int i = 0; i < size; i++)
            bits[i / 64] |= (uint64_t)(s[i] >= binep_layers[k].threshold) << (i % 64);
        s += size;
        bits += (size + 63) / 64;
    }
}

/* The next state of a neuron from its drive p. */
static inline float binep_update(const binep_layer *layer, float state, float p)
{
    if (layer->binary) {
        const float kept = layer->kept * state, moved = layer->filter * p;
        p = kept + moved;
    }
    return p < 0 ? 0 : p > 1 ? 1 : p;
}

/* memory->next: the drive p of all layers, from the states of all. */
static inline void binep_drive(binep_memory *memory)
{
    const float *below = NULL, *s = memory->states;
    const uint64_t *bits_below = NULL, *bits = memory->bits;
    float *drive = memory->next, *drive_below = NULL;
    int *route = memory->route;
    for (int k = 0; k < BINEP_LAYERS; k++) {
        const binep_layer *layer = &binep_layers[k];
        const uint64_t *sent = layer->binary ? bits : NULL;
        for (int i = 0; i < layer->size && !k; i++)
            drive[i] = memory->clamped[i];
        if (k) {
            binep_up(layer, below, bits_below, drive, route, memory);
            binep_down(layer, s, sent, route, drive_below, memory);
        }
        below = s;
        bits_below = sent;
        drive_below = drive;
        bits += (layer->size + 63) / 64;
        s += layer->size;
        drive += layer->size;
        route += layer->size;
    }
}

/* One time step of all layers at once; whether all has settled. */
static inline int binep_step(binep_memory *memory)
{
    float *s = memory->states;
    const float *p = memory->next;
    int settled = 1;
    binep_fire(memory);
    binep_drive(memory);
    for (int k = 0; k < BINEP_LAYERS; k++)
        for (int i = 0; i < binep_layers[k].size; i++, s++, p++) {
            const float next = binep_update(&binep_layers[k], *s, *p);
            const float change = next < *s ? *s - next : next - *s;
            settled &= change <= binep_layers[k].settled;
            *s = next;
        }
    return settled;
}

/* The class of an image, and a score of each class: the free phase from its start to its end. */
static inline int binep_classify(const uint8_t *image, binep_memory *memory, float *scores)
{
    float *s = memory->states;
    int best = 0;
    for (int k = 0; k < BINEP_LAYERS; k++)
        for (int i = 0; i < binep_layers[k].size; i++)
            *s++ = binep_layers[k].initial;
    binep_clamp(image, memory);
    for (int step = 0; step < BINEP_STEPS; step++)
        if (binep_step(memory) && BINEP_STOPS)
            break;
    s -= binep_layers[BINEP_LAYERS - 1].size; /* the output */
    for (int c = 0; c < BINEP_CLASSES; c++) {
        scores[c] = 0;
        if (BINEP_READOUT) {
            const binep_layer *readout = &binep_layers[BINEP_LAYERS + BINEP_READOUT - 1];
            scores[c] = binep_sum(&readout->up, c, s, NULL) * readout->scale[0] + readout->bias[c];
        } else {
            for (int copy = 0; copy < BINEP_COPIES; copy++)
                scores[c] += s[c * BINEP_COPIES + copy];
            scores[c] /= (float)BINEP_COPIES;
        }
        if (scores[c] > scores[best])
            best = c;
    }
    return best;
}

#endif
