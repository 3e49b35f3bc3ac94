/* What both ends of a benchmark's calls share: clocks, counts of lateness, WebSocket and protobuf framing.
 * Knows nothing of sockets. */
#ifndef AGENT_WIRE_H
#define AGENT_WIRE_H

#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define RATE 16000
#define CHUNK_SAMPLES 320
#define CHUNK_BYTES (2 * CHUNK_SAMPLES)
#define CHUNK_NS 20000000LL
#define SAMPLE_NS 62500LL
#define LOUD 500 /* |sample| from which it is a voice: -36 dBFS; made voices are silent or far louder */

static inline int64_t clock_ns(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static inline int64_t monotonic_ns(void) { return clock_ns(CLOCK_MONOTONIC); }

/* ---- how late, counted to the microsecond ---- */

#define LATE_BUCKETS 200000
struct lateness {
    uint32_t counts[LATE_BUCKETS];
    uint64_t n;
    int64_t max_ns;
};

static inline void late_add(struct lateness *late, int64_t ns) {
    int64_t us = ns < 0 ? 0 : ns / 1000;
    late->counts[us < LATE_BUCKETS ? us : LATE_BUCKETS - 1]++;
    if (!late->n++ || ns > late->max_ns) late->max_ns = ns;
}

static inline double late_quantile_ms(const struct lateness *late, double share) {
    uint64_t wanted = (uint64_t)(share * (double)late->n), seen = 0;
    for (int us = 0; us < LATE_BUCKETS; us++) {
        seen += late->counts[us];
        if (seen > wanted) return us / 1000.0;
    }
    return late->n ? late->max_ns / 1e6 : 0.0;
}

/* {"n": .., "p50": .., ..}, milliseconds; null where nothing was counted. */
static inline int late_json(char *out, size_t room, const struct lateness *late) {
    if (!late->n) return snprintf(out, room, "null");
    return snprintf(out, room, "{\"n\": %llu, \"p50\": %.3f, \"p99\": %.3f, \"p999\": %.3f, \"max\": %.3f}",
                    (unsigned long long)late->n, late_quantile_ms(late, 0.5), late_quantile_ms(late, 0.99),
                    late_quantile_ms(late, 0.999), late->max_ns / 1e6);
}

/* ---- protobuf: pipecat.Frame{audio = 2: AudioRawFrame{id = 1, audio = 3, sample_rate = 4, num_channels = 5}} ---- */

static inline int put_varint(uint8_t *out, uint64_t value) {
    int n = 0;
    while (value >= 128) out[n++] = (uint8_t)(value | 128), value >>= 7;
    out[n++] = (uint8_t)value;
    return n;
}

static inline int get_varint(const uint8_t *at, const uint8_t *end, uint64_t *value) {
    *value = 0;
    for (int n = 0; n < 10 && at + n < end; n++) {
        *value |= (uint64_t)(at[n] & 127) << (7 * n);
        if (!(at[n] & 128)) return n + 1;
    }
    return 0;
}

/* A chunk as a protobuf message; its length. `out` has room for CHUNK_BYTES + 64. */
static inline int put_audio(uint8_t *out, uint64_t id, const int16_t *samples) {
    uint8_t head[24];
    int n = 0;
    head[n++] = 0x08;
    n += put_varint(head + n, id);
    head[n++] = 0x1a;
    n += put_varint(head + n, CHUNK_BYTES);
    static const uint8_t tail[] = {0x20, 0x80, 0x7d, 0x28, 0x01}; /* 16000 Hz, one channel */
    int at = 0;
    out[at++] = 0x12;
    at += put_varint(out + at, n + CHUNK_BYTES + sizeof tail);
    memcpy(out + at, head, n);
    memcpy(out + at + n, samples, CHUNK_BYTES);
    memcpy(out + at + n + CHUNK_BYTES, tail, sizeof tail);
    return at + n + CHUNK_BYTES + (int)sizeof tail;
}

/* Where the audio lies in an unmasked message; NULL for any other message. */
static inline const uint8_t *get_audio(const uint8_t *at, const uint8_t *end, uint64_t *length) {
    uint64_t tag, size;
    int n = get_varint(at, end, &tag);
    if (!n || tag != 0x12) return NULL;
    at += n;
    if (!(n = get_varint(at, end, &size)) || size > (uint64_t)(end - at - n)) return NULL;
    at += n;
    end = at + size;
    while (at < end) {
        if (!(n = get_varint(at, end, &tag))) return NULL;
        at += n;
        if (!(n = get_varint(at, end, &size))) return NULL;
        at += n;
        if ((tag & 7) == 0) continue;
        if ((tag & 7) != 2 || size > (uint64_t)(end - at)) return NULL;
        if (tag >> 3 == 3) {
            *length = size;
            return at;
        }
        at += size;
    }
    return NULL;
}

/* One past the last sample that is loud; 0 where all are quiet. The bytes need not be aligned. */
static inline int loud_until(const uint8_t *pcm, int samples) {
    for (int i = samples; i > 0; i--) {
        int16_t sample;
        memcpy(&sample, pcm + 2 * (i - 1), 2);
        if (sample >= LOUD || sample <= -LOUD) return i;
    }
    return 0;
}

/* ---- WebSocket ---- */

struct ws_message {
    int opcode;
    int fin;
    uint8_t *payload;
    uint64_t length;
    uint64_t whole; /* header included */
};

/* The next message at `at`, unmasked in place; 0 where more bytes are needed. */
static inline int ws_next(uint8_t *at, uint64_t have, struct ws_message *message) {
    if (have < 2) return 0;
    uint64_t length = at[1] & 127, head = 2;
    if (length == 126) {
        if (have < 4) return 0;
        length = (uint64_t)at[2] << 8 | at[3], head = 4;
    } else if (length == 127) {
        if (have < 10) return 0;
        length = 0, head = 10;
        for (int i = 0; i < 8; i++) length = length << 8 | at[2 + i];
    }
    const int masked = at[1] >> 7;
    if (have < head + 4 * masked || have - head - 4 * masked < length) return 0;
    uint8_t key[4] = {0, 0, 0, 0};
    if (masked) memcpy(key, at + head, 4), head += 4;
    message->opcode = at[0] & 15, message->fin = at[0] >> 7;
    message->payload = at + head, message->length = length, message->whole = head + length;
    if (key[0] | key[1] | key[2] | key[3])
        for (uint64_t i = 0; i < length; i++) message->payload[i] ^= key[i & 3];
    return 1;
}

/* The header of a binary message to a client (mask NULL) or from one; its length. */
static inline int ws_head(uint8_t *out, int opcode, uint64_t length, const uint8_t *mask) {
    int n = 0;
    out[n++] = (uint8_t)(0x80 | opcode);
    const uint8_t bit = mask ? 0x80 : 0;
    if (length < 126) {
        out[n++] = (uint8_t)(bit | length);
    } else {
        out[n++] = bit | 126, out[n++] = (uint8_t)(length >> 8), out[n++] = (uint8_t)length;
    }
    if (mask) memcpy(out + n, mask, 4), n += 4;
    return n;
}

#endif
