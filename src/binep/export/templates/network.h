/* @title@

   Written by `binep export --format c`. To be included once; C99, without allocation:

       static binep_memory memory;
       float scores[BINEP_CLASSES];
       int label = binep_classify(image, &memory, scores);

   where image is BINEP_INPUTS bytes, grey levels from 0 to 255. The free phase takes at most
   BINEP_STEPS steps; afterwards memory.states holds the states of all layers, one after the other.
   Bits and signs are multiplied 64 at a time and added up in integers, so that binary neurons go
   through the same states as in binep, to the bit, if the compiler does not fuse products with sums
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
    BINEP_WIDEST = @widest@,
    BINEP_INPUT_WORDS = @input_words@,
    BINEP_STEPS = @steps@,
    BINEP_STOPS = @stops@, /* whether the phase ends once all has settled */
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

/* Synapses, and the neurons that they lead to. */
typedef struct {
    binep_matrix up, down;
    float scale; /* alpha; 1 with real weights */
    const float *bias;
    int binary; /* neurons that fire bits */
    float initial, threshold, filter, kept; /* kept: 1 - filter */
    float settled;                          /* a change up to this has settled */
} binep_layer;

/* What a classification works in. */
typedef struct {
    float states[BINEP_NEURONS], next[BINEP_NEURONS], clamped[BINEP_WIDEST];
    float input[BINEP_INPUTS];
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

/* Sum over j of W_ij * sent_j without alpha; of bits, if they are not NULL. */
static inline float binep_sum(const binep_matrix *m, int i, const float *sent, const uint64_t *bits)
{
    const uint64_t *signs = m->signs ? m->signs + (size_t)i * m->words : NULL;
    float sum = 0;
    if (signs && bits)
        return (float)binep_bit_sum(signs, bits, m->words);
    for (int j = 0; j < m->inputs; j++) {
        float value = bits ? (float)((bits[j / 64] >> (j % 64)) & 1) : sent[j];
        if (signs)
            sum += ((signs[j / 64] >> (j % 64)) & 1) ? value : -value;
        else
            sum += m->weights[(size_t)i * m->row + (size_t)j * m->column] * value;
    }
    return sum;
}

/* memory->clamped: W_1 * x + b_1. Grey levels times signs are added up plane by plane of bits. */
static inline void binep_clamp(const uint8_t *image, binep_memory *memory)
{
    const binep_layer *first = &binep_layers[0];
    const int whole = first->up.signs && !BINEP_NORMALISED;
    for (int b = 0; b < 8; b++)
        for (int w = 0; w < BINEP_INPUT_WORDS; w++)
            memory->planes[b][w] = 0;
    for (int j = 0; j < BINEP_INPUTS; j++) {
        const int channel = j / (BINEP_INPUTS / BINEP_CHANNELS);
        memory->input[j] = (float)image[j] / 255.0f;
        if (BINEP_NORMALISED)
            memory->input[j] = (memory->input[j] - binep_mean[channel]) / binep_std[channel];
        for (int b = 0; b < 8; b++)
            memory->planes[b][j / 64] |= (uint64_t)((image[j] >> b) & 1) << (j % 64);
    }
    for (int i = 0; i < first->up.outputs; i++) {
        float sum;
        if (whole) {
            const uint64_t *signs = first->up.signs + (size_t)i * first->up.words;
            int32_t levels = 0;
            for (int b = 0; b < 8; b++)
                levels += binep_bit_sum(signs, memory->planes[b], first->up.words) * (1 << b);
            sum = (float)levels * (1.0f / 255.0f);
        } else {
            sum = binep_sum(&first->up, i, memory->input, NULL);
        }
        memory->clamped[i] = sum * first->scale + first->bias[i];
    }
}

/* What neurons send: memory->bits, from the threshold on; real neurons send their states. */
static inline void binep_fire(binep_memory *memory)
{
    const float *s = memory->states;
    uint64_t *bits = memory->bits;
    for (int k = 0; k < BINEP_LAYERS; k++) {
        const int size = binep_layers[k].up.outputs;
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

/* One time step of all layers at once; whether all has settled. */
static inline int binep_step(binep_memory *memory)
{
    const float *below = NULL, *s = memory->states;
    const uint64_t *bits_below = NULL, *bits = memory->bits;
    float *next = memory->next;
    int settled = 1;
    binep_fire(memory);
    for (int k = 0; k < BINEP_LAYERS; k++) {
        const binep_layer *layer = &binep_layers[k];
        const int size = layer->up.outputs;
        const float *above = s + size;
        const uint64_t *bits_above = bits + (size + 63) / 64;
        for (int i = 0; i < size; i++) {
            float p = k ? binep_sum(&layer->up, i, below, bits_below) * layer->scale + layer->bias[i]
                        : memory->clamped[i];
            if (k + 1 < BINEP_LAYERS) {
                const binep_layer *high = layer + 1;
                p += binep_sum(&high->down, i, above, high->binary ? bits_above : NULL) * high->scale;
            }
            next[i] = binep_update(layer, s[i], p);
            const float change = next[i] < s[i] ? s[i] - next[i] : next[i] - s[i];
            settled &= change <= layer->settled;
        }
        below = s;
        bits_below = layer->binary ? bits : NULL;
        s = above;
        bits = bits_above;
        next += size;
    }
    for (int i = 0; i < BINEP_NEURONS; i++)
        memory->states[i] = memory->next[i];
    return settled;
}

/* The class of an image, and a score of each class: the free phase from its start to its end. */
static inline int binep_classify(const uint8_t *image, binep_memory *memory, float *scores)
{
    float *s = memory->states;
    int best = 0;
    for (int k = 0; k < BINEP_LAYERS; k++)
        for (int i = 0; i < binep_layers[k].up.outputs; i++)
            *s++ = binep_layers[k].initial;
    binep_clamp(image, memory);
    for (int step = 0; step < BINEP_STEPS; step++)
        if (binep_step(memory) && BINEP_STOPS)
            break;
    s -= binep_layers[BINEP_LAYERS - 1].up.outputs; /* the output */
    for (int c = 0; c < BINEP_CLASSES; c++) {
        scores[c] = 0;
        for (int copy = 0; copy < BINEP_COPIES; copy++)
            scores[c] += s[c * BINEP_COPIES + copy];
        scores[c] /= (float)BINEP_COPIES;
        if (BINEP_READOUT) {
            const binep_layer *readout = &binep_layers[BINEP_LAYERS + BINEP_READOUT - 1];
            scores[c] = binep_sum(&readout->up, c, s, NULL) * readout->scale + readout->bias[c];
        }
        if (scores[c] > scores[best])
            best = c;
    }
    return best;
}

#endif
