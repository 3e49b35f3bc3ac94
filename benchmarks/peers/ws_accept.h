/* How a server takes a WebSocket handshake (RFC 6455). Knows nothing of sockets. */
#ifndef WS_ACCEPT_H
#define WS_ACCEPT_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

/* SHA-1 (RFC 3174) and base64: what the handshake wants, and nothing else. */
static uint32_t rotate(uint32_t x, int by) { return x << by | x >> (32 - by); }

static void sha1(const uint8_t *text, size_t n, uint8_t out[20]) {
    uint32_t h[5] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0}, w[80];
    uint8_t padded[256] = {0};
    if (n > 180) n = 180;
    memcpy(padded, text, n);
    padded[n] = 0x80;
    const size_t whole = (n + 9 + 63) / 64 * 64;
    for (int i = 0; i < 8; i++) padded[whole - 1 - i] = (uint8_t)((uint64_t)n * 8 >> (8 * i));
    for (size_t at = 0; at < whole; at += 64) {
        for (int i = 0; i < 16; i++) {
            const uint8_t *b = padded + at + 4 * i;
            w[i] = (uint32_t)b[0] << 24 | b[1] << 16 | b[2] << 8 | b[3];
        }
        for (int i = 16; i < 80; i++) w[i] = rotate(w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16], 1);
        uint32_t a = h[0], b = h[1], c = h[2], d = h[3], e = h[4];
        for (int i = 0; i < 80; i++) {
            const uint32_t f = i < 20   ? ((b & c) | (~b & d)) + 0x5a827999
                               : i < 40 ? (b ^ c ^ d) + 0x6ed9eba1
                               : i < 60 ? ((b & c) | (b & d) | (c & d)) + 0x8f1bbcdc
                                        : (b ^ c ^ d) + 0xca62c1d6;
            const uint32_t t = rotate(a, 5) + f + e + w[i];
            e = d, d = c, c = rotate(b, 30), b = a, a = t;
        }
        h[0] += a, h[1] += b, h[2] += c, h[3] += d, h[4] += e;
    }
    for (int i = 0; i < 20; i++) out[i] = (uint8_t)(h[i / 4] >> (24 - 8 * (i % 4)));
}

static void base64(const uint8_t *in, int n, char *out) {
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (int i = 0; i < n; i += 3) {
        const uint32_t three = (uint32_t)in[i] << 16 | (i + 1 < n ? in[i + 1] << 8 : 0) | (i + 2 < n ? in[i + 2] : 0);
        *out++ = letters[three >> 18], *out++ = letters[three >> 12 & 63];
        *out++ = i + 1 < n ? letters[three >> 6 & 63] : '=', *out++ = i + 2 < n ? letters[three & 63] : '=';
    }
    *out = 0;
}

/* The answer to a request whose key follows at `key`; its length, 0 where there is none. */
static int accept_reply(const char *key, char *out, size_t room) {
    char joined[128], accept[40];
    uint8_t digest[20];
    if (sscanf(key, " %80[^\r ]", joined) != 1) return 0;
    strcat(joined, "258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    sha1((uint8_t *)joined, strlen(joined), digest);
    base64(digest, 20, accept);
    return snprintf(out, room,
                    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                    "Sec-WebSocket-Accept: %s\r\n\r\n",
                    accept);
}

#endif
