/* A voice agent that costs little and tells the truth about itself: the peer of the conversation benchmarks.
 *
 *     agent_peer --answer VOICE.s16 [--port N] [--trace FILE] ...        prints one line with its address
 *
 * One thread, one epoll, slots of --slot-us (250). It accepts WebSocket calls at any path (the last part is the stream's id),
 * plain or TLS on the same port, and sends a 20 ms chunk of audio (pipecat protobuf, 16 kHz) each 20 ms on an absolute
 * clock a call; calls are spread over the slots. It hears the user by level, takes --hangover-ms of quiet as the end of
 * a turn, and answers --reply-ms later with VOICE. GET /figures, GET /forget: as paced_server.py.
 *
 * The truth, a JSON line a turn in --trace; instants are CLOCK_MONOTONIC nanoseconds:
 *     user_recv_ns    the chunk with the user's last voiced sample came: the kernel's receive stamp, converted
 *     user_read_ns    the same by this process, right after its read
 *     user_end        one past that sample, in samples from the chunk's beginning; user_chunk: samples in that chunk
 *     onset_write_ns  just before the write of the chunk with the agent's first voiced sample; onset_wrote_ns: after
 *     onset_at        that sample, in samples from the chunk's beginning: drawn anew for each answer
 *     onset_late_us   how late that chunk was written; late_before_us: the up to 50 before it, oldest first;
 *     latest_before_us  the latest of all of this call's before it
 *     latest_us       of the answer's own chunks the latest, of those after an injected stall where there is one
 *     stall_*_ns      the last write before an injected stall, the first after it; 0 where there was none
 * --receipts FILE: of the first --receipts-calls calls each chunk heard, as int64 triples: the call's number from 1,
 * media nanoseconds received so far, the receive stamp.
 * A chunk leaves the mouth's owner when it has been spoken, so the last voiced sample was spoken at
 *     user_recv_ns - (user_chunk - user_end) / rate      and the agent's first is heard at onset_write_ns + onset_at / rate
 * (prebuffer 0): the true floor transfer offset is the second less the first. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "agent_wire.h"
#include "ws_accept.h"

#ifdef WITH_TLS
#include <openssl/err.h>
#include <openssl/ssl.h>
#endif

#define MOST_CALLS 8192
#define READ_ROOM (1 << 18)
#define BEFORE 50
#define REST_ROOM (1 << 18)

enum state { FREE, OPENING, CALL };

struct turn {
    int64_t user_recv_ns, user_read_ns;
    int user_end, user_chunk;
    int64_t onset_write_ns, onset_wrote_ns, onset_late_ns;
    int onset_at, last_at;
    int64_t last_write_ns;
    int stalled;
    int64_t stall_before_ns, stall_after_ns;
    int before;
    int64_t latest_before_ns, latest_ns;
    int32_t late_before_us[BEFORE];
};

struct call {
    enum state state;
    int fd;
    uint32_t generation;
    char stream[80];
    uint8_t *kept; /* bytes of a message not yet whole */
    uint64_t kept_bytes;
    uint8_t *rest; /* bytes the kernel did not take */
    uint64_t rest_bytes;
    /* what is heard */
    int64_t spoken_ns;     /* media time received */
    int64_t earliest_ns;   /* min over chunks of (received - its media time): this client's clock at its best */
    int user_spoke;        /* since the last answer */
    int64_t quiet_samples; /* since the last loud chunk */
    int64_t receipts;      /* this call's are written down, under this number; 0: they are not */
    /* what is said */
    int64_t due_ns, reply_ns;
    uint64_t sent;
    int answering, answer_at; /* chunk of the answer */
    uint32_t turns;
    int32_t late_us[64];
    int64_t latest_ns; /* the worst so far */
    struct turn turn;
#ifdef WITH_TLS
    SSL *ssl;
#endif
};

static struct {
    int port, slot_us, always, reply_ms, hangover_ms, stall_ms, receipts_calls;
    double stall_after_s, stall_share;
    const char *answer, *trace, *receipts, *cert, *key;
} asked = {.slot_us = 250, .always = 1, .reply_ms = 200, .hangover_ms = 300, .stall_after_s = 1.0, .receipts_calls = 1};

static struct call calls[MOST_CALLS];
static uint32_t opened, open_calls;
static int epoll_fd, listening;
static int16_t *voice; /* CHUNK_SAMPLES of silence, the answer, 2 * CHUNK_SAMPLES of silence */
static int voice_samples;
static FILE *trace, *receipts;
static uint8_t reading[READ_ROOM + 1];
#ifdef WITH_TLS
static uint8_t raw[READ_ROOM];
static SSL_CTX *tls;
#endif
static int64_t slot_ns, wall_minus_monotonic_ns;
static volatile sig_atomic_t ending;
static uint64_t dice = 88172645463325252ULL;

/* since GET /forget */
static struct lateness written_late, heard_late;
static uint64_t chunks_sent, chunks_heard, skipped, answers, talked_over, cut_calls;
static int64_t forgot_ns, forgot_cpu_ns;

static uint64_t roll(void) { return dice ^= dice << 13, dice ^= dice >> 7, dice ^= dice << 17; }

static int64_t cpu_ns(void) { return clock_ns(CLOCK_PROCESS_CPUTIME_ID); }

/* ---- who is due next: a binary heap ---- */

struct due {
    int64_t at_ns;
    uint32_t call, generation;
};
static struct due heap[2 * MOST_CALLS];
static int heap_size;

static void heap_push(struct due due) {
    if (heap_size == 2 * MOST_CALLS) abort();
    int at = heap_size++;
    while (at && heap[(at - 1) / 2].at_ns > due.at_ns) heap[at] = heap[(at - 1) / 2], at = (at - 1) / 2;
    heap[at] = due;
}

static struct due heap_pop(void) {
    struct due first = heap[0], last = heap[--heap_size];
    int at = 0;
    for (int child; (child = 2 * at + 1) < heap_size; at = child) {
        if (child + 1 < heap_size && heap[child + 1].at_ns < heap[child].at_ns) child++;
        if (heap[child].at_ns >= last.at_ns) break;
        heap[at] = heap[child];
    }
    heap[at] = last;
    return first;
}

static void schedule(struct call *call) {
    heap_push((struct due){call->due_ns, (uint32_t)(call - calls), call->generation});
}

/* ---- bytes out ---- */

static void hang_up(struct call *call) {
    if (call->state == FREE) return;
    if (call->state == CALL) open_calls--, cut_calls += call->answering;
#ifdef WITH_TLS
    if (call->ssl) SSL_free(call->ssl), call->ssl = NULL;
#endif
    free(call->kept), free(call->rest);
    close(call->fd);
    call->kept = call->rest = NULL;
    call->kept_bytes = call->rest_bytes = 0;
    call->state = FREE;
    call->generation++;
}

/* 1: all went out or is kept for later; 0: the client does not read, nothing of this was taken. */
static int put_raw(struct call *call, const uint8_t *bytes, uint64_t n) {
    if (call->rest_bytes) {
        ssize_t took = send(call->fd, call->rest, call->rest_bytes, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (took > 0) memmove(call->rest, call->rest + took, call->rest_bytes -= took);
        if (call->rest_bytes + n > REST_ROOM) return 0;
    }
    ssize_t took = call->rest_bytes ? 0 : send(call->fd, bytes, n, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (took < 0) took = 0; /* a dead connection is noticed when it is read */
    if ((uint64_t)took == n) return 1;
    if (!call->rest && !(call->rest = malloc(REST_ROOM))) abort();
    memcpy(call->rest + call->rest_bytes, bytes + took, n - took);
    call->rest_bytes += n - took;
    return 1;
}

static int put(struct call *call, const uint8_t *bytes, int n) {
#ifdef WITH_TLS
    if (call->ssl) {
        if (call->rest_bytes > REST_ROOM / 2) return 0; /* once encrypted it has to be sent */
        if (n && SSL_write(call->ssl, bytes, n) <= 0) return 0;
        static uint8_t sealed[1 << 17];
        int ready = BIO_read(SSL_get_wbio(call->ssl), sealed, sizeof sealed);
        return ready <= 0 ? 1 : put_raw(call, sealed, ready);
    }
#endif
    return put_raw(call, bytes, n);
}

/* ---- a chunk ---- */

static void note_turn(struct call *call) {
    const struct turn *turn = &call->turn;
    if (!trace) return;
    fprintf(trace,
            "{\"stream\": \"%s\", \"turn\": %u, \"user_recv_ns\": %lld, \"user_read_ns\": %lld, \"user_end\": %d, "
            "\"user_chunk\": %d, \"onset_write_ns\": %lld, \"onset_wrote_ns\": %lld, \"onset_at\": %d, "
            "\"onset_late_us\": %lld, \"answer_samples\": %d, \"last_write_ns\": %lld, \"last_at\": %d, "
            "\"latest_before_us\": %lld, \"latest_us\": %lld, \"stall_ms\": %d, \"stalled\": %d, "
            "\"stall_before_ns\": %lld, \"stall_after_ns\": %lld, \"late_before_us\": [",
            call->stream, call->turns, (long long)turn->user_recv_ns, (long long)turn->user_read_ns, turn->user_end,
            turn->user_chunk, (long long)turn->onset_write_ns, (long long)turn->onset_wrote_ns, turn->onset_at,
            (long long)(turn->onset_late_ns / 1000), voice_samples, (long long)turn->last_write_ns, turn->last_at,
            (long long)(turn->latest_before_ns / 1000), (long long)(turn->latest_ns / 1000), asked.stall_ms,
            turn->stalled, (long long)turn->stall_before_ns, (long long)turn->stall_after_ns);
    for (int i = 0; i < turn->before; i++) fprintf(trace, "%s%d", i ? ", " : "", turn->late_before_us[i]);
    fputs("]}\n", trace);
}

static void begin_answer(struct call *call) {
    struct turn *turn = &call->turn;
    call->answering = 1, call->answer_at = 0, call->reply_ns = 0;
    turn->onset_at = (int)(roll() % CHUNK_SAMPLES);
    turn->stalled = asked.stall_ms > 0 && (double)(roll() >> 11) / (double)(1ULL << 53) < asked.stall_share;
    turn->stall_before_ns = turn->stall_after_ns = turn->last_write_ns = 0;
    turn->latest_before_ns = call->latest_ns;
    turn->before = call->sent < BEFORE ? (int)call->sent : BEFORE;
    for (int i = 0; i < turn->before; i++) turn->late_before_us[i] = call->late_us[(call->sent - turn->before + i) & 63];
    answers++;
}

static void say(struct call *call) {
    static const int16_t silence[CHUNK_SAMPLES];
    struct turn *turn = &call->turn;
    if (call->reply_ns && !call->answering && call->due_ns >= call->reply_ns) begin_answer(call);
    const int first = call->answering && call->answer_at == 0;
    const int stall_at = (int)(asked.stall_after_s * RATE) / CHUNK_SAMPLES;
    if (call->answering && turn->stalled && !turn->stall_before_ns && call->answer_at == stall_at) {
        turn->stall_before_ns = turn->last_write_ns;
        call->due_ns += asked.stall_ms * 1000000LL; /* the stream goes on later by as much: nothing is caught up */
        schedule(call);
        return;
    }
    if (call->answering || asked.always) {
        const int16_t *samples = silence;
        if (call->answering) samples = voice + CHUNK_SAMPLES - turn->onset_at + call->answer_at * CHUNK_SAMPLES;
        uint8_t out[CHUNK_BYTES + 80], body[CHUNK_BYTES + 64];
        const int length = put_audio(body, call->sent, samples);
        const int head = ws_head(out, 2, length, NULL);
        memcpy(out + head, body, length);
        const int64_t before_ns = monotonic_ns();
        if (!put(call, out, head + length)) skipped++;
        const int64_t late_ns = before_ns - call->due_ns;
        if (first) turn->onset_write_ns = before_ns, turn->onset_wrote_ns = monotonic_ns(), turn->onset_late_ns = late_ns;
        if (call->answering) {
            const int after = turn->stall_before_ns && !turn->stall_after_ns;
            if (after) turn->stall_after_ns = before_ns;
            turn->last_write_ns = before_ns;
            if (first || after || late_ns > turn->latest_ns) turn->latest_ns = late_ns;
        }
        late_add(&written_late, late_ns);
        if (late_ns > call->latest_ns) call->latest_ns = late_ns;
        call->late_us[call->sent & 63] = (int32_t)(late_ns / 1000);
        call->sent++, chunks_sent++;
    }
    if (call->answering && ++call->answer_at * CHUNK_SAMPLES >= turn->onset_at + voice_samples) {
        turn->last_at = (turn->onset_at + voice_samples - 1) % CHUNK_SAMPLES;
        note_turn(call);
        call->answering = 0, call->turns++;
    }
    call->due_ns += CHUNK_NS;
    schedule(call);
}

/* ---- what comes in ---- */

static void hear(struct call *call, const uint8_t *pcm, int samples, int64_t recv_ns, int64_t read_ns) {
    chunks_heard++;
    call->spoken_ns += samples * SAMPLE_NS;
    const int64_t began_ns = recv_ns - call->spoken_ns;
    if (!call->earliest_ns || began_ns < call->earliest_ns) call->earliest_ns = began_ns;
    /* A second to find the client's clock, then: how much later than at its best. */
    if (call->spoken_ns > 1000000000LL) late_add(&heard_late, began_ns - call->earliest_ns);
    if (call->receipts) {
        const int64_t note[3] = {call->receipts, call->spoken_ns, recv_ns};
        fwrite(note, sizeof note, 1, receipts);
    }
    const int end = loud_until(pcm, samples);
    if (end) {
        if (call->answering) {
            talked_over++;
            return;
        }
        call->user_spoke = 1, call->quiet_samples = 0, call->reply_ns = 0;
        call->turn.user_recv_ns = recv_ns, call->turn.user_read_ns = read_ns;
        call->turn.user_end = end, call->turn.user_chunk = samples;
        return;
    }
    call->quiet_samples += samples;
    if (call->user_spoke && call->quiet_samples * 1000 >= (int64_t)asked.hangover_ms * RATE)
        call->user_spoke = 0, call->reply_ns = read_ns + asked.reply_ms * 1000000LL;
}

static void answer_figures(struct call *call, int forget) {
    static char body[4096], late[256], heard[256];
    late_json(late, sizeof late, &written_late);
    late_json(heard, sizeof heard, &heard_late);
    const int64_t now_ns = monotonic_ns(), spent_ns = cpu_ns();
    int n = snprintf(body, sizeof body,
                     "{\"calls\": %u, \"seconds\": %.3f, \"cpu_share\": %.4f, \"chunks_sent\": %llu, "
                     "\"chunks_heard\": %llu, \"skipped\": %llu, \"answers\": %llu, \"talked_over\": %llu, "
                     "\"cut_answers\": %llu, \"written_late_ms\": %s, \"heard_late_ms\": %s}",
                     open_calls, (now_ns - forgot_ns) / 1e9, (double)(spent_ns - forgot_cpu_ns) / (now_ns - forgot_ns),
                     (unsigned long long)chunks_sent, (unsigned long long)chunks_heard, (unsigned long long)skipped,
                     (unsigned long long)answers, (unsigned long long)talked_over, (unsigned long long)cut_calls, late,
                     heard);
    if (forget) {
        memset(&written_late, 0, sizeof written_late), memset(&heard_late, 0, sizeof heard_late);
        chunks_sent = chunks_heard = skipped = answers = talked_over = cut_calls = 0;
        forgot_ns = now_ns, forgot_cpu_ns = spent_ns;
    }
    if (trace) fflush(trace);
    if (receipts) fflush(receipts);
    char head[160];
    int h = snprintf(head, sizeof head,
                     "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n", n);
    put(call, (uint8_t *)head, h);
    put(call, (uint8_t *)body, n);
}

/* The request, once it is whole; how many bytes it took, 0 for more needed, -1 to hang up. */
static int64_t open_call(struct call *call, uint8_t *bytes, uint64_t n) {
    bytes[n] = 0;
    char *text = (char *)bytes, *end = strstr(text, "\r\n\r\n"), *key = strcasestr(text, "sec-websocket-key:");
    if (!end) return n > 16384 ? -1 : 0;
    if (!key || key > end) {
        answer_figures(call, !strncmp(text, "GET /forget", 11));
        return -1;
    }
    char out[256];
    const int length = accept_reply(key + 18, out, sizeof out);
    if (!length) return -1;
    char path[1024] = "";
    sscanf(text, "GET %1000[^ ?\r]", path);
    const char *last = strrchr(path, '/');
    int at = 0;
    for (const char *c = last ? last + 1 : path; *c && at < (int)sizeof call->stream - 1; c++)
        if (*c != '"' && *c != '\\' && *c > 32) call->stream[at++] = *c;
    call->stream[at] = 0;
    put(call, (uint8_t *)out, length);
    call->state = CALL;
    open_calls++;
    call->receipts = receipts && (int)opened < asked.receipts_calls ? opened + 1 : 0;
    const int64_t slots = CHUNK_NS / slot_ns, slot = opened++ * 49 % slots; /* 49 = 7 * 7: neighbours are far apart */
    call->due_ns = (monotonic_ns() / CHUNK_NS + 2) * CHUNK_NS + slot * slot_ns;
    schedule(call);
    return end + 4 - text;
}

/* Plain bytes of a call, in `reading`. Returns 0 where the call is over. */
static int take(struct call *call, uint64_t n, int64_t recv_ns, int64_t read_ns) {
    uint64_t at = 0;
    if (call->state == OPENING) {
        int64_t used = open_call(call, reading, n);
        if (used < 0) return 0;
        at = (uint64_t)used;
    }
    struct ws_message message;
    while (call->state == CALL && ws_next(reading + at, n - at, &message)) {
        at += message.whole;
        if (message.opcode == 8) {
            uint8_t out[140];
            const int body = message.length > 125 ? 0 : (int)message.length, head = ws_head(out, 8, body, NULL);
            memcpy(out + head, message.payload, body);
            put(call, out, head + body);
            return 0;
        }
        if (message.opcode == 9 && message.length < 126) {
            uint8_t out[140];
            const int head = ws_head(out, 10, message.length, NULL);
            memcpy(out + head, message.payload, message.length);
            put(call, out, head + (int)message.length);
        }
        uint64_t size;
        const uint8_t *pcm = message.opcode == 2 ? get_audio(message.payload, message.payload + message.length, &size) : NULL;
        if (pcm) hear(call, pcm, (int)(size / 2), recv_ns, read_ns);
    }
    call->kept_bytes = n - at;
    if (call->kept_bytes) {
        uint8_t *kept = realloc(call->kept, call->kept_bytes);
        if (!kept) abort();
        memcpy(kept, reading + at, call->kept_bytes);
        call->kept = kept;
    }
    return 1;
}

static void read_call(struct call *call) {
    const uint64_t kept = call->kept_bytes;
    if (kept >= READ_ROOM / 2) {
        hang_up(call);
        return;
    }
#ifdef WITH_TLS
    uint8_t *into = call->ssl ? raw : reading + kept;
#else
    uint8_t *into = reading + kept;
#endif
    char control[128];
    struct iovec room = {into, READ_ROOM - kept};
    struct msghdr message = {.msg_iov = &room, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    ssize_t n = recvmsg(call->fd, &message, MSG_DONTWAIT);
    const int64_t read_ns = monotonic_ns();
    if (n <= 0) {
        if (n == 0 || (errno != EAGAIN && errno != EINTR)) hang_up(call);
        return;
    }
    int64_t recv_ns = read_ns;
    for (struct cmsghdr *note = CMSG_FIRSTHDR(&message); note; note = CMSG_NXTHDR(&message, note))
        if (note->cmsg_level == SOL_SOCKET && note->cmsg_type == SO_TIMESTAMPNS) {
            struct timespec stamp;
            memcpy(&stamp, CMSG_DATA(note), sizeof stamp);
            recv_ns = stamp.tv_sec * 1000000000LL + stamp.tv_nsec - wall_minus_monotonic_ns;
        }
#ifdef WITH_TLS
    if (tls && call->state == OPENING && !call->ssl && into[0] == 0x16) { /* a TLS hello: HTTP begins with a letter */
        call->ssl = SSL_new(tls);
        SSL_set_bio(call->ssl, BIO_new(BIO_s_mem()), BIO_new(BIO_s_mem()));
        SSL_set_accept_state(call->ssl);
        memmove(raw, into, n);
    }
    if (call->ssl) {
        BIO_write(SSL_get_rbio(call->ssl), raw, (int)n);
        memcpy(reading, call->kept, kept);
        uint64_t have = kept;
        int got;
        while (have < READ_ROOM && (got = SSL_read(call->ssl, reading + have, (int)(READ_ROOM - have))) > 0) have += got;
        const int failed = have == kept && SSL_get_error(call->ssl, got) != SSL_ERROR_WANT_READ;
        put(call, NULL, 0); /* the handshake's own bytes */
        ERR_clear_error();
        if (failed || (have > kept && !take(call, have, recv_ns, read_ns))) hang_up(call);
        return;
    }
#endif
    if (kept) memcpy(reading, call->kept, kept);
    if (!take(call, kept + n, recv_ns, read_ns)) hang_up(call);
}

static void accept_calls(void) {
    static const int one = 1;
    for (int fd; (fd = accept4(listening, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0;) {
        if (fd >= MOST_CALLS) {
            close(fd);
            continue;
        }
        struct call *call = &calls[fd];
        const uint32_t generation = call->generation;
        memset(call, 0, sizeof *call);
        call->generation = generation, call->fd = fd, call->state = OPENING;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &one, sizeof one);
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
    }
}

/* ---- the loop ---- */

static void anchor_clocks(void) {
    int64_t best_ns = INT64_MAX;
    for (int i = 0; i < 3; i++) {
        const int64_t before_ns = monotonic_ns(), wall_ns = clock_ns(CLOCK_REALTIME), after_ns = monotonic_ns();
        if (after_ns - before_ns < best_ns)
            best_ns = after_ns - before_ns, wall_minus_monotonic_ns = wall_ns - (before_ns + after_ns) / 2;
    }
}

static void serve(void) {
    static struct epoll_event events[1024];
    while (!ending) {
        int wait_ms = 20;
        if (heap_size) {
            /* Sleep to the next slot and take all that came meanwhile: the kernel has stamped it. */
            const int64_t wake_ns = (monotonic_ns() / slot_ns + 1) * slot_ns;
            const struct timespec wake = {wake_ns / 1000000000, wake_ns % 1000000000};
            clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &wake, NULL);
            wait_ms = 0;
        }
        while (heap_size && heap[0].at_ns <= monotonic_ns()) {
            const struct due due = heap_pop();
            struct call *call = &calls[due.call];
            if (call->state == CALL && call->generation == due.generation) say(call);
        }
        anchor_clocks();
        const int n = epoll_wait(epoll_fd, events, 1024, wait_ms);
        for (int i = 0; i < n; i++) {
            if (events[i].data.fd == listening)
                accept_calls();
            else if (calls[events[i].data.fd].state != FREE)
                read_call(&calls[events[i].data.fd]);
        }
    }
}

static void fail(const char *why, const char *what) {
    fprintf(stderr, "agent_peer: %s: %s\n", why, what);
    exit(2);
}

static void load_answer(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) fail(path, strerror(errno));
    fseek(file, 0, SEEK_END);
    voice_samples = (int)(ftell(file) / 2);
    rewind(file);
    voice = calloc(voice_samples + 3 * CHUNK_SAMPLES, 2);
    if (!voice_samples || fread(voice + CHUNK_SAMPLES, 2, voice_samples, file) != (size_t)voice_samples)
        fail(path, "cannot be read");
    fclose(file);
}

static FILE *open_log(const char *path) {
    FILE *file = fopen(path, "wb");
    if (!file) fail(path, strerror(errno));
    setvbuf(file, NULL, _IOFBF, 32 << 20); /* the disk is for quiet moments */
    return file;
}

static void on_signal(int number) {
    (void)number;
    ending = 1;
}

int main(int count, char **words) {
    static const struct option known[] = {
        {"port", 1, 0, 'p'},        {"answer", 1, 0, 'a'},      {"reply-ms", 1, 0, 'r'},    {"hangover-ms", 1, 0, 'h'},
        {"trace", 1, 0, 't'},       {"stall-ms", 1, 0, 's'},    {"stall-after-s", 1, 0, 'f'}, {"stall-share", 1, 0, 'q'},
        {"receipts", 1, 0, 'e'},    {"receipts-calls", 1, 0, 'n'}, {"cert", 1, 0, 'c'},     {"key", 1, 0, 'k'},
        {"only-answers", 0, 0, 'o'}, {"seed", 1, 0, 'd'},       {"slot-us", 1, 0, 'u'},     {0, 0, 0, 0}};
    for (int letter; (letter = getopt_long(count, words, "", known, NULL)) != -1;) switch (letter) {
            case 'p': asked.port = atoi(optarg); break;
            case 'a': asked.answer = optarg; break;
            case 'r': asked.reply_ms = atoi(optarg); break;
            case 'h': asked.hangover_ms = atoi(optarg); break;
            case 't': asked.trace = optarg; break;
            case 's': asked.stall_ms = atoi(optarg); break;
            case 'f': asked.stall_after_s = atof(optarg); break;
            case 'q': asked.stall_share = atof(optarg); break;
            case 'e': asked.receipts = optarg; break;
            case 'n': asked.receipts_calls = atoi(optarg); break;
            case 'c': asked.cert = optarg; break;
            case 'k': asked.key = optarg; break;
            case 'o': asked.always = 0; break;
            case 'd': dice ^= strtoull(optarg, NULL, 10) * 0x9e3779b97f4a7c15ULL; break;
            case 'u': asked.slot_us = atoi(optarg); break;
            default: return 2;
        }
    slot_ns = asked.slot_us * 1000LL;
    if (slot_ns <= 0 || CHUNK_NS % slot_ns) fail("--slot-us", "20 ms is to be a multiple of it");
    if (!asked.answer) fail("--answer", "needed: a file of 16 kHz s16 mono samples, loud at both ends");
    load_answer(asked.answer);
    if (asked.trace) trace = open_log(asked.trace);
    if (asked.receipts) receipts = open_log(asked.receipts);
    if (asked.cert) {
#ifdef WITH_TLS
        tls = SSL_CTX_new(TLS_server_method());
        if (SSL_CTX_use_certificate_chain_file(tls, asked.cert) != 1 ||
            SSL_CTX_use_PrivateKey_file(tls, asked.key, SSL_FILETYPE_PEM) != 1)
            fail(asked.cert, "no certificate and key that fit");
#else
        fail("--cert", "made without TLS");
#endif
    }
    struct sigaction act = {.sa_handler = on_signal};
    sigaction(SIGTERM, &act, NULL), sigaction(SIGINT, &act, NULL);
    const struct rlimit files = {MOST_CALLS, MOST_CALLS};
    setrlimit(RLIMIT_NOFILE, &files);
    prctl(PR_SET_TIMERSLACK, 1000UL);
    listening = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    static const int one = 1;
    setsockopt(listening, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)asked.port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    if (bind(listening, (struct sockaddr *)&address, size) || listen(listening, 4096)) fail("listen", strerror(errno));
    getsockname(listening, (struct sockaddr *)&address, &size);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listening};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listening, &event);
    forgot_ns = monotonic_ns(), forgot_cpu_ns = cpu_ns();
    printf("agent_peer: ready on http://127.0.0.1:%d\n", ntohs(address.sin_port));
    fflush(stdout);
    serve();
    if (trace) fclose(trace);
    if (receipts) fclose(receipts);
    return 0;
}
